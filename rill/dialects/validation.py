"""Reading requests, for all dialects: JSON, and the message about a wrong field."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import jiter
from pydantic import Discriminator, Field, Tag, ValidationError

from rill.problems import Problem

MAX_MESSAGES = 10_000
MAX_JSON_DEPTH = 200  # jiter's own limit
# The two forms of a content. pydantic adds these tags to the path of a wrong field; the client's JSON has none.
TEXT_TAG, LIST_TAG = "<text>", "<list>"
# Messages in place of pydantic's, which name one bound only and give no advice.
MESSAGES = {
    "n": "should be 1; send a request for each answer",
    "fallback": "should be true or false",
    "temperature": "should be a number from 0 to 1, or to 2 in OpenAI's dialect",
    "top_p": "should be a number from 0 to 1",
}


def _tag_of(value: Any) -> str | None:
    return TEXT_TAG if isinstance(value, str) else LIST_TAG if isinstance(value, list) else None


Item = TypeVar("Item")
# A string or a list; only the form that was sent is validated. A list ends at its first error: to collect a million of
# them would delay other clients.
TextOrList = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[list[Item], Field(fail_fast=True), Tag(LIST_TAG)],
    Discriminator(_tag_of, custom_error_type="text_or_list", custom_error_message="Input should be a string or a list"),
]


def read_switch(value: Any) -> Any:
    """Return True or False for their names, as a query, a form or a header has them, and any other value as it is."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def read_json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; raise Problem."""
    try:
        fields = jiter.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if str(error).startswith("recursion limit"):
            raise Problem("bad_request", f"The JSON should be nested at most {MAX_JSON_DEPTH} deep.") from None
        raise Problem("bad_request", f"The body should be JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise Problem("bad_request", "The body should be a JSON object.")
    return fields


def bad_field(error: ValidationError) -> Problem:
    """Return the problem of the first wrong field, with its name and allowed values."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part not in (TEXT_TAG, LIST_TAG))
    return Problem("bad_request", f"{field}: {MESSAGES.get(field, first['msg'])}.")


def reject_fields(fields: Mapping[str, Any], instead: Mapping[str, str]) -> None:
    """Raise Problem for the first of these fields that is set; null, false, 0 and empty values do not count."""
    for name, advice in instead.items():
        if fields.get(name):
            raise Problem("bad_request", f"{name}: not supported here; {advice}.")
