# SPDX-License-Identifier: Apache-2.0
"""What the wire carries: TCP, datagrams, questions and connections, ours beside others.

Rows are work.contestant. A row is thrown out unless its bytes crossed the wire that it
names in packets of the size that it names.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import beds, harness, machine, machines
from bench.beds import Bed, Wire
from bench.compiled import compiled
from bench.harness import Contestant, Row
from bench.ours import run_root
from bench.testbed import (
    UNDERLAY_MTU,
    BenchError,
    end_with_parent,
    interruptible,
    need,
    run,
    sweep,
    tunnel_kind,
    two_cpus,
)
from geneve_ebpf.model import SlotKind

PORT = 5201
ROUNDS = 5
WARM_UP, SECONDS = 0.2, 0.8  # of each sample
FRAME = UNDERLAY_MTU + 14  # bytes of the largest Ethernet frame that is no superpacket
SEGMENTS, PLAIN, SUPER = Wire(False, True), Wire(False, False), Wire(True, False)


@dataclass(frozen=True, slots=True)
class Work:
    """What the two sandboxes do, and how its rows are called."""

    name: str
    unit: str
    tool: str  # of traffic.c
    number: int  # likewise
    wire: Wire
    one_cpu: bool = False
    others: tuple[str, ...] = ("vxlan_bridge", "vxlan_shared", "bare_veth")
    taps: bool = False  # machines behind taps do it too

    @property
    def contestants(self) -> tuple[str, ...]:
        """Who does it."""
        return ("ours", *self.others, *(TAPS if self.taps else ()))

    @property
    def bulk(self) -> bool:
        """Whether nearly all packets are as large as the wire takes."""
        return self.tool == "tcp"


TUNNELS = ("vxlan_bridge", "geneve_bridge", "vxlan_shared")
SOME = (*TUNNELS, "bare_veth", "ovs", "ovs_kernel")
ALL = (*SOME, "floor_redirect", "floor_xdp")
OURS_TAPS, TAPS = ("ours_tap", "ours_host_tap"), ("ours_tap", "ours_host_tap", "vxlan_bridge_tap")
WORKS = (
    Work("tcp1", "Gbit/s", "tcp", 1, SEGMENTS, others=ALL, taps=True),
    Work("tcp1_nogro", "Gbit/s", "tcp", 1, PLAIN, others=TUNNELS, taps=True),
    Work("tcp1_superpackets", "Gbit/s", "tcp", 1, SUPER, others=(*TUNNELS, "bare_veth"), taps=True),
    Work("tcp8", "Gbit/s", "tcp", 8, SEGMENTS, others=SOME, taps=True),
    Work("udp64", "kpps", "udp", 18, SEGMENTS, others=SOME, taps=True),
    Work("udp1400", "kpps", "udp", 1372, SEGMENTS, others=SOME),
    Work("rr", "us", "rr", 1, SEGMENTS, others=SOME, taps=True),
    Work("rr_one_cpu", "us", "rr", 1, SEGMENTS, one_cpu=True),
    Work("connect", "per s", "connect", 1, SEGMENTS, others=SOME),
)
BEDS: dict[str, Callable[[], AbstractContextManager[Bed]]] = {
    "ours": beds.ours,
    "vxlan_bridge": partial(beds.tunnel_bridge, "vxlan"),
    "geneve_bridge": partial(beds.tunnel_bridge, "geneve"),
    "vxlan_shared": beds.vxlan_shared,
    "bare_veth": beds.bare_veth,
    "ovs": partial(beds.ovs, "netdev"),
    "ovs_kernel": partial(beds.ovs, "system"),
    "floor_redirect": partial(beds.floor, "redir", xdp=False),
    "floor_xdp": partial(beds.floor, "xdp", xdp=True),
    "ours_tap": partial(machines.ours_tap, SlotKind.TAP),
    "ours_host_tap": partial(machines.ours_tap, SlotKind.HOST_TAP),
    "vxlan_bridge_tap": machines.vxlan_bridge_tap,
}


@dataclass(slots=True)
class Side:
    """What is found beside a row's own figure; each becomes a row, first round dropped."""

    rows: dict[str, Row] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)  # the row that each was found with

    def add(self, row: str, name: str, unit: str, value: float) -> None:
        """One more sample, found with one of `row`."""
        self.rows.setdefault(name, Row(name, unit)).rounds.append([value])
        self.beside[name] = row

    def after_warm_up(self, taken: Mapping[str, Row]) -> dict[str, Row]:
        """Without the round that warmed up; only what was found with rows that were taken."""
        return {
            name: Row(name, row.unit, row.rounds[1:])
            for name, row in self.rows.items()
            if len(row.rounds) > 1 and self.beside[name] in taken
        }


