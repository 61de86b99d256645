"""The dialects: a row for each client protocol."""

from rill.dialects import anthropic, openai_encoder, responses_encoder, sse, text, ui_messages
from rill.dialects.base import EVENT_STREAM, Dialect

TEXT = Dialect("text", "text/plain; charset=utf-8", text.TextEncoder, True, text.check_beginning)
SSE = Dialect("sse", EVENT_STREAM, sse.SSEEncoder)
UI_MESSAGES = Dialect("ui_messages", EVENT_STREAM, ui_messages.UIMessageEncoder, headers=ui_messages.VERSION)
ANTHROPIC = Dialect(
    "anthropic",
    EVENT_STREAM,
    anthropic.AnthropicEncoder,
    is_verbatim=True,
    encode_whole=anthropic.encode_whole,
    encode_problem=anthropic.encode_problem,
)
OPENAI = Dialect(
    "openai",
    EVENT_STREAM,
    openai_encoder.OpenAIEncoder,
    encode_whole=openai_encoder.encode_whole,
    encode_problem=openai_encoder.encode_problem,
)
RESPONSES = Dialect(
    "responses",
    EVENT_STREAM,
    responses_encoder.ResponsesEncoder,
    encode_whole=responses_encoder.encode_whole,
    encode_problem=openai_encoder.encode_problem,
)
