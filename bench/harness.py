# SPDX-License-Identifier: Apache-2.0
"""Rounds, percentiles, spread, tables and the JSON record of a benchmark.

Contestants take turns in one run (A B C, C B A, A B C ...), so that whatever
else the machine does meets all of them. A first round warms everything up and
is dropped, and so is the first sample of each turn, which finds the caches
full of another's work; nothing else is, and no best run is ever reported.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import machine
from bench.testbed import BenchError
from geneve_ebpf.errors import GeneveError

SCHEMA = "geneve-ebpf/bench/1"
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row. `measure(n)` prepares, takes about n samples in `unit`, undoes."""

    name: str
    unit: str
    batch: int  # samples in a round
    measure: Callable[[int], list[float]]
    warm_up: int = 5  # samples in the round that is dropped
    lead_in: int = 1  # samples dropped at each turn's start: others had the caches


@dataclass(slots=True)
class Row:
    """One contestant's samples, round by round."""

    name: str
    unit: str
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """All of them, in the order they were taken."""
        return [sample for taken in self.rounds for sample in taken]

    @property
    def medians(self) -> list[float]:
        """Each round's own median."""
        return [median(taken) for taken in self.rounds if taken]

    @property
    def spread(self) -> float:
        """How far the rounds' medians lie apart, as a share of the median."""
        middle = median(self.samples)
        return (max(self.medians) - min(self.medians)) / middle if middle else 0.0

    def as_json(self) -> dict[str, object]:
        """The row as the record has it; times and rates are in `unit`."""
        samples = sorted(self.samples)
        return {
            "name": self.name,
            "unit": self.unit,
            "n": len(samples),
            **{name: round(percentile(samples, share), 3) for name, share in QUANTILES.items()},
            "max": round(samples[-1], 3),
            "min": round(samples[0], 3),
            "spread": round(self.spread, 3),
            "round_p50": [round(value, 3) for value in self.medians],
            # Every hundredth of the way from the least to the most, for a plot.
            "hundredths": [round(percentile(samples, share / 100), 3) for share in range(101)],
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """One row's median over another's, and how far that moved between rounds."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether some rounds say more and others less: then neither is faster."""
        return self.low <= 1.0 <= self.high


@dataclass(slots=True)
class Turns:
    """What was taken by turns. failed: contestants that were thrown out, and why."""

    rows: dict[str, Row]
    restless: int = 0  # turns before which the machine did not come to rest
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Progress:
    """One line on stderr that is rewritten on a terminal, one per step elsewhere."""

    total: int
    done: int = 0

    def step(self, text: str) -> None:
        """Say what starts now."""
        self.done += 1
        line = f"[{self.done}/{self.total}] {text}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Leave the line."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def say(text: str) -> None:
    """Talk, which goes to stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    settle: Callable[[], bool] = machine.settle,
) -> Turns:
    """
    Measure all, interleaved; the rows by name.

    Every second round runs backwards, so that nobody always follows the same one. Who
    fails once has no row, and the others go on.
    """
    turns = Turns({each.name: Row(each.name, each.unit) for each in contestants})
    progress = Progress(total=len(contestants) * (rounds + 1))
    for number in range(rounds + 1):
        ordered = contestants if number % 2 == 0 else contestants[::-1]
        for each in ordered:
            progress.step(
                f"round {number} of {rounds}: {each.name}" if number else f"warm-up: {each.name}"
            )
            if each.name in turns.failed:
                continue
            turns.restless += not settle()
            samples = each.batch if number else each.warm_up
            try:
                taken = each.measure(samples + each.lead_in)[each.lead_in :]
            except Exception as error:  # whatever it is, the others are worth having
                known = isinstance(error, (BenchError, GeneveError))
                why = str(error) if known else f"{type(error).__name__}: {error}"
                turns.failed[each.name] = why
                del turns.rows[each.name]
                progress.finish()
                if not known:
                    traceback.print_exc()
                say(f"{each.name} is thrown out: {why}")
                continue
            if number:
                turns.rows[each.name].rounds.append(taken)
    progress.finish()
    return turns


def ratios(rows: Mapping[str, Row], pairs: Sequence[tuple[str, str]]) -> dict[str, Ratio]:
    """Medians over medians, named "one/other"; a pair with a row not taken is left out."""
    found: dict[str, Ratio] = {}
    for one, other in pairs:
        if one not in rows or other not in rows:
            continue
        by_round = [a / b for a, b in zip(rows[one].medians, rows[other].medians, strict=False)]
        found[f"{one}/{other}"] = Ratio(
            value=median(rows[one].samples) / median(rows[other].samples),
            low=min(by_round),
            high=max(by_round),
        )
    return found


def number(value: float) -> str:
    """Three significant digits at least, no more than the clock deserves."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: Sequence[Row], found: Mapping[str, Ratio]) -> str:
    """The result for people: a line per row, then a line per ratio."""
    width = max([len(row.name) for row in rows] + [len(name) for name in found] + [12])
    lines = [
        f"{'':{width}}  {'unit':7}{'n':>6}"
        + "".join(f"{head:>10}" for head in ("min", "p50", "p90", "p99", "max", "spread"))
    ]
    for row in rows:
        ordered = sorted(row.samples)
        values = [ordered[0], *(percentile(ordered, q) for q in QUANTILES.values()), ordered[-1]]
        lines.append(
            f"{row.name:{width}}  {row.unit:7}{len(ordered):>6}"
            + "".join(f"{number(value):>10}" for value in values)
            + f"{row.spread:>9.0%}"
        )
    if found:
        lines += [
            "",
            f"{'ratio of medians':{width}}  {'':7}{'':6}{'':10}{'all':>10}"
            f"{'lowest and highest round':>30}",
        ]
        for name, ratio in found.items():
            lines.append(
                f"{name:{width}}  {'':7}{'':6}{'':10}{number(ratio.value):>10}"
                f"{number(ratio.low) + ' - ' + number(ratio.high):>30}"
                + ("  noise" if ratio.is_noise else "")
            )
    return "\n".join(lines)


def as_json(
    bench: str,
    about: Mapping[str, object],
    rows: Sequence[Row],
    found: Mapping[str, Ratio],
    notes: Sequence[str] = (),
    series: Sequence[Mapping[str, object]] = (),
    failed: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """The whole record, ready to be written."""
    return {
        "schema": SCHEMA,
        "bench": bench,
        "machine": dict(about),
        "results": [row.as_json() for row in rows],
        "ratios": {name: round(ratio.value, 3) for name, ratio in found.items()},
        "ratio_rounds": {
            name: [round(ratio.low, 3), round(ratio.high, 3)] for name, ratio in found.items()
        },
        "failed": dict(failed or {}),
        "notes": list(notes),
        "series": list(series),
    }


def report(
    bench: str,
    about: dict[str, object],
    rows: Mapping[str, Row],
    pairs: Sequence[tuple[str, str]],
    *,
    restless: int,
    notes: Sequence[str],
    json_file: str | None,
    series: Sequence[Mapping[str, object]] = (),
    failed: Mapping[str, str] | None = None,
) -> None:
    """
    Print the table on stdout and write the record; `-` swaps them: JSON on stdout.

    failed: rows that were thrown out, and why. Raises BenchError at the end if there are any.
    series: curves for the report's page, each {title, x, y, log_x, lines: {name: [(x, y)]}}.
    """
    notes = [*notes, *(f"{name} is thrown out: {why}" for name, why in (failed or {}).items())]
    about["load_after"] = machine.load()
    about["restless_batches"] = restless
    taken = [row for row in rows.values() if row.rounds]
    found = ratios(rows, pairs)
    out = sys.stderr if json_file == "-" else sys.stdout
    print(
        f"{bench}, on {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, "
        f"load {about['load_before']} before and {about['load_after']} after\n",
        file=out,
    )
    print(table(taken, found), file=out)
    for note in notes:
        print(f"- {note}", file=out)
    if restless:
        print(
            f"- The machine was busy before {restless} batches: the result may be unstable. "
            "Stop what else runs, and repeat.",
            file=out,
        )
    text = json.dumps(as_json(bench, about, taken, found, notes, series, failed), indent=1)
    if json_file == "-":
        print(text)
    elif json_file:
        Path(json_file).write_text(text + "\n")
        say(f"wrote {json_file}")
    if failed:
        raise BenchError(f"without {', '.join(failed)}; the other rows are there")
