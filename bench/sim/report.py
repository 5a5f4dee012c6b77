# SPDX-License-Identifier: Apache-2.0
"""`script/bench sim`: what the measured times lead to, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.harness import number, say
from bench.sim.measured import Record, read, ways
from bench.sim.model import Node, Outcome, Policy, Way
from bench.sim.page import page, plot
from bench.testbed import BenchError

SIZES = (10, 100, 1_000, 10_000, 100_000)
POOL = 4_000
QUEUES = (64, 256, 1_024, 4_096)
DEADLINES = (1.0, 5.0, 30.0)
RETRIES = (0, 3)
SEED = 20261128
# What a caller of ours may wait: beyond any storm here, so that the plots show waiting
# and not refusals. The classic ways have no queue of their own either.
PATIENT = Policy(waiting_max=1 << 30, deadline=1e9)


def main(measured: Path, storm: Path | None, out: Path | None, most: int) -> None:
    """Simulate, print, and write the page. Raises BenchError."""
    record = read(measured, "attach")
    against = None if storm is None else read(storm, "storm")
    caller = against.points("storm.1.floor") if against is not None else None
    contestants = ways(record, POOL, SEED, caller)
    plots, tables = [], []

    outcomes = {}
    for size in (size for size in SIZES if size <= most):
        for way in contestants:
            say(f"{size} at once: {way.name}")
            outcomes[way.name, size] = Node(way, PATIENT, record.cpus, SEED).run(size, 0.0)
    tables.append(storms_table(outcomes))
    for title, share in (("median", 0.5), ("99th percentile", 0.99)):
        plots.append(
            plot(
                f"{title} of an attach, all at once",
                "sandboxes",
                "",
                {
                    way.name: [
                        (size, outcome.percentile(share))
                        for (name, size), outcome in outcomes.items()
                        if name == way.name
                    ]
                    for way in contestants
                },
            )
        )
    if against is not None:
        table, points = checked(contestants, against, record.cpus)
        tables.append(table)
        plots.append(plot("99th percentile, simulated and measured", "sandboxes", "", points))
    ours = contestants[-1]
    tables.append(policies(ours, min(most, 2_400), record.cpus))

    for table in tables:
        print(table + "\n")
    notes = notes_of(record, against)
    for note in notes:
        print(f"- {note}")
    if out is not None:
        try:
            out.write_text(page("Storms of attaches, simulated", plots, tables, notes))
        except OSError as error:
            raise BenchError(f"{out} cannot be written: {error.strerror}") from None
        say(f"wrote {out}")


def storms_table(outcomes: dict[tuple[str, int], Outcome]) -> str:
    """A line for each way and size, in milliseconds."""
    lines = [f"{'all at once':12}{'sandboxes':>10}" + "".join(
        f"{head:>14}" for head in ("p50 ms", "p99 ms", "all done ms")
    )]  # fmt: skip
    for (name, size), outcome in outcomes.items():
        values = (outcome.percentile(0.5), outcome.percentile(0.99), outcome.ended)
        lines.append(f"{name:12}{size:>10,}" + "".join(f"{number(v * 1e3):>14}" for v in values))
    return "\n".join(lines)


def checked(
    contestants: Sequence[Way], storm: Record, cpus: int
) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """The sizes that were measured, simulated: a table, and the points of a plot."""
    lines = [f"{'check':12}{'sandboxes':>10}" + "".join(
        f"{head:>16}" for head in ("p50 simulated", "measured", "p99 simulated", "measured")
    ) + f"{'p50':>8}{'p99':>8}"]  # fmt: skip
    points: dict[str, list[tuple[float, float]]] = {}
    sizes = sorted({int(name.split(".")[1]) for name in storm.rows})
    for way in contestants:
        for size in sizes:
            row = storm.rows.get(f"storm.{size}.{way.name}")
            if row is None:
                continue
            # As many storms as samples were measured, and several of the small ones.
            simulated = Outcome()
            for turn in range(max(1, 200 // size)):
                simulated.done += Node(way, PATIENT, cpus, SEED + turn).run(size, 0.0).done
            p50, p99 = simulated.percentile(0.5) * 1e3, simulated.percentile(0.99) * 1e3
            seen50, seen99 = row["p50"] / 1e3, row["p99"] / 1e3
            lines.append(
                f"{way.name:12}{size:>10,}"
                + "".join(f"{number(v):>16}" for v in (p50, seen50, p99, seen99))
                + f"{p50 / seen50:>8.2f}{p99 / seen99:>8.2f}"
            )
            points.setdefault(way.name, []).append((size, p99 / 1e3))
            points.setdefault(f"{way.name} measured", []).append((size, seen99 / 1e3))
    return "\n".join(lines), points


def policies(way: Way, callers: int, cpus: int) -> str:
    """What queue, deadline and retries do to a storm of six times the pool.

    What is beyond the pool lives on the refill alone, so a small pool shows it too.
    """
    way = replace(way, pool=max(1, callers // 6))
    lines = [
        f"policy, {callers:,} at once on {way.pool:,} slots\n"
        f"{'queue':>8}{'deadline s':>12}{'retries':>9}{'done':>9}{'expired':>9}{'refused':>9}"
        f"{'asked again':>13}{'p99 ms':>12}{'all done s':>12}"
    ]
    for waiting in QUEUES:
        for deadline in DEADLINES:
            for retries in RETRIES:
                policy = Policy(waiting, deadline, retries)
                result = Node(way, policy, cpus, SEED).run(callers, 0.0)
                lines.append(
                    f"{waiting:>8,}{deadline:>12g}{retries:>9}{len(result.done):>9,}"
                    f"{result.expired:>9,}{result.refused:>9,}{result.asked_again:>13,}"
                    f"{number(result.percentile(0.99) * 1e3):>12}{number(result.ended):>12}"
                )
    return "\n".join(lines)


def notes_of(record: Record, storm: Record | None) -> list[str]:
    """What the figures stand on."""
    machine = record.machine
    return [
        f"Service times: {record.path.name}, measured on {machine['cpu']}, {record.cpus} CPUs, "
        f"Linux {machine['kernel']}, revision {machine.get('commit', '')}; drawn from each row's "
        f"min, p50, p90, p99 and max with seed {SEED}.",
        f"pooled and ours start with {POOL:,} ready and refill meanwhile, under RTNL; a tunnel "
        "device, a bridge or a rule is taken to cost the same however many there are, which "
        "favours the classic ways.",
        "script: all of its time on a CPU, the kernel's part of it under RTNL. pooled: one tunnel "
        "device each. ours: one after the other in the agent's thread.",
        "Nobody is detached meanwhile, and nothing else runs."
        if storm is None
        else f"Checked against {storm.path.name}, where {storm.machine.get('detaches', '?')} were "
        "detached meanwhile, which the simulation leaves out.",
    ]
