# SPDX-License-Identifier: Apache-2.0
"""script/fuzz: how long or how many, what came of the frames, and every mismatch."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from tests import programs
from tests.fuzz import planted
from tests.fuzz.compare import Comparison, Mismatch
from tests.fuzz.shrink import shrink
from tests.fuzz.states import nodes
from tests.fuzz.traffic import Traffic
from tests.fuzz.under_test import SLOTS, UnderTest
from tests.model.state import Node

STATES = 64  # of one round
FRAMES = 1024  # of one state


@dataclass(slots=True)
class Progress:
    """What a worker says after a round."""

    frames: int
    seen: Counter[str] = field(default_factory=Counter)
    mismatch: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run was asked for."""

    minutes: float
    frames: int
    seed: int
    families: str
    underlays: str

    def over(self, started: float, frames: int) -> bool:
        """Whether it is enough."""
        if self.frames:
            return frames >= self.frames
        return time.monotonic() - started >= self.minutes * 60


def one_round(comparison: Comparison, plan: Plan, uplink_mac: bytes, seed: int) -> Mismatch | None:
    """As many states as hypothesis draws from this seed, and the frames of each."""
    found: list[Mismatch] = []

    @with_seed(seed)
    @settings(
        max_examples=STATES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(nodes(plan.families, plan.underlays), st.integers(0, 2**64 - 1))
    def examples(node: Node, dice: int) -> None:
        if found:
            return
        traffic = Traffic(node, dice ^ seed << 64, uplink_mac, families=plan.families)
        mismatch = comparison.batch(node, list(traffic.items(FRAMES)))
        if mismatch is not None:
            found.append(mismatch)

    examples()
    return found[0] if found else None


def rounds(under_test: UnderTest, plan: Plan, seed: int) -> Iterator[Progress]:
    """Round after round, for ever; ends with the first mismatch."""
    comparison = Comparison(under_test)
    while True:
        before, comparison.seen = comparison.frames, Counter()
        mismatch = one_round(comparison, plan, under_test.uplink_mac, seed)
        done = Progress(comparison.frames - before, comparison.seen)
        if mismatch is not None:
            done.mismatch = str(shrink(comparison, mismatch))
        yield done
        if mismatch is not None:
            return
        seed += 1


def _worker(pipe: Connection, others: list[Connection], plan: Plan, number: int) -> None:
    for other in others:  # or a parent that died would not be missed
        other.close()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    with programs.loaded(SLOTS) as node:
        under_test = UnderTest(node)
        try:
            for progress in rounds(under_test, plan, plan.seed + number * 1_000_000):
                pipe.send(progress)
                if pipe.recv() == "end":
                    break
        except (EOFError, BrokenPipeError):
            pass
        finally:
            under_test.close()


def run(plan: Plan, workers: int) -> int:
    """Run it on so many CPUs; 0 if nothing was found."""
    started = time.monotonic()
    seen: Counter[str] = Counter()
    frames, mismatches = 0, []
    pipes = []
    for number in range(workers):
        ours, theirs = multiprocessing.Pipe()
        pipes.append(ours)
        process = multiprocessing.Process(target=_worker, args=(theirs, pipes, plan, number))
        process.start()
        theirs.close()
    shown = 0.0
    while pipes:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                progress = pipe.recv()
                frames += progress.frames
                seen += progress.seen
                if progress.mismatch:
                    mismatches.append(progress.mismatch)
                pipe.send("end" if mismatches or plan.over(started, frames) else "go on")
            except (EOFError, BrokenPipeError):
                pipes.remove(pipe)
        now = time.monotonic()
        if now - shown > 10:
            shown = now
            rate = frames / (now - started)
            print(f"{now - started:6.0f} s  {frames:10,} frames  {rate:6,.0f} a second", flush=True)
    spent = time.monotonic() - started
    for name, count in seen.most_common():
        print(f"{count:12,} {name}")
    print(f"{frames:,} frames in {spent:.0f} s, {len(mismatches)} mismatches")
    for text in mismatches:
        print(f"\n{text}")
    return 1 if mismatches or not frames else 0


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="script/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--frames", type=int, default=0, help="how many instead of how long")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other frames")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--families", default="46", choices=("4", "6", "46"), help="inside")
    parser.add_argument("--underlays", default="46", choices=("4", "6", "46"))
    parser.add_argument("--planted", action="store_true", help="hunt the planted bugs instead")
    asked = parser.parse_args()
    if asked.planted:
        return planted.main(asked.seed)
    plan = Plan(asked.minutes, asked.frames, asked.seed, asked.families, asked.underlays)
    return run(plan, asked.workers)


if __name__ == "__main__":
    sys.exit(main())
