"""Files that a client sends, as content blocks of the Messages API: images, PDFs and text.

https://docs.anthropic.com/en/docs/build-with-claude/vision and
https://docs.anthropic.com/en/docs/build-with-claude/pdf-support
"""

import binascii
import re
from base64 import b64encode
from typing import Any
from urllib.parse import unquote_to_bytes

from rill.problems import Problem

# https://www.rfc-editor.org/rfc/rfc2397
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(;base64)?,", re.ASCII | re.IGNORECASE)
MEDIA_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}", re.ASCII)


def block_of_file(where: str, media_type: str, url: str, title: str | None) -> dict[str, Any]:
    """Return the content block of one file; raises Problem, naming the field below `where`."""
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
    # A wildcard such as image/* says less than the URL itself.
    data = DATA_URL.match(url)
    found = (data[1] or "" if data and (not media_type or "*" in media_type) else media_type).lower()
    kind, slash, _ = found.partition("/")
    if found == "application/pdf" or (kind in ("image", "text") and slash):
        return kind, found
    said = f", not {found}" if MEDIA_TYPE.fullmatch(found) else ""
    allowed = "image/*, application/pdf or text/*"
    raise Problem("bad_request", f"{where}.mediaType: should be {allowed}{said}.")


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
