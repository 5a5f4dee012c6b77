# SPDX-License-Identifier: Apache-2.0
"""An uplink whose MTU changes, or that is deleted and made again, under an agent that runs on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.dataplane.merging import DEVICE
from geneve_ebpf.dataplane.node import write_facts
from geneve_ebpf.dataplane.uplinks import Uplinks
from geneve_ebpf.host import namespaces, tc
from geneve_ebpf.host.links import index_of
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.loader import hooks
from lab.network import Lab, Node, inside, run
from tests.api import Agent
from tests.nodes import (
    PREFIX,
    RUN_ROOT,
    Bed,
    Host,
    Stream,
    eventually,
    ping,
    send_tcp,
    set_features,
    six,
    two_nodes,
)
from tests.patience import PATIENCE

SLOTS = 3
OVERHEAD = {4: 50, 6: 70}
DATA = os.urandom(1 << 16) * 16
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module", params=[4, 6], ids=["over-ipv4", "over-ipv6"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    directory = RUN_ROOT / "lab"
    with Lab(directory, f"{PREFIX}-up", patience=60 * PATIENCE) as made:
        made.up(2, SLOTS, metrics=False, outside=request.param)
        blocks = {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}
        blocks6 = {name: six(block) for name, block in blocks.items()}
        made.connect("blue", 42, ("10.0.0.0/16", blocks), (six("10.0.0.0/16"), blocks6))
        yield made
    with contextlib.suppress(OSError):
        RUN_ROOT.rmdir()


def ask(node: Node, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request; the answer's body."""
    with node.client() as client:
        return client.request(method, path, body)[1]


@pytest.fixture
def ends(lab: Lab) -> Iterator[tuple[Host, Host]]:
    """A sandbox of both families on either node."""
    with Bed("ends") as bed:
        made = []
        for number, node in enumerate(lab.nodes, 1):
            address = f"10.0.{number}.5"
            wanted = {"vpc": "blue", "address": address, "address6": six(address)}
            sandbox = ask(node, "PUT", f"/v1/sandboxes/s{number}", wanted)
            netns = Path(sandbox["slot"]["netns"])
            made.append(Host(bed, netns, "eth0", address, six(address)))
        yield made[0], made[1]
    for number, node in enumerate(lab.nodes, 1):
        ask(node, "DELETE", f"/v1/sandboxes/s{number}")


def mtus(node: Node) -> set[int]:
    """Of eth0 in every slot, attached or not, as the kernel has them."""
    listed = ask(node, "GET", "/v1/slots")["slots"]
    found = set()
    for slot in listed:
        try:
            shown = run(*inside(slot["netns"], "ip", "-o", "link", "show", "eth0"))
            found.add(int(shown.split(" mtu ")[1].split()[0]))
        except RuntimeError:  # it went just now
            found.add(0)
    return found


def follows(node: Node, mtu: int) -> bool:
    """Whether every slot of the node comes to have that MTU."""
    return eventually(lambda: mtus(node) == {mtu}, 10 * PATIENCE)


def family(lab: Lab) -> Literal[4, 6]:
    """Of the underlay."""
    return 6 if ":" in lab.nodes[0].vtep else 4


def set_mtu(lab: Lab, mtu: int) -> None:
    """Of the wire, both ends."""
    for node in lab.nodes:
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", mtu)


def test_merging_follows_the_uplinks_gro(lab: Lab) -> None:
    """Where segments are merged before the program sees them, as `node status` says it."""
    node = lab.nodes[0]

    def merging() -> dict[str, Any]:
        found: dict[str, Any] = ask(node, "GET", "/v1/node")["merging"]
        return found

    assert merging()["reasons"] == ["GRO is off on uplink0: ethtool -K uplink0 gro on"]
    set_features(node.netns, "uplink0", "gro", "on")
    assert eventually(lambda: merging()["uplinks"] == ["uplink0"])
    assert merging()["device"] in ("geneve", "vxlan")
    run("ip", "-n", node.namespace, "link", "del", DEVICE)
    assert eventually(lambda: DEVICE in run("ip", "-n", node.namespace, "link"))
    set_features(node.netns, "uplink0", "gro", "off")
    assert eventually(lambda: merging()["uplinks"] == [])
    assert DEVICE not in run("ip", "-n", node.namespace, "link")