def ends(
    program: Path,
    work: Work,
    bed: Bed,
    cpus: tuple[int, int],
    window: tuple[float, float] = (WARM_UP, SECONDS),
) -> dict[str, float]:
    """Have both ends do it; what the one that counts printed. Raises BenchError."""
    words = (bed.address, PORT, *window, work.number)
    places = {"serve": (bed.receiver, cpus[1]), "ask": (bed.sender, cpus[0])}
    counts = "serve" if work.tool in ("tcp", "udp") else "ask"
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for role in ("serve", "ask"):
            running[role] = subprocess.Popen(
                [program, work.tool, role, *map(str, (*places[role], *words))],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=end_with_parent,
            )
            out = running[role].stdout
            if role == "serve" and out is not None and out.readline() != "listening\n":
                break
        out_text, errors = running[counts].communicate(timeout=sum(window) + 40)
        if running[counts].returncode or not out_text:
            raise BenchError(f"{work.name} broke: {errors.strip()}")
    except (KeyError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{work.name} broke: {error}") from None
    finally:
        for process in running.values():
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    found: dict[str, float] = json.loads(out_text.splitlines()[-1])
    return found


def measured(
    program: Path,
    work: Work,
    name: str,
    bed: Bed,
    cpus: tuple[int, int],
    side: Side,
    samples: int,
) -> list[float]:
    """Work by work; the rates, or the median latencies. Raises BenchError: see above."""
    bed.set_wire(work.wire)
    taken = []
    for _ in range(samples):
        after = bed.check()
        packets, octets = beds.transmitted(*bed.wire)
        heard = beds.packets_in(bed.receiver)
        found = ends(program, work, bed, cpus)
        packets_after, octets_after = beds.transmitted(*bed.wire)
        heard = beds.packets_in(bed.receiver) - heard
        packets, octets = packets_after - packets, octets_after - octets
        carried = int(found["count"] * (work.number if work.tool == "udp" else 1))
        if octets < carried:
            raise BenchError(f"{bed.wire[1]} sent {octets} bytes of {name}, fewer than came")
        if work.bulk and name != "ovs" and work.wire.superpackets == (octets / packets <= FRAME):
            raise BenchError(f"{octets // packets} bytes a packet on {bed.wire[1]} of {name}")
        after(carried)
        rate = found["count"] / found["seconds"]
        row = f"{work.name}.{name}"
        if work.tool == "tcp":
            gigabits = found["count"] * 8 / 1e9
            taken.append(rate * 8 / 1e9)
            side.add(row, f"cpu_{row}", "CPU s/Gbit", found["busy"] / gigabits)
            # Of all that was sent, warm-up too: the wire's bytes, less its headers. Open vSwitch's
            # sandbox is its node, whose stack is given the tunnel's packets as well.
            if not name.startswith("ovs"):
                side.add(row, f"skbs_{row}", "a 100 MB", heard / (octets / 1e8))
        elif work.tool == "udp":
            taken.append(rate / 1e3)
            side.add(row, f"cpu_{row}", "CPU us/pkt", found["busy"] / found["count"] * 1e6)
        elif work.tool == "rr":
            taken.append(found["p50"])
            side.add(row, f"{work.name}_p99.{name}", "us", found["p99"])
        else:
            taken.append(rate)
    return taken


def pairs() -> list[tuple[str, str]]:
    """What is compared: ours with each other that did the same."""
    found = []
    for work in WORKS:
        prefixes = [work.name]
        if work.tool in ("tcp", "udp"):
            prefixes.append(f"cpu_{work.name}")
        if work.tool == "rr":
            prefixes.append(f"{work.name}_p99")
        for prefix in prefixes:
            found += [(f"{prefix}.ours", f"{prefix}.{other}") for other in work.others]
            for tap in OURS_TAPS if work.taps else ():
                found.append((f"{prefix}.{tap}", f"{prefix}.vxlan_bridge_tap"))
    return [*found, ("tcp1_nogro.ours", "tcp1.floor_redirect")]


def notes() -> list[str]:
    """What the rows mean."""
    return [
        f"{SECONDS:g} s a sample after {WARM_UP:g} s that are not counted; sender and receiver on "
        "a CPU each, on one in rr_one_cpu. GRO of the uplink is on, but in tcp1_nogro.",
        "No superpackets on the underlay, but in tcp1_superpackets; bare_veth and the floors then "
        "have TSO off.",
        "vxlan_bridge: the classic way. vxlan_shared: one device for all, VNI and VTEP set by a "
        "program (Cilium's way). ovs: its userspace datapath, over an underlay without offloads; "
        "ovs_kernel: the kernel's.",
        "floor_redirect: two redirects, GRO in the sandbox, no tunnel. floor_xdp: XDP_PASS, GRO on "
        "the uplink, a redirect, no tunnel.",
        "…_tap: between machines; a program carries each frame between the node's tap and a second "
        "one, whose namespace stands for the machine. It is in all such rows alike.",
        "cpu_…: CPU time of the whole machine, both ends. skbs_…: IP packets that the receiving "
        "sandbox's stack was given for 100 MB on the wire.",
    ]


def main(json_file: str | None, rounds: int, only: str = "") -> None:
    """Run and report; `only` works whose name starts so. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "ethtool": "ethtool", "sysctl": "procps", "cc": "gcc"})
    sweep()
    about = machine.record()
    first, second = two_cpus()
    works = [work for work in WORKS if work.name.startswith(only)]
    side = Side()
    with interruptible(), ExitStack() as stack:
        root = stack.enter_context(run_root())
        program = compiled("traffic.c", root)
        assert program is not None  # need() found the compiler
        harness.say("making the nodes")
        made, absent = make_beds(stack, set().union(*(work.contestants for work in works)))
        contestants = [
            Contestant(
                f"{work.name}.{name}",
                work.unit,
                1,
                partial(
                    measured,
                    program,
                    work,
                    name,
                    made[name],
                    (first, first if work.one_cpu else second),
                    side,
                ),
                1,
                0,
            )
            for work in works
            for name in work.contestants
            if name in made
        ]
        about["placement"] = {"sender": first, "receiver": second}
        for bed in made.values():
            bed.set_wire(SEGMENTS)
        about["offloads"] = {name: offloads(*bed.wire) for name, bed in made.items()}
        turns = harness.take_turns(contestants, rounds)
    turns.rows |= side.after_warm_up(turns.rows)
    about["absent"] = absent
    harness.report(
        "wire",
        about,
        turns.rows,
        pairs(),
        restless=turns.restless,
        failed=turns.failed,
        notes=[*notes(), *(f"{name} is absent: {why}" for name, why in absent.items())],
        json_file=json_file,
    )


def make_beds(stack: ExitStack, wanted: set[str]) -> tuple[dict[str, Bed], dict[str, str]]:
    """The beds by name, and why those that are missing are."""
    made, absent = {}, {}
    for name in [name for name in BEDS if name in wanted]:
        if name == "geneve_bridge" and tunnel_kind() != "geneve":
            absent[name] = "this kernel has no geneve device"
            continue
        try:
            made[name] = stack.enter_context(BEDS[name]())
        except (BenchError, OSError, RuntimeError, ImportError) as error:
            if name == "ours":
                raise
            absent[name] = str(error).splitlines()[0]
    return made, absent


def offloads(netns: Path, interface: str) -> dict[str, str]:
    """What ethtool says of the features that decide a stream's rate."""
    wanted = {
        "tcp-segmentation-offload",
        "generic-segmentation-offload",
        "generic-receive-offload",
        "tx-checksumming",
        *beds.TUNNEL_SEGMENTATION,
    }
    found = {}
    for line in run("ethtool", "-k", interface, netns=netns).splitlines():
        name, _, value = line.strip().partition(": ")
        if name in wanted:
            found[name] = value
    return found
