# SPDX-License-Identifier: Apache-2.0
"""docs/threat-model.md: every defence names a test, and every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.test_docs_wire_format import functions_of

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))

    assert len(named) > 30
    assert named <= functions_of("test_*.py")


def test_every_defence_names_a_test():
    """The last cell of each row of each table."""
    rows = re.findall(r"^\| (?!it tries|somebody tries|---).*\|$", PAGE.read_text(), re.MULTILINE)
    defences = [row for row in rows if not row.startswith("|---")]

    assert len(defences) > 20
    for row in defences:
        assert "`test_" in row.strip("| ").rsplit(" | ", 1)[1], row
