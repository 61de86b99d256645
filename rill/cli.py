"""The commands: `flask --app wsgi ask` prints an answer, `flask --app wsgi mint` a JWT.

An answer's text goes to stdout as it comes, then its statistics to stderr.
"""

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

# click exits with 2 for a wrong option, and a shell reports 130 for Ctrl-C.
EXIT_COMPLETE, EXIT_NO_ANSWER, EXIT_TRUNCATED, EXIT_INTERRUPTED = 0, 1, 3, 130

ReadAnswer = Callable[[Mapping[str, Any]], Iterator[list[Event]]]


def ask_command(read_answer: ReadAnswer) -> click.Command:
    """Return the command; `read_answer` yields the events of each read for the fields of a request."""

    @click.command("ask")
    @click.argument("prompt")
    @click.option("--system", help="The system prompt.")
    @click.option("--model", help="The model to ask.")
    @click.option("--max-tokens", type=int, help="The maximum length of the answer, in tokens.")
    def ask(prompt: str, **options: Any) -> None:
        """Ask the model and print the answer as it arrives; PROMPT - is read from stdin.

        The exit code is 0 for a complete answer, 3 for a truncated one, 1 for none, and 130 after Ctrl-C.
        """
        logging.getLogger("rill").setLevel(logging.ERROR)
        fields = {"q": sys.stdin.read() if prompt == "-" else prompt, **options}
        sys.exit(show(read_answer(fields)))

    return ask


def mint_command(sign: Callable[..., str]) -> click.Command:
    """Return the command; `sign` returns a JWT for its options, and raises ValueError."""

    @click.command("mint")
    @click.option("--subject", required=True, help="The user; the client's name is jwt:SUBJECT.")
    @click.option("--minutes", type=click.FloatRange(0, 24 * 60, min_open=True), default=10.0, show_default=True)
    @click.option("--models", help="The models that may be asked for, comma-separated.")
    @click.option("--max-tokens", type=click.IntRange(1), help="The maximum length of each answer, in tokens.")
    @click.option("--budget", help="The tokens that may be used in a time, such as 5000/hour.")
    def mint(subject: str, minutes: float, models: str | None, **restrictions: Any) -> None:
        """Print a JWT for RILL_JWT_SECRET, which lets a client in."""
        try:
            print(sign(subject, minutes * 60, models=models.split(",") if models else None, **restrictions))
        except ValueError as error:
            raise click.ClickException(str(error)) from None

    return mint


def show(reads: Iterable[list[Event]]) -> int:
    """Print the text of the answer and its statistics; return the exit code."""
    begun, characters, end, code, message = time.monotonic(), 0, None, EXIT_COMPLETE, ""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A character that the terminal lacks must not end the answer.
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)  # gevent would print its traceback before it is raised here.
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
        code, message = (EXIT_TRUNCATED if characters else EXIT_NO_ANSWER), problem.detail
    except KeyboardInterrupt:
        code, message = EXIT_INTERRUPTED, "Interrupted."
    if characters:
        print()
    if message:
        print(f"{'The answer is truncated. ' if code == EXIT_TRUNCATED else ''}{message}", file=sys.stderr)
    counts = [f"{characters} characters", f"{time.monotonic() - begun:.1f} seconds"]
    if end:
        counts[1:1] = [f"{end.usage.get(f'{way}put_tokens', '?')} tokens {way}" for way in ("in", "out")]
        counts.append(f"stop reason {end.stop_reason}")
    print(", ".join(counts), file=sys.stderr)
    return code
