# SPDX-License-Identifier: Apache-2.0
"""From the request to attach until the first byte from a sandbox on another node.

The guest's socket is open before, also that of a machine behind a tap; it asks the
moment the attach is done, and the other sandbox's kernel answers the ping, so that no
further process is woken. What is asked and not answered within a millisecond is asked
again: a way that says too early that it is ready pays for that.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

from bench import classic, harness, machine, machines
from bench.classic import Form, Host
from bench.compiled import compiled
from bench.harness import Contestant
from bench.ours import Agent, agent, join, run_root
from bench.testbed import (
    BenchError,
    echo_request,
    interruptible,
    need,
    pinned,
    run,
    sweep,
    tunnel_kind,
    two_cpus,
    two_nodes,
)
from geneve_ebpf.agent.config import Placement
from geneve_ebpf.host import taps
from geneve_ebpf.host.namespaces import entering
from geneve_ebpf.model import SlotKind

VPC, VNI = "bench", 4097
BATCH = 16
MACHINES = 4  # of a row of taps in a round: each is a process and a namespace
AGAIN = 0.001  # seconds until it is asked once more
PATIENCE = 5.0  # seconds for an answer at all
GROUP = 4343  # of the responders, deleted together
FORMS: tuple[Form, ...] = (classic.Pooled(), classic.PooledRaw(), classic.PooledAddress())
_names = count()


def ping_socket(netns: Path) -> socket.socket:
    """A raw ICMP socket of that namespace."""
    with entering(netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    made.settimeout(AGAIN)
    return made


def first_byte(guest: socket.socket, peer: IPv4Address, attach: Callable[[], object]) -> float:
    """Microseconds from the attach's start to the first answer. Raises BenchError."""
    request = echo_request(os.getpid() & 0xFFFF)
    where = (str(peer), 0)
    end = time.monotonic() + PATIENCE
    start = time.perf_counter_ns()
    attach()
    while time.monotonic() < end:
        with suppress(OSError):
            guest.sendto(request, where)
            while True:
                packet = guest.recv(2048)
                if packet[20] == 0:  # an echo's reply: IPv4 without options
                    return (time.perf_counter_ns() - start) / 1e3
    raise BenchError(f"{peer} did not answer within {PATIENCE:.0f} s of the attach")


def ours(
    node: Agent,
    peer: IPv4Address,
    cpu: int,
    samples: int,
    kind: SlotKind = SlotKind.NAMESPACE,
    program: Path | None = None,
) -> list[float]:
    """Slots reserved before, attached through the agent; machines at their taps, by `program`."""
    node.wait_for_slots()
    ask = node.client.request
    names: list[str] = []
    taken: list[float] = []
    with ExitStack() as stack, pinned(cpu):
        try:
            ready = []
            for _ in range(samples):
                place = ask("POST", "/v1/slots:reserve", {"kind": kind.value})[1]
                if program is None:
                    netns = Path(place["slot"]["netns"])
                else:
                    tap, mac = machines.tap_of(node.node, place), place["guest"]["mac"]
                    name = f"first-m{next(_names)}"
                    netns = stack.enter_context(machines.machine(program, name, tap, cpu, mac))
                    machines.configure(netns, place["guest"])
                ready.append((place["slot"]["id"], stack.enter_context(ping_socket(netns))))
            for slot, guest in ready:
                names.append(f"first-{next(_names)}")
                path, body = f"/v1/sandboxes/{names[-1]}", {"vpc": VPC, "slot": slot}
                taken.append(first_byte(guest, peer, partial(ask, "PUT", path, body)))
        finally:
            ask("POST", "/v1/sandboxes:batch", {"detach": [{"sandbox": name} for name in names]})
    return taken


def pooled(
    host: Host, form: Form, cpu: int, samples: int, program: Path | None = None
) -> list[float]:
    """All but the tunnel made before; the other end stands, and either knows the other's MAC.

    program: a machine's tap is in the bridge in place of a veth, whose addresses are there.
    """
    taken: list[float] = []
    with ExitStack() as stack, pinned(cpu):
        try:
            ready = []
            for _ in range(samples):
                tenant = host.tenant()
                if program is None:
                    ahead, netns = form.prepare(host, tenant), tenant.namespace
                else:
                    ahead, tap = None, add_tap(host, tenant)
                    name = f"first-m{next(_names)}"
                    netns = stack.enter_context(machines.machine(program, name, tap, cpu))
                    words = ("address", "add", f"{tenant.address(2)}/24", "dev", machines.CARD)
                    run("ip", *words, netns=netns)
                stand_opposite(host, tenant, netns)
                ready.append((tenant, ahead, stack.enter_context(ping_socket(netns))))
            with entering(host.node.netns):
                for tenant, ahead, guest in ready:
                    attach = partial(form.attach, host, tenant, ahead)
                    taken.append(first_byte(guest, tenant.address(3), attach))
        finally:
            with suppress(BenchError):
                run("ip", "link", "delete", "group", str(GROUP), netns=host.peer.netns)
            host.clear()
    return taken


