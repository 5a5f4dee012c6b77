# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching for a long time, and what stays behind: nothing.

Some sandboxes live at any time; for each that comes the oldest goes, and its
slot is destroyed and made anew. All that can be counted is counted before the
first and after the last, and printed.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from bench import harness, machine
from bench.harness import Row
from bench.ours import run_root
from bench.served import Served, served
from bench.testbed import (
    BenchError,
    eventually,
    interruptible,
    need,
    sweep,
    two_cpus,
    two_nodes,
)
from geneve_ebpf.agent.config import Filling, Placement
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces

SLOTS = 256
ALIVE = 64  # sandboxes at any time
# Before the first count: histories of bounded length are full by then, and as many
# addresses rest as will at any time, which is a minute's.
WARM = 18_000
# Sandboxes a second at the most, where it is their number that matters. The kernel clears so many
# namespaces away for a minute or two; then it falls behind, and they come more slowly.
PACE = 250.0

NOTES = ("rate: sandboxes that came and went a second; what they cost is in `sustained`.",)


def main(json_file: str | None, minutes: float, cycles: int) -> None:
    """For so many minutes, or sandboxes if `cycles` is not 0. Raises BenchError."""
    need({"ip": "iproute2", "iptables": "iptables"})
    sweep()
    about = machine.record()
    rows: dict[str, Row] = {}

    def add(name: str, unit: str, samples: list[float]) -> None:
        rows[name] = Row(name, unit, [samples])

    first, second = two_cpus()
    with interruptible(), ExitStack() as stack:
        left, _ = stack.enter_context(two_nodes("soak"))
        node = stack.enter_context(
            served(
                left,
                "soak",
                stack.enter_context(run_root()),
                SLOTS,
                placement=Placement(agent_cpu=first, slot_cpu=second, exporter_cpu=second),
                filling=Filling(refill_rate=10_000),
            )
        )
        node.make_vpc()
        node.rest()
        alive = deque(f"first-{number}" for number in range(ALIVE))
        for name in alive:
            node.attach(name)
        pace = PACE if cycles else 0.0
        turn_over(node, alive, "w", 0, WARM, pace)
        node.rest()
        before = counts(node)
        taken, seconds = turn_over(node, alive, "s", minutes * 60, cycles, pace)
        node.rest()
        after = settled(node, before)
        add("attach", "us", taken)
        add("rate", "1/s", [len(taken) / seconds])
    harness.report(
        "soak",
        about,
        rows,
        [],
        restless=0,
        notes=(
            *NOTES,
            f"{len(taken):,} sandboxes came and went, and every count is back. Before and after: "
            + "; ".join(f"{name} {before[name]:g}, {after[name]:g}" for name in before)
            + ".",
        ),
        json_file=json_file,
    )


def turn_over(
    node: Served, alive: deque[str], prefix: str, seconds: float, cycles: int, pace: float
) -> tuple[list[float], float]:
    """Microseconds of each attach, and the seconds of all.

    prefix: of the sandboxes' names. pace: so many a second at most; 0 is as fast as it goes.
    """
    taken: list[float] = []
    began, due = time.monotonic(), 0.0
    for number in count():
        passed = time.monotonic() - began
        if number >= cycles if cycles else passed >= seconds:
            break
        if number % 5000 == 0:
            harness.say(f"{number} sandboxes came and went in {passed:.0f} s")
        if pace:
            due = max(due, passed - 1) + 1 / pace  # who is late makes up for a second at most
            time.sleep(max(0.0, due - passed))
        name = f"{prefix}-{number}"
        while True:
            try:
                taken.append(node.attach(name))
                break
            except GeneveError as error:
                if error.code is not Code.NO_SLOT:
                    raise
                time.sleep(0.005)
        alive.append(name)
        node.detach(alive.popleft())
    return taken, time.monotonic() - began


def counts(node: Served) -> dict[str, float]:
    """Everything that must be what it was, when the same sandboxes live and all is at rest."""
    with namespaces.entering(node.settings.netns):
        links = len(socket.if_nameindex())
    mounts = Path("/proc/self/mountinfo").read_text().count(f"{node.settings.run_directory}/netns/")
    plane = DataPlane.open(node.settings.run_directory, writable=False)
    try:
        entries = {f"entries of {name}": n for name, n in plane.map_entries().items()}
    finally:
        plane.close()
    slots = node.counts()
    return {
        "interfaces": links,
        "namespaces": mounts,
        "slots": sum(slots.values()) - slots["target"] - slots["min_ready"],
        **entries,
        **{f"descriptors of the {who}": n for who, n in node.descriptors().items()},
        **{f"MB of the {who}": round(n, 1) for who, n in node.memory().items()},
    }


def settled(node: Served, before: dict[str, float]) -> dict[str, float]:
    """The counts, once all are back. Raises BenchError.

    Memory may have grown by a fifth: as many addresses rest as went in the last minute, and
    that was a faster one perhaps.
    """
    after: dict[str, float] = {}

    def differing() -> list[str]:
        after.update(counts(node))
        return [
            f"{name}: {before[name]:g} before, {value:g} after"
            for name, value in after.items()
            if (value > 1.2 * before[name] if name.startswith("MB") else value != before[name])
        ]

    try:
        eventually(lambda: not differing(), "every count to be what it was", 90)
    except BenchError as error:
        raise BenchError(f"{error}: {'; '.join(differing())}") from None
    return after
