# SPDX-License-Identifier: Apache-2.0
"""Guests with a larger MTU than the way has: told, asked for less by their peers, or let pass."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from geneve_ebpf.model import Vtep
from tests.nodes import (
    BLUE,
    Bed,
    Sandbox,
    eventually,
    family_of,
    introduce,
    send_tcp,
    set_features,
    six,
    two_nodes,
)

DATA = os.urandom(1 << 16) * 16  # 1 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()
OVERHEAD = {4: 50, 6: 70}
SUPERPACKETS = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
# Level, option that says what to do about the path's MTU, option that says what it is.
DISCOVERY = {4: (socket.IPPROTO_IP, 10, 14), 6: (socket.IPPROTO_IPV6, 23, 24)}
NEVER, ALWAYS = 0, 2


@pytest.fixture(scope="module", params=[4, 6], ids=["over-ipv4", "over-ipv6"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with Bed(f"mtu{request.param}") as made:
        two_nodes(made, outside=request.param)
        for node in made.nodes:  # so that every checksum is made before the wire, and checked
            off = ("tx", "off", *(word for name in SUPERPACKETS for word in (name, "off")))
            set_features(node.netns, "uplink0", *off)
        yield made


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest, bed: Bed) -> Iterator[tuple[Sandbox, Sandbox]]:
    """A sandbox on either node, with an address of one family."""
    a, b = bed.nodes
    introduce(a, b)
    one, two = "10.0.1.5", "10.0.2.5"
    if request.param == 6:
        one, two = six(one), six(two)
    yield a.sandbox(BLUE, one), b.sandbox(BLUE, two)
    bed.clear()


def bake_in(mtu: int, *sandboxes: Sandbox) -> None:
    """As in a guest that was restored from a snapshot of elsewhere."""
    for sandbox in sandboxes:
        sandbox.run("ip", "link", "set", "eth0", "mtu", mtu)


def mtu_between(bed: Bed) -> int:
    """Of an inner packet."""
    mtu = 1500 - OVERHEAD[bed.nodes[0].settings.vtep.version]
    assert bed.nodes[0].plane.mtu == mtu
    return mtu


def known_mtu(sandbox: Sandbox, to: str) -> str:
    """What the guest's kernel has learned about the way to an address."""
    found = sandbox.run("ip", "route", "get", to).split()
    return found[found.index("mtu") + 1] if "mtu" in found else ""


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {
        row: count - before.get(row, 0) for row, count in after.items() if count != before.get(row)
    }


def probing(sandbox: Sandbox, to: str, how: int) -> socket.socket:
    """A UDP socket that fragments never or always, connected."""
    family = family_of(to)
    made = sandbox.udp(0, family)
    level, discover, _ = DISCOVERY[6 if family == socket.AF_INET6 else 4]
    made.setsockopt(level, discover, how)
    made.connect((to, 5000))
    return made


def path_mtu_of(connected: socket.socket) -> int:
    """What the kernel would send to its peer in one piece."""
    level, _, mtu = DISCOVERY[6 if connected.family == socket.AF_INET6 else 4]
    return connected.getsockopt(level, mtu)


@pytest.mark.parametrize("tso", ["on", "off"])
def test_tcp_of_guests_with_too_large_an_mtu_loses_nothing(
    bed: Bed, ends: tuple[Sandbox, Sandbox], tso: str
) -> None:
    """Both ends ask for segments that pass: no packet has to be refused first."""
    one, two = ends
    bake_in(1500, *ends)
    for sandbox in ends:
        set_features(sandbox.netns, "eth0", "tso", tso)
    drops = [node.drops() for node in bed.nodes]
    events = [node.events() for node in bed.nodes]

    assert send_tcp(one, two, DATA) == send_tcp(two, one, DATA) == DIGEST

    assert [node.drops() for node in bed.nodes] == drops
    for node, before in zip(bed.nodes, events, strict=True):
        assert grown(before, node.events()) == {"mss_clamped": 2}


