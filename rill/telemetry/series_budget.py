"""A limit on the number of time series in /metrics, however many clients and models the settings name."""

import json

from prometheus_client.mmap_dict import MmapedDict

from rill.telemetry.metrics_files import COUNTER_BYTES

OTHER = "other"
# For metrics whose labels have fixed values, and for answers whose client and model are both `other`.
RESERVED_BYTES = 256 << 10
# The size of a series without the values of its labels: names, help text, number, padding.
SERIES_BYTES = 256

# The metrics with clients or models as labels, and their labels in the order of `fit`.
BUDGETED = ("rill_requests_total", "rill_tokens_total", "rill_answered_by_total")
LABELS = ("client", "requested_model", "model", "dialect", "outcome", "upstream")


class SeriesBudget:
    """Decides which clients and models have series of their own: as many as a file of counters holds.

    `path` is this worker's file, which may hold series of a predecessor; None if it has no file.
    """

    def __init__(self, path: str | None) -> None:
        self._free = COUNTER_BYTES - RESERVED_BYTES
        self._known: set[tuple[str, ...]] = set()
        if path:
            self._read(path)

    def fit(self, client: str, model: str, *others: str, series: int = 1) -> tuple[str, str]:
        """Return the client and the model to count under, with the labels `others` in so many `series`.

        Either of them is `other` if there is no space for it.
        """
        for name in (client, OTHER):
            labels = (name, model, *others)
            cost = series * _bytes_of(labels)
            if labels in self._known:
                return name, model
            if cost <= self._free:
                self._free -= cost
                self._known.add(labels)
                return name, model
        return OTHER, OTHER

    def _read(self, path: str) -> None:
        values = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
        for key, *_ in values:
            _, name, labels, _ = json.loads(key)
            if name in BUDGETED:
                known = tuple(labels[label] for label in LABELS if label in labels)
                self._known.add(known)
                self._free -= _bytes_of(known)


def _bytes_of(labels: tuple[str, ...]) -> int:
    return SERIES_BYTES + len(json.dumps(labels))
