# SPDX-License-Identifier: Apache-2.0
"""A hop on the underlay that carries less than the nodes' uplinks: found out, and lived with."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from geneve_ebpf.abi import Address, NodeState, VtepValue
from geneve_ebpf.loader.maps import SharedArray, Table
from lab.network import NETNS, inside
from tests.nodes import (
    BLUE,
    Bed,
    Node,
    Sandbox,
    eventually,
    family_of,
    introduce,
    run,
    send_tcp,
    set_features,
    six,
)
from tests.patience import PATIENCE

DATA = os.urandom(1 << 16) * 16  # 1 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
HOP_MTU = 1400
OVERHEAD = {4: 50, 6: 70}
BAR = 3  # seconds until TCP has got over a hop that it did not know of
NETWORKS = {4: ("192.0.2.", "192.0.3.", 24), 6: ("2001:db8:0:2::", "2001:db8:0:3::", 64)}
SUPERPACKETS = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")


def build(bed: Bed, outside: int) -> None:
    """Two nodes, and a router between them whose routes both ways carry 1400 bytes."""
    left, right, length = NETWORKS[outside]
    settings = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
    a, b, router = bed.namespace("a"), bed.namespace("b"), bed.namespace("r", settings)
    for netns, port, network in ((a, "left", left), (b, "right", right)):
        bed.wire(netns, "uplink0", router, port)
        bed.address(router, f"{network}254/{length}", port)
        bed.address(netns, f"{network}1/{length}", "uplink0")
    lead_through_the_router(bed, outside)
    for netns, port, network in ((a, "left", left), (b, "right", right)):
        narrow(bed, bed.node(netns, f"{network}1", "uplink0"), port)
    introduce(*bed.nodes)


def lead_through_the_router(bed: Bed, outside: int) -> None:
    """Give each node its route to the other, anew: some kernels keep what a hop said with it."""
    left, right, length = NETWORKS[outside]
    for name, network, other in (("a", left, right), ("b", right, left)):
        ip = ("ip", "-n", f"{bed.prefix}-{name}", f"-{outside}", "route")
        prefix = f"{other}/{length}".replace("./", ".0/")
        run(*ip, "flush", "exact", prefix)
        run(*ip, "add", prefix, "via", f"{network}254")


def router_of(bed: Bed) -> Path:
    """The namespace in the middle."""
    return NETNS / f"{bed.prefix}-r"


def narrow(bed: Bed, node: Node, port: str) -> None:
    """The router's way to a node carries 1400 bytes, though its interface takes 1500."""
    widen(bed, node, port, "mtu", "lock", HOP_MTU)


def widen(bed: Bed, node: Node, port: str, *more: object) -> None:
    """The router's way to a node carries what the interface does."""
    outside = node.settings.vtep.version
    words = ("ip", "-n", router_of(bed).name, f"-{outside}", "route", "replace", node.vtep)
    run(*words, "dev", port, *more)


