"""The service with a look inside its worker, for tests only: `gunicorn probe:app`."""

import gc
import os

from flask import jsonify, request
from flask.typing import ResponseReturnValue
from greenlet import greenlet

from wsgi import app


@app.get("/__probe")
def look_inside() -> ResponseReturnValue:
    """Which worker this is, how many greenlets live in it, and whether no answer is open in it."""
    alive = sum(isinstance(each, greenlet) and not each.dead for each in gc.get_objects())
    drain = request.environ["gunicorn.socket"].connections.drain
    return jsonify(pid=os.getpid(), greenlets=alive, no_answer_open=not drain._open)
