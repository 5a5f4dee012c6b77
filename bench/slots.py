# SPDX-License-Identifier: Apache-2.0
"""Slots by the thousand: made, attached, restarted over and destroyed, beside a node with a few.

Each round fills a node from nothing. Figures of one round are one sample, but
for attaches, which are taken by turns; the floor is what the kernel takes for a
network namespace with nothing in it, in the same run.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import harness, machine
from bench.beside import beside
from bench.harness import Row
from bench.ours import run_root
from bench.served import METRICS, PATIENCE, VPC, Served, served
from bench.testbed import (
    BenchError,
    Node,
    interruptible,
    need,
    pinned,
    sweep,
    two_cpus,
    two_nodes,
)
from geneve_ebpf.agent.config import Filling, Placement
from geneve_ebpf.errors import GeneveError
from geneve_ebpf.host import namespaces
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import SlotKind

FEW = 64  # slots of the node beside, and of the full one when it is not to refill
PAIRS = 50  # attaches of each contestant in a round
PACKETS = 2000
IDLE_SECONDS = 10.0
REFILL = 100.0  # slots a second
AT_RATE = 1000  # attaches at that rate; fewer where there are few slots
CURVE_EVERY = 0.05  # seconds
SCRAPE_EVERY = 1.0  # seconds
SETTLED = 512  # KB that the kernel may still give back in half a second
_BPF_ENABLE_STATS = 32

TAPS = {"tap": SlotKind.TAP, "host_tap": SlotKind.HOST_TAP}

PAIRS_TO_COMPARE = (
    ("attach.slot_last", "attach.slot_first"),
    ("attach.many", "attach.few"),
    ("attach.refill", "attach.calm"),
    ("attach.refill_across", "attach.calm_across"),
    ("packet.slot_last", "packet.slot_first"),
    ("slots.memory_each", "floor.namespace_each"),
    *((f"slots.memory_each_{name}", "slots.memory_each") for name in TAPS),
)
NOTES = (
    "slots.fill: from starting the agent until all are ready, its programs kept from before."
    " …_tap: with a tap in the namespace; …_host_tap: a tap in the node's.",
    "slots.memory_each: Slab and Percpu of the machine over the slots made, after a settle;"
    " floor.namespace_each the same of network namespaces with nothing in them.",
    "attach.*: through the socket, the caller beside the agent on one CPU. slot_first and"
    " slot_last: slots of the lowest and the highest number; few and many: two nodes, by turns.",
    f"attach.refill: with slots made at {REFILL:.0f} a second, as many detached, and a scrape a"
    " second; attach.calm: at the same rate, with none of them. …_across: the caller is on the"
    " CPU of the slot process and the exporter.",
    "packet.*: sandbox_tx for one 64-byte datagram to a neighbour, by bpf_stats.",
    "restart: from starting an agent over the attached sandboxes of one that was killed until"
    " it has answered an attach. destroy: from the first detach until the last interface is gone.",
)


Curve = list[tuple[float, int]]


class Rows:
    """Samples by name, as they come."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.curves: dict[str, Curve] = {}

    def add(self, name: str, unit: str, samples: list[float]) -> None:
        """One round's samples of a row."""
        self.rows.setdefault(name, Row(name, unit)).rounds.append(samples)

    def curve(self, name: str, points: Curve) -> None:
        """How a node filled with slots of a kind; that of the last round is kept."""
        self.curves[name] = points


def main(json_file: str | None, rounds: int, slots: int) -> None:
    """Fill a node with `slots` slots, `rounds` times. Raises BenchError."""
    need({"ip": "iproute2"})
    sweep()
    if slots < 8 * FEW:
        raise BenchError(f"--slots must be at least {8 * FEW}")
    about = machine.record()
    first, second = two_cpus()
    about["placement"] = {"agent": first, "caller": first, "slot_process": second}
    rows, failed = Rows(), {}
    placement = Placement(agent_cpu=first, slot_cpu=second, exporter_cpu=second)
    with interruptible(), ExitStack() as stack:
        left, right = stack.enter_context(two_nodes("slots"))
        root = stack.enter_context(run_root())
        few = stack.enter_context(served(right, "few", root, FEW, placement=placement))
        few.make_vpc()
        few.rest()  # its programs are kept now, and no round pays for the compiler
        for number in range(1, rounds + 1):
            harness.say(f"round {number} of {rounds}")
            try:
                one_round(rows, left, few, root, slots, (first, second))
                for name, kind in TAPS.items():
                    fill(rows, left, few, root, slots, name, kind)
            except (BenchError, GeneveError) as error:
                failed[f"the rest of round {number}"] = str(error)
                break
    harness.report(
        "slots",
        about,
        rows.rows,
        PAIRS_TO_COMPARE,
        restless=0,
        notes=NOTES,
        json_file=json_file,
        failed=failed,
        series=[
            {
                "title": f"Filling a node with {slots:,} slots of a kind",
                "x": "seconds from the start of the agent",
                "y": "slots ready",
                "lines": rows.curves,
            }
        ]
        if rows.curves
        else [],
    )


