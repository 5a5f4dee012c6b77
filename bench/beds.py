# SPDX-License-Identifier: Apache-2.0
"""The contestants on the wire: two sandboxes on two nodes, joined in each one's own way.

Each has nodes and an underlay of its own, all of one kind: on a common one, our program
would see, and slow, the others' packets. All sandboxes have one MTU.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import programs
from bench.classic import MTU
from bench.ours import Agent, agents, connect
from bench.testbed import (
    UNDERLAY,
    BenchError,
    Node,
    answers,
    eventually,
    namespace,
    run,
    two_nodes,
)
from geneve_ebpf.host.namespaces import entering

if TYPE_CHECKING:
    from tests.ovs import OpenvSwitch

VNI = 77
SHARED_PORT = 8472  # of the shared VXLAN device, which is Cilium's
# On a veth underlay a tunnel's 64 KB superpacket would cross whole.
TUNNEL_SEGMENTATION = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
SENDER, RECEIVER = "10.0.0.1", "10.0.0.2"


@dataclass(frozen=True, slots=True)
class Wire:
    """How the underlay is for a while."""

    superpackets: bool  # frames of 64 KB cross whole, as on virtual wires alone
    gro: bool  # the receiving interface merges, as those of NICs do


@dataclass(frozen=True, slots=True)
class Bed:
    """Two sandboxes that can talk, and how to see that they did it this way."""

    sender: Path  # namespace
    receiver: Path
    address: IPv4Address  # of the receiver
    wire: tuple[Path, str]  # namespace and interface in which the packets are counted
    set_wire: Callable[[Wire], None]
    check: Callable[[], Callable[[int], None]]  # before; what it returns, after with the bytes


def unchecked() -> Callable[[int], None]:
    """For a bed that can't carry bytes in any other way than by its wire."""
    return lambda _: None


def set_offloads(netns: Path, interface: str, **wanted: bool) -> None:
    """ethtool -K, with underscores for hyphens where a name has them."""
    words = [word for name, on in wanted.items() for word in (name, "on" if on else "off")]
    run("ethtool", "-K", interface, *words, netns=netns)


def transmitted(netns: Path, interface: str) -> tuple[int, int]:
    """(packets, bytes) that an interface has sent."""
    (link,) = json.loads(run("ip", "-j", "-s", "link", "show", "dev", interface, netns=netns))
    return link["stats64"]["tx"]["packets"], link["stats64"]["tx"]["bytes"]


def link(netns: Path, interface: str) -> tuple[int, str]:
    """An interface's number and MAC."""
    (found,) = json.loads(run("ip", "-j", "link", "show", "dev", interface, netns=netns))
    return int(found["ifindex"]), str(found["address"])


def underlay_switch(*nodes: Path) -> Callable[[Wire], None]:
    """Sets the underlay's offloads, at both ends. A veth merges what comes only if its other
    end does not segment in hardware."""

    def switch(wire: Wire) -> None:
        for netns in nodes:
            wanted = dict.fromkeys(TUNNEL_SEGMENTATION, wire.superpackets)
            set_offloads(netns, UNDERLAY, gro=wire.gro, tso=wire.superpackets, **wanted)

    return switch


@contextmanager
def sandboxes(name: str, nodes: tuple[Node, Node]) -> Iterator[list[Path]]:
    """A namespace by each node, with `eth0` and 10.0.0.1 or .2; `host` is its other end."""
    with ExitStack() as stack:
        made: list[Path] = []
        for node, address in zip(nodes, (SENDER, RECEIVER), strict=True):
            sandbox = stack.enter_context(namespace(f"{name}-s{len(made)}"))
            made.append(sandbox)
            words = (
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
            )
            run("ip", "link", "add", *words, "netns", sandbox.name, netns=node.netns)
            run("ip", "link", "set", "host", "up", netns=node.netns)
            run("ip", "address", "add", f"{address}/24", "dev", "eth0", netns=sandbox)
            run("ip", "link", "set", "eth0", "up", netns=sandbox)
        yield made


