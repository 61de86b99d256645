"""JSON schemas as the Messages API's structured output accepts them.

https://docs.anthropic.com/en/docs/build-with-claude/structured-outputs#json-schema-limitations
"""

from typing import Any

SUPPORTED = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "allOf"),
    *("$ref", "$defs", "definitions", "description", "title", "format", "default"),
}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}


def fit_schema(schema: Any) -> Any:
    """Return the schema with closed objects; what is not supported becomes part of a description."""
    if not isinstance(schema, dict):
        return schema
    fitted = {name: _fit(name, value) for name, value in schema.items() if _is_supported(name, value)}
    if "oneOf" in schema and "anyOf" not in schema:
        fitted["anyOf"] = _fit("anyOf", schema["oneOf"])
    if schema.get("type") == "object" or "properties" in schema:
        fitted.update(type="object", additionalProperties=False, properties=fitted.get("properties") or {})
    others = [
        f"{name}: {value}" for name, value in schema.items() if not _is_supported(name, value) and name[:1] != "$"
    ]
    rest = ", ".join(each for each in others if not each.startswith("oneOf: "))
    if rest:
        fitted["description"] = "\n\n".join(filter(None, (schema.get("description"), f"{{{rest}}}")))
    return fitted


def _is_supported(name: str, value: Any) -> bool:
    if name == "minItems":
        return value in (0, 1)
    return name in SUPPORTED and (name != "format" or (isinstance(value, str) and value in FORMATS))


def _fit(name: str, value: Any) -> Any:
    if name in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {key: fit_schema(each) for key, each in value.items()}
    if name in ("anyOf", "allOf") and isinstance(value, list):
        return [fit_schema(each) for each in value]
    return fit_schema(value) if name == "items" else value
