# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may try, as root of its own namespace, and does not get."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.model import Guest, host_interface
from tests.nodes import BLUE, RED, Bed, Node, Sandbox, eventually, ping, two_nodes
from tests.wire import ARP, BROADCAST, IPV4, arp_request, ethernet, ipv4, tagged, udp

GUEST = Guest()
MAC, GATEWAY_MAC = str(GUEST.mac), str(GUEST.gateway_mac)
PACKET = udp(GUEST.address, "10.0.2.5", (5001, 5000), b"let me in")
FRAME = ethernet(GATEWAY_MAC, MAC, IPV4, PACKET)
FENCE = ethernet(GATEWAY_MAC, "02:00:00:00:00:99", IPV4, PACKET)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed("hostile") as made:
        two_nodes(made)
        yield made


@pytest.fixture
def pair(bed: Bed) -> Iterator[tuple[Node, Node]]:
    yield bed.nodes[0], bed.nodes[1]
    bed.clear()


@pytest.fixture
def attacker(pair: tuple[Node, Node]) -> Sandbox:
    """A sandbox on the first node; 10.0.2.5 on the second and 10.0.1.6 beside it exist."""
    return pair[0].sandbox(BLUE, "10.0.1.5")


@pytest.fixture
def victims(pair: tuple[Node, Node]) -> list[Sandbox]:
    return [pair[0].sandbox(BLUE, "10.0.1.6"), pair[1].sandbox(BLUE, "10.0.2.5")]


def test_a_plain_frame_arrives(attacker: Sandbox, victims: list[Sandbox]) -> None:
    """The frame that the other tests spoil is a good one."""
    server = victims[1].udp(5000)

    attacker.send_frame(FRAME)

    assert server.recvfrom(100) == (b"let me in", ("10.0.1.5", 5001))


@pytest.mark.kernel
@pytest.mark.parametrize("vlan", [1, 100, 4094])
def test_a_vlan_tag_does_not_reach_the_wire(
    pair: tuple[Node, Node], attacker: Sandbox, victims: list[Sandbox], vlan: int
) -> None:
    """The kernel keeps a tag beside the packet, and would put it on the outer frame."""
    a, b = pair
    wires, heard = [a.capture(), b.capture()], [victim.capture() for victim in victims]
    before = a.drops()

    attacker.send_frame(tagged(FRAME, vlan))
    attacker.send_frame(
        tagged(ethernet(GATEWAY_MAC, MAC, IPV4, udp(GUEST.address, "10.0.1.6", (1, 2), b"")), vlan)
    )

    assert a.gained(before, expected := {"tx vlan_tagged": 2}) == expected
    assert [capture.strays() for capture in wires + heard] == [[]] * 4


