# SPDX-License-Identifier: Apache-2.0
"""Long work in short pieces, so that an attach never waits behind it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator
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


def behind_answers(seconds: float) -> Callable[[Callable[[], object]], object]:
    """A function that has another one called after so many seconds, for what nobody waits for.

    One that returns True is called again, as soon as what has come in meanwhile is answered.
    """
    loop = asyncio.get_running_loop()

    def go_on(step: Callable[[], object]) -> None:
        if step() is True:
            loop.call_soon(go_on, step)

    return lambda step: loop.call_later(seconds, go_on, step)


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