def test_every_slot_follows_the_uplinks_mtu_and_traffic_goes_on(
    lab: Lab, ends: tuple[Host, Host]
) -> None:
    """Down to 1400 and up again: those attached, those ready, those made later, what the API says.
    A stream of small packets loses none; TCP crosses at each size, with packets that fill it."""
    one, two = ends
    header = {4: 28, 6: 48}
    with Stream(one.netns, two.netns, two.address) as stream:
        for wire in (1400, 1500):
            wanted = wire - OVERHEAD[family(lab)]
            set_mtu(lab, wire)

            for node in lab.nodes:
                assert follows(node, wanted)
                assert ask(node, "GET", "/v1/node")["mtu"] == wanted
                reserved = ask(node, "POST", "/v1/slots:reserve", {})
                assert reserved["guest"]["mtu"] == wanted
                ask(node, "DELETE", f"/v1/slots/{reserved['slot']['id']}")
                assert follows(node, wanted)
            for address, size in ((two.address, header[4]), (two.address6, header[6])):
                assert ping(one.netns, address, "-M", "do", "-s", wanted - size) == 3
                assert send_tcp(one, two, DATA, address) == DIGEST
        assert stream.lost() == set()


def test_a_tiny_wire_costs_ipv6_only_while_it_is_tiny(lab: Lab, ends: tuple[Host, Host]) -> None:
    """Below 1280 bytes the kernel has no IPv6 on an interface; grown again it is as it was."""
    one, two = ends
    try:
        set_mtu(lab, 1300)
        wanted = 1300 - OVERHEAD[family(lab)]
        for node in lab.nodes:
            assert follows(node, wanted)
        assert one.ping(two.address) == 3
        assert one.ping(two.address6, wait=0.3) == 0
    finally:
        set_mtu(lab, 1500)
    for node in lab.nodes:
        assert follows(node, 1500 - OVERHEAD[family(lab)])
    assert one.ping(two.address6) == two.ping(one.address) == 3
    shown = one.run("ip", "-o", "-6", "address", "show", "dev", "eth0")
    assert shown.count("inet6") == 1, shown
    assert "fe80" not in shown


def test_an_uplink_made_again_has_its_hook_and_the_node_is_not_ready_meanwhile(
    lab: Lab, ends: tuple[Host, Host]
) -> None:
    """Deleted with everything on it, then made with another index: traffic flows as before."""
    one, two = ends
    a, b = lab.nodes
    assert one.ping(two.address) == 3

    run("ip", "-n", a.namespace, "link", "delete", "uplink0")

    for node in (a, b):
        assert eventually(lambda node=node: "there is no uplink uplink0" in problems(node)), (
            node.name
        )
    Lab._veth(a.namespace, "uplink0", b.namespace, "uplink0")
    network, length = ("192.0.2.", 24) if family(lab) == 4 else ("2001:db8::", 64)
    for number, node in enumerate(lab.nodes, 1):
        more = ("nodad",) if family(lab) == 6 else ()
        words = ("address", "add", f"{network}{number}/{length}", "dev", "uplink0", *more)
        run("ip", "-n", node.namespace, *words)
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "up")
    for node in (a, b):
        assert eventually(lambda node=node: not problems(node)), problems(node)
    assert one.ping(two.address) == two.ping(one.address6) == 3
    assert send_tcp(one, two, DATA) == DIGEST


