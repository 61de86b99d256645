"""Find secrets in the output of servers: the keys, prompts and answers that a test used, in every encoding.

The output of a server is checked when it stops, and that of a shared server after each module (`ServerPool`).
Prompts, answers and credentials are recorded as they pass over the wire.
"""

import json
import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

# Shorter texts could occur in any line by chance.
SHORTEST = 8
# The beginning of a text is enough to recognise it.
LONGEST = 60
# The most texts of one kind that are recorded, for a fuzzer sends a hundred thousand.
MOST = 500

# The fields of a message that contain names, not user text.
NAMES = {"type", "role", "media_type", "name", "id", "tool_use_id"}
TEXTS = re.compile(rb'"(?:text|thinking|partial_json|message)": ?"((?:[^"\\]|\\.){8,200})')
CREDENTIALS = re.compile(rb"^(?:authorization:[ \t]*(bearer|basic)|(x-api-key):)[ \t]*([^\r\n]*)", re.I | re.M)
LONE_SURROGATES = re.compile("[\ud800-\udfff]")
# Values that clients choose and that a log line may contain.
CHOSEN = re.compile(r'"(?:request_id|requested_model|model)": "(?:[^"\\]|\\.)*"')


class Leak(AssertionError):
    """A server wrote a secret."""


class WireSecrets:
    """The secrets that passed over the wire at one port, each with its kind."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self._noted: Counter[str] = Counter()

    def note_credentials(self, request: bytes) -> None:
        """Record the API keys in the head of a request."""
        for scheme, _, value in CREDENTIALS.findall(request[:20_000].partition(b"\r\n\r\n")[0]):
            self._note(value.decode("latin-1"), "client's API key")
            with suppress(ValueError):
                password = b64decode(value, validate=True).partition(b":")[2] if scheme.lower() == b"basic" else b""
                self._note(password.decode(), "client's API key")

    def note_prompt(self, body: bytes) -> None:
        """Record the prompt in the body of a request to the Messages API."""
        with suppress(ValueError, RecursionError):
            fields = json.loads(body)
            asked = [fields.get("system"), fields.get("messages")] if isinstance(fields, dict) else []
            for text in strings_in(asked):
                self._note(text, "prompt")

    def note_answer(self, data: bytes) -> None:
        """Record the texts of an answer, or the message of an error."""
        if self._noted["answer"] >= MOST:
            return
        for text in TEXTS.findall(data[:4096]):
            with suppress(ValueError):
                self._note(json.loads(b'"%b"' % text), "answer")

    def forget(self) -> None:
        """Forget all recorded secrets."""
        self.kinds.clear()
        self._noted.clear()

    def _note(self, text: str, kind: str) -> None:
        known = max(LONE_SURROGATES.split(text.strip()), key=len)[:LONGEST]
        fits = len(known) >= SHORTEST and len(set(known)) > 4
        if fits and known not in self.kinds and self._noted[kind] < MOST:
            self._noted[kind] += 1
            self.kinds[known] = kind


WIRE_SECRETS: dict[int, WireSecrets] = {}


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string of parsed JSON that may be user text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from strings_in(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name not in NAMES:
                yield from strings_in(each)


def secrets_of(env: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets in the environment of a server, each with its kind."""
    keys = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "RILL_FALLBACK_API_KEY")
    found = {env.get(name, ""): "upstream key" for name in keys}
    for entry in env.get("RILL_API_KEYS", "").split(","):
        found[entry.partition("=")[2] or entry] = "client's API key"
    with suppress(ValueError):
        found[unquote(urlsplit(env.get("REDIS_URL", "")).password or "")] = "password of Redis"
    found[env.get("RILL_SYSTEM_PROMPT", "")[:LONGEST]] = "system prompt"
    return {secret: kind for secret, kind in found.items() if len(secret) >= SHORTEST}


def forbidden_at(port: int, env: Mapping[str, str]) -> dict[str, str]:
    """Return every secret that the server at `port`, with this environment, must not write, each with its kind."""
    ports = [port]
    for name in ("ANTHROPIC_BASE_URL", "RILL_FALLBACK_BASE_URL"):
        with suppress(ValueError):  # the port may be invalid
            ports.append(urlsplit(env.get(name, "")).port or 0)
    is_text = [item for each in ports if each in WIRE_SECRETS for item in list(WIRE_SECRETS[each].kinds.items())]
    return {**dict(is_text), **secrets_of(env)}


@lru_cache(4096)
def forms(secret: str) -> set[str]:
    """Return the secret in every encoding that a line may contain."""
    written = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
    written |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], secret.encode().hex()}
    for before in range(3):  # its position in the encoded data changes its base64 letters, and those at its edges
        encoded = b64encode(b"\0" * before + secret.encode()).decode().rstrip("=")
        written.add(encoded[4 if before else 0 : -1])
    return written


def find_leaks(output: str, secrets: Mapping[str, str]) -> list[str]:
    """Return a description of each secret in the output: its kind, its encoding and the line."""
    output = output.replace("\\n", "\n")
    without_chosen = CHOSEN.sub("", output)
    leaks = []
    for secret, kind in secrets.items():
        is_text = kind in ("prompt", "answer")
        for form in forms(secret):
            if line := line_with(form, without_chosen if is_text else output, whole=is_text and secret.isalnum()):
                leaks.append(f"the {kind} {secret!r}, as {form!r}, in the line {line[:500]!r}")
                break
    return leaks


def line_with(form: str, output: str, whole: bool) -> str:
    """Return the first line that contains `form`, or ""; if `whole`, only as a whole word."""
    at = output.find(form)
    if at >= 0 and whole:
        found = re.search(rf"(?<!\w){re.escape(form)}(?!\w)", output)
        at = found.start() if found else -1
    return "" if at < 0 else output[output.rfind("\n", 0, at) + 1 :].partition("\n")[0]