@pytest.fixture(scope="module", params=[4, 6], ids=["over-ipv4", "over-ipv6"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with Bed(f"hop{request.param}") as made:
        build(made, request.param)
        yield made


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest, bed: Bed) -> Iterator[tuple[Sandbox, Sandbox]]:
    """A sandbox on either node, with an address of one family. Nothing is known of the hop."""
    introduce(*bed.nodes)
    lead_through_the_router(bed, bed.nodes[0].settings.vtep.version)
    one, two = "10.0.1.5", "10.0.2.5"
    if request.param == 6:
        one, two = six(one), six(two)
    yield bed.nodes[0].sandbox(BLUE, one), bed.nodes[1].sandbox(BLUE, two)
    bed.clear()


def learned(node: Node) -> int:
    """How often a hop told it something new."""
    return node.events().get("path_mtu_learned", 0)


def path_mtu(sandbox: Sandbox, to: str) -> str:
    """What the sandbox's kernel has learned about the way to an address."""
    found = sandbox.run("ip", "route", "get", to).split()
    return found[found.index("mtu") + 1] if "mtu" in found else ""


@pytest.mark.kernel
@pytest.mark.parametrize("superpackets", ["off", "on"])
def test_tcp_gets_over_a_smaller_hop(
    bed: Bed,
    ends: tuple[Sandbox, Sandbox],
    superpackets: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first packets are lost there. The hop's word reaches the node, the node's the sandbox."""
    a, b = bed.nodes
    one, two = ends
    for node in bed.nodes:
        words = (word for name in SUPERPACKETS for word in (name, superpackets))
        set_features(node.netns, "uplink0", *words)
    before = learned(a), learned(b)

    started = time.monotonic()
    digest = send_tcp(one, two, DATA)
    took = time.monotonic() - started

    with capsys.disabled():
        print(f"\n1 MiB of TCP through a hop of {HOP_MTU} nobody knew of: {took:.3f} s")
    assert digest == DIGEST
    assert took < BAR * PATIENCE
    assert (learned(a), learned(b)) == (before[0] + 1, before[1])
    mtu = HOP_MTU - OVERHEAD[a.settings.vtep.version]
    assert path_mtu(one, two.address) == str(mtu)


def test_once_known_nothing_reaches_the_hop_that_is_too_big(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """Other sandboxes and later connections are told on the node."""
    a, b = bed.nodes
    one, two = ends
    assert send_tcp(one, two, DATA) == DIGEST
    family = 6 if family_of(one.address) == socket.AF_INET6 else 4
    address = {4: ("10.0.1.6", "10.0.2.6"), 6: (six("10.0.1.6"), six("10.0.2.6"))}[family]
    three, four = a.sandbox(BLUE, address[0]), b.sandbox(BLUE, address[1])
    before, complaints = learned(a), errors_of(bed)

    assert send_tcp(three, four, DATA) == DIGEST
    # The other way the handshake alone is enough: its answer asks for small segments.
    drops = b.drops()
    assert send_tcp(four, three, DATA) == DIGEST

    assert (learned(a), errors_of(bed), b.drops()) == (before, complaints, drops)


def errors_of(bed: Bed) -> int:
    """ICMP errors that the router has sent about outer packets."""
    router = router_of(bed)
    if bed.nodes[0].settings.vtep.version == 6:
        lines = run(*inside(router, "cat", "/proc/net/snmp6")).splitlines()
        return next(int(line.split()[1]) for line in lines if "Icmp6OutPktTooBigs" in line)
    lines = run(*inside(router, "cat", "/proc/net/snmp")).splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("OutDestUnreachs")])


def test_the_largest_echo_that_passes_is_found(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Of the hop's MTU, less the tunnel's headers; one byte more is refused on the node."""
    a, _ = bed.nodes
    one, two = ends
    header = 28 if family_of(two.address) == socket.AF_INET else 48
    largest = HOP_MTU - OVERHEAD[a.settings.vtep.version] - header
    before, refused = learned(a), a.drops().get("tx too_big", 0)

    assert one.ping(two.address, "-M", "do", "-s", largest + 1, count=1, wait=0.3) == 0
    assert eventually(lambda: learned(a) == before + 1)
    assert a.drops().get("tx too_big", 0) == refused

    assert one.ping(two.address, "-M", "do", "-s", largest) == 3
    assert one.ping(two.address, "-M", "do", "-s", largest + 1, count=1, wait=0.3) == 0
    assert a.drops()["tx too_big"] == refused + 1


def test_a_hop_that_got_wider_is_used_when_the_time_is_over(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """Ten minutes, which the test does not wait for."""
    a, b = bed.nodes
    one, two = ends
    outside = a.settings.vtep.version
    ports = ((a, "left"), (b, "right"))
    of_ipv4 = family_of(two.address) == socket.AF_INET
    largest = 1500 - OVERHEAD[outside] - (28 if of_ipv4 else 48)
    before = learned(a)
    one.ping(two.address, "-M", "do", "-s", largest, count=1, wait=0.3)
    assert eventually(lambda: learned(a) == before + 1)
    for node, port in ports:
        widen(bed, node, port)
    try:
        assert one.ping(two.address, "-M", "do", "-s", largest, count=1, wait=0.3) == 0
        other = a.sandbox(BLUE, "10.0.1.6" if of_ipv4 else six("10.0.1.6"))
        expire(a, b)

        assert other.ping(two.address, "-M", "do", "-s", largest) == 3
    finally:
        for node, port in ports:
            narrow(bed, node, port)


def expire(node: Node, other: Node) -> None:
    """What `node` has learned of the way to `other` is over."""
    table: Table[Address, VtepValue] = Table(node.pins.map("vteps"), Address, VtepValue)
    key = Address.of(other.settings.vtep)
    value = table.get(key)
    assert value is not None
    assert value.path_mtu == HOP_MTU
    value.path_mtu_until = 1
    table.set(key, value)
    table.close()


def test_the_node_forgets_the_time_by_itself(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Once nothing holds any more, packets cost no look at the clock."""
    a, _ = bed.nodes
    one, two = ends
    state: SharedArray[NodeState] = SharedArray(a.pins.map("node_state"), NodeState, writable=True)
    state.row(0).path_mtu_until = 1

    one.ping(two.address, count=1)

    assert state.copy(0).path_mtu_until == 0
    state.close()