@pytest.mark.kernel
def test_one_such_guest_is_enough(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """The other's eth0 asks for little anyway; it is the first that must be told."""
    one, two = ends
    bake_in(9000, one)
    before = bed.nodes[0].drops()

    assert send_tcp(one, two, DATA) == send_tcp(two, one, DATA) == DIGEST

    assert bed.nodes[0].drops() == before
    assert known_mtu(one, two.address) == ""


@pytest.mark.kernel
def test_a_datagram_that_is_too_long_is_refused_with_its_limit(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """The program's ICMP error is believed: EMSGSIZE, and the kernel knows the path's MTU."""
    one, two = ends
    bake_in(1500, one)
    mtu = mtu_between(bed)
    header = 28 if family_of(two.address) == socket.AF_INET else 48
    server, client = two.udp(5000, family_of(two.address)), probing(one, two.address, ALWAYS)
    before = bed.nodes[0].drops(), bed.nodes[0].events()

    client.send(bytes(1500 - header))

    assert eventually(lambda: known_mtu(one, two.address) == str(mtu))
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
    assert path_mtu_of(client) == mtu
    with pytest.raises(OSError, match="too long"):
        client.send(bytes(1500 - header))
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reads it, and so clears it
    client.send(bytes(mtu - header))
    assert len(server.recv(65536)) == mtu - header
    assert grown(before[0], bed.nodes[0].drops()) == {"tx too_big": 1}
    assert grown(before[1], bed.nodes[0].events()) == {"too_big_sent": 1}


def test_fragments_that_are_too_long_are_made_anew(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """A guest that cuts up datagrams to 1500 learns better, also where it sets no DF."""
    one, two = ends
    bake_in(1500, one)
    server, client = two.udp(5000, family_of(two.address)), probing(one, two.address, NEVER)
    server.settimeout(0.2)
    data = os.urandom(8000)

    def arrives() -> bool:
        client.send(data)
        with contextlib.suppress(TimeoutError):
            return server.recv(65536) == data
        return False

    assert eventually(arrives, 5)


def test_within_a_node_any_size_passes(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """There is no wire: what one sends the other gets, though its own eth0 has the usual MTU."""
    one, _ = ends
    address = six("10.0.1.6") if family_of(one.address) == socket.AF_INET6 else "10.0.1.6"
    near = bed.nodes[0].sandbox(BLUE, address)
    bake_in(9000, one)
    server, client = near.udp(5000, family_of(address)), probing(one, address, ALWAYS)
    before = bed.nodes[0].drops(), bed.nodes[0].events()

    client.send(data := os.urandom(8900))

    assert server.recv(65536) == data
    assert send_tcp(one, near, DATA) == send_tcp(near, one, DATA) == DIGEST
    assert (bed.nodes[0].drops(), bed.nodes[0].events()) == before


def test_a_vteps_own_mtu_is_told_too(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """An operator knows of a smaller hop: TCP that starts afterwards loses nothing."""
    one, two = ends
    a, b = bed.nodes
    for node, other in ((a, b), (b, a)):
        node.plane.add_vtep(Vtep(other.settings.vtep, mtu=1400))
    drops = [node.drops() for node in bed.nodes]
    try:
        assert send_tcp(one, two, DATA) == send_tcp(two, one, DATA) == DIGEST
        assert [node.drops() for node in bed.nodes] == drops
    finally:
        introduce(a, b)


@pytest.mark.kernel
def test_a_connection_survives_that_its_way_gets_narrower(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """Its segment size was agreed on; the first that is too big is answered and sent again."""
    one, two = ends
    a, b = bed.nodes
    listener = two.socket(family_of(two.address), socket.SOCK_STREAM)
    listener.bind(("", 0))
    listener.listen(1)
    client = one.socket(family_of(two.address), socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect((two.address, listener.getsockname()[1]))
    accepted, _ = listener.accept()
    accepted.settimeout(5)
    client.sendall(bytes(5000))
    assert received(accepted, 5000) == bytes(5000)
    before = a.drops()
    a.plane.add_vtep(Vtep(b.settings.vtep, mtu=1400))
    try:
        client.sendall(DATA[:50_000])

        assert received(accepted, 50_000) == DATA[:50_000]
    finally:
        introduce(a, b)
        accepted.close()
    assert grown(before, a.drops()).get("tx too_big", 0) > 0
    assert known_mtu(one, two.address) == str(1400 - OVERHEAD[a.settings.vtep.version])


def received(stream: socket.socket, count: int) -> bytes:
    """So many bytes of it."""
    found = b""
    while len(found) < count:
        found += stream.recv(count - len(found))
    return found


def test_a_guest_that_does_not_listen_gets_ten_answers_at_once(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """Then one every ten milliseconds; its packets are refused and counted all the same."""
    one, two = ends
    bake_in(1500, one)
    kind, header = (0x0800, 20) if family_of(two.address) == socket.AF_INET else (0x86DD, 40)
    guest = one.node.settings.guest
    space = bytes(1490 - header)
    if header == 20:
        ends4 = socket.inet_aton(str(guest.address)) + socket.inet_aton(two.address)
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 1490, 0, 0x4000, 64, 253, 0) + ends4 + space
    else:
        ends6 = guest.address6.packed + socket.inet_pton(socket.AF_INET6, two.address)
        packet = struct.pack("!IHBB", 6 << 28, 1490 - 40, 253, 64) + ends6 + space
    macs = guest.gateway_mac.octets + guest.mac.octets
    before = one.node.drops(), one.node.events()

    time.sleep(0.15)  # another test's guest in this slot may have used answers up
    door = one.socket(socket.AF_PACKET, socket.SOCK_RAW)
    door.bind(("eth0", 0))
    for _ in range(500):
        door.send(macs + kind.to_bytes(2, "big") + packet)

    assert one.node.gained(before[0], expected := {"tx too_big": 500}) == expected
    assert 10 <= grown(before[1], one.node.events())["too_big_sent"] < 500
