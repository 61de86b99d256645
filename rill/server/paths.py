"""Advice for a path that does not exist, and the dialect of a path for reporting problems."""

from rill.dialects import ANTHROPIC, OPENAI
from rill.dialects.base import Dialect

# The end of a path -> the path that is probably meant; the first match counts.
MEANT = {
    "/messages": "/v1/messages",
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/chat/completions",
    "/responses": "/v1/responses",
    "/models": "/v1/models",
    "/chat/stream": "/chat/stream",
    "/stream": "/stream",
}


def advice_for(path: str) -> str | None:
    """Return a sentence that names the path which is probably meant; None if that is not known."""
    path = path.rstrip("/").lower()
    meant = next((meant for end, meant in MEANT.items() if path.endswith(end)), None)
    if meant:
        return f"There is nothing here. Use {meant}."
    if path.startswith("/v1/"):
        return "There is nothing here. Use /v1/messages, /v1/chat/completions, /v1/responses or /v1/models."
    return None


def dialect_of(path: str, is_anthropic: bool) -> Dialect:
    """Return the dialect in which problems are reported at a path under /v1/."""
    path = path.rstrip("/")
    if path.endswith("/chat/completions"):
        return OPENAI
    return ANTHROPIC if is_anthropic or path.endswith(("/messages", "/messages/count_tokens")) else OPENAI
