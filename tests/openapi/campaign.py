"""A campaign of requests that schemathesis generates from the description, with each response checked against it.

Importing schemathesis takes seconds, so tests import this module when they run.
"""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import schemathesis
from requests import PreparedRequest
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.engine import events, from_schema
from schemathesis.generation.case import Case
from schemathesis.hooks import HookContext
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.schemas import BaseSchema
from server import ROOT
from werkzeug.wrappers import Request

DESCRIPTION: dict[str, Any] = json.loads((ROOT / "rill" / "openapi.json").read_text("utf-8"))
AS_DESCRIBED = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ANSWERED_SECONDS = 10
# The statuses of a rejected invalid request; 413 if it is too long, 429 after too many without a valid API key.
REJECTION_STATUSES = ["400", "401", "403", "405", "413", "414", "415", "429", "431"]
# In a request for events, Rill reads nothing else if this header is present.
LAST_EVENT_ID = {"$ref": "#/components/parameters/lastEventId"}
# The schema of a parsed request to each path.
REQUESTS = {
    "/stream": "Question",
    "/api/chat": "ChatQuestion",
    "/api/completion": "Question",
    "/chat/stream": "Question",
    "/v1/messages": "AnthropicRequest",
    "/v1/messages/count_tokens": "AnthropicCount",
    "/v1/chat/completions": "OpenAIRequest",
    "/v1/responses": "ResponsesRequest",
}
NUMBERS = {"max_tokens", "max_output_tokens", "max_completion_tokens", "temperature", "top_p", "top_k"}
BOOLEANS = {"stream", "include_usage", "parallel_tool_calls"}


@dataclass
class Outcome:
    """The result of a campaign: its responses by status, and what was wrong with them."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.statuses.total()


def configuration(
    url: str, headers: dict[str, str], examples: int, seed: int, covers: bool, soaked: bool
) -> SchemathesisConfig:
    """Return a configuration with every check and both kinds of data, reproducible from the seed.

    With `covers`, the values that cover each schema, such as its limits, are requested too.

    A soak omits the checks of whether the description and the service agree on which data is valid: among very many
    requests, some are edge cases in which the two differ.
    """
    independent = {"extra-data-sources": {"responses": False}}
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": url,
            "headers": headers,
            "continue-on-failure": True,
            "request-timeout": ANSWERED_SECONDS,
            "max-stream-events": 1_000_000,
            "suppress-health-check": ["all"],
            "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
            "phases": {
                "examples": independent,
                "coverage": {**independent, "enabled": covers, "generate-duplicate-query-parameters": True},
                "fuzzing": {**independent, "error-feedback": {"enabled": False}},
                # No response of one operation is an argument of another.
                "stateful": {"enabled": False},
            },
            "checks": {
                "max_response_time": float(ANSWERED_SECONDS),
                "negative_data_rejection": {"enabled": not soaked, "expected-statuses": REJECTION_STATUSES},
                "positive_data_acceptance": {"enabled": not soaked},
            },
        }
    )


def without_last_event_id(node: Any) -> Any:
    """Return a part of the description without the parameter Last-Event-ID."""
    if isinstance(node, dict):
        return {name: without_last_event_id(value) for name, value in node.items()}
    if isinstance(node, list):
        return [without_last_event_id(value) for value in node if value != LAST_EVENT_ID]
    return node


def load(description: dict[str, Any], configured: SchemathesisConfig) -> BaseSchema:
    """Return the loaded description, with hooks for the rules that its schemas cannot express."""
    schema = schemathesis.openapi.from_dict(description, config=configured)
    schema.hook("map_body")(make_valid)
    schema.hook("filter_failure")(is_fault)
    return schema


def make_valid(context: HookContext, body: Any) -> Any:
    """Make the first message the user's, and replace 300.0, which JSON Schema accepts as an integer, by 300."""
    if isinstance(body, dict):
        first = first_message(body)
        if first is not None and first.get("role") == "assistant":
            first.clear()  # An assistant's message may omit fields, such as its content; a user's may not.
            first.update(role="user", content="Hello")
        if first == {} and body["messages"]:
            body["messages"].append({"role": "user", "content": "Hello"})
        tokens = body.get("max_tokens")
        if isinstance(tokens, float) and tokens.is_integer():
            body["max_tokens"] = int(tokens)
    return body


def first_message(body: Any) -> dict[str, Any] | None:
    """Return the first message that is not the system's, {} if all are; None if there are no messages."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    others = (message for message in messages if message.get("role") not in ("system", "developer"))
    return next(others, {})


def is_fault(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
    """Return whether a failed check is a fault, and not a rule that a schema cannot express."""
    if isinstance(failure, RejectedPositiveData):
        first = first_message(case.body)
        return first is None or first.get("role") == "user"
    if isinstance(failure, AcceptedNegativeData):
        # A file ignores the query.
        return case.path in REQUESTS and not is_valid_when_parsed(case, response.request)
    return True


def is_valid_when_parsed(case: Case, sent: PreparedRequest) -> bool:
    """Return whether a request meant to be invalid is valid when parsed: a list in a query is its first value."""
    if case.path not in REQUESTS:
        return True  # The id of a recorded answer is known or not, and any header is valid.
    url, body = urlsplit(sent.url or ""), sent.body or b""
    request = Request.from_values(
        method=sent.method,
        query_string=url.query,
        data=body if isinstance(body, bytes) else body.encode(),
        content_type=sent.headers.get("Content-Type"),
    )
    fields = request.args.to_dict()
    if request.is_json:
        with suppress(ValueError):
            fields = json.loads(request.get_data())
    elif request.mimetype == "text/plain":
        fields["q"] = request.get_data(as_text=True)
    else:
        fields.update({name: value for name, value in request.form.to_dict().items() if name is not None})
    reference = {"$ref": f"#/components/schemas/{REQUESTS[case.path]}", "components": DESCRIPTION["components"]}
    return jsonschema_rs.is_valid(reference, parsed(fields))


def parsed(fields: Any) -> Any:
    """Return the fields with numbers and booleans converted, such as 1 for "1" or true, and false for 0."""
    if not isinstance(fields, dict):
        return fields
    read = {name: parsed(value) if name == "stream_options" else value for name, value in fields.items()}
    for name in NUMBERS & read.keys():
        with suppress(ValueError, TypeError):
            read[name] = float(read[name])
    return {name: None if name in BOOLEANS else value for name, value in read.items()}


def campaign(schema: BaseSchema) -> Outcome:
    """Send every request that schemathesis generates from the description."""
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            outcome.faults.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            outcome.faults.append(repr(event.exception))
        elif isinstance(event, events.ScenarioFinished):
            responses = {case: each.response for case, each in event.recorder.interactions.items() if each.response}
            outcome.statuses.update(response.status_code for response in responses.values())
            for case, checks in event.recorder.checks.items():
                failed = [check.failure_info for check in checks if check.failure_info]
                outcome.faults += [
                    f"{each.failure}\n{responses[case].content!r}\n{each.code_sample}" for each in failed
                ]
    return outcome


def status_as_described(url: str, asked: str, headers: dict[str, str], **fields: Any) -> int:
    """Send one request, such as GET /stream; return the status of its response; raise if that is not as described."""
    method, path = asked.split(" ")
    case = whole_description()[path][method].Case(**fields)
    response = case.call(url, headers={"Connection": "close", **headers})
    case.validate_response(response, checks=CHECKS.get_by_names(AS_DESCRIBED))
    return response.status_code


@cache
def whole_description() -> Any:
    """Return the description, as schemathesis reads it."""
    return schemathesis.openapi.from_dict(DESCRIPTION)
