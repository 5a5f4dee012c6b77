# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that come and go for minutes: at what rate, and what a whole life costs.

A life is all of it: made, attached, detached, destroyed. Ours goes through the agent,
which makes slots as others are destroyed; the classic way has a pool that was made
ahead, attaches from it, and removes and makes it anew. By turns, some minutes in all each.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, cycle

from bench import classic, harness, machine, rtnl
from bench.classic import Host, Pooled, classic_host
from bench.harness import Row
from bench.ours import run_root
from bench.served import Served, served
from bench.testbed import interruptible, need, sweep, tunnel_kind, two_cpus, two_nodes
from geneve_ebpf.agent.config import Filling, Placement
from geneve_ebpf.errors import Code, GeneveError

SLOTS = 256
ALIVE = 64  # sandboxes of ours at any time
POOL = 64  # tenants that the classic way makes ahead, and removes together
NUMBERS = 16_384  # tenants' numbers, then again from the first: they are long gone
ROUNDS = 5
WARM_UP = 2.0  # seconds of each, not counted
IDLE = 5.0  # seconds
SETTLE = 90.0  # seconds at most: namespaces end in the background, and that is of the life too

Taken = tuple[list[float], int]  # microseconds of each attach, and how many sandboxes lived
PAIRS = [
    ("rate.ours", "rate.classic_pooled"),
    ("attach.classic_pooled", "attach.ours"),
    ("life.classic_pooled", "life.ours"),
    ("rtnl_held.classic_pooled", "rtnl_held.ours"),
]
NOTES = (
    "rate.*: sandboxes that came and went a second, until the last one's namespace had gone. The"
    " classic way is one process; what a life costs bounds what more could do.",
    "life.*: CPU time of the whole machine over those sandboxes, the caller's included.",
    "rtnl_held.*: how long the kernel's network lock was held for one of them, by looks 100 times"
    " a second: the share that took longer than 99 % did while nothing ran (rtnl_wait.idle).",
    "rtnl_wait.*: what those looks took: how long another user of the lock waits.",
    f"Ours: {ALIVE} sandboxes live at any time, for each that comes the oldest goes. Pooled: {POOL}"
    " are made, attached and removed. After a pause of the refill ours waits for a slot.",
)


def main(json_file: str | None, minutes: float) -> None:
    """Each for so many minutes. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "iptables": "iptables"})
    sweep()
    about = machine.record()
    first, second = two_cpus()
    about["placement"] = {"agent": first, "slot process": second, "callers": "any CPU"}
    with interruptible(), ExitStack() as stack:
        left, _ = stack.enter_context(two_nodes("sustained"))
        node = stack.enter_context(
            served(
                left,
                "sustained",
                stack.enter_context(run_root()),
                SLOTS,
                placement=Placement(agent_cpu=first, slot_cpu=second, exporter_cpu=second),
                filling=Filling(refill_rate=10_000),
            )
        )
        node.make_vpc()
        ours = Ours(node)
        kind = tunnel_kind()
        host = stack.enter_context(classic_host(kind))
        pooled = PooledClassic(replace(host, numbers=cycle(range(NUMBERS)), rules=False))
        stack.callback(pooled.host.clear)
        about["tunnel"] = {"ours": "geneve", "classic": kind}
        node.rest()
        machine.settle(10)
        with rtnl.waiting(left.netns) as idle:
            time.sleep(IDLE)
        rows, restless = Rows(idle), 0
        seconds = minutes * 60 / ROUNDS
        for number in range(ROUNDS + 1):
            turn: list[tuple[str, Ours | PooledClassic]] = [
                ("ours", ours),
                ("classic_pooled", pooled),
            ]
            for name, contestant in turn if number % 2 else turn[::-1]:
                node.rest()
                machine.settle(5)
                if not number:
                    contestant.go_on(WARM_UP)
                    continue
                harness.say(f"round {number} of {ROUNDS}: {name} for {seconds:.0f} s")
                ticks, began = machine.cpu_ticks()[0], time.monotonic()
                with rtnl.waiting(left.netns) as waits:
                    taken, lives = contestant.go_on(seconds)
                    restless += not machine.settle(SETTLE)
                passed = time.monotonic() - began
                busy = (machine.cpu_ticks()[0] - ticks) / os.sysconf("SC_CLK_TCK")
                rows.add(name, taken, lives, passed, busy, waits)
    harness.report(
        "sustained",
        about,
        rows.rows,
        PAIRS,
        restless=restless,
        notes=NOTES,
        json_file=json_file,
    )


class Rows:
    """What was found, round by round."""

    def __init__(self, idle: list[float]) -> None:
        self.idle = idle
        self.rows = {"rtnl_wait.idle": Row("rtnl_wait.idle", "us", [idle])}

    def add(
        self,
        name: str,
        taken: list[float],
        lives: int,
        seconds: float,
        busy: float,
        waits: list[float],
    ) -> None:
        """One round of a contestant."""
        held = rtnl.held_share(waits, self.idle) * seconds
        for row, unit, samples in (
            ("rate", "1/s", [lives / seconds]),
            ("attach", "us", taken),
            ("life", "CPU ms", [1000 * busy / lives]),
            ("rtnl_held", "ms", [1000 * held / lives]),
            ("rtnl_wait", "us", waits),
        ):
            full = f"{row}.{name}"
            self.rows.setdefault(full, Row(full, unit)).rounds.append(samples)


class Ours:
    """Through the agent."""

    def __init__(self, node: Served) -> None:
        self.node = node
        self.names: Iterator[str] = (f"life-{number}" for number in count())

    def go_on(self, seconds: float) -> Taken:
        """All that came are gone at the end, and the slots are whole again."""
        taken: list[float] = []
        alive: deque[str] = deque()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = next(self.names)
            try:
                taken.append(self.node.attach(name))
            except GeneveError as error:
                if error.code is not Code.NO_SLOT:
                    raise
                time.sleep(0.005)
                continue
            alive.append(name)
            if len(alive) > ALIVE:
                self.node.detach(alive.popleft())
        while alive:
            self.node.detach(alive.popleft())
        self.node.rest()
        return taken, len(taken)


class PooledClassic:
    """Over pyroute2, all but the tunnel device ahead."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.form = Pooled()

    def go_on(self, seconds: float) -> Taken:
        """One pool after another."""
        taken: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            taken += classic.measure(self.host, self.form, POOL)
        return taken, len(taken)
