# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching for a long time: how fast, at what cost, and what stays behind.

Some sandboxes live at any time; for each that comes the oldest goes, and its
slot is destroyed and made anew. A counter of everything is read before the
first and after the last.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from bench import classic, harness, machine
from bench.classic import Pooled, classic_host
from bench.harness import Row
from bench.ours import run_root
from bench.served import Served, served
from bench.testbed import (
    BenchError,
    eventually,
    interruptible,
    need,
    sweep,
    tunnel_kind,
    two_cpus,
    two_nodes,
)
from geneve_ebpf.agent.config import Filling, Placement
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces

SLOTS = 256
ALIVE = 64  # sandboxes at any time
POOLED = 20  # tenants that the classic way makes ahead, and removes together
RTNL_EVERY = 0.01  # seconds between looks at how long the kernel's lock is waited for
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A

NOTES = (
    "life.*: CPU time of the whole machine over sandboxes that came and went: made, attached,"
    " detached, destroyed, the bench's own part included. For ours slots are made and destroyed"
    " while others attach; the pooled classic way makes, attaches and removes 20 after another.",
    "rtnl.*: how long another user of the kernel's network lock waits for it, asked 100 times a"
    " second (a look at the link of `lo`). rtnl.idle: before anything ran.",
)


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
        with waiting_for_rtnl(left.netns) as idle:
            time.sleep(5)
        add("rtnl.idle", "us", idle)
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
        # The VPC's counters of those that are gone take their place with the first.
        node.attach("nobody")
        node.detach("nobody")
        node.rest()
        before = counts(node)
        with waiting_for_rtnl(left.netns) as waits:
            taken, lives, seconds, busy = turn_over(node, alive, minutes * 60, cycles)
        node.rest()
        settled(node, before)
        add("attach", "us", taken)
        add("rate", "1/s", [lives / seconds])
        add("life.ours", "ms", [1000 * busy / lives])
        add("rtnl.ours", "us", waits)
    if not cycles:
        with interruptible():
            waits, tenants, busy = pooled_classic(min(minutes, 2) * 60)
        add("life.classic_pooled", "ms", [1000 * busy / tenants])
        add("rtnl.classic_pooled", "us", waits)
    harness.report(
        "soak",
        about,
        rows,
        [("life.classic_pooled", "life.ours")],
        restless=0,
        notes=(*NOTES, f"{lives:,} sandboxes came and went, and every count is back."),
        json_file=json_file,
    )


def turn_over(
    node: Served, alive: deque[str], seconds: float, cycles: int
) -> tuple[list[float], int, float, float]:
    """Microseconds of each attach, how many, seconds, and CPU seconds of the machine."""
    taken: list[float] = []
    ticks = machine.cpu_ticks()[0]
    began = time.monotonic()
    for number in count():
        passed = time.monotonic() - began
        if number >= cycles if cycles else passed >= seconds:
            break
        if number % 5000 == 0:
            harness.say(f"{number} sandboxes came and went in {passed:.0f} s")
        name = f"s-{number}"
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
    passed = time.monotonic() - began
    busy = (machine.cpu_ticks()[0] - ticks) / os.sysconf("SC_CLK_TCK")
    return taken, len(taken), passed, busy


def counts(node: Served) -> dict[str, float]:
    """Everything that must be what it was, when the same sandboxes live and all is at rest."""
    with namespaces.entering(node.settings.netns):
        links = len(socket.if_nameindex())
    mounts = Path("/proc/self/mountinfo").read_text().count(f"{node.settings.run_directory}/netns/")
    plane = DataPlane.open(node.settings.run_directory, writable=False)
    try:
        entries = sum(plane.map_pressure().values())
    finally:
        plane.close()
    return {
        "interfaces": links,
        "namespaces": mounts,
        "map entries": entries,
        "descriptors": node.descriptors(),
        "slots": sum(value for state, value in node.counts().items() if state != "target"),
        "megabytes": node.megabytes(),
    }


def settled(node: Served, before: dict[str, float]) -> None:
    """Raise BenchError unless all counts come back; memory may have grown by a fifth."""

    def differing() -> list[str]:
        after = counts(node)
        return [
            f"{name}: {before[name]:g} before, {value:g} after"
            for name, value in after.items()
            if (value > 1.2 * before[name] if name == "megabytes" else value != before[name])
        ]

    try:
        eventually(lambda: not differing(), "every count to be what it was", 90)
    except BenchError as error:
        raise BenchError(f"{error}: {'; '.join(differing())}") from None


def pooled_classic(seconds: float) -> tuple[list[float], int, float]:
    """The same life the classic way: waits for the lock, how many lives, CPU seconds."""
    lives, form = 0, Pooled()
    with classic_host(tunnel_kind()) as host:
        classic.measure(host, form, 2)
        ticks, end = machine.cpu_ticks()[0], time.monotonic() + seconds
        with waiting_for_rtnl(host.node.netns) as waits:
            while time.monotonic() < end:
                lives += len(classic.measure(host, form, POOLED))
        machine.settle(10)
        busy = (machine.cpu_ticks()[0] - ticks) / os.sysconf("SC_CLK_TCK")
    return waits, lives, busy


@contextmanager
def waiting_for_rtnl(netns: Path) -> Iterator[list[float]]:
    """Microseconds that a look at a link takes, which needs the lock; taken all the while."""
    taken: list[float] = []
    done = threading.Event()
    with namespaces.entering(netns):
        door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    look = looker(door)

    def go_on() -> None:
        while not done.wait(RTNL_EVERY):
            began = time.perf_counter_ns()
            look()
            taken.append((time.perf_counter_ns() - began) / 1000)

    asking = threading.Thread(target=go_on)
    asking.start()
    try:
        yield taken
    finally:
        done.set()
        asking.join()
        door.close()


def looker(door: socket.socket) -> Callable[[], object]:
    """Ask whether `lo` has a link."""
    value = ctypes.create_string_buffer(struct.pack("<II", _ETHTOOL_GLINK, 0), 8)
    request = struct.pack("16sQ8x", b"lo", ctypes.addressof(value))
    return lambda: (fcntl.ioctl(door, _SIOCETHTOOL, request), value)  # `value` must live
