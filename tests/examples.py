"""The number of examples that a property is tested with; with SOAK in the environment, a hundred times as many."""

import os

from hypothesis import settings

SOAK = bool(os.environ.get("SOAK"))


def examples(number: int) -> settings:
    """Return the settings of hypothesis for so many examples: the same in each run, and others in each soak."""
    return settings(max_examples=number * (100 if SOAK else 1), derandomize=not SOAK, deadline=None)
