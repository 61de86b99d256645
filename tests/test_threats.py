"""docs/threats.md names existing tests, and every package is locked by its hash."""

import re

import pytest
from server import ROOT

PAGE = (ROOT / "docs" / "threats.md").read_text("utf-8")
ROWS = re.findall(r"^\| .* \| `(test_\w+\.py)::(test_\w+)` \|$", PAGE, re.M)


def test_every_row_names_a_test() -> None:
    listed = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| threat |")]
    assert len(ROWS) == len(listed) >= 30


@pytest.mark.parametrize(("file", "test"), ROWS)
def test_the_named_test_exists(file: str, test: str) -> None:
    (found,) = (ROOT / "tests").rglob(file)
    assert re.search(rf"^def {test}\(", found.read_text("utf-8"), re.M), f"{file} has no {test}"


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_that_is_installed_is_locked_by_its_hash(lock: str) -> None:
    pins = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / lock).read_text("utf-8"))
    pinned = [pin for pin in pins if re.match(r"[\w.-]+(\[[\w,]+\])?==", pin)]
    assert len(pinned) > 10
    assert [pin for pin in pinned if "--hash=sha256:" not in pin] == []
