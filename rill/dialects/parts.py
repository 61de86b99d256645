"""The AI SDK's message parts, text and files, as content blocks of the Messages API.

https://ai-sdk.dev/docs/reference/ai-sdk-core/ui-message and https://docs.anthropic.com/en/docs/build-with-claude/vision
"""

import binascii
import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from rill.problems import Problem

# Parts that a page shows beside an answer: the AI SDK sends them back, and the model does not need them.
PRESENTATIONAL = ("step-start", "reasoning", "reasoning-file", "source-url", "source-document")
# https://www.rfc-editor.org/rfc/rfc2397
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(;base64)?,", re.ASCII | re.IGNORECASE)
MEDIA_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}", re.ASCII)


def content_of(where: str, role: str, parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the text of the parts, or a list of blocks if there are files; raise Problem.

    Presentational parts are skipped, and so are an answer's own `data-` parts.
    """
    blocks: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        blocks += blocks_of(f"{where}.{index}", role, part)
    if all(block["type"] == "text" for block in blocks):
        return "".join(block["text"] for block in blocks)
    return [block for block in blocks if block.get("text") != ""]


def blocks_of(where: str, role: str, part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the blocks of one part, none if it is presentational; raise Problem."""
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
        raise Problem(
            "bad_request", f"{where}.type: tools are not supported here; use POST /api/chat, with AI SDK 5 or newer."
        )
    raise Problem("bad_request", f"{where}.type: should be text or file.")


def _block_of_file(where: str, part: dict[str, Any]) -> dict[str, Any]:
    media_type, title = part.get("mediaType", ""), part.get("filename")
    url = part.get("url", part.get("data"))
    if not isinstance(url, str) or not url:
        raise Problem("bad_request", f"{where}.url: should be an http(s) URL or a data: URL.")
    if not isinstance(media_type, str) or not isinstance(title, str | None):
        raise Problem("bad_request", f"{where}: mediaType and filename should be strings.")
    if "url" not in part and ":" not in url:
        url = f"data:{media_type};base64,{url}"  # `data` may also be base64, which has no colon.
    kind, media_type = _kind_of(where, media_type, url)
    if not url.lower().startswith(("http://", "https://")):
        source = _source_of_data(where, media_type, url)
    elif kind == "text":
        raise Problem("bad_request", f"{where}.url: a text file should be a data: URL; images and PDFs may be linked.")
    else:
        source = {"type": "url", "url": url}
    if kind == "image":
        return {"type": "image", "source": source}
    return {"type": "document", "source": source, **({"title": title} if title else {})}


def _kind_of(where: str, media_type: str, url: str) -> tuple[str, str]:
    # The URL itself is more exact than a wildcard such as image/*.
    data = DATA_URL.match(url)
    found = (data[1] or "" if data and (not media_type or "*" in media_type) else media_type).lower()
    kind, slash, _ = found.partition("/")
    if found == "application/pdf" or (kind in ("image", "text") and slash):
        return kind, found
    found_instead = f", not {found}" if MEDIA_TYPE.fullmatch(found) else ""
    allowed = "image/*, application/pdf or text/*"
    raise Problem("bad_request", f"{where}.mediaType: should be {allowed}{found_instead}.")


def _source_of_data(where: str, media_type: str, url: str) -> dict[str, Any]:
    data = DATA_URL.match(url)
    if not data:
        raise Problem("bad_request", f"{where}.url: should be an http(s) URL or a data: URL.")
    payload = url[data.end() :]
    try:
        content = binascii.a2b_base64(payload, strict_mode=True) if data[2] else unquote_to_bytes(payload)
        if media_type.startswith("text/"):
            return {"type": "text", "media_type": "text/plain", "data": content.decode()}
    except UnicodeDecodeError:
        raise Problem("bad_request", f"{where}.url: the text should be UTF-8.") from None
    except ValueError:
        raise Problem("bad_request", f"{where}.url: the data should be base64 without spaces or line ends.") from None
    return {"type": "base64", "media_type": media_type, "data": payload if data[2] else b64encode(content).decode()}
