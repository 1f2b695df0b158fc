"""docs/otlp.md names a test for every row of the checklist that is met: here is that they exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "otlp.md").read_text()
ROWS = dict(re.findall(r"^\| ([TGHJDBL]\d+) \| (.*)$", PAGE, re.MULTILINE))


def test_every_row_of_the_checklist_is_there():
    numbers = {"T": 3, "G": 8, "H": 12, "J": 7, "D": 10, "B": 4, "L": 4}
    assert set(ROWS) == {f"{letter}{i}" for letter, last in numbers.items() for i in range(1, last + 1)}


def test_every_row_has_a_test_or_a_reason():
    for name, row in ROWS.items():
        assert "::test_" in row or "MAY" in row, name


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert named
    for file, test in named:
        assert f"\ndef {test}(" in (TESTS / file).read_text(), f"{file}::{test}"
