"""API keys as settings write them: `name=secret`, comma-separated, with a budget if the client has its own."""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from rill.quota import Quota, parse_quotas

SECRET = re.compile(r"sha256:[0-9a-fA-F]{64}|(?!sha256:)=*[^=].*")
# Two secrets under one name, so that a key can be replaced while both are in use.
MAX_SECRETS = 2
# The name and the prefix of names that JWT clients have.
JWT_CLIENT = "jwt"


class ApiKey(NamedTuple):
    """The secrets of one client as SHA-256 digests, and the `budget` that replaces RILL_TOKEN_BUDGET."""

    digests: tuple[bytes, ...]
    budget: tuple[Quota, ...] = ()


def parse_api_keys(text: str) -> Mapping[str, ApiKey]:
    """Return the API keys by the client's name; raise ValueError."""
    keys: dict[str, ApiKey] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        entry, has_budget, budget = entry.partition(";budget=")
        is_named = "=" in entry
        name, secret = entry.split("=", 1) if is_named else ("default", entry)
        known = keys.get(name, ApiKey(()))
        quotas = parse_quotas(budget) if has_budget else ()
        digest = _digest_in(secret)
        # Without names, these are the parts of one secret with a comma rather than two secrets.
        is_full = len(known.digests) >= (MAX_SECRETS if is_named else 1)
        conflicts = digest in known.digests or (known.budget and quotas and known.budget != quotas)
        is_reserved = name == JWT_CLIENT or name.startswith(f"{JWT_CLIENT}:")
        if not name or is_reserved or conflicts or is_full:
            raise ValueError
        keys[name] = ApiKey((*known.digests, digest), known.budget or quotas)
    return keys


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _digest_in(secret: str) -> bytes:
    if not SECRET.fullmatch(secret):
        raise ValueError
    digest = secret.removeprefix("sha256:")
    return bytes.fromhex(digest) if digest != secret else digest_of(secret)
