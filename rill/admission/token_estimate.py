"""Estimates of tokens that the upstream has not counted: those of a request, and those of a truncated answer.

An estimate is rather high: a client must not save anything by a disconnect before the upstream's count.
"""

import math
from collections.abc import Mapping
from typing import Any

from rill.prompt import Prompt

BYTES_PER_TOKEN = 3
# The most that the API charges for an image: https://docs.anthropic.com/en/docs/build-with-claude/vision
IMAGE_TOKENS = 1600
# A page of a PDF has some kilobytes in base64, and up to 3,000 tokens.
PDF_BYTES_PER_TOKEN = 12
# The tokens of the structure around each text.
OVERHEAD_TOKENS = 8
# What the API reports apart from `input_tokens`.
CACHE_COUNTS = ("cache_creation_input_tokens", "cache_read_input_tokens")


def estimate_input(prompt: Prompt) -> int:
    """Return the estimated input tokens of a request."""
    return OVERHEAD_TOKENS + _estimate([prompt.messages, prompt.options])


def least_output(prompt: Prompt) -> int:
    """Return the smallest max_tokens that the API accepts for the request."""
    thinking = prompt.options.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return 1 + (budget if type(budget) is int and budget > 0 else 0)


def estimate_output(received_bytes: int) -> int:
    """Return the estimated tokens of the received part of an answer."""
    return math.ceil(received_bytes / BYTES_PER_TOKEN)


def count_of(usage: Mapping[str, Any], *names: str) -> int:
    """Return the sum of the upstream's counts; a value that is not a count is 0."""
    counts = [usage.get(name) for name in names]
    return sum(count for count in counts if type(count) is int and 0 < count < 2**53)


def _estimate(value: Any) -> int:
    if isinstance(value, str):
        return math.ceil((len(value) if value.isascii() else len(value.encode("utf-8", "replace"))) / BYTES_PER_TOKEN)
    if isinstance(value, dict):
        if value.get("type") == "image":
            return IMAGE_TOKENS
        if value.get("media_type") == "application/pdf" and isinstance(value.get("data"), str):
            return max(IMAGE_TOKENS, len(value["data"]) // PDF_BYTES_PER_TOKEN)
        return OVERHEAD_TOKENS + sum(_estimate(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(map(_estimate, value))
    return 1
