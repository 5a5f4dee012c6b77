# SPDX-License-Identifier: Apache-2.0
"""What one TCP stream carries: ours, a VXLAN device on a bridge, and a bare veth.

Ours and VXLAN each run on a pair of nodes of their own with the same underlay:
on a common one our program would see, and slow, VXLAN's packets. Each is
measured twice: with every packet on the underlay a real one of the MTU's size,
as on most NICs, and with tunnel superpackets, which only virtual devices pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from bench import harness, machine
from bench.classic import MTU
from bench.harness import Contestant
from bench.ours import Agent, agents, connect
from bench.testbed import (
    UNDERLAY,
    UNDERLAY_MTU,
    BenchError,
    interruptible,
    namespace,
    need,
    run,
    sweep,
    two_cpus,
    two_nodes,
)

STREAM = Path(__file__).with_name("stream.py")
PORT = 5201
VNI = 77
ROUNDS = 6
SECONDS = 2.0
WARM_UP = 0.4  # seconds of a stream before the count starts
# On a veth underlay a tunnel's 64 KB superpacket would cross whole.
TUNNEL_SEGMENTATION = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
# An Ethernet frame of the underlay, and a sandbox's in the bare pair.
FRAME = UNDERLAY_MTU + 14


@dataclass(frozen=True, slots=True)
class Bed:
    """Two sandboxes that can talk, and how to see that they did it this way."""

    sender: Path  # namespace
    receiver: Path
    address: IPv4Address  # of the receiver
    wire: tuple[Path, str]  # namespace and interface in which the packets are counted
    set_superpackets: Callable[[bool], None]
    check: Callable[[], Callable[[int], None]]  # before; what it returns, after with the bytes


def transmitted(netns: Path, interface: str) -> tuple[int, int]:
    """(packets, bytes) that an interface has sent."""
    (link,) = json.loads(run("ip", "-j", "-s", "link", "show", "dev", interface, netns=netns))
    return link["stats64"]["tx"]["packets"], link["stats64"]["tx"]["bytes"]


def stream(bed: Bed, cpus: tuple[int, int]) -> float:
    """One stream's rate in Gbit/s of TCP payload, from a CPU of its own to another."""
    arguments = [str(bed.address), str(PORT), str(WARM_UP), str(SECONDS)]
    python = [sys.executable, "-S", "-E", str(STREAM)]
    receiver = subprocess.Popen(
        [*python, "receive", str(bed.receiver), str(cpus[1]), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sender = None
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline() == "listening\n":
            sender = subprocess.Popen(
                [*python, "send", str(bed.sender), str(cpus[0]), *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        out, errors = receiver.communicate(timeout=SECONDS + WARM_UP + 30)
        if receiver.returncode:
            raise BenchError(f"the stream broke: {errors.strip().splitlines()[-1:]}")
    finally:
        for process in (sender, receiver):
            if process:
                process.kill()
                process.wait()
    result = json.loads(out)
    return float(result["bytes"] * 8 / result["seconds"] / 1e9)


def measured(bed: Bed, cpus: tuple[int, int], superpackets: bool, samples: int) -> list[float]:
    """
    Streams one after another. Raises BenchError unless the bytes crossed the wire
    that the row names, in packets of the size that it names.
    """
    bed.set_superpackets(superpackets)
    taken = []
    for _ in range(samples):
        after = bed.check()
        packets, octets = transmitted(*bed.wire)
        taken.append(stream(bed, cpus))
        packets_after, octets_after = transmitted(*bed.wire)
        packets, octets = packets_after - packets, octets_after - octets
        least = int(taken[-1] * 1e9 / 8 * SECONDS)
        if octets < least:
            raise BenchError(f"{bed.wire[1]} sent {octets} bytes, fewer than were received")
        if superpackets == (octets / packets <= FRAME):
            raise BenchError(
                f"{octets // packets} bytes a packet on {bed.wire[1]}: superpackets "
                f"are not {'on' if superpackets else 'off'}"
            )
        after(least)
    return taken


def set_offloads(netns: Path, interface: str, **wanted: bool) -> None:
    """ethtool -K, with underscores for hyphens where a name has them."""
    words = [word for name, on in wanted.items() for word in (name, "on" if on else "off")]
    run("ethtool", "-K", interface, *words, netns=netns)


def underlay_switch(*nodes: Path) -> Callable[[bool], None]:
    """Turns tunnel superpackets on the underlay on or off, at both ends."""

    def switch(on: bool) -> None:
        for netns in nodes:
            set_offloads(netns, UNDERLAY, **dict.fromkeys(TUNNEL_SEGMENTATION, on))

    return switch


@contextmanager
def bare_veth() -> Iterator[Bed]:
    """Two namespaces and one veth: the limit. Without superpackets it segments
    as the others must (TSO off) and receives as well as a veth can (GRO on)."""
    with namespace("bare-left") as left, namespace("bare-right") as right:
        run(
            "ip",
            "link",
            "add",
            "eth0",
            "mtu",
            str(MTU),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "mtu",
            str(MTU),
            "netns",
            right.name,
            netns=left,
        )
        for number, netns in enumerate((left, right), 1):
            run("ip", "address", "add", f"10.0.0.{number}/24", "dev", "eth0", netns=netns)
            run("ip", "link", "set", "eth0", "up", netns=netns)

        def switch(on: bool) -> None:
            for netns in (left, right):
                set_offloads(netns, "eth0", tso=on, gro=not on)

        yield Bed(
            left, right, IPv4Address("10.0.0.2"), (left, "eth0"), switch, lambda: lambda _: None
        )


@contextmanager
def vxlan_bridge() -> Iterator[Bed]:
    """The classic way on two nodes: sandbox, veth, bridge, VXLAN device; the
    kernel's own offloads, and bridged packets kept out of iptables, which is
    what an operator who wants speed would set."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes("vxlan"))
        sandboxes = []
        for number, (node, other) in enumerate((nodes, nodes[::-1]), 1):
            sandbox = stack.enter_context(namespace(f"vxlan-s{number}"))
            sandboxes.append(sandbox)
            here = node.netns
            run(
                "ip", "link", "add", "bridge", "type", "bridge", "nf_call_iptables", "0", netns=here
            )
            if Path("/proc/sys/net/bridge").exists():
                run("sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=0", netns=here)
            run(
                "ip",
                "link",
                "add",
                "tunnel",
                "mtu",
                str(MTU),
                "type",
                "vxlan",
                "id",
                str(VNI),
                "local",
                str(node.address),
                "remote",
                str(other.address),
                "dstport",
                "4789",
                netns=here,
            )
            run(
                "ip",
                "link",
                "add",
                "host",
                "mtu",
                str(MTU),
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "mtu",
                str(MTU),
                "netns",
                sandbox.name,
                netns=here,
            )
            for link in ("tunnel", "host"):
                run("ip", "link", "set", link, "master", "bridge", "up", netns=here)
            run("ip", "link", "set", "bridge", "up", netns=here)
            run("ip", "address", "add", f"10.0.0.{number}/24", "dev", "eth0", netns=sandbox)
            run("ip", "link", "set", "eth0", "up", netns=sandbox)

        def check() -> Callable[[int], None]:
            before = transmitted(nodes[0].netns, "tunnel")[1]

            def after(least: int) -> None:
                moved = transmitted(nodes[0].netns, "tunnel")[1] - before
                if moved < least:
                    raise BenchError(f"the VXLAN device sent {moved} bytes, not {least}")

            return after

        yield Bed(
            sandboxes[0],
            sandboxes[1],
            IPv4Address("10.0.0.2"),
            (nodes[0].netns, UNDERLAY),
            underlay_switch(*(node.netns for node in nodes)),
            check,
        )


@contextmanager
def ours() -> Iterator[Bed]:
    """Two agents, a sandbox on each."""
    with agents("tcp", slots=2) as pair:
        connect(pair, "bench", VNI)
        places = [
            agent.attach(f"tcp-{number}", "bench", f"10.{number}.0.5")
            for number, agent in enumerate(pair, 1)
        ]
        for place in places:
            if place["guest"]["mtu"] != MTU:
                raise BenchError(f"a sandbox's MTU is {place['guest']['mtu']}, the others' {MTU}")
        left, right = pair

        def check() -> Callable[[int], None]:
            before = [totals(agent, f"tcp-{number}") for number, agent in enumerate(pair, 1)]

            def after(least: int) -> None:
                now = [totals(agent, f"tcp-{number}") for number, agent in enumerate(pair, 1)]
                sent = now[0]["tx_remote"] - before[0]["tx_remote"]
                received = now[1]["rx_remote"] - before[1]["rx_remote"]
                dropped = sum(now[n]["drops"] - before[n]["drops"] for n in (0, 1))
                if sent < least or received < least:
                    raise BenchError(
                        f"our programs carried {sent} and {received} bytes, not {least}"
                    )
                if dropped:
                    raise BenchError(f"our programs dropped {dropped} packets meanwhile")

            return after

        yield Bed(
            Path(places[0]["slot"]["netns"]),
            Path(places[1]["slot"]["netns"]),
            IPv4Address("10.2.0.5"),
            (left.node.netns, UNDERLAY),
            underlay_switch(left.node.netns, right.node.netns),
            check,
        )


def totals(agent: Agent, sandbox: str) -> dict[str, int]:
    """A sandbox's bytes to and from other nodes, and the node's drops."""
    counters = agent.get(f"/v1/sandboxes/{sandbox}")["counters"]
    return {
        "tx_remote": counters["tx_remote"]["bytes"],
        "rx_remote": counters["rx_remote"]["bytes"],
        "drops": sum(drop["packets"] for drop in agent.get("/v1/drops")["drops"]),
    }


BEDS = {"ours": ours, "vxlan_bridge": vxlan_bridge, "bare_veth": bare_veth}
PAIRS = [
    (f"{work}.ours", f"{work}.{other}")
    for work in ("tcp1", "tcp1_superpackets")
    for other in ("vxlan_bridge", "bare_veth")
]
NOTES = (
    f"Gbit/s of TCP payload, {SECONDS:.0f} s a sample after {WARM_UP} s that are not counted.",
    "tcp1: no superpackets on the underlay. bare_veth then has TSO off and GRO on.",
    "tcp1_superpackets: all of the kernel's defaults on the underlay and the bare veth.",
    "vxlan_bridge: offloads as the kernel sets them; bridged packets skip iptables.",
)


def main(json_file: str | None, rounds: int, names: list[str]) -> None:
    """Run and report. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "ethtool": "ethtool", "sysctl": "procps"})
    sweep()
    about = machine.record()
    cpus = two_cpus()
    with interruptible(), ExitStack() as stack:
        harness.say("making the nodes")
        beds = {name: stack.enter_context(BEDS[name]()) for name in names}
        contestants = [
            Contestant(
                f"{'tcp1_superpackets' if superpackets else 'tcp1'}.{name}",
                "Gbit/s",
                1,
                partial(measured, bed, cpus, superpackets),
                1,
                0,
            )
            for superpackets in (False, True)
            for name, bed in beds.items()
        ]
        about["placement"] = {"sender": cpus[0], "receiver": cpus[1]}
        for bed in beds.values():
            bed.set_superpackets(False)
        about["offloads"] = {f"tcp1.{name}": offloads(*bed.wire) for name, bed in beds.items()}
        rows, restless = harness.take_turns(contestants, rounds)
    about["tunnel"] = {"ours": "geneve", "vxlan_bridge": "vxlan"}
    harness.report("tcp", about, rows, PAIRS, restless=restless, notes=NOTES, json_file=json_file)


def offloads(netns: Path, interface: str) -> dict[str, str]:
    """What ethtool says of the features that decide a stream's rate."""
    wanted = {
        "tcp-segmentation-offload",
        "generic-segmentation-offload",
        "generic-receive-offload",
        "tx-checksumming",
        *TUNNEL_SEGMENTATION,
    }
    found = {}
    for line in run("ethtool", "-k", interface, netns=netns).splitlines():
        name, _, value = line.strip().partition(": ")
        if name in wanted:
            found[name] = value
    return found