def test_the_node_is_not_ready_while_no_uplink_carries_anything(
    lab: Lab, ends: tuple[Host, Host]
) -> None:
    """Set down, or with nothing at its other end, as `node status` and an event have it."""
    one, two = ends
    a, b = lab.nodes
    since, told = ask(b, "GET", "/v1/node")["last_event"], []

    run("ip", "-n", a.namespace, "link", "set", "uplink0", "down")

    for node, why in ((a, "uplink0 is down"), (b, "uplink0 has no carrier")):
        said = f"no uplink carries anything: {why}"
        assert eventually(lambda node=node, said=said: said in problems(node)), node.name
        assert ask(node, "GET", "/v1/node")["uplinks_down"] == [why]
        agent = Agent(node.socket)
        assert agent.code("GET", "/readyz") == "degraded"
        told = agent.must("GET", f"/v1/events?since={since}") if node is b else told
        agent.close()
    assert [one["down"] for one in told if one["event"] == "uplinks-down"] == [
        ["uplink0 has no carrier"]
    ]
    run("ip", "-n", a.namespace, "link", "set", "uplink0", "up")
    if family(lab) == 6:  # those of IPv6 go when an interface is set down
        address = ("2001:db8::1/64", "dev", "uplink0", "nodad")
        run("ip", "-n", a.namespace, "address", "add", *address)
    for node in (a, b):
        assert eventually(lambda node=node: not problems(node)), problems(node)
    assert one.ping(two.address) == two.ping(one.address6) == 3


def test_one_uplink_of_two_that_is_down_is_named_and_no_problem() -> None:
    """The kernel's routes lead by the other one."""
    with Bed("two") as bed:
        a, other = bed.namespace("a"), bed.namespace("b")
        for name in ("uplink0", "uplink1"):
            bed.wire(a, name, other, name)
        bed.address(a, "192.0.2.1/24", "uplink0")
        node = bed.node(a, "192.0.2.1", "uplink0", "uplink1")
        with namespaces.entering(a), IPRoute() as ip, RouteSocket() as door:
            uplinks = Uplinks(node.settings, ip, door)
            assert (uplinks.look().problems, uplinks.look().down) == ((), ())

            node.run("ip", "link", "set", "uplink1", "down")

            seen = uplinks.look()
            assert (seen.problems, seen.down) == ((), ("uplink1 is down",))
        bed.clear()


def problems(node: Node) -> list[str]:
    """Why the node is not ready."""
    status = ask(node, "GET", "/v1/node")
    return list(status["problems"])


def test_an_agent_that_was_away_makes_up_for_it(lab: Lab, ends: tuple[Host, Host]) -> None:
    """The MTU changed while nobody looked: the next agent's slots have it, old ones too."""
    one, two = ends
    a, _ = lab.nodes
    lab.stop_agent(a)
    try:
        set_mtu(lab, 1400)
    finally:
        lab.start_agent(a)
    lab.wait_ready(a)
    wanted = 1400 - OVERHEAD[family(lab)]

    assert follows(a, wanted)
    assert one.ping(two.address, "-M", "do", "-s", wanted - 28) == 3
    set_mtu(lab, 1500)
    for node in lab.nodes:
        assert follows(node, 1500 - OVERHEAD[family(lab)])


def test_the_hook_comes_back_without_tcx_too() -> None:
    """As on kernels that have only clsact, which goes with the interface."""
    with Bed("back") as bed:
        a, b = two_nodes(bed)
        one, two = a.sandbox(42, "10.0.1.5"), b.sandbox(42, "10.0.2.5")
        with namespaces.entering(a.netns), IPRoute() as ip, RouteSocket() as door:
            hooks.drop_uplink(ip, door, a.pins, "uplink0")
            write_facts(a.settings.run_directory, replace(a.facts, uplink_hook="clsact"))
            uplinks = Uplinks(a.settings, ip, door)
            seen = uplinks.look()
            assert (seen.mtu, seen.problems) == (a.facts.mtu, ())
            assert len(tc.ingress_programs(door, index_of(ip, "uplink0"))) == 1
            assert one.ping(two.address) == 3

            a.run("ip", "link", "delete", "uplink0")
            seen = uplinks.look()
            assert (seen.mtu, seen.problems) == (a.facts.mtu, ("there is no uplink uplink0",))
            bed.wire(a.netns, "uplink0", b.netns, "uplink0", mtu=1400)
            bed.address(a.netns, "192.0.2.1/24", "uplink0")
            bed.address(b.netns, "192.0.2.2/24", "uplink0")
            b.bring_up()
            seen = uplinks.look()
            assert (seen.mtu, seen.problems) == (1350, ())
            assert len(tc.ingress_programs(door, index_of(ip, "uplink0"))) == 1

        assert a.plane.mtu == dataplane.facts(a.settings.run_directory).mtu == 1350
        assert two.ping(one.address) == 3
        bed.clear()
