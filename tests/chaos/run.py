"""Many random clients at once, and what they received."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import count

from conversation import Conversation
from judge import Result, faults_of
from plan import Plan
from server import Rill
from upstream import Answer, Upstream
from witness import log_lines

CLIENT_SECONDS = 60.0
SLOW_SECONDS = 0.05


class Clients:
    """Clients that send one prompt after the other until `stop`; `moments` are when the server was disturbed."""

    def __init__(self, rill: Rill, number: int, seed: int) -> None:
        self.results: list[tuple[Result, float, float]] = []
        self.errors: list[str] = []
        self.moments: list[tuple[float, float]] = []
        self._rill = rill
        self._numbers = count(1)
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client finish its request."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * CLIENT_SECONDS)

    def disturb(self, begun: float, seconds: float) -> None:
        """Record that answers may be lost from `begun` (monotonic) for `seconds`: a worker was killed."""
        self.moments.append((begun, begun + seconds))

    def judge(self, upstream: Upstream) -> list[str]:
        """Return the contradictions of all requests."""
        asked: dict[str, list[Answer]] = defaultdict(list)
        for answer in upstream.answers:
            asked[answer.request.json["messages"][-1]["content"]].append(answer)
        lines = defaultdict(list)
        for line in log_lines(self._rill.output()):
            lines[line["request_id"]].append(line)
        faults = list(self.errors)
        for result, begun, ended in self.results:
            disturbed = any(begun <= end and start <= ended for start, end in self.moments)
            found = faults_of(result, asked[result.plan.prompt], lines[result.plan.name], disturbed)
            faults += [f"{result.plan}: {fault}" for fault in found]
        return faults

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                plan = Plan.draw(next(self._numbers), self._chance)
            begun = time.monotonic()
            try:
                result = carry_out(self._rill, plan)
            except ConnectionRefusedError as error:
                self.errors.append(f"{plan}: {error!r}")
                time.sleep(0.1)
                continue
            except OSError as error:
                result = Result(plan, None, b"", type(error).__name__)
            self.results.append((result, begun, time.monotonic()))


def carry_out(rill: Rill, plan: Plan) -> Result:
    """Send the prompt, and read as the plan says."""
    body = b""
    with Conversation(rill.port, plan.request(), timeout=CLIENT_SECONDS) as asked:
        while not (asked.ended and asked.status is None) and (chunk := asked.next_chunk()):
            body += chunk
            if plan.disconnect_after is not None and len(body) > plan.disconnect_after:
                return Result(plan, asked.status, body, "disconnected")
            if plan.slow:
                time.sleep(SLOW_SECONDS)
        return Result(plan, asked.status, body, asked.ended)


def report(clients: Clients, faults: Sequence[str]) -> str:
    """Return a summary line and the first faults."""
    statuses: dict[object, int] = defaultdict(int)
    for result, _, _ in clients.results:
        statuses[result.status if result.ended != "disconnected" else "disconnected"] += 1
    head = f"{len(clients.results)} requests, {dict(statuses)}, {len(faults)} faults"
    return "\n".join([head, *faults[:20]])
