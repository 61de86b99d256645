"""The metrics of fallbacks: who answered, how often each upstream was asked, and which circuits are open."""

from prometheus_client import Counter, Gauge, Histogram

from rill.telemetry.series_budget import SeriesBudget

UPSTREAMS = ("primary", "fallback")
SCOPES = ("upstream", "model")


class FallbackMetrics:
    """Metrics that exist only if fallbacks are configured."""

    def __init__(self, budget: SeriesBudget) -> None:
        self._budget = budget
        meaning = "Answers that started, by the requested model and by who answered"
        labels = ["requested_model", "model", "upstream"]
        self._answers = Counter("rill_answered_by", meaning, labels, registry=None)
        self._attempts = Counter("rill_upstream_attempts", "Requests to each upstream", ["upstream"], registry=None)
        self._open = Gauge(
            "rill_circuits_open",
            "Open circuits: of an upstream, or of a model there",
            ["upstream", "scope"],
            multiprocess_mode="livesum",
            registry=None,
        )
        self.metrics: list[Counter | Gauge | Histogram] = [self._answers, self._attempts, self._open]
        for upstream in UPSTREAMS:
            for scope in SCOPES:
                self._open.labels(upstream, scope).set(0)  # The files may hold the number of a killed worker.

    def count_answer(self, requested_model: str, model: str, upstream: str) -> None:
        """Count an answer that started."""
        requested_model, model = self._budget.fit(requested_model, model, upstream)
        self._answers.labels(requested_model, model, upstream).inc()

    def count_attempt(self, upstream: str) -> None:
        """Count a request to an upstream."""
        self._attempts.labels(upstream).inc()

    def count_circuit(self, upstream: str, scope: str, is_open: bool) -> None:
        """Count a circuit that opened or closed."""
        self._open.labels(upstream, scope).inc(1 if is_open else -1)
