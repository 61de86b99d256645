"""The service with a route that shows the state of its worker, for tests only: `gunicorn probe:app`."""

import gc
import os

from flask import jsonify, request
from flask.typing import ResponseReturnValue
from greenlet import greenlet

from wsgi import app


@app.get("/__probe")
def probe() -> ResponseReturnValue:
    """Return the worker's pid, its number of greenlets, and whether it has no open answer."""
    alive = sum(isinstance(each, greenlet) and not each.dead for each in gc.get_objects())
    drain = request.environ["gunicorn.socket"].connections.drain
    return jsonify(pid=os.getpid(), greenlets=alive, no_answer_open=not drain._open)
