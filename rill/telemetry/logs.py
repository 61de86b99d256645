"""The log: JSON, a line a record, or what a person reads where it is a terminal."""

import logging
import re
import sys
import traceback
from typing import Any

import structlog
from structlog.typing import EventDict, ExcInfo

# Libraries that log what they send, prompts and all, where ANTHROPIC_LOG or a logging configuration asks for it.
TALKATIVE = ("anthropic", "httpx2", "httpcore2")


def write_logs(stream: Any = sys.stdout, level: int = logging.INFO) -> None:
    """Sends the service's own log to `stream`: JSON, a line a record, or what a human reads where it is a terminal."""
    # A thread's name, which nobody reads, would cost the greenlet of each answer a dummy thread.
    logging.logThreads = False
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    human = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.ExtraAdder(),
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper("iso"),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Before the traceback, whose lines are no client's; JSON escapes whatever is not ASCII by itself.
                *([_escape_controls] if stream.isatty() else []),
                structlog.processors.ExceptionRenderer(_tell_where),
                human if stream.isatty() else structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger("rill")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


# C0 and C1 controls and DEL, which steer a terminal; bidirectional controls, which reorder what it shows; separators of
# lines, and surrogates, which no encoding can write. https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape_controls(logger: Any, method: str, fields: EventDict) -> EventDict:
    """Escape what could steer a terminal in the names and values of a record: a client chooses some of them."""

    def escape(value: Any) -> Any:
        # Of any other type structlog writes the repr, which escapes it.
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", value) if isinstance(value, str) else value

    return {escape(name): escape(value) for name, value in fields.items()}


def _tell_where(exc_info: ExcInfo) -> str:
    """The kind of an exception and where it was raised, without its words: they may hold a prompt."""
    return "".join(traceback.format_tb(exc_info[2])) + exc_info[0].__name__