def filled(node: Served, slots: int, began: float) -> Curve:
    """Wait until so many slots are ready; how many were, second by second."""
    points: Curve = [(0.0, 0)]
    end = time.monotonic() + PATIENCE
    while points[-1][1] < slots:
        if time.monotonic() > end:
            raise BenchError(f"waited {PATIENCE:.0f} s for {slots} slots")
        time.sleep(CURVE_EVERY)
        ready = node.counts()["ready"]
        points.append((round(time.perf_counter() - began, 3), ready))
    return points


def fill(
    rows: Rows, node: Node, few: Served, root: Path, slots: int, name: str, kind: SlotKind
) -> None:
    """Slots of another kind: made, and undone."""
    before = kernel_kilobytes()
    filling = Filling(low_watermark=0, refill_rate=REFILL)
    began = time.perf_counter()
    with served(
        node, name, root, slots, kind=kind, placement=few.placement, filling=filling
    ) as full:
        rows.curve(name, filled(full, slots, began))
        rows.add(f"slots.fill_{slots}_{name}", "s", [time.perf_counter() - began])
        settle()
        rows.add(f"slots.memory_each_{name}", "KB", [(kernel_kilobytes() - before) / slots])
        full.make_vpc()
        full.attach("one")
        kinds = {one["slot"]["kind"] for one in everybody(full)}
        if kinds != {kind.value}:
            raise BenchError(f"slots are of kind {', '.join(kinds)}, not {kind.value}")
    settle()


