"""The service against its description: valid and invalid requests that schemathesis generates from it.

They go to a real server over a real socket, and each response is checked against the description.
"""

import json
import secrets
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from server import ROOT, Rill

if TYPE_CHECKING:
    from campaign import Outcome

DESCRIPTION: dict[str, Any] = json.loads((ROOT / "rill" / "openapi.json").read_text("utf-8"))
STREAM_PATHS = ("/stream", "/chat/stream")
DIALECTS = ("/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/responses")


class Conformance:
    """The description's operations at some paths, requested with one Accept.

    With `covers`, the values that cover each schema are requested, which a soak does for every class; `examples` is the
    number of further cases per operation, `least` the minimum number of requests, and `long` that of a soak.
    """

    paths: ClassVar[tuple[str, ...]]
    accept: ClassVar[str] = "*/*"
    needs_api_key: ClassVar[bool] = False
    covers: ClassVar[bool] = False
    seed: ClassVar[int]
    examples: ClassVar[int]
    least: ClassVar[int]
    long: ClassVar[int]

    def run(self, rill: Rill, api_key: str, seed: int, examples: int, covers: bool, soaked: bool = False) -> "Outcome":
        """Run one campaign, and assert that it finds no fault."""
        from campaign import campaign, configuration, load, without_last_event_id

        # Each /drip takes a second, and all its responses are alike.
        paths = {path: DESCRIPTION["paths"][path] for path in self.paths if soaked or path != "/drip"}
        description = {**DESCRIPTION, "paths": without_last_event_id(paths)}
        headers = {"Accept": self.accept}
        if self.needs_api_key:
            # The description must not allow requests without a key then.
            description["security"] = [way for way in DESCRIPTION["security"] if way]
            headers["Authorization"] = f"Bearer {api_key}"
        configured = configuration(rill.url, headers, examples, seed, covers, soaked)
        outcome = campaign(load(description, configured))
        assert outcome.faults == [], "\n\n".join(outcome.faults[:10])
        return outcome

    @pytest.mark.timeout(300)
    def test_every_generated_request_gets_a_described_response(self, rill: Rill, api_key: str) -> None:
        outcome = self.run(rill, api_key, self.seed, self.examples, self.covers)
        print(outcome.statuses)
        assert outcome.requests >= self.least

    @pytest.mark.soak
    @pytest.mark.timeout(7200)
    def test_many_requests_generated_from_a_new_seed_get_described_responses(self, rill: Rill, api_key: str) -> None:
        first = secrets.randbelow(2**32)
        print(f"the first seed is {first}")
        statuses = self.run(rill, api_key, self.seed, self.examples, covers=True).statuses
        for seed in count(first):
            statuses += self.run(rill, api_key, seed, 500, covers=False, soaked=True).statuses
            if statuses.total() >= self.long:
                break
        print(statuses)


class TestPlainText(Conformance):
    paths, covers = tuple(path for path in DESCRIPTION["paths"] if path not in DIALECTS), False
    seed, examples, least, long = 1, 6, 50, 30_000


class TestEvents(Conformance):
    paths, accept = STREAM_PATHS, "text/event-stream"
    seed, examples, least, long = 2, 20, 60, 25_000


class TestProblemsInJSON(Conformance):
    paths, accept = STREAM_PATHS, "application/problem+json, application/json;q=0.9"
    seed, examples, least, long = 3, 20, 60, 25_000


class TestAnthropic(Conformance):
    paths, covers = ("/v1/messages", "/v1/messages/count_tokens"), True
    seed, examples, least, long = 4, 4, 100, 5_000


class TestOpenAI(Conformance):
    paths, covers = ("/v1/chat/completions", "/v1/responses"), False
    seed, examples, least, long = 5, 20, 30, 5_000


class TestWithAPIKeys(Conformance):
    paths, needs_api_key = tuple(DESCRIPTION["paths"]), True
    seed, examples, least, long = 6, 3, 40, 12_000
