# SPDX-License-Identifier: Apache-2.0
"""Long work in short pieces, so that an attach never waits behind it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns

PIECE_NS = 200_000


class Pace:
    """Awaited between two steps of some work, gives the loop a turn when one is due."""

    def __init__(self) -> None:
        self._due = perf_counter_ns() + PIECE_NS

    async def breathe(self) -> None:
        """Let others run, if this work has run for a piece's time."""
        if perf_counter_ns() >= self._due:
            await asyncio.sleep(0)
            self._due = perf_counter_ns() + PIECE_NS

    async def through(self, steps: Iterable[object]) -> None:
        """Exhaust an iterator whose every step is a short piece of work."""
        for _ in steps:
            if perf_counter_ns() >= self._due:
                await self.breathe()


@contextmanager
def without_collection() -> Iterator[None]:
    """Do work that makes many values that stay, without the garbage collector's walks.

    Afterwards they are frozen: a full collection of 100,000 routes would hold
    an attach up for tens of milliseconds, and there are no cycles in them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
