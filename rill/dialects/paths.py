"""What to tell a client that asks for a path that does not exist: the path that it probably means."""

from rill.dialects import ANTHROPIC, OPENAI
from rill.dialects.base import Dialect

# What a path ends with -> the path that is meant; the first that fits counts.
MEANT = {
    "/messages": "/v1/messages",
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/chat/completions",
    "/responses": "/v1/chat/completions",
    "/models": "/v1/models",
    "/chat/stream": "/chat/stream",
    "/stream": "/stream",
}
# The paths that the AI SDK's useChat and useCompletion ask for by default.
AI_SDK = {
    "/api/chat": "new TextStreamChatTransport({ api: '/stream' }) as the transport of useChat",
    "/api/completion": "api: '/stream' and streamProtocol: 'text' for useCompletion",
}


def advice_for(path: str) -> str | None:
    """Return a sentence that names the path which is meant; None where there is no telling."""
    path = path.rstrip("/").lower()
    if path in AI_SDK:
        return f"There is nothing here. Use {AI_SDK[path]}."
    meant = next((meant for end, meant in MEANT.items() if path.endswith(end)), None)
    if meant:
        return f"There is nothing here. Use {meant}."
    if path.startswith("/v1/"):
        return "There is nothing here. Use /v1/messages, /v1/chat/completions or /v1/models."
    return None


def dialect_of(path: str, is_anthropic: bool) -> Dialect:
    """Return the dialect in which a client that asks for a path under /v1/ is told what went wrong."""
    path = path.rstrip("/")
    if path.endswith("/chat/completions"):
        return OPENAI
    return ANTHROPIC if is_anthropic or path.endswith(("/messages", "/messages/count_tokens")) else OPENAI
