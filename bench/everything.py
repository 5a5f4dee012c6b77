# SPDX-License-Identifier: Apache-2.0
"""All benches one after the other, each in a process of its own, and the page of what they found.

The page is made anew after each, so whatever ends the run leaves what was found until
then; and a bench that fails, or does not end, keeps none of the others from running.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.harness import say
from bench.testbed import BenchError

LONGER = 4  # times its estimate: then a bench is ended
GRACE = 300.0  # seconds on top of that, for a machine that has to compile first
UNDOING = 120.0  # seconds for a bench that was told to end
STOPPED = 130  # exit status after ^C


@dataclass(frozen=True, slots=True)
class Part:
    """One bench of the run. Seconds are as seen on two quiet cores."""

    name: str
    rounds: int
    start: float  # seconds before its first round, the warm-up's among them
    each: float  # seconds of a round

    @property
    def seconds(self) -> float:
        """How long it should take."""
        return self.start + self.rounds * self.each


def minutes(seconds: float) -> str:
    """For people."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def measure(directory: Path, parts: Sequence[Part]) -> None:
    """Run them all and make the page. Raises BenchError if some failed, when all else is there."""
    directory.mkdir(parents=True, exist_ok=True)
    left, began = sum(part.seconds for part in parts), time.monotonic()
    say(f"{len(parts)} benches, about {minutes(left)} on two quiet cores")
    failed = []
    for number, part in enumerate(parts, 1):
        say(
            f"[{number}/{len(parts)}] {part.name}, rounds: {part.rounds}, about "
            f"{minutes(part.seconds)}, and all that is left {minutes(left)}"
        )
        left -= part.seconds
        if not run(directory, part):
            failed.append(part.name)
        show(directory)
    simulate(directory)
    show(directory)
    say(f"all of it took {minutes(time.monotonic() - began)}; see {directory / 'index.html'}")
    if failed:
        raise BenchError(f"failed, wholly or in some rows: {', '.join(failed)}")


def run(directory: Path, part: Part) -> bool:
    """One bench; whether it has all that it should. Raises KeyboardInterrupt if it was stopped."""
    record = directory / f"{part.name}.json"
    record.unlink(missing_ok=True)
    words = ("-m", "bench", part.name, "--json", str(record), "--rounds", str(part.rounds))
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *words])
    try:
        status = process.wait(LONGER * part.seconds + GRACE)
    except subprocess.TimeoutExpired:
        say(f"{part.name} does not end: it is told to")
        status = told_to_end(process) or 1
    except KeyboardInterrupt:
        told_to_end(process)
        show(directory)
        raise
    if status == STOPPED:
        show(directory)
        raise KeyboardInterrupt
    say(f"{part.name} took {minutes(time.monotonic() - began)}")
    return status == 0


def told_to_end(process: subprocess.Popen[bytes]) -> int:
    """Have it undo what it made; its exit status, never that of a stopped run."""
    process.send_signal(signal.SIGINT)
    try:
        status = process.wait(UNDOING)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    return 1 if status == STOPPED else status


def show(directory: Path) -> None:
    """The page of what there is, if there is anything."""
    with suppress(BenchError):
        report.main(directory)


def simulate(directory: Path) -> None:
    """Storms simulated with the times just measured, on a page of their own."""
    measured, storm = directory / "attach.json", directory / "storm.json"
    if measured.exists() and storm.exists():
        page = directory / report.STORMS
        words = ("--measured", measured, "--storm", storm, "--page", page)
        subprocess.run([sys.executable, "-m", "bench", "sim", *map(str, words)], check=False)
