"""app.json conforms to https://devcenter.heroku.com/articles/app-json-schema, and to Rill's settings."""

import json
import re
import secrets
from typing import Any

import pytest
from server import ROOT

from rill.admission.auth import Authentication
from rill.problems import Problem
from rill.settings import Settings

APP: dict[str, Any] = json.loads((ROOT / "app.json").read_text("utf-8"))
ENV: dict[str, dict[str, Any]] = APP["env"]
# The keys that Heroku allows at the top level.
KEYS = {
    "name",
    "description",
    "keywords",
    "website",
    "repository",
    "logo",
    "success_url",
    "scripts",
    "env",
    "formation",
}
RUNNING_KEYS = {"addons", "buildpacks", "environments", "image", "stack"}
VARIABLE_TYPES = {"description": str, "value": str, "required": bool, "generator": str}
FIELDS = {field.validation_alias: field for field in Settings.model_fields.values()}
LONGEST_NAME = 30
# The values that a user may enter in the form.
ENTERED = {
    "ANTHROPIC_API_KEY": "sk-ant-key",
    "RILL_ALLOWED_MODELS": "*",
    "RILL_CORS_ORIGINS": "https://app.example,http://localhost:3000",
}


def test_the_top_level_has_only_known_keys() -> None:
    assert set(APP) <= KEYS | RUNNING_KEYS
    assert len(APP["name"]) <= LONGEST_NAME
    assert all(isinstance(word, str) for word in APP["keywords"])


@pytest.mark.parametrize("name", ENV)
def test_a_variable_is_a_setting_with_a_description(name: str) -> None:
    variable = ENV[name]
    assert name in FIELDS
    assert variable["description"]
    assert {key: type(value) for key, value in variable.items()} == {key: VARIABLE_TYPES[key] for key in variable}
    assert variable.get("generator", "secret") == "secret"


@pytest.mark.parametrize("name", [name for name, variable in ENV.items() if "value" in variable])
def test_a_preset_value_is_rills_default(name: str) -> None:
    assert ENV[name]["value"] == str(FIELDS[name].default)


def test_the_only_required_input_is_the_upstream_api_key() -> None:
    required = [name for name, variable in ENV.items() if variable.get("required", True)]
    assert [name for name in required if "generator" not in ENV[name]] == ["ANTHROPIC_API_KEY"]


def test_the_form_makes_valid_settings_and_the_generated_secret_is_an_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(32)
    generated = {name: secret for name, variable in ENV.items() if "generator" in variable}
    for name, value in {
        **{name: v["value"] for name, v in ENV.items() if "value" in v},
        **ENTERED,
        **generated,
    }.items():
        monkeypatch.setenv(name, value)
    assert set(generated) == {"RILL_API_KEYS"}
    api_keys = Authentication(Settings().api_keys)
    assert api_keys.client_of(secret, "").name == "default"
    with pytest.raises(Problem):
        api_keys.client_of("another", "")


def test_the_formation_starts_the_processes_of_the_procfile() -> None:
    processes = re.findall(r"^(\w+): ", (ROOT / "Procfile").read_text("utf-8"), re.MULTILINE)
    assert list(APP["formation"]) == processes
    assert APP["formation"]["web"]["quantity"] == 1