def add_tap(host: Host, tenant: classic.Tenant) -> machines.Tap:
    """A bridge with the gateway's address, and a tap in it."""
    bridge, _, veth = tenant.links
    bridge_name, _, name = tenant.names
    group = classic.GROUP
    with entering(host.node.netns):
        host.netlink.link("add", index=bridge, ifname=bridge_name, kind="bridge", group=group)
        host.netlink.link("set", index=bridge, state="up")
        host.netlink.addr("add", index=bridge, address=str(tenant.address(1)), prefixlen=24)
        index = taps.make(name, 0, veth)
        host.netlink.link("set", index=index, master=bridge, group=group, mtu=classic.MTU)
        host.netlink.link("set", index=index, state="up")
    return machines.Tap(host.node.netns, name)


def stand_opposite(host: Host, tenant: classic.Tenant, sandbox: Path) -> None:
    """The tenant's other sandbox: an address behind a tunnel device in the peer's namespace. Either
    end knows the other's MAC. sandbox: the namespace that the first one's eth0 is in."""
    name = f"gnvr{tenant.number}"
    kind = ["dstport", "4789", "local", str(host.peer.address)] if host.kind == "vxlan" else []
    in_peer = partial(run, netns=host.peer.netns)
    in_peer(
        "ip", "link", "add", name, "mtu", str(classic.MTU), "group", str(GROUP), "type", host.kind,
        "id", str(tenant.vni), "remote", str(host.node.address), *kind,
    )  # fmt: skip
    in_peer("ip", "address", "add", f"{tenant.address(3)}/24", "dev", name)
    in_peer("ip", "link", "set", name, "up")
    there, own = mac_of(host.peer.netns, name), mac_of(sandbox, "eth0")
    in_peer("ip", "neigh", "replace", str(tenant.address(2)), "lladdr", own,
            "dev", name, "nud", "permanent")  # fmt: skip
    run("ip", "neigh", "replace", str(tenant.address(3)), "lladdr", there,
        "dev", "eth0", "nud", "permanent", netns=sandbox)  # fmt: skip


def mac_of(netns: Path, interface: str) -> str:
    """An interface's address."""
    shown = run("ip", "-o", "link", "show", interface, netns=netns)
    return shown.split("link/ether ")[1].split()[0]


def main(json_file: str | None, rounds: int) -> None:
    """Run and report. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "iptables": "iptables"})
    sweep()
    about = machine.record()
    first, second = two_cpus()
    with interruptible(), ExitStack() as stack:
        harness.say("making the nodes")
        kind = tunnel_kind()
        root = stack.enter_context(run_root())
        left, right = stack.enter_context(two_nodes("ours"))
        placement = Placement(agent_cpu=first, slot_cpu=second)
        here = stack.enter_context(
            agent(left, "left", root, BATCH + 8, placement, taps=MACHINES + 1)
        )
        there = stack.enter_context(agent(right, "right", root, 1))
        join(here, VPC, VNI, right.address, "10.2.0.0/16")
        join(there, VPC, VNI, left.address, "10.1.0.0/16")
        peer = IPv4Address("10.2.0.9")
        there.attach("peer", VPC, str(peer))
        host = stack.enter_context(classic.classic_host(kind))
        contestants = [
            Contestant("first_byte.ours", "us", BATCH, partial(ours, here, peer, second)),
            Contestant("first_byte.ours_one_cpu", "us", BATCH, partial(ours, here, peer, first)),
            *(
                Contestant(
                    f"first_byte.{form.name.removeprefix('classic.')}",
                    "us",
                    BATCH,
                    partial(pooled, host, form, second),
                    2,
                )
                for form in FORMS
            ),
        ]
        if program := compiled("vmm.c", root):
            for slot_kind in (SlotKind.TAP, SlotKind.HOST_TAP):
                name = f"first_byte.ours_{slot_kind.value.replace('-', '_')}"
                measure = partial(ours, here, peer, second, kind=slot_kind, program=program)
                contestants.append(Contestant(name, "us", MACHINES, measure, 1))
            measure = partial(pooled, host, classic.Pooled(), second, program=program)
            contestants.append(Contestant("first_byte.pooled_tap", "us", MACHINES, measure, 1))
        turns = harness.take_turns(contestants, rounds)
    about["placement"] = {"agent": first, "slot process": second, "guest and caller": second}
    about["tunnel"] = {"ours": "geneve", "classic": kind}
    harness.report(
        "first_byte",
        about,
        turns.rows,
        [
            *((f"first_byte.{form.name[8:]}", "first_byte.ours") for form in FORMS),
            ("first_byte.pooled_tap", "first_byte.ours_tap"),
            ("first_byte.pooled_tap", "first_byte.ours_host_tap"),
        ],
        restless=turns.restless,
        failed=turns.failed,
        json_file=json_file,
        notes=[
            "From the request to attach until the guest has the first answer of a sandbox on the "
            "other node, whose kernel answers pings. The guest's socket is open before.",
            "Ours: a reserved slot, attached through the agent. pooled…: namespace, veth, bridge "
            "are made before; the other end stands already and either knows the other's MAC.",
            "…_tap: the guest is a machine that runs at the tap before that is attached; what "
            "carries frames between the tap and it is in all these rows alike.",
        ],
    )
