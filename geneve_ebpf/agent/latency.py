# SPDX-License-Identifier: Apache-2.0
"""Histograms of how long attaching took, in a file that agent and exporter both map.

The agent adds, another process reads: a scrape costs the agent nothing. Each
number is one aligned 8-byte word that only ever grows, so a reader sees whole
numbers, and sums and counts of one read that differ by at most what was being
added.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError

STAGES = ("wait", "validate", "write", "total", "settle")
RESULTS = ("ok", "error")
# Upper bounds in nanoseconds; the last bucket of a histogram has none.
BOUNDS = tuple(
    microseconds * 1000
    for microseconds in (
        5, 10, 25, 50, 75, 100, 150, 250, 500,
        1_000, 2_500, 5_000, 10_000, 100_000, 1_000_000,
    )
)  # fmt: skip
MAGIC = b"gnvlat01"
WIDTH = len(BOUNDS) + 2  # buckets, the one without a bound, the sum
SIZE = len(MAGIC) + 8 * WIDTH * len(STAGES) * len(RESULTS)


@dataclass(frozen=True, slots=True)
class Histogram:
    """One stage and result. `counts` are per bucket, not cumulative; one more than BOUNDS."""

    stage: str
    result: str
    counts: tuple[int, ...]
    sum_ns: int


class Recorder:
    """The writer. A file of an earlier agent is continued."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.pread(descriptor, len(MAGIC), 0) != MAGIC or os.fstat(descriptor).st_size != SIZE:
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, SIZE)
                os.pwrite(descriptor, MAGIC, 0)
            self._map = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map)[len(MAGIC) :].cast("Q")

    def record(
        self,
        wait: int,
        validate: int,
        write: int,
        total: int,
        settle: int | None = None,
        *,
        ok: bool,
        count: int = 1,
    ) -> None:
        """Add an attach, or several that took the same; all in nanoseconds.

        settle: None is of one that had nothing to settle, which is not counted there.
        """
        words = self._words
        base = 0 if ok else WIDTH
        for duration in (wait, validate, write, total, settle):
            if duration is None:
                return
            words[base + bisect_left(BOUNDS, duration)] += count
            words[base + WIDTH - 1] += duration * count
            base += WIDTH * len(RESULTS)

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._words.release()
        self._map.close()


def read(path: Path) -> list[Histogram]:
    """All histograms of a node; empty ones where no agent ever ran.

    Raises INTERNAL if the file is of another make.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = MAGIC + bytes(SIZE - len(MAGIC))
    if len(content) != SIZE or not content.startswith(MAGIC):
        raise GeneveError(
            Code.INTERNAL,
            f"{path} is not a latency file of this version",
            hint="start the agent again: it begins a new one",
        )
    words = memoryview(content)[len(MAGIC) :].cast("Q")
    histograms = []
    for number, (stage, result) in enumerate((s, r) for s in STAGES for r in RESULTS):
        row = words[number * WIDTH : (number + 1) * WIDTH]
        histograms.append(Histogram(stage, result, tuple(row[:-1]), row[-1]))
    return histograms