def know_each_other(made: list[Path], macs: list[str]) -> None:
    """Permanent neighbours: no ARP crosses. macs: by which each of the two is reached."""
    for sandbox, address, mac in ((made[0], RECEIVER, macs[1]), (made[1], SENDER, macs[0])):
        words = ("neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        run("ip", *words, netns=sandbox)


def sent_by(netns: Path, interface: str) -> Callable[[], Callable[[int], None]]:
    """Checks that an interface has sent the bytes."""

    def check() -> Callable[[int], None]:
        before = transmitted(netns, interface)[1]

        def after(least: int) -> None:
            moved = transmitted(netns, interface)[1] - before
            if moved < least:
                raise BenchError(f"{interface} sent {moved} bytes, not {least}")

        return after

    return check


@contextmanager
def bare_veth() -> Iterator[Bed]:
    """Two namespaces and one veth: the limit. Without superpackets it segments
    as the others must (TSO off), and merges as the row says."""
    with namespace("bare-left") as left, namespace("bare-right") as right:
        words = ("eth0", "mtu", str(MTU), "type", "veth", "peer", "name", "eth0", "mtu", str(MTU))
        run("ip", "link", "add", *words, "netns", right.name, netns=left)
        for address, netns in ((SENDER, left), (RECEIVER, right)):
            run("ip", "address", "add", f"{address}/24", "dev", "eth0", netns=netns)
            run("ip", "link", "set", "eth0", "up", netns=netns)

        def switch(wire: Wire) -> None:
            for netns in (left, right):
                set_offloads(netns, "eth0", tso=wire.superpackets, gro=wire.gro)

        yield Bed(left, right, IPv4Address(RECEIVER), (left, "eth0"), switch, unchecked)


def through_tunnels(made: list[Path], nodes: tuple[Node, Node]) -> Bed:
    """Sandboxes whose nodes have a device `tunnel`, which everything has to pass."""
    return Bed(
        made[0],
        made[1],
        IPv4Address(RECEIVER),
        (nodes[0].netns, UNDERLAY),
        underlay_switch(*(node.netns for node in nodes)),
        sent_by(nodes[0].netns, "tunnel"),
    )


@contextmanager
def tunnel_bridge(kind: str) -> Iterator[Bed]:
    """The classic way on two nodes: sandbox, veth, bridge, tunnel device of the VNI; the
    kernel's own offloads, and bridged packets kept out of iptables, which is
    what an operator who wants speed would set."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes(kind))
        made = stack.enter_context(sandboxes(kind, nodes))
        join_by_bridge(nodes, kind)
        yield through_tunnels(made, nodes)


def join_by_bridge(nodes: tuple[Node, Node], kind: str) -> None:
    """On each node `host` and a tunnel device in a bridge."""
    for node, other in (nodes, nodes[::-1]):
        here = node.netns
        words = ("bridge", "type", "bridge", "nf_call_iptables", "0")
        run("ip", "link", "add", *words, netns=here)
        if Path("/proc/sys/net/bridge").exists():
            run("sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=0", netns=here)
        ends = ["remote", str(other.address)]
        if kind == "vxlan":
            ends += ["local", str(node.address), "dstport", "4789"]
        tunnel = ("tunnel", "mtu", str(MTU), "type", kind, "id", str(VNI))
        run("ip", "link", "add", *tunnel, *ends, netns=here)
        for name in ("tunnel", "host"):
            run("ip", "link", "set", name, "master", "bridge", "up", netns=here)
        run("ip", "link", "set", "bridge", "up", netns=here)


@contextmanager
def vxlan_shared() -> Iterator[Bed]:
    """Cilium's way: one VXLAN device for all, to which a program names VNI and VTEP by packet."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes("shared"))
        made = stack.enter_context(sandboxes("shared", nodes))
        macs = []
        for node, other in (nodes, nodes[::-1]):
            here = node.netns
            words = ("tunnel", "mtu", str(MTU), "type", "vxlan", "external")
            run("ip", "link", "add", *words, "dstport", str(SHARED_PORT), netns=here)
            run("ip", "link", "set", "tunnel", "up", netns=here)
            host, (tunnel, mac) = link(here, "host")[0], link(here, "tunnel")
            macs.append(mac)
            programs.hang(here, host, programs.into_tunnel(tunnel, VNI, other.address))
            programs.hang(here, tunnel, programs.out_of_tunnel(host, VNI))
        know_each_other(made, macs)
        yield through_tunnels(made, nodes)


@contextmanager
def floor(name: str, *, xdp: bool) -> Iterator[Bed]:
    """No tunnel at all: two redirects, and GRO in the sandbox (ours without GRO on the uplink);
    or XDP that passes all on, GRO on the uplink, and then a redirect (what XDP could be)."""
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes(name))
        made = stack.enter_context(sandboxes(name, nodes))
        macs = []
        for node, sandbox in zip(nodes, made, strict=True):
            here = node.netns
            host, (uplink, mac) = link(here, "host")[0], link(here, UNDERLAY)
            programs.hang(here, host, programs.redirect(uplink))
            back = programs.redirect_peer if xdp else programs.redirect
            programs.hang(here, uplink, back(host))
            macs.append(mac if xdp else link(sandbox, "eth0")[1])
            set_offloads(here, "host", tso=False)
            set_offloads(sandbox, "eth0", gro=True)
            if xdp:
                stack.callback(os.close, programs.hang_xdp_pass(here, uplink))
        know_each_other(made, macs)

        def switch(wire: Wire) -> None:
            for node in nodes:
                set_offloads(node.netns, UNDERLAY, gro=wire.gro and xdp, tso=wire.superpackets)

        yield Bed(
            made[0],
            made[1],
            IPv4Address(RECEIVER),
            (nodes[0].netns, UNDERLAY),
            switch,
            unchecked,
        )


