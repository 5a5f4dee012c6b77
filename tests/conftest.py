# SPDX-License-Identifier: Apache-2.0
"""For all tests: the programs are compiled once, and the machine is left as it was found.

Compiled programs are in build/kept of the checkout. What a run with several processes
has left on the machine is looked for when all of them have ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.compiled import KEPT, keep_programs
from tests.patience import EXPENDABLE
from tests.traces import SHARED, left_since, traces

os.environ["CACHE_DIRECTORY"] = str(KEPT)
# A shell that starts us in the background has us ignore it, and so would what tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
_BEFORE = pytest.StashKey[set[str]]()


@pytest.fixture(scope="session")
def kept_programs() -> None:
    """What is brought up from now on needs no compiler."""
    if os.geteuid() == 0 and not EXPENDABLE:  # that machine finds them there
        keep_programs()


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() == 0 and "PYTEST_XDIST_WORKER" not in os.environ:
        session.config.stash[_BEFORE] = traces(SHARED)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield  # processes of the run end
    before = session.config.stash.get(_BEFORE, None)
    left = left_since(before, SHARED) if before is not None else set()
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.section("left behind (see tests/traces.py)", red=True)
        for trace in sorted(left):
            reporter.write_line(trace)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
