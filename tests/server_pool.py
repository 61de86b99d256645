"""The servers that tests share: one for each environment, arguments and application."""

from collections.abc import Mapping

import server
from leaks import WIRE_SECRETS
from server import Rill

MOST = 12


class ServerPool:
    """Start each server once, and stop the least recently used one if there are too many."""

    def __init__(self) -> None:
        self._servers: dict[tuple[object, ...], Rill] = {}

    def get(self, env: Mapping[str, str], arguments: tuple[str, ...] = (), app: str = "wsgi:app") -> Rill:
        """Return a running server, which the test must neither stop nor signal."""
        key = (app, server.GENERAL_PATH, arguments, *sorted(env.items()))
        found = self._servers.pop(key, None)
        if found and not found.is_running:
            found.__exit__()
            found = None
        found = found or Rill(env, arguments, app=app).__enter__()
        self._servers[key] = found  # The last one is the latest used.
        if len(self._servers) > MOST:
            oldest = next(iter(self._servers))
            self._servers.pop(oldest).__exit__()
        return found

    def check_outputs(self) -> None:
        """Raise Leak if a server wrote a secret that was on the wire; then forget the secrets and the outputs."""
        for each in self._servers.values():
            each.check_output()
            each.forget_output()
        for secrets in WIRE_SECRETS.values():
            secrets.forget()

    def close(self) -> None:
        """Stop every server."""
        while self._servers:
            self._servers.popitem()[1].__exit__()
