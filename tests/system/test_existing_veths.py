# SPDX-License-Identifier: Apache-2.0
"""Slots of veths that a container runtime made, both ends where they are to be: it gives them
away with `attach --existing`, and they go with the slot."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.host import links, namespaces
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.loader import bpf
from lab.network import NETNS, Lab, Node, inside, run
from tests.api import Agent, kill_slot_process
from tests.command import asked, geneve, new_lab, refused
from tests.given import addresses, interfaces, records, untouched
from tests.kinds import empty, states
from tests.nodes import PREFIX, eventually, ping
from tests.patience import PATIENCE
from tests.watcher import Watcher, hang_tcx, instruction

HOST = "runtime-veth"  # the end in the node's namespace
BODY = {"interface": "eth0", "existing": True}
_XDP, _BPF_XDP, _SKB_MODE = 6, 37, 2


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab("veths") as made:
        made.patience = 90 * PATIENCE
        made.up(slots=2, metrics=False)
        spans = (
            ("10.0.0.0/16", {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}),
            ("fd00::/48", {"node1": "fd00:0:0:1::/64", "node2": "fd00:0:0:2::/64"}),
        )
        made.connect("blue", 42, *spans)
        yield made


@pytest.fixture
def netns() -> Iterator[Path]:
    """A container's namespace."""
    path = NETNS / f"{PREFIX}box"
    run("ip", "netns", "add", path.name)
    yield path
    if path.exists():
        run("ip", "netns", "delete", path.name)


@pytest.fixture
def node(lab: Lab, netns: Path) -> Iterator[Node]:
    """The first, which has no slot of others' afterwards."""
    yield lab.nodes[0]
    empty(lab)
    assert eventually(lambda: not dict(records(lab.nodes[0])), 30)


@pytest.fixture
def veth(node: Node, netns: Path) -> Iterator[None]:
    """What the runtime has made: a veth from the node to the container, both ends up."""
    make(node, netns)
    yield
    if HOST in interfaces(node.netns):
        run("ip", "-n", node.namespace, "link", "delete", HOST)


@pytest.fixture
def far(lab: Lab, node: Node) -> dict[str, Any]:
    """A sandbox on the other node."""
    return asked(lab.nodes[1], "attach", "far", "--vpc", "blue")


def make(node: Node, netns: Path, name: str = HOST) -> None:
    run("ip", "-n", node.namespace, "link", "add", name, "type", "veth", "peer", "name", "eth0",
        "netns", netns.name)  # fmt: skip
    run("ip", "-n", node.namespace, "link", "set", name, "up")
    run("ip", "-n", netns.name, "link", "set", "eth0", "up")


def link(netns: Path, interface: str) -> dict[str, Any]:
    (shown,) = json.loads(run(*inside(netns, "ip", "-j", "-d", "link", "show", "dev", interface)))
    return shown


def features(netns: Path, interface: str) -> set[str]:
    """Offloads that are on."""
    with namespaces.visiting(netns), RouteSocket() as door:
        return links.features_on(door, interface)


def seen(netns: Path) -> object:
    """What whoever made it could miss afterwards."""
    links = [
        (one["ifname"], one["ifindex"], one["mtu"], one["address"], one.get("master"),
         {"UP", "NOARP"} & set(one["flags"]), one.get("num_tx_queues"))
        for one in json.loads(run(*inside(netns, "ip", "-j", "link")))
    ]  # fmt: skip
    return (
        sorted(links, key=str),
        run(*inside(netns, "ip", "-4", "-o", "address")),
        run(*inside(netns, "ip", "route")),
        run(*inside(netns, "tc", "qdisc")),
    )