@pytest.mark.kernel
def test_a_doubly_tagged_frame_does_not_reach_the_wire(
    pair: tuple[Node, Node], attacker: Sandbox
) -> None:
    """Only one tag is moved aside; the other would be in the bytes."""
    a, _ = pair
    wire, before = a.capture(), a.drops()

    attacker.send_frame(tagged(tagged(FRAME, 7), 100))

    assert a.gained(before, expected := {"tx vlan_tagged": 1}) == expected
    assert wire.strays() == []


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ethernet(GATEWAY_MAC, "02:00:00:00:00:99", IPV4, PACKET), "spoofed_mac"),
        (ethernet(GATEWAY_MAC, GATEWAY_MAC, IPV4, PACKET), "spoofed_mac"),
        (
            ethernet(GATEWAY_MAC, MAC, IPV4, udp("10.0.1.6", "10.0.2.5", (1, 5000), b"x")),
            "spoofed_address",
        ),
        (
            # Its own address in the VPC is not the one it has inside.
            ethernet(GATEWAY_MAC, MAC, IPV4, udp("10.0.1.5", "10.0.2.5", (1, 5000), b"x")),
            "spoofed_address",
        ),
        (
            ethernet(GATEWAY_MAC, MAC, IPV4, udp("192.0.2.1", "10.0.2.5", (1, 5000), b"x")),
            "spoofed_address",
        ),
        (ethernet(BROADCAST, MAC, IPV4, PACKET), "not_unicast"),
        (
            ethernet(GATEWAY_MAC, MAC, IPV4, udp(GUEST.address, "224.0.0.1", (1, 2), b"x")),
            "not_unicast",
        ),
        (
            ethernet(GATEWAY_MAC, MAC, IPV4, udp(GUEST.address, "255.255.255.255", (1, 2), b"x")),
            "not_unicast",
        ),
        (
            ethernet(GATEWAY_MAC, MAC, IPV4, udp(GUEST.address, "127.0.0.1", (1, 2), b"x")),
            "not_unicast",
        ),
        (ethernet(GATEWAY_MAC, MAC, 0x86DD, bytes(60)), "bad_ip_header"),
        (ethernet(GATEWAY_MAC, MAC, 0x88CC, bytes(60)), "not_ip"),
        (
            ethernet(BROADCAST, MAC, ARP, arp_request(MAC, GUEST.address, "10.0.2.5")),
            "arp_refused",
        ),
        (ethernet(BROADCAST, MAC, ARP, arp_request(MAC, "0.0.0.0", GUEST.gateway)), "arp_refused"),
        (
            ethernet(BROADCAST, MAC, ARP, arp_request(MAC, GUEST.address, GUEST.address)),
            "arp_refused",
        ),
        (
            ethernet(BROADCAST, MAC, ARP, arp_request(MAC, "10.0.1.6", GUEST.gateway)),
            "spoofed_address",
        ),
        (
            ethernet(
                BROADCAST, MAC, ARP, arp_request("02:00:00:00:00:99", GUEST.address, GUEST.gateway)
            ),
            "spoofed_mac",
        ),
    ],
)
def test_a_frame_that_is_not_its_own_is_dropped_once(
    pair: tuple[Node, Node],
    attacker: Sandbox,
    victims: list[Sandbox],
    frame: bytes,
    reason: str,
) -> None:
    """Counted under one reason; no wire, no other sandbox and no host stack sees any of it."""
    a, b = pair
    wires, heard = [a.capture(), b.capture()], [victim.capture() for victim in victims]
    before = a.drops()

    attacker.send_frame(frame)

    assert a.gained(before, expected := {f"tx {reason}": 1}) == expected
    assert [capture.strays() for capture in wires + heard] == [[]] * 4


def test_the_gateway_answers_arp(pair: tuple[Node, Node], attacker: Sandbox) -> None:
    """A sandbox that flushed its permanent neighbour finds it again."""
    a, b = pair
    b.sandbox(BLUE, "10.0.2.5")
    attacker.run("ip", "neigh", "flush", "all", "nud", "permanent")

    assert attacker.ping("10.0.2.5") == 3
    assert a.events()["arp_answered"] >= 1


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        MAC.encode(),
        ethernet(GATEWAY_MAC, MAC, IPV4, b"\x45"),
        ethernet(GATEWAY_MAC, MAC, IPV4, PACKET[:27]),
        ethernet(GATEWAY_MAC, MAC, IPV4, b"\x4f" + PACKET[1:20]),
        ethernet(GATEWAY_MAC, MAC, IPV4, b"\x44" + PACKET[1:]),
        ethernet(GATEWAY_MAC, MAC, ARP, bytes(27)),
    ],
)
def test_a_malformed_frame_goes_nowhere(
    pair: tuple[Node, Node], attacker: Sandbox, frame: bytes
) -> None:
    """Whatever the kernel lets out of the sandbox at all is dropped, and once."""
    a, b = pair
    wires, before = [a.capture(), b.capture()], a.drops()

    with contextlib.suppress(OSError):  # shorter than an Ethernet header
        attacker.send_frame(frame)

    attacker.send_frame(FENCE)  # behind it, so counted after it
    assert eventually(lambda: a.drops().get("tx spoofed_mac", 0) > before.get("tx spoofed_mac", 0))
    assert sum(a.drops().values()) - sum(before.values()) <= 2
    assert [wire.strays() for wire in wires] == [[], []]
    assert attacker.counters.tx_remote.packets == attacker.counters.tx_local.packets == 0


def test_the_host_side_has_no_voice(pair: tuple[Node, Node], attacker: Sandbox) -> None:
    """No address of either family, no ARP; and the sandbox has no link-local one to talk from."""
    a, _ = pair
    name = a.host_interface(attacker.slot)

    shown = a.run("ip", "-o", "link", "show", "dev", name)
    addresses = a.run("ip", "-o", "address", "show", "dev", name)

    assert "NOARP" in shown
    assert addresses == ""
    assert "fe80" not in attacker.run("ip", "-o", "address", "show", "dev", "eth0")


