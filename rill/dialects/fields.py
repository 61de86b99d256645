"""What the dialects share in reading a request: JSON, and the words for a field that is wrong."""

from typing import Any

import jiter
from pydantic import ValidationError

from rill.problems import Problem

MAX_MESSAGES = 10_000
MAX_JSON_DEPTH = 200  # jiter's own
# What to say of a field that has two bounds, where pydantic names the one that was crossed.
SHOULD_BE = {
    "temperature": "should be a number from 0 to 1, or to 2 in OpenAI's dialect",
    "top_p": "should be a number from 0 to 1",
}


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body should be; raises Problem."""
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
    """The first thing that is wrong, by the name of its field and what it should be."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return Problem("bad_request", f"{field}: {SHOULD_BE.get(field, first['msg'])}.")
