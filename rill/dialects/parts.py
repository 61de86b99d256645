"""The parts of the AI SDK's messages, as the content of a message of the Messages API.

https://ai-sdk.dev/docs/reference/ai-sdk-core/ui-message
"""

from collections.abc import Sequence
from typing import Any

from rill.dialects.blocks import block_of_file
from rill.problems import Problem

# What a page shows beside an answer. The AI SDK sends it back with the next question; the model does not need it.
PRESENTATIONAL = ("step-start", "reasoning", "reasoning-file", "source-url", "source-document")


def content_of(where: str, role: str, parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the text of the parts, or a list of blocks where files are among them; raises Problem.

    Presentational parts are skipped, and so are an answer's own `data-` parts.
    """
    blocks: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        blocks += _blocks_of(f"{where}.{index}", role, part)
    if all(block["type"] == "text" for block in blocks):
        return "".join(block["text"] for block in blocks)
    return [block for block in blocks if block.get("text") != ""]


def _blocks_of(where: str, role: str, part: dict[str, Any]) -> list[dict[str, Any]]:
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise Problem("bad_request", f"{where}.text: should be a string.")
        return [{"type": "text", "text": part["text"]}]
    if kind in PRESENTATIONAL or (role == "assistant" and str(kind).startswith("data-")):
        return []
    if kind == "file" and role == "user":
        return [_block_of_file(where, part)]
    if kind == "file":
        raise Problem("bad_request", f"{where}.type: a file should be in a message of the role user.")
    if str(kind).startswith("tool-") or kind in ("dynamic-tool", "tool-invocation"):
        raise Problem("bad_request", f"{where}.type: tools are not supported here; use POST /v1/messages.")
    raise Problem("bad_request", f"{where}.type: should be text or file.")


def _block_of_file(where: str, part: dict[str, Any]) -> dict[str, Any]:
    media_type, title = part.get("mediaType", ""), part.get("filename")
    url = part.get("url", part.get("data"))
    if not isinstance(url, str) or not url:
        raise Problem("bad_request", f"{where}.url: should be an http(s) URL or a data: URL.")
    if not isinstance(media_type, str) or not isinstance(title, str | None):
        raise Problem("bad_request", f"{where}: mediaType and filename should be strings.")
    if "url" not in part and ":" not in url:
        url = f"data:{media_type};base64,{url}"  # `data` may also be bare base64, in which no colon occurs.
    return block_of_file(where, media_type, url, title)
