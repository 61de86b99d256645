"""JSON as security needs it: each name once, and only the values that JSON defines."""

import json
from typing import Any


def read_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object; raise ValueError for anything else, and for a name that occurs twice."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_check_names, parse_constant=_reject)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _check_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two parsers may choose different ones: https://www.rfc-editor.org/rfc/rfc7519#section-4
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
