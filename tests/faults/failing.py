"""The service with one path that raises outside the application, for tests only: `gunicorn failing:app`."""

from collections.abc import Iterable
from typing import Any

from wsgi import app

_answer = app.wsgi_app


def answer_or_fail(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Raise for the path /__fail."""
    if environ["PATH_INFO"] == "/__fail":
        raise RuntimeError(environ["QUERY_STRING"])
    return _answer(environ, start_response)


app.wsgi_app = answer_or_fail  # type: ignore[method-assign]
