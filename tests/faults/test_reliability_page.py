"""docs/reliability.md names a test for each guarantee, and each file of this folder verifies one."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HERE = Path(__file__).parent
TESTS = {path.name: path.read_text() for path in HERE.parent.rglob("test_*.py")}
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())


def test_each_guarantee_names_a_test_that_exists() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| guarantee")
    ]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []
    assert [f"{file}::{test}" for file, test in NAMED if f"def {test}(" not in TESTS.get(file, "")] == []


def test_each_file_of_the_suite_verifies_a_guarantee() -> None:
    files = {path.name for path in HERE.glob("test_*.py")}
    assert files - {file for file, _ in NAMED} == {Path(__file__).name}
