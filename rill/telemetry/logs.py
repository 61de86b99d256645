"""The service's own log: a JSON object on each line, or readable lines on a terminal."""

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

# Libraries that log prompts if ANTHROPIC_LOG or a logging configuration sets a lower level.
VERBOSE_LIBRARIES = ("anthropic", "httpx2", "httpcore2")
# The attributes of every log record; any other one is an `extra` field.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


def write_logs(stream: Any) -> None:
    """Write the service's own log to `stream`."""
    # Nothing uses a thread's name, and to ask for it costs the greenlet of each answer a dummy thread.
    logging.logThreads = False
    for name in VERBOSE_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TerminalFormatter() if stream.isatty() else JSONFormatter())
    root = logging.getLogger("rill")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON; whatever is not ASCII is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields_of(record), default=repr)


class TerminalFormatter(logging.Formatter):
    """Formats a record for a person; control characters are escaped, because clients choose some of the values."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields_of(record)
        exception = fields.pop("exception", "")
        event, level, timestamp = (_escape(fields.pop(name)) for name in ("event", "level", "timestamp"))
        values = " ".join(f"{_escape(name)}={_escape(value)}" for name, value in fields.items())
        line = f"{DIM}{timestamp}{PLAIN} [{level}] {BOLD}{event}{PLAIN} {values}"
        return f"{line}\n{exception}" if exception else line


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    extra = {name: value for name, value in vars(record).items() if name not in STANDARD}
    timestamp = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    fields = {"event": record.getMessage(), **extra, "level": record.levelname.lower(), "timestamp": timestamp}
    if record.exc_info and record.exc_info[0]:
        # Where an exception was raised, and its type. Its message may hold a prompt.
        fields["exception"] = "".join(traceback.format_tb(record.exc_info[2])) + record.exc_info[0].__name__
    return fields


def _escape(value: Any) -> str:
    # What is not printable steers a terminal, reorders what it shows, ends a line, or cannot be encoded.
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in str(value))
