"""An answer on a terminal: its text to stdout as it comes, then what it was to stderr."""

import sys
import time
from collections.abc import Iterable
from io import TextIOWrapper

import gevent

from rill.events import End, Event, Text
from rill.problems import Problem

# What a shell sees; 2 is that of a wrong option.
WHOLE, REFUSED, CUT, STOPPED = 0, 1, 3, 130


def show(reads: Iterable[list[Event]]) -> int:
    """Prints the text of the answer and its statistics, and returns the exit code."""
    begun, characters, end, code, why = time.monotonic(), 0, None, WHOLE, ""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # What the terminal has no character for is no reason to stop.
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)  # gevent would print it before it is raised here.
    try:
        for events in reads:
            for event in events:
                if isinstance(event, Text):
                    characters += len(event.text)
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                elif isinstance(event, End):
                    end = event
                    if event.stop_reason == "refusal" and not characters:
                        raise Problem("refused", event.explanation)
    except Problem as problem:
        code, why = (CUT if characters else REFUSED), problem.detail
    except KeyboardInterrupt:
        code, why = STOPPED, "Stopped."
    if characters:
        print()
    if why:
        print(f"{'The answer is cut. ' if code == CUT else ''}{why}", file=sys.stderr)
    counts = [f"{characters} characters", f"{time.monotonic() - begun:.1f} seconds"]
    if end:
        counts[1:1] = [f"{end.usage.get(f'{way}put_tokens', '?')} tokens {way}" for way in ("in", "out")]
        counts.append(f"stop reason {end.stop_reason}")
    print(", ".join(counts), file=sys.stderr)
    return code
