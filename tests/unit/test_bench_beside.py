# SPDX-License-Identifier: Apache-2.0
"""What runs beside a bench is timed, ends with it, and says when it could not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench import rtnl
from bench.beside import beside
from bench.testbed import BenchError

HERE = Path("/proc/self/ns/net")


def children() -> list[str]:
    """Processes of ours, other tests' among them."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_each_go_is_timed_until_the_block_is_left():
    """And in another process: what it does to this one's memory is not seen."""
    before, seen = children(), []

    with beside(lambda: lambda: (seen.append(1), time.sleep(0.01)), 0.01, HERE) as taken:
        while len(children()) == len(before):
            time.sleep(0.01)
        time.sleep(0.5)
        assert taken == []

    assert len(taken) > 1
    assert min(taken) >= 10_000
    assert seen == []
    assert children() == before


def test_one_that_fails_is_told_when_the_block_is_left(capfd):
    """Whether while it prepares or when it acts."""

    def fail():
        raise ValueError("no lock")

    before = children()
    with pytest.raises(BenchError, match="beside the bench failed"), beside(lambda: fail, 0, HERE):
        pass
    with pytest.raises(BenchError, match="beside the bench failed"), beside(fail, 0, HERE):
        pass

    assert "no lock" in capfd.readouterr().err
    assert children() == before


def test_a_look_at_the_lock_takes_time():
    """The lock that it asks for is that of any namespace."""
    with rtnl.waiting(HERE) as waits:
        time.sleep(0.5)

    assert waits
    assert min(waits) > 0


def test_the_lock_is_held_when_a_look_takes_longer_than_it_does_idle():
    """One look in a hundred that is slow for another reason is not counted."""
    idle = [2.0] * 99 + [500.0]

    assert rtnl.held_share([2.0, 2.0, 3.0, 700.0], idle) == 0.5
    assert rtnl.held_share([2.0, 1.0], idle) == 0