@contextmanager
def ours() -> Iterator[Bed]:
    """Two agents, a sandbox on each."""
    with agents("wire", slots=2) as pair:
        places = attached(pair)
        yield between(pair, *(Path(place["slot"]["netns"]) for place in places))


def attached(pair: tuple[Agent, Agent]) -> list[dict[str, Any]]:
    """A sandbox on each of two nodes, in one VPC; the answers."""
    connect(pair, "bench", VNI)
    places = [
        agent.attach(f"wire-{number}", "bench", f"10.{number}.0.5")
        for number, agent in enumerate(pair, 1)
    ]
    for place in places:
        if place["guest"]["mtu"] != MTU:
            raise BenchError(f"a sandbox's MTU is {place['guest']['mtu']}, the others' {MTU}")
    return places


def between(pair: tuple[Agent, Agent], sender: Path, receiver: Path) -> Bed:
    """Those two sandboxes, wherever their network stacks are."""
    left, right = pair
    underlay = underlay_switch(left.node.netns, right.node.netns)

    def switch(wire: Wire) -> None:
        underlay(wire)
        for agent in pair:
            eventually(
                lambda agent=agent: bool(merging(agent)) == wire.gro,  # type: ignore[misc]
                f"node {agent.settings.name} to merge: {agent.get('/v1/node')['merging']}",
            )

    def check() -> Callable[[int], None]:
        before = [totals(agent, f"wire-{number}") for number, agent in enumerate(pair, 1)]

        def after(least: int) -> None:
            now = [totals(agent, f"wire-{number}") for number, agent in enumerate(pair, 1)]
            sent = now[0]["tx_remote"] - before[0]["tx_remote"]
            received = now[1]["rx_remote"] - before[1]["rx_remote"]
            dropped = sum(now[n]["drops"] - before[n]["drops"] for n in (0, 1))
            if sent < least or received < least:
                raise BenchError(f"our programs carried {sent} and {received} bytes, not {least}")
            if dropped:
                raise BenchError(f"our programs dropped {dropped} packets meanwhile")

        return after

    wire = (left.node.netns, UNDERLAY)
    return Bed(sender, receiver, IPv4Address("10.2.0.5"), wire, switch, check)


