"""An answer on a terminal: its text to stdout as it comes, then what it was to stderr."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from typing import Any

import click
import gevent

from rill.events import End, Event, Text
from rill.problems import Problem

# What a shell sees; 2 is that of a wrong option.
WHOLE, REFUSED, CUT, STOPPED = 0, 1, 3, 130


ReadAnswer = Callable[[Mapping[str, Any]], Iterator[list[Event]]]


def ask_command(read_answer: ReadAnswer) -> click.Command:
    """Return `flask --app wsgi ask`."""

    @click.command("ask")
    @click.argument("prompt")
    @click.option("--system", help="A system prompt.")
    @click.option("--model", help="The model to ask.")
    @click.option("--max-tokens", type=int, help="Tokens of the answer at most.")
    def ask(prompt: str, **options: Any) -> None:
        """Ask, and watch the answer arrive; where PROMPT is -, it is read from stdin.

        The exit code is 0 for a complete answer, 3 for a truncated one, 1 for none, and 130 where Ctrl-C stopped it.
        """
        logging.getLogger("rill").setLevel(logging.ERROR)
        fields = {"q": sys.stdin.read() if prompt == "-" else prompt, **options}
        sys.exit(show(read_answer(fields)))

    return ask


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
