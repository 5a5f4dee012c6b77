# SPDX-License-Identifier: Apache-2.0
"""What a packet costs our programs, as a node fills with sandboxes and routes.

The kernel's own clock around each run of a program (BPF_ENABLE_STATS), under live
traffic: datagrams of 18 bytes, to ten destinations and to all there are.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from statistics import median

from bench import harness, machine
from bench.compiled import compiled
from bench.harness import Row
from bench.ours import Agent, agents, connect, run_root
from bench.testbed import BenchError, end_with_parent, interruptible, need, sweep, two_cpus
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import Endpoint, Route, RouteKind, endpoint_mac

VNI = 77
SANDBOXES = (1, 100, 1_000, 4_000)
ROUTES = (10, 1_000, 100_000, 1_000_000)
FEW = 10  # destinations of the traffic that finds everything in the caches
WARM_UP, SECONDS = 0.1, 0.4
_ENABLE_STATS = 32  # bpf(2): BPF_ENABLE_STATS, run time; until the descriptor is closed
_FIRST_SLOT = 8_000  # indexes that the agent is far from
_NO_INTERFACE = 1 << 24  # interface numbers that nobody has
_LIVES = IPv4Address("10.1.64.0")  # the first of the sandboxes that are added
_EXACT, _PREFIXES = IPv4Address("20.0.0.0"), IPv4Address("60.0.0.0")
_PREFIX, _IN_PREFIX = 28, 16


@dataclass(frozen=True, slots=True)
class Place:
    """A sandbox that sends, and where."""

    program: Path  # traffic.c's
    netns: Path
    cpu: int


@contextmanager
def clock() -> Iterator[None]:
    """The kernel notes how long programs run."""
    fd = bpf.call(_ENABLE_STATS, bpf.create_attr("<I", 0))
    try:
        yield
    finally:
        os.close(fd)


def spray(place: Place, first: IPv4Address, addresses: int) -> int:
    """Send for a while to `addresses` from `first` on; how many datagrams went."""
    words = (WARM_UP, SECONDS, addresses)
    done = subprocess.run(
        [
            place.program,
            "spray",
            "ask",
            place.netns,
            str(place.cpu),
            str(first),
            "9",
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=end_with_parent,
    )
    if done.returncode:
        raise BenchError(f"the traffic broke: {done.stderr.strip()}")
    return int(json.loads(done.stdout)["count"])


def ns_a_run(agent: Agent, name: str, place: Place, first: IPv4Address, addresses: int) -> float:
    """What one run of a node's program takes meanwhile. Raises BenchError if it hardly ran."""
    fd = bpf.open_pin(Pins(agent.settings.run_directory).program(name))
    try:
        before = bpf.program_info(fd)
        sent = spray(place, first, addresses)
        after = bpf.program_info(fd)
    finally:
        os.close(fd)
    runs = after.run_count - before.run_count
    if runs < sent * 0.9 or not sent:
        raise BenchError(f"{name} ran {runs} times for {sent} datagrams")
    return (after.run_time_ns - before.run_time_ns) / runs


def fill_sandboxes(plane: DataPlane, present: int, wanted: int) -> None:
    """Attach sandboxes that are entries in the maps alone: it is these that a packet meets."""
    for number in range(present, wanted):
        address = _LIVES + number
        plane.add_slot(_FIRST_SLOT + number, _NO_INTERFACE + number)
        endpoint = Endpoint(VNI, address, endpoint_mac(address))
        plane.attach(_FIRST_SLOT + number, f"cost-{number}", endpoint)


def empty(plane: DataPlane, present: int) -> None:
    """Take them away again."""
    for number in range(present):
        plane.detach(_FIRST_SLOT + number)
        plane.remove_slot(_FIRST_SLOT + number)


def fill_routes(plane: DataPlane, vtep: IPv4Address, present: int, wanted: int) -> None:
    """Routes to single addresses, and as many to prefixes."""
    step = 10_000
    for start in range(present, wanted, step):
        numbers = range(start, min(start + step, wanted))
        plane.set_routes(
            (VNI, Route("", IPv4Network((first + number * size, length)), RouteKind.REMOTE, vtep))
            for number in numbers
            for first, size, length in ((_EXACT, 1, 32), (_PREFIXES, _IN_PREFIX, _PREFIX))
        )