def test_the_sandbox_does_not_reach_the_nodes_stack(
    pair: tuple[Node, Node], attacker: Sandbox
) -> None:
    """Not by its VTEP, its loopback nor the gateway's address, from any address of its own."""
    a, b = pair
    server = a.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", 5000))
    server.settimeout(0.2)
    sniffer = a.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sniffer.settimeout(0.2)

    for target in ("192.0.2.1", "192.0.2.2", str(GUEST.gateway), "10.0.1.1"):
        assert not attacker.reaches(target)
        attacker.udp().sendto(b"hello", (target, 5000))
        attacker.send_frame(
            ethernet(
                "02:00:00:00:00:01", MAC, IPV4, udp(GUEST.address, target, (5001, 5000), b"hi")
            )
        )

    for one in (server, sniffer):
        with pytest.raises(TimeoutError):
            one.recv(100)
    assert ping(b.netns, "192.0.2.1") == 3  # the node itself is there


def test_the_node_does_not_reach_into_the_sandbox(
    pair: tuple[Node, Node], attacker: Sandbox
) -> None:
    """Nothing the node's programs send to everybody goes out of a sandbox's interface."""
    a, _ = pair
    heard = attacker.capture()
    with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
        speaker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        a.run("ip", "route", "add", "default", "via", "192.0.2.2")
        try:
            for target in ("255.255.255.255", "192.0.2.255", "224.0.0.251"):
                speaker.sendto(b"anyone?", (target, 5353))
            for target in (str(GUEST.address), "10.0.1.5"):
                assert ping(a.netns, target, wait=0.2) == 0
        finally:
            a.run("ip", "route", "del", "default")
    with a.socket(socket.AF_INET6, socket.SOCK_DGRAM) as speaker, contextlib.suppress(OSError):
        slot = next(slot for slot in a.plane.slots() if slot.index == attacker.slot)
        speaker.sendto(b"anyone?", ("ff02::1", 5353, 0, slot.ifindex))

    assert heard.frames() == []


def test_a_daemon_that_binds_to_a_sandboxs_interface_is_not_heard(
    pair: tuple[Node, Node], attacker: Sandbox
) -> None:
    """As mDNS, LLDP and DHCP daemons do that use every interface they find."""
    a, _ = pair
    name = a.host_interface(attacker.slot)
    heard = attacker.capture()
    before = a.drops()
    with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
        speaker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        speaker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        for target in ("224.0.0.251", "255.255.255.255"):
            with contextlib.suppress(OSError):  # ENOBUFS is how a daemon is told
                speaker.sendto(b"anyone?", (target, 5353))
    with a.socket(socket.AF_PACKET, socket.SOCK_RAW) as speaker:
        speaker.bind((name, 0))
        with contextlib.suppress(OSError):
            speaker.send(ethernet("01:80:c2:00:00:0e", "02:00:00:00:00:01", 0x88CC, bytes(50)))

    # The host's own copy of a broadcast comes in again, as if the sandbox had sent it.
    expected = {"rx host_frame": 3, "tx spoofed_mac": 1}
    assert a.gained(before, expected) == expected
    assert heard.wait(0.3) == []


def test_a_changed_mac_or_address_inside_does_not_help(
    pair: tuple[Node, Node], attacker: Sandbox, victims: list[Sandbox]
) -> None:
    """Root in the sandbox may configure what it likes; only its own identity passes."""
    a, _ = pair
    heard = victims[1].capture()
    before = a.drops()

    attacker.run("ip", "address", "add", "10.0.1.6/32", "dev", "eth0")
    by_address = ping(attacker.netns, "10.0.2.5", "-I", "10.0.1.6", wait=0.3)
    attacker.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
    # Which flushed the neighbours, permanent ones too.
    attacker.run(*("ip", "neigh", "replace", GUEST.gateway, "lladdr", GATEWAY_MAC, "dev", "eth0"))
    by_mac = ping(attacker.netns, "10.0.2.5", wait=0.3)

    assert (by_address, by_mac) == (0, 0)
    assert heard.frames() == []
    assert a.gained(before, expected := {"tx spoofed_address": 3, "tx spoofed_mac": 3}) == expected


