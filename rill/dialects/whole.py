"""An answer that is not streamed: it is written at once, when all of it is known."""

from rill.events import Bytes, Event
from rill.problems import Problem


class WholeFrames:
    """The one piece that such an answer is; cut where it does not get through."""

    def frame(self, event: Event) -> bytes:
        return event.data if isinstance(event, Bytes) else b""

    def fail(self, problem: Problem) -> None:
        """Nothing: half a JSON tells by itself that it is no whole one."""