@pytest.mark.parametrize("mode", ["clone", "native"])
def test_a_veth_is_attached_where_it_is(
    node: Node, veth: None, far: dict[str, Any], netns: Path, mode: str
) -> None:
    """Its ends become what a slot's are, the container talks to the other node by both families,
    and when it is detached the veth has gone, and nothing else."""
    made = link(node.netns, HOST)["ifindex"], link(netns, "eth0")["ifindex"]
    run(*inside(node.netns, "ethtool", "-K", HOST, "gro", "on"))
    run(*inside(netns, "ethtool", "-K", "eth0", "gro", "off"))
    words = ("attach", "box", "--vpc", "blue", "--netns", netns, "--existing", "--mode", mode)
    own = asked(node, *words)

    outside, eth0 = link(node.netns, own["slot"]["host_interface"]), link(netns, "eth0")
    assert (outside["ifindex"], eth0["ifindex"]) == made
    assert HOST not in interfaces(node.netns)
    assert own["slot"]["netns"] == str(netns)
    assert (outside["mtu"], "NOARP" in outside["flags"]) == (65535, True)
    shown = run("ip", "-n", node.namespace, "-o", "address", "show", "dev", outside["ifname"])
    assert shown == ""
    assert (eth0["address"], eth0["mtu"]) == (own["guest"]["mac"], own["guest"]["mtu"])
    other = asked(node, "slot", "reserve", "--kind", "namespace")["slot"]
    assert features(node.netns, outside["ifname"]) == features(node.netns, other["host_interface"])
    assert features(netns, "eth0") == features(Path(other["netns"]), "eth0")
    its = own if mode == "native" else own["guest"]
    assert addresses(netns, "eth0") == {its["address"], its["address6"]}
    assert ping(netns, far["address"]) == ping(netns, far["address6"]) == 3
    assert ping(Path(far["slot"]["netns"]), own["address"]) == 3

    again = asked(node, *words)
    assert (again["generation"], again["slot"]) == (own["generation"], own["slot"])
    asked(node, "detach", "box")
    assert untouched(node, netns)
    assert outside["ifname"] not in interfaces(node.netns)
    assert geneve(node, "detach", "box").returncode == 0


Spoil = Callable[[contextlib.ExitStack, Node, Path], None]


