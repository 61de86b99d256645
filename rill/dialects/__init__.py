"""The dialects that callers speak: how each asks, how it is answered, and how it is told what went wrong."""

from collections.abc import Callable
from typing import NamedTuple

from rill.dialects import text
from rill.events import Event
from rill.problems import Problem


class Dialect(NamedTuple):
    """One way to ask and to be answered, in pure functions.

    `frame` makes bytes of an event, none where there is nothing to say; `fail` makes bytes of a problem in mid-answer,
    none where only a cut connection can tell it. `check_beginning` raises Problem for a beginning that is better told
    by a status. `wants_text`: there is nothing to show before the first text.
    """

    name: str
    media_type: str
    wants_text: bool
    frame: Callable[[Event], bytes]
    fail: Callable[[Problem], bytes]
    check_beginning: Callable[[list[Event]], None]


TEXT = Dialect("text", "text/plain; charset=utf-8", True, text.frame, text.fail, text.check_beginning)
