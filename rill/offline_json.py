"""A value that satisfies a JSON schema, always the same: what the offline model passes to tools and answers with."""

from collections.abc import Mapping
from typing import Any

FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "rill@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
MAX_DEPTH = 20


def instance_of(schema: Any, name: str = "text", root: Any = None, depth: int = 0) -> Any:
    """Return a value that satisfies the schema; raise ValueError if it is nested too deep.

    A string is the name of its property. Patterns are not satisfied.
    """
    root = schema if root is None else root
    if depth > MAX_DEPTH:
        raise ValueError("The schema has no end.")
    if not isinstance(schema, Mapping):
        return {}
    if isinstance(schema.get("$ref"), str):
        return instance_of(_resolve(schema["$ref"], root), name, root, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return instance_of(_chosen(schema[key], depth), name, root, depth + 1)
    if schema.get("allOf"):
        schema = _merged([schema, *schema["allOf"]], root)
    return _of_type(schema, name, root, depth + 1)


def _of_type(schema: Mapping[str, Any], name: str, root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind == "object":
        properties = schema.get("properties") or {}
        # What is optional may be left out, and ends a schema that refers to itself.
        wanted = schema.get("required", properties if depth < 3 else ())
        return {key: instance_of(properties.get(key, {"type": "string"}), key, root, depth) for key in wanted}
    if kind == "array":
        count = max(schema.get("minItems", 0), 1 if depth < 5 and schema.get("maxItems", 1) else 0)
        return [instance_of(schema.get("items", {}), name, root, depth) for _ in range(min(count, 100))]
    if kind in ("integer", "number"):
        return _number(schema)
    if kind == "string":
        text = FORMATS.get(schema.get("format", ""), name)
        return text.ljust(min(schema.get("minLength", 0), 10_000), ".")[: schema.get("maxLength")]
    return False if kind == "boolean" else None


def _number(schema: Mapping[str, Any]) -> Any:
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
    most = schema.get("maximum", schema.get("exclusiveMaximum", least + 1) - ("exclusiveMaximum" in schema))
    value = min(max(1, least), most)
    step = schema.get("multipleOf")
    return -(-least // step) * step if step else value


def _chosen(choices: list[Any], depth: int) -> Any:
    # Null ends a schema that refers to itself.
    wanted = [each for each in choices if (each.get("type") == "null") == (depth > 5)]
    return (wanted or choices)[0]


def _merged(schemas: list[Any], root: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {"properties": {}, "required": []}
    for schema in schemas:
        part = _resolve(schema["$ref"], root) if "$ref" in schema else schema
        properties, required = part.get("properties", {}), part.get("required", [])
        merged = {
            **merged,
            **{key: value for key, value in part.items() if key != "allOf"},
            "properties": {**merged["properties"], **properties},
            "required": [*merged["required"], *required],
        }
    return merged if merged["properties"] else {k: v for k, v in merged.items() if k not in ("properties", "required")}


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")] if part else found
    return found