def merging(agent: Agent) -> list[str]:
    """The uplinks on which a node merges."""
    found: list[str] = agent.get("/v1/node")["merging"]["uplinks"]
    return found


def totals(agent: Agent, sandbox: str) -> dict[str, int]:
    """A sandbox's bytes to and from other nodes, and the node's drops."""
    counters = agent.get(f"/v1/sandboxes/{sandbox}")["counters"]
    return {
        "tx_remote": counters["tx_remote"]["bytes"],
        "rx_remote": counters["rx_remote"]["bytes"],
        "drops": sum(drop["packets"] for drop in agent.get("/v1/drops")["drops"]),
    }


@contextmanager
def ovs(datapath: str) -> Iterator[Bed]:
    """Open vSwitch with a Geneve port and a host of its own on either node: its userspace
    datapath ("netdev"), or that of the kernel ("system"). Raises BenchError without the latter."""
    from tests.nodes import Bed as TestBed
    from tests.ovs import OpenvSwitch

    in_kernel = datapath == "system"
    if in_kernel and not Path("/sys/module/openvswitch").exists():
        raise BenchError("this kernel has no Open vSwitch, or its module is not loaded")
    with ExitStack() as stack:
        nodes = stack.enter_context(two_nodes(f"ovs-{datapath}"))
        switches = []
        for node, other, address in zip(nodes, nodes[::-1], (SENDER, RECEIVER), strict=True):
            run("ip", "address", "flush", "dev", UNDERLAY, netns=node.netns)
            switch = stack.enter_context(OpenvSwitch(TestBed("bench"), node.netns, datapath))
            switch.underlay(UNDERLAY, f"{node.address}/24")
            switch.tunnel(str(other.address))
            number = int(address[-1])
            switch.host(f"02:00:00:00:00:0{number}", f"{address}/24", mtu=MTU)
            switch.flows(VNI)
            switches.append(switch)

        def settle(wire: Wire) -> None:
            # Checksums that are left to the NIC are not finished by it: no TCP would pass.
            for node in nodes:
                set_offloads(node.netns, UNDERLAY, tx=False, gro=wire.gro)

        yield Bed(
            nodes[0].netns,
            nodes[1].netns,
            IPv4Address(RECEIVER),
            (nodes[0].netns, UNDERLAY),
            underlay_switch(*(node.netns for node in nodes)) if in_kernel else settle,
            in_kernel_by(nodes[0], switches[0]) if in_kernel else sent_by(nodes[0].netns, UNDERLAY),
        )


def in_kernel_by(node: Node, switch: OpenvSwitch) -> Callable[[], Callable[[int], None]]:
    """Checks that Open vSwitch's tunnel device has sent the bytes, and that the kernel knew what
    to do with nearly every packet: the others, its process sends by the same device."""

    def check() -> Callable[[int], None]:
        # It forgets what nobody has used for 10 s, and that was the other contestants' turn.
        if not answers(node.netns, IPv4Address(RECEIVER)):
            raise BenchError(f"Open vSwitch brings no answer from {RECEIVER}")
        sent, before = sent_by(node.netns, "genev_sys_6081")(), looked_up(switch)

        def after(least: int) -> None:
            sent(least)
            now = looked_up(switch)
            known, unknown = now[0] - before[0], now[1] - before[1]
            if unknown * 10 > known:
                raise BenchError(f"the kernel knew {known} packets of Open vSwitch, not {unknown}")

        return after

    return check


def looked_up(switch: OpenvSwitch) -> tuple[int, int]:
    """Packets that the kernel's datapath knew what to do with, and that it asked about."""
    said = switch.appctl("dpctl/show")
    found = re.search(r"lookups: hit:(\d+) missed:(\d+)", said)
    if found is None:
        raise BenchError(f"Open vSwitch says of its datapath: {said.splitlines()[0]}")
    return int(found[1]), int(found[2])


def packets_in(netns: Path) -> int:
    """IP packets that a namespace's stack was given; a merged one is one."""
    with entering(netns):
        names, values = (
            line.split()[1:]
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Ip:")
        )
    return int(values[names.index("InReceives")])