def main(json_file: str | None, rounds: int, most_routes: int = ROUTES[-1]) -> None:
    """Run and report. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "cc": "gcc"})
    sweep()
    about = machine.record()
    first, second = two_cpus()
    rows: dict[str, Row] = {}
    lines: dict[str, list[tuple[int, float]]] = {}
    restless = 0

    def note(what: str, amount: int, taken: list[float]) -> None:
        name = f"cost.{what}.{amount}"
        rows[name] = Row(name, "ns", [[one] for one in taken])
        lines.setdefault(what, []).append((amount, median(taken)))

    with interruptible(), ExitStack() as stack:
        root = stack.enter_context(run_root())
        program = compiled("traffic.c", root)
        assert program is not None  # need() found the compiler
        harness.say("making the nodes")
        pair = stack.enter_context(agents("cost", slots=2))
        connect(pair, "bench", VNI)
        places = [
            Place(
                program,
                Path(agent.attach(f"cost{n}", "bench", f"10.{n}.0.5")["slot"]["netns"]),
                first,
            )
            for n, agent in enumerate(pair, 1)
        ]
        full, other = pair
        plane = DataPlane.open(full.settings.run_directory)
        stack.callback(plane.close)
        stack.enter_context(clock())
        drops = dropped(full)
        present = 0
        stack.callback(lambda: empty(plane, present))
        for amount in SANDBOXES:
            fill_sandboxes(plane, present, amount)
            present = amount
            harness.say(f"{amount} sandboxes")
            restless += not machine.settle()
            few, all_of_them, sends = [], [], []
            for _ in range(rounds):
                few.append(ns_a_run(full, "uplink_rx", places[1], _LIVES, min(FEW, amount)))
                all_of_them.append(ns_a_run(full, "uplink_rx", places[1], _LIVES, amount))
                sends.append(ns_a_run(full, "sandbox_tx", places[0], _TARGET, FEW))
            note("sandboxes.rx_few", amount, few)
            note("sandboxes.rx_all", amount, all_of_them)
            note("sandboxes.tx_few", amount, sends)
        routes = 0
        for amount in [one for one in ROUTES if one <= most_routes]:
            fill_routes(plane, other.node.address, routes, amount)
            routes = amount
            harness.say(f"{amount} routes to addresses, and as many to prefixes")
            restless += not machine.settle()
            for what, begin, size in (("exact", _EXACT, 1), ("prefix", _PREFIXES, _IN_PREFIX)):
                few, all_of_them = [], []
                for _ in range(rounds):
                    few.append(ns_a_run(full, "sandbox_tx", places[0], begin, FEW * size))
                    all_of_them.append(
                        ns_a_run(full, "sandbox_tx", places[0], begin, amount * size)
                    )
                note(f"routes.{what}_few", amount, few)
                note(f"routes.{what}_all", amount, all_of_them)
        if dropped(full) != drops:
            raise BenchError("the programs dropped what they should have carried")
        # `present` sandboxes go before the agents: see the callback above.
    about["placement"] = {"sender": first, "other work": second}
    harness.report(
        "cost",
        about,
        rows,
        [
            (f"cost.{what}.{points[-1][0]}", f"cost.{what}.{points[0][0]}")
            for what, points in lines.items()
        ],
        restless=restless,
        notes=NOTES,
        json_file=json_file,
        series=[
            {
                "title": f"Cost of a packet against {what}",
                "x": what,
                "y": "ns a packet",
                "log_x": True,
                "lines": {
                    name.partition(".")[2].replace("_", ", "): points
                    for name, points in lines.items()
                    if name.startswith(what)
                },
            }
            for what in ("sandboxes", "routes")
        ],
    )


_TARGET = IPv4Address("10.2.0.5")
NOTES = (
    "ns a run of the program, by the kernel's clock, under live datagrams of 18 bytes.",
    f"…_few: to {FEW} destinations, which the caches hold; …_all: to all of them, at random.",
    "sandboxes: attached to the node, as entries in its maps; rx is uplink_rx, tx sandbox_tx.",
    "routes: exact ones to addresses, as many to prefixes of 28 bits beside them; sandbox_tx.",
)


def dropped(agent: Agent) -> int:
    """Packets that a node's programs have dropped so far."""
    return sum(drop["packets"] for drop in agent.get("/v1/drops")["drops"])
