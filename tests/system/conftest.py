# SPDX-License-Identifier: Apache-2.0
"""Every module of system tests leaves the machine as it found it, and a check says so.

The check runs after the module's own cleaning, whether its tests passed or not. Where
others run beside it, it sees its own traces; the whole machine is looked at in the end
(`tests/conftest.py`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.traces import SHARED, left_since, traces

# Another process of this run has nodes of its own.
_OWN = SHARED or "PYTEST_XDIST_WORKER" in os.environ
_PR_SET_CHILD_SUBREAPER = 36


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root nothing here can run; say so once for each test."""
    if os.geteuid():
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session", autouse=True)
def adopting_orphans(kept_programs: None) -> None:
    """What a killed agent leaves behind becomes a child of this process, so it can be seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(adopting_orphans: None) -> Iterator[None]:
    """Fails after the module if it left a trace."""
    before = traces(_OWN)
    yield
    left = left_since(before, _OWN)
    assert not left, f"left behind (see tests/traces.py): {sorted(left)}"
