"""The description is served, valid and complete."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from server import ROOT, Rill

from app import create_app
from rill.dialects.validation import MAX_MESSAGES
from rill.problems import KINDS
from rill.settings import MAX_MODEL_LENGTH, Settings

TEXT = (ROOT / "rill" / "openapi.json").read_text("utf-8")
DESCRIPTION: dict[str, Any] = json.loads(TEXT)
COMPONENTS: dict[str, dict[str, Any]] = DESCRIPTION["components"]
# No client receives these.
NOT_RECEIVED = ("client_disconnected", "client_too_slow")
METHODS = ("get", "post", "delete")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and the description of each operation."""
    for path, item in DESCRIPTION["paths"].items():
        yield from ((method.upper(), path, item[method]) for method in METHODS if method in item)


def references(node: Any) -> Iterator[str]:
    """Yield every reference in a part of the description."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "$ref")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from references(value)


def test_the_description_is_served_unchanged(service: Rill) -> None:
    with service.ask("GET", "/openapi.json") as asked:
        assert asked.status == 200
        assert asked.headers["content-type"] == "application/json"
        assert asked.read_rest().decode() == TEXT


def test_the_description_is_valid_openapi_3_1() -> None:
    assert DESCRIPTION["openapi"].startswith("3.1.")
    from campaign import whole_description  # schemathesis takes seconds to import

    whole_description().validate()


@pytest.mark.parametrize("name", COMPONENTS["schemas"])
def test_each_schema_is_valid_json_schema(name: str) -> None:
    jsonschema_rs.Draft202012Validator({**COMPONENTS["schemas"][name], "components": COMPONENTS})


def test_every_reference_resolves_and_every_component_is_used() -> None:
    used = set(references(DESCRIPTION))
    there = {f"#/components/{kind}/{name}" for kind, known in COMPONENTS.items() for name in known}
    schemes = {f"#/components/securitySchemes/{name}" for way in DESCRIPTION["security"] for name in way}
    # Requests outside the description get these.
    elsewhere = {f"#/components/responses/{status}" for status in (404, 405)}
    assert there == used | schemes | elsewhere


def test_the_operations_are_the_routes() -> None:
    app = create_app(Settings(ANTHROPIC_API_KEY="sk-test-key"))
    served = {
        (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    routes = {(method, path) for method, path in served if method not in ("HEAD", "OPTIONS")}
    assert {(method, path) for method, path, _ in operations()} == routes


def test_every_problem_that_a_client_can_receive_is_described() -> None:
    statuses = {status for *_, operation in operations() for status in operation["responses"]} | {"404", "405"}
    seen = {name: kind for name, kind in KINDS.items() if name not in NOT_RECEIVED}
    no_status = {"499"}  # Only an event stream can report that another client stopped the answer.
    assert {str(kind.status) for kind in seen.values()} - no_status <= statuses
    assert COMPONENTS["schemas"]["ProblemName"]["enum"] == list(seen)
    assert set(COMPONENTS["schemas"]["ProblemType"]["enum"]) == {kind.type for kind in seen.values()}


def test_the_limits_are_those_of_the_default_settings() -> None:
    settings = Settings(ANTHROPIC_API_KEY="sk-test-key")
    assert set(re.findall(r'"maximum": (\d{4,})', TEXT)) == {str(settings.max_tokens)}
    assert set(re.findall(r'"maxItems": (\d{4,})', TEXT)) == {str(MAX_MESSAGES)}
    assert set(re.findall(r'"maxLength": (\d{3,})', TEXT)) == {str(MAX_MODEL_LENGTH)}
    assert f"{settings.max_body_bytes:,} bytes" in TEXT


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/nothing", 404), ("PUT", "/stream", 405), ("PUT", "/v1/messages", 405)],
)
def test_an_undescribed_operation_is_rejected_as_described(service: Rill, method: str, path: str, status: int) -> None:
    for accept in ("*/*", "application/json"):
        with service.ask(method, path, {"Accept": accept, "Connection": "close"}) as asked:
            assert asked.status == status
            described = COMPONENTS["responses"][str(status)]
            media_type = asked.headers["content-type"].split(";")[0]
            schema = described["content"][media_type].get("schema")
            assert all(name.lower() in asked.headers for name in described["headers"])
            text = asked.read_rest()
        if schema:
            jsonschema_rs.validate({**schema, "components": COMPONENTS}, json.loads(text))
