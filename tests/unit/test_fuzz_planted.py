# SPDX-License-Identifier: Apache-2.0
"""The list of planted bugs keeps up with the C that they are planted in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from geneve_ebpf import abi
from tests.fuzz.planted import BUGS, Bug, plant

DOCS = Path(__file__).parents[2] / "docs" / "fuzzing.md"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_every_bug_can_be_planted(bug: Bug, tmp_path: Path):
    """Its place is there, once, and no longer when it is planted."""
    shutil.copytree(abi.bpf_directory(), tmp_path / "bpf")

    plant(bug, tmp_path)

    assert (tmp_path / bug.file).read_text() != (abi.bpf_directory().parent / bug.file).read_text()


def test_every_bug_is_in_the_documents_table():
    """With the frames that it took to find it."""
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if "|" in line]

    assert [bug.what for bug in BUGS if bug.what not in rows] == []
