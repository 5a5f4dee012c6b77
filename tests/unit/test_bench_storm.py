# SPDX-License-Identifier: Apache-2.0
"""Storms: who is in them starts together, is measured alone, and nobody is left over."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench.storm import repeated, storm
from bench.testbed import BenchError


def ready_to(act):
    """A caller that prepares nothing."""
    return lambda: act


def children() -> list[str]:
    """Processes of ours, other tests' among them."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_each_caller_is_timed_from_the_common_start_and_the_one_beside_them_is_not():
    """Whoever sleeps took at least that long."""
    before = children()
    taken = storm(
        [ready_to(lambda: None), ready_to(lambda: time.sleep(0.2))], ready_to(lambda: None)
    )

    assert len(taken) == 2
    assert taken[0] > 0
    assert taken[1] >= 200_000
    assert children() == before


def test_a_caller_that_fails_ends_the_storm(capfd):
    def fail():
        raise ValueError("no attach")

    before = children()
    with pytest.raises(BenchError, match="a caller of a storm failed"):
        storm([ready_to(fail), ready_to(lambda: None)], ready_to(lambda: None))

    assert "no attach" in capfd.readouterr().err
    assert children() == before


def test_small_storms_are_repeated_until_there_are_samples_enough():
    sizes = []

    def measure(size):
        sizes.append(size)
        return [1.0] * size

    assert len(repeated(measure, 4)(10)) == 12
    assert sizes == [4, 4, 4]