def one_round(
    rows: Rows, node: Node, few: Served, root: Path, slots: int, cpus: tuple[int, int]
) -> None:
    """From nothing to a full node, and back."""
    cpu, across = cpus
    rows.add("floor.namespace_each", "KB", [namespaces_each(root, min(slots, 1000))])
    before = kernel_kilobytes()
    filling = Filling(low_watermark=0, refill_rate=REFILL)
    began = time.perf_counter()
    with served(node, "full", root, slots, placement=few.placement, filling=filling) as full:
        rows.curve("namespace", filled(full, slots, began))
        rows.add(f"slots.fill_{slots}", "s", [time.perf_counter() - began])
        settle()
        rows.add("slots.memory_each", "KB", [(kernel_kilobytes() - before) / slots])
        full.make_vpc()
        with pinned(cpu):
            first, last = by_turns(
                lambda turn: full.attach(f"first-{turn}", turn),
                lambda turn: full.attach(f"last-{turn}", slots - 1 - turn),
            )
        rows.add("attach.slot_first", "us", first)
        rows.add("attach.slot_last", "us", last)
        samples = min(AT_RATE, slots // 8)
        for name, place in (("attach.refill", cpu), ("attach.refill_across", across)):
            with beside(scraper, SCRAPE_EVERY, node.netns, across) as scrapes, pinned(place):
                rows.add(name, "us", refilling(full, samples))
            rows.add(f"scrape.{name.partition('.')[2]}", "ms", [one / 1000 for one in scrapes])
        # The same slots, and nobody who makes more: more are ready than are wanted.
        full.end(signal.SIGTERM)
        full.start(FEW)
        full.whole()
        many = full.counts()["ready"] - 2 * PAIRS - 1
        few.rest()  # on a connection of now: the agent has closed the one that was idle
        with pinned(cpu):
            calm = at_rate(lambda turn: full.attach(f"calm-{turn}"), samples)
        with pinned(across):
            calm_across = at_rate(lambda turn: full.attach(f"across-{turn}"), samples)
        with pinned(cpu):
            for number in range(many - 2 * samples):
                full.attach(f"many-{number}")
            of_many, of_few = by_turns(
                lambda turn: full.attach(f"more-{turn}"), lambda turn: few.attach(f"few-{turn}")
            )
        rows.add("attach.calm", "us", calm)
        rows.add("attach.calm_across", "us", calm_across)
        rows.add("attach.many", "us", of_many)
        rows.add("attach.few", "us", of_few)
        for turn in range(PAIRS):
            few.detach(f"few-{turn}")
        one, other = packet_cost(full)
        rows.add("packet.slot_first", "ns", one)
        rows.add("packet.slot_last", "ns", other)
        settle()
        began_at = full.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        spent = full.cpu_seconds() - began_at
        rows.add("idle.cpu", "%", [100 * spent / IDLE_SECONDS])
        rows.add("idle.memory", "MB", [full.megabytes()])
        full.end(signal.SIGKILL)
        began = time.perf_counter()
        full.start()
        full.ask("PUT", "/v1/sandboxes/after", {"vpc": VPC})
        rows.add(f"restart_{slots}", "s", [time.perf_counter() - began])
        names = [one["sandbox"] for one in everybody(full)]
        began = time.perf_counter()
        for name in names:
            full.detach(name)
        full.wait("retiring", 0)
        rows.add(f"destroy_{slots}", "s", [time.perf_counter() - began])
    few.rest()
    settle()


def by_turns(
    one: Callable[[int], float], other: Callable[[int], float]
) -> tuple[list[float], list[float]]:
    """PAIRS samples of each, whoever goes first taking turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(PAIRS):
        for which in (0, 1) if turn % 2 else (1, 0):
            taken[which].append((one, other)[which](turn))
    return taken


def at_rate(one: Callable[[int], float], count: int) -> list[float]:
    """Samples taken at the rate of the refill, as a caller finds an agent that slept."""
    taken = []
    due = time.monotonic()
    for turn in range(count):
        taken.append(one(turn))
        due += 1 / REFILL
        time.sleep(max(0.0, due - time.monotonic()))
    return taken


def refilling(node: Served, samples: int) -> list[float]:
    """What attaches take at the rate of the refill, each followed by a detach."""

    def one(turn: int) -> float:
        taken = node.attach(f"busy-{turn}")
        node.detach(f"busy-{turn}")
        return taken

    return at_rate(one, PAIRS + samples)[PAIRS:]  # the first ones came before the refill ran


def scraper() -> Callable[[], None]:
    """Fetch all metrics, as Prometheus does."""
    url = f"http://{METRICS}/metrics"

    def scrape() -> None:
        with urllib.request.urlopen(url, timeout=60) as answer:
            if b"geneve_ebpf_slots" not in answer.read():
                raise BenchError(f"{url} has no metrics of slots")

    return scrape


def everybody(node: Served) -> list[dict[str, Any]]:
    """All sandboxes that are attached."""
    sandboxes: list[dict[str, Any]] = node.ask("GET", "/v1/sandboxes")["sandboxes"]
    return sandboxes


def packet_cost(node: Served) -> tuple[list[float], list[float]]:
    """Nanoseconds of sandbox_tx a packet, from the lowest and the highest slot attached."""
    attached = sorted(
        everybody(node), key=lambda sandbox: int(sandbox["slot"]["id"].removeprefix("slot-"))
    )
    ends, target = (attached[0], attached[-1]), attached[len(attached) // 2]["address"]
    pins = Pins(node.settings.run_directory)
    program = bpf.open_pin(pins.program("sandbox_tx"))
    stats = bpf.call(_BPF_ENABLE_STATS, bpf.create_attr("<I", 0))
    taken: tuple[list[float], list[float]] = ([], [])
    try:
        with sender(ends[0]["slot"]["netns"]) as one, sender(ends[1]["slot"]["netns"]) as other:
            for turn in range(10):
                for which in (0, 1) if turn % 2 else (1, 0):
                    before = bpf.program_info(program)
                    for _ in range(PACKETS // 10):
                        (one, other)[which].sendto(bytes(22), (target, 9))
                    after = bpf.program_info(program)
                    runs = after.run_count - before.run_count
                    if runs < PACKETS // 10:
                        raise BenchError("sandbox_tx did not run for every packet")
                    taken[which].append((after.run_time_ns - before.run_time_ns) / runs)
    finally:
        os.close(stats)
        os.close(program)
    return taken


@contextmanager
def sender(netns: str) -> Iterator[socket.socket]:
    """A UDP socket in a slot."""
    with namespaces.entering(Path(netns)):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        yield made


def kernel_kilobytes() -> int:
    """What the kernel itself holds: slab and per-CPU memory of the machine."""
    fields = dict(
        line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    return sum(int(fields[name].split()[0]) for name in ("Slab", "Percpu"))


def namespaces_each(root: Path, count: int) -> float:
    """Kilobytes of a network namespace with nothing in it."""
    place = root / "bare"
    namespaces.make_directory(place)
    made = [place / str(number) for number in range(count)]
    settle()
    before = kernel_kilobytes()
    try:
        for path in made:
            os.close(namespaces.create(path))
        settle()
        return (kernel_kilobytes() - before) / count
    finally:
        for path in made:
            if path.exists():
                namespaces.remove(path)
        namespaces.remove_directory(place)
        settle()


def settle() -> None:
    """Wait until the kernel has done what it does later, memory that it gives back last: at most
    half a minute. What vanishes in the background would hold up what is made next."""
    machine.settle(20)
    for _ in range(20):
        before = kernel_kilobytes()
        time.sleep(0.5)
        if abs(kernel_kilobytes() - before) < SETTLED:
            return
