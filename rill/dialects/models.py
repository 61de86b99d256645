"""The list of models, in one shape that the clients of both Anthropic and OpenAI read.

https://docs.anthropic.com/en/api/models-list and https://platform.openai.com/docs/api-reference/models/list
"""

from collections.abc import Sequence
from typing import Any

# Clients of both APIs require a date; Rill does not know it.
EPOCH = "1970-01-01T00:00:00Z"


def list_models(names: Sequence[str], offline: bool = False) -> dict[str, Any]:
    """Return the list of these models, without `*`."""
    models = [describe_model(name, offline) for name in names if name != "*"]
    first, last = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    return {"object": "list", "data": models, "has_more": False, "first_id": first, "last_id": last}


def describe_model(name: str, offline: bool = False) -> dict[str, Any]:
    """Return one model; the page shows who answers."""
    return {
        "id": name,
        "type": "model",
        "object": "model",
        "display_name": name,
        "created_at": EPOCH,
        "created": 0,
        "owned_by": "offline" if offline else "anthropic",
    }
