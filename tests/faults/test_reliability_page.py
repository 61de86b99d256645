"""docs/reliability.md names a test for each promise, and every file of this folder keeps one of them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HERE = Path(__file__).parent
TESTS = {path.name: path.read_text() for path in HERE.parent.rglob("test_*.py")}
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())


def test_each_promise_names_a_test_that_exists() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []
    assert [f"{file}::{test}" for file, test in NAMED if f"def {test}(" not in TESTS.get(file, "")] == []


def test_each_file_of_the_suite_keeps_a_promise() -> None:
    files = {path.name for path in HERE.glob("test_*.py")}
    assert files - {file for file, _ in NAMED} == {Path(__file__).name}