def ip(*words: str, there: bool = True) -> Spoil:
    """`ip` in the container's namespace, or in the node's."""

    def spoil(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
        for line in " ".join(words).split(";"):
            run("ip", "-n", netns.name if there else node.namespace, *line.split())

    return spoil


def outside(*words: str) -> Spoil:
    return ip(*words, there=False)


def xdp(there: bool) -> Spoil:
    def spoil(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
        everything = instruction(0xB7, 0, value=2) + instruction(0x95)  # passes
        program = bpf.load_program(everything, kind=_XDP)
        stack.callback(os.close, program)
        with namespaces.visiting(netns if there else node.netns):
            index = socket.if_nametoindex("eth0" if there else HOST)
            attr = bpf.create_attr("<IIII32x", program, index, _BPF_XDP, _SKB_MODE)
            stack.callback(os.close, bpf.call(bpf.LINK_CREATE, attr))

    return spoil


def tcx(egress: bool) -> Spoil:
    def spoil(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
        watcher = stack.enter_context(Watcher())
        with namespaces.visiting(node.netns):
            index = socket.if_nametoindex(HOST)
            try:
                stack.enter_context(hang_tcx(watcher, index, egress=egress))
            except OSError:
                pytest.skip("this kernel has no TCX")

    return spoil


def qdisc(*words: str) -> Spoil:
    def spoil(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
        run(*inside(node.netns, "tc", "qdisc", "add", "dev", HOST, *words))

    return spoil


def crowd(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
    """Routes without end, which a sandbox's root may make."""
    lines = [f"route add blackhole 192.0.{n >> 8}.{n & 255}/32\n" for n in range(1100)]
    subprocess.run(
        inside(netns, "ip", "-batch", "-"), input="".join(lines), text=True, check=True, timeout=60
    )


def elsewhere(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
    """The other end moves to a third namespace, and another veth of the node's has its index."""
    third = f"{PREFIX}third"
    run("ip", "netns", "add", third)
    stack.callback(run, "ip", "netns", "delete", third)
    run("ip", "-n", node.namespace, "link", "set", HOST, "netns", third)
    index = str(link(netns, "eth0")["link_index"])
    run("ip", "-n", node.namespace, "link", "add", HOST, "index", index, "type", "veth", "peer",
        "name", "runtime-peer")  # fmt: skip


def a_slots(stack: contextlib.ExitStack, node: Node, netns: Path) -> None:
    """A slot was made there, and its end has another name in there by now."""
    run("ip", "-n", netns.name, "link", "delete", "eth0")
    asked(node, "slot", "add", "--netns", netns, "--interface", "net1")
    run("ip", "-n", netns.name, "link", "set", "net1", "down")
    run("ip", "-n", netns.name, "link", "set", "net1", "name", "eth0")


REFUSALS: dict[str, tuple[Spoil, str]] = {
    "missing": (ip("link set eth0 down; link set eth0 name net1"), "no interface eth0"),
    "no-veth": (ip("link delete eth0; link add eth0 type bridge"), "is no veth, but bridge"),
    "both-inside": (
        ip("link delete eth0; link add eth0 type veth peer name away"),
        "is not in the node's namespace but in the same",
    ),
    "elsewhere": (elsewhere, "is not in the node's namespace"),
    "a-slots": (a_slots, "is a slot's"),
    "port": (outside("link add runtime-br type bridge;", f"link set {HOST} master runtime-br"),
             f"{HOST}, in the node's namespace, is a port"),
    "port-inside": (ip("link add br0 type bridge; link set eth0 master br0"),
                    "eth0, in the namespace, is a port"),
    "xdp": (xdp(there=False), "has an XDP program"),
    "xdp-inside": (xdp(there=True), "has an XDP program"),
    "tcx": (tcx(egress=False), "has TCX programs"),
    "tcx-egress": (tcx(egress=True), "has TCX programs"),
    "clsact": (qdisc("clsact"), "has a qdisc, clsact"),
    "qdisc": (qdisc("root", "pfifo"), "has a qdisc, pfifo"),
    "address": (outside("address add 192.0.2.77/32 dev", HOST), "has the address 192.0.2.77"),
    "address6": (outside("address add fd99::1/128 nodad dev", HOST), "has the address fd99::1"),
    "address-inside": (ip("address add 192.0.2.77/32 dev eth0"), "has the address 192.0.2.77"),
    "guests-address": (
        ip("link add x type veth peer name y; address add 169.254.77.2/32 dev x"),
        "another interface of the namespace has the guest's address",
    ),
    "default-route": (ip("route add default dev eth0"), "has a default route"),
    "default-route6": (ip("-6 route add default dev eth0"), "has a default route"),
    "crowd": (crowd, "has more than 1,000 addresses or routes"),
    "route": (outside("route add 192.0.2.77/32 dev", HOST), f"routes of the node lead to {HOST}"),
    "route6": (outside("-6 route add fd99::/64 dev", HOST), f"routes of the node lead to {HOST}"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSALS)
def test_a_veth_that_is_in_use_is_refused(
    node: Node, veth: None, netns: Path, how: str
) -> None:
    """By a sentence that says what is in the way; nothing is changed, and nothing left."""
    spoil, why = REFUSALS[how]
    agent = Agent(node.socket)
    with contextlib.ExitStack() as stack:
        spoil(stack, node, netns)
        try:
            before, noted = (seen(node.netns), seen(netns)), dict(records(node))
            status, body = agent.ask("POST", "/v1/slots", {"netns": str(netns)} | BODY)
            assert (status, body["error"]["code"]) == (400, "bad_interface"), body
            assert why in body["error"]["message"]
            assert body["error"]["hint"]
            assert (seen(node.netns), seen(netns)) == before
            assert dict(records(node)) == noted
        finally:
            if "runtime-br" in interfaces(node.netns):
                run("ip", "-n", node.namespace, "link", "delete", "runtime-br")
    agent.close()


def test_of_one_veth_there_is_one_slot(node: Node, veth: None, netns: Path) -> None:
    """Whoever brings it, how many at once; also who asks for a new one under that name."""
    answers: list[tuple[int, Any]] = []

    def bring() -> None:
        agent = Agent(node.socket)
        answers.append(agent.ask("POST", "/v1/slots", {"netns": str(netns)} | BODY))
        agent.close()

    callers = [threading.Thread(target=bring) for _ in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(60)

    assert sorted(status for status, _ in answers) == [200, 200, 200, 201]
    (slot,) = {body["slot"]["id"] for _, body in answers}
    assert asked(node, "slot", "add", "--netns", netns)["slot"]["id"] == slot
    asked(node, "slot", "release", slot)
    assert untouched(node, netns)
    assert HOST not in interfaces(node.netns)


def test_a_failed_attach_does_not_cost_the_veth(
    node: Node, veth: None, far: dict[str, Any], netns: Path
) -> None:
    """The slot stays reserved, for the next try; --existing alone means nothing."""
    words = ("--netns", netns, "--existing")
    assert refused(node, "attach", "box", "--vpc", "nowhere", *words) == (3, "vpc_not_found")
    assert "reserved" in states(node).values()
    assert refused(node, "attach", "box", "--vpc", "blue", "--existing") == (2, "bad_request")
    assert refused(node, "slot", "add", "--netns", netns, "--interface", "net1", "--existing") == (
        2, "bad_interface"
    )  # fmt: skip
    asked(node, "attach", "box", "--vpc", "blue", *words)
    assert ping(netns, far["address"]) == 3


def test_one_that_cannot_become_a_slot_is_given_back(
    node: Node, veth: None, far: dict[str, Any], netns: Path
) -> None:
    """Here because of a route that is in the way: under its name, down, in no block, and once the
    route has gone the same call succeeds."""
    run("ip", "-n", netns.name, "link", "add", "x", "type", "veth", "peer", "name", "y")
    run("ip", "-n", netns.name, "link", "set", "x", "up")
    run("ip", "-n", netns.name, "link", "set", "y", "up")
    run("ip", "-n", netns.name, "route", "add", "169.254.77.1/32", "dev", "x", "scope", "link")
    add = ("slot", "add", "--netns", netns, "--existing")
    before = link(node.netns, HOST)["ifindex"]
    for _ in range(2):
        assert refused(node, *add) == (4, "interface_exists")
        back = link(node.netns, HOST)
        assert (back["ifindex"], "UP" in back["flags"]) == (before, False)
        assert "clsact" not in run(*inside(node.netns, "tc", "qdisc", "show", "dev", HOST))
        assert not dict(records(node))

    run("ip", "-n", netns.name, "link", "delete", "x")
    asked(node, "attach", "box", "--vpc", "blue", "--netns", netns, "--existing")
    assert ping(netns, far["address"]) == ping(netns, far["address6"]) == 3


def test_one_that_somebody_deletes_is_lost(node: Node, veth: None, netns: Path) -> None:
    """By either end, as any slot in a namespace of others'."""
    own = asked(node, "attach", "box", "--vpc", "blue", "--netns", netns, "--existing")
    run("ip", "-n", netns.name, "link", "delete", "eth0")
    assert eventually(lambda: own["slot"]["id"] not in states(node), 30)
    assert asked(node, "node", "status")["lost"] == ["box"]
    make(node, netns)
    asked(node, "attach", "box", "--vpc", "blue", "--netns", netns, "--existing")
    assert asked(node, "node", "status")["lost"] == []


def test_a_dead_slot_process_takes_it_all_the_same(
    lab: Lab, node: Node, veth: None, far: dict[str, Any], netns: Path
) -> None:
    """Whatever the one before had come to, the veth is not lost by it."""
    agent = Agent(node.socket)
    answers: list[tuple[int, Any]] = []

    def bring() -> None:
        answers.append(agent.ask("POST", "/v1/slots", {"netns": str(netns)} | BODY))

    for _ in range(3):
        caller = threading.Thread(target=bring)
        caller.start()
        kill_slot_process(lab.agents[node.name])
        caller.join(60)
        status, body = answers.pop()
        assert status in (200, 201), body
    asked(node, "attach", "box", "--vpc", "blue", "--slot", body["slot"]["id"])
    assert ping(netns, far["address"]) == 3
    agent.close()


def test_an_agent_that_was_killed_adopts_them(
    lab: Lab, node: Node, veth: None, far: dict[str, Any], netns: Path
) -> None:
    """One attached; and what a dead slot process had half taken is its owner's again."""
    name = f"{PREFIX}half"
    run("ip", "netns", "add", name)
    try:
        own = asked(node, "attach", "box", "--vpc", "blue", "--netns", netns, "--existing")
        note = records(node).get(int(own["slot"]["id"][5:]))
        assert note is not None
        lab.stop_agent(node, signal.SIGKILL)
        make(node, NETNS / name, "gnv900")
        half = link(node.netns, "gnv900")["ifindex"]
        records(node).add(900, replace(note, path=str(NETNS / name), outside=HOST,
                                       outside_index=half))  # fmt: skip
        assert ping(netns, far["address"]) == 3
        lab.start_agent(node)
        lab.wait_ready(node)

        assert eventually(lambda: set(dict(records(node))) == {int(own["slot"]["id"][5:])})
        back = link(node.netns, HOST)
        assert (back["ifindex"], "UP" in back["flags"]) == (half, False)
        assert asked(node, "show", "box")["guest"] == own["guest"]
        assert ping(netns, far["address"]) == 3
        slot = asked(node, "slot", "add", "--netns", NETNS / name, "--existing")["slot"]["id"]
        asked(node, "slot", "release", slot)
        asked(node, "detach", "box")
        assert untouched(node, netns)
    finally:
        run("ip", "netns", "delete", name)
