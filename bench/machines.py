# SPDX-License-Identifier: Apache-2.0
"""Machines behind taps, and none in them: the contestants on the wire that a VMM would use.

`bench/vmm.c` owns the tap that a node gives to a machine, as a VMM does, and carries each
frame to a second tap in a namespace, whose network stack stands for the guest's. It and
the taps' offloads are the same for all, and are in every figure.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import beds
from bench.beds import RECEIVER, SENDER, Bed
from bench.classic import MTU
from bench.compiled import compiled
from bench.ours import agents, run_root
from bench.testbed import BenchError, Node, end_with_parent, namespace, run, two_cpus, two_nodes
from geneve_ebpf.host import taps
from geneve_ebpf.host.namespaces import entering
from geneve_ebpf.model import SlotKind

CARD = "eth0"  # the machine's own interface


@dataclass(frozen=True, slots=True)
class Tap:
    """What a node gives to a machine."""

    netns: Path
    name: str

    def octets(self) -> tuple[int, int]:
        """Bytes that came out of the machine, and that went in."""
        words = ("ip", "-j", "-s", "link", "show", "dev", self.name)
        (link,) = json.loads(run(*words, netns=self.netns))
        return link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]


@contextmanager
def machine(program: Path, name: str, tap: Tap, cpu: int, mac: str = "") -> Iterator[Path]:
    """The namespace that stands for a machine's kernel; its eth0 is up, without an address."""
    with namespace(name) as netns:
        with entering(netns):
            taps.make(CARD, 0)
        run("sysctl", "-q", "-w", f"net.ipv6.conf.{CARD}.disable_ipv6=1", netns=netns)
        words = ["mtu", str(MTU), *(["address", mac] if mac else []), "up"]
        run("ip", "link", "set", CARD, *words, netns=netns)
        words = [str(program), str(tap.netns), tap.name, str(netns), CARD, str(cpu)]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent,
        )
        with process:
            try:
                assert process.stdout is not None and process.stderr is not None
                if process.stdout.readline() != "ready\n":
                    raise BenchError(f"no machine at {tap.name}: {process.stderr.read().strip()}")
                yield netns
            finally:
                process.kill()


def passed(ends: list[Tap], check: Callable[[], Callable[[int], None]]) -> Callable[[], Any]:
    """`check`, and that the bytes came out of the sender's tap and went into the receiver's."""

    def begin() -> Callable[[int], None]:
        after = check()
        before = [tap.octets() for tap in ends]

        def end(least: int) -> None:
            now = [tap.octets() for tap in ends]
            out, into = now[0][0] - before[0][0], now[1][1] - before[1][1]
            if out < least or into < least:
                raise BenchError(f"the taps carried {out} and {into} bytes, not {least}")
            after(least)

        return end

    return begin


def vmm(stack: ExitStack) -> Path:
    """The program, compiled. Raises BenchError without a compiler."""
    program = compiled("vmm.c", stack.enter_context(run_root()))
    if program is None:
        raise BenchError("no compiler for C")
    return program


@contextmanager
def vxlan_bridge_tap() -> Iterator[Bed]:
    """The classic way: the machine's tap and a VXLAN device on a bridge."""
    with ExitStack() as stack:
        program = vmm(stack)
        nodes = stack.enter_context(two_nodes("vxtap"))
        ends = [Tap(node.netns, "host") for node in nodes]
        for tap in ends:
            with entering(tap.netns):
                taps.make(tap.name, 0)
        beds.join_by_bridge(nodes, "vxlan")
        made: list[Path] = []
        for tap, address, cpu in zip(ends, (SENDER, RECEIVER), two_cpus(), strict=True):
            made.append(stack.enter_context(machine(program, f"vxtap-m{len(made)}", tap, cpu)))
            run("ip", "address", "add", f"{address}/24", "dev", CARD, netns=made[-1])
        bed = beds.through_tunnels(made, nodes)
        yield replace(bed, check=passed(ends, bed.check))


@contextmanager
def ours_tap(kind: SlotKind) -> Iterator[Bed]:
    """Two agents, and on each a machine at the tap of its slot."""
    with ExitStack() as stack:
        program = vmm(stack)
        pair = stack.enter_context(agents(kind.value, slots=2, kind=kind))
        places = beds.attached(pair)
        ends = [tap_of(agent.node, place) for agent, place in zip(pair, places, strict=True)]
        made = [
            stack.enter_context(
                machine(program, f"{kind.value}-m{cpu}", tap, cpu, place["guest"]["mac"])
            )
            for tap, place, cpu in zip(ends, places, two_cpus(), strict=True)
        ]
        for netns, place in zip(made, places, strict=True):
            configure(netns, place["guest"])
        bed = beds.between(pair, *made)
        yield replace(bed, check=passed(ends, bed.check))


def tap_of(node: Node, place: dict[str, Any]) -> Tap:
    """The tap of an attached slot. Raises BenchError if it has none."""
    slot = place["slot"]
    if slot["tap"] is None:
        raise BenchError(f"{slot['id']} has no tap")
    return Tap(Path(slot["netns"]) if slot["netns"] else node.netns, slot["tap"])


def configure(netns: Path, guest: dict[str, Any]) -> None:
    """What a machine is told by DHCP: its address, and a gateway that is on the link; whose MAC it
    knows, as one does that is restored."""
    gateway = guest["gateway"]
    run("ip", "address", "add", f"{guest['address']}/32", "dev", CARD, netns=netns)
    words = ("route", "add", gateway, "dev", CARD, "scope", "link")
    run("ip", *words, netns=netns)
    run("ip", "route", "add", "default", "via", gateway, "dev", CARD, netns=netns)
    words = ("neigh", "replace", gateway, "lladdr", guest["gateway_mac"], "dev", CARD)
    run("ip", *words, "nud", "permanent", netns=netns)