def test_an_unbound_slot_reaches_nothing(pair: tuple[Node, Node]) -> None:
    """Before its tenant is known a slot may ask ARP for its gateway, and no more."""
    a, b = pair
    b.sandbox(BLUE, "10.0.2.5")
    (slot,) = a.make_slots()
    inside = a.place.netns(slot)
    wire, before = a.capture(), a.drops()

    assert ping(inside, "10.0.2.5", wait=0.3) == ping(inside, "192.0.2.1", wait=0.3) == 0

    assert a.gained(before, expected := {"tx unbound": 6}) == expected
    assert wire.strays() == []


@pytest.mark.kernel
def test_slots_made_after_the_last_one_went_are_closed_too(pair: tuple[Node, Node]) -> None:
    """A tc block vanishes with its last interface and the next would be open: the anchor holds it.

    Drained to nothing and refilled, twice: what is unbound reaches nothing, what is
    bound reaches its VPC alone.
    """
    a, b = pair
    server = b.sandbox(BLUE, "10.0.2.5")
    for _ in range(2):
        made = a.make_slots(4)
        a.destroy_slots(made)
        assert list(a.plane.slots()) == []

        one = a.sandbox(BLUE, "10.0.1.5")
        (free,) = a.make_slots()

        before = a.drops()
        assert ping(a.place.netns(free), "192.0.2.1", wait=0.3) == 0
        assert a.gained(before, expected := {"tx unbound": 3}) == expected
        assert one.ping("10.0.2.5") == server.ping("10.0.1.5") == 3
        assert not one.reaches("192.0.2.1")
        a.destroy_slots()


def test_an_interface_that_joins_our_block_gets_nowhere(pair: tuple[Node, Node]) -> None:
    """A number is all it takes to join; then our program refuses each of its frames."""
    a, _ = pair
    a.run("ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1")
    try:
        a.run("tc", "qdisc", "add", "dev", "foreign0", "ingress_block", a.facts.block, "clsact")
        for name in ("foreign0", "foreign1"):
            a.run("ip", "link", "set", name, "address", MAC, "up")
        before, wire = a.drops(), a.capture()
        with a.socket(socket.AF_PACKET, socket.SOCK_RAW) as door:
            door.bind(("foreign1", 0))
            door.send(FRAME)

        assert eventually(lambda: a.drops().get("tx no_slot", 0) > before.get("tx no_slot", 0))
        assert wire.strays() == []
    finally:
        a.run("ip", "link", "delete", "foreign0")


def test_neighbour_tables_stay_as_they_are(pair: tuple[Node, Node]) -> None:
    """The table is one for the whole machine: 64 sandboxes that talk add no dynamic entry to it."""
    a, b = pair
    b.sandbox(BLUE, "10.0.2.5")
    sandboxes = [
        a.sandbox(RED if number % 2 else BLUE, f"10.0.1.{number + 2}") for number in range(64)
    ]

    for number, sandbox in enumerate(sandboxes):
        client = sandbox.udp()
        for target in ("10.0.2.5", "10.0.1.2", "10.0.1.3", f"10.0.2.{number + 6}"):
            client.sendto(b"hello", (target, 5000))

    for sandbox in sandboxes:
        with namespaces.entering(sandbox.netns), open("/proc/thread-self/net/arp") as table:
            entries = [line.split() for line in table.readlines()[1:]]
        # complete (2) and permanent (4)
        assert [(entry[0], entry[2]) for entry in entries] == [(str(GUEST.gateway), "0x6")]
    host = {host_interface(sandbox.slot) for sandbox in sandboxes}
    with namespaces.entering(a.netns), open("/proc/thread-self/net/arp") as table:
        assert not [line for line in table.readlines()[1:] if line.split()[-1] in host]


def test_a_raw_geneve_packet_from_a_sandbox_is_a_tenants_packet(
    pair: tuple[Node, Node], attacker: Sandbox
) -> None:
    """Geneve written by the sandbox itself, to the other node's VTEP, never gets there."""
    a, _ = pair
    forged = udp(GUEST.address, "192.0.2.2", (40000, 6081), bytes(8) + FRAME)
    wire, before = a.capture(), a.drops()

    attacker.send_frame(ethernet(GATEWAY_MAC, MAC, IPV4, forged))
    attacker.send_frame(
        ethernet(GATEWAY_MAC, MAC, IPV4, ipv4("192.0.2.2", "192.0.2.1", 17, bytes(8)))
    )

    assert a.gained(before, expected := {"tx no_route": 1, "tx spoofed_address": 1}) == expected
    assert wire.strays() == []
