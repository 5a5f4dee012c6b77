# SPDX-License-Identifier: Apache-2.0
"""A guest that has its VPC addresses itself: nothing is translated, and DHCP gives it its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.dhcp import BOOTP, DHCP

from geneve_ebpf.model import AddressMode
from tests.packets import (
    ARP,
    BLUE,
    BOB,
    GATEWAY,
    GATEWAY_MAC,
    GENEVE,
    GUEST,
    GUEST6,
    GUEST_MAC,
    IP,
    REMOTE,
    UDP,
    Ether,
    IPv6,
    Packet,
    Raw,
    faults,
    six,
)
from tests.programs import REDIRECT, Node, assert_dropped

SLOT, OWN = 3, "10.0.1.9"
OWN6, REMOTE6 = six(OWN), six(REMOTE)
PAYLOAD = UDP(sport=1, dport=2) / Raw(b"as it is")


@pytest.fixture
def native(node: Node) -> Iterator[Node]:
    """Somebody native in a slot that is unbound otherwise."""
    before = node.plane.slots()
    assert next(slot for slot in before if slot.index == SLOT)
    node.attach(SLOT, "nadia", BLUE, OWN, OWN6, mode=AddressMode.NATIVE)
    yield node
    node.plane.detach(SLOT)
    node.plane.add_slot(SLOT, node.slots[SLOT])  # unbound and ready again


def to_gateway(packet: Packet) -> Packet:
    return Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet


def to_geneve(packet: Packet) -> bytes:
    """The inner packet as it is on the wire."""
    return bytes(Ether(packet)[GENEVE].payload.payload)


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
def test_packets_leave_and_enter_as_they_are(native: Node, version: int) -> None:
    """Byte for byte but for the Ethernet header."""
    ip, own, remote = (IP, OWN, REMOTE) if version == 4 else (IPv6, OWN6, REMOTE6)
    out = ip(src=own, dst=remote) / PAYLOAD
    back = ip(src=remote, dst=own) / PAYLOAD

    sent = native.sends(to_gateway(out), slot=SLOT)
    got = native.receives(native.arriving(Ether(dst=GATEWAY_MAC) / back))

    assert sent.verdict == got.verdict == REDIRECT
    assert to_geneve(sent.frame) == bytes(out)
    assert got.frame == bytes(Ether(src=GATEWAY_MAC, dst=GUEST_MAC) / back)
    assert faults(got.frame) == []


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
def test_the_clones_address_is_anothers(native: Node, version: int) -> None:
    """Only its own address may be its source."""
    packet = IP(src=GUEST, dst=REMOTE) if version == 4 else IPv6(src=GUEST6, dst=REMOTE6)
    frame = to_gateway(packet / PAYLOAD)

    assert_dropped(native.sends(frame, slot=SLOT), "tx spoofed_address", frame)


def test_a_clone_beside_it_is_reached(native: Node) -> None:
    """What is translated on one side is not on the other."""
    run = native.sends(to_gateway(IP(src=OWN, dst=BOB) / PAYLOAD), slot=SLOT)

    assert run.verdict == REDIRECT
    assert (Ether(run.frame)[IP].src, Ether(run.frame)[IP].dst) == (OWN, GUEST)
    assert faults(run.frame) == []


def test_arp_is_answered_for_the_vpc_address(native: Node) -> None:
    """The gateway's MAC, for whoever asks as itself; not for whoever asks as a clone."""
    asked = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff")
    as_itself = asked / ARP(op=1, hwsrc=GUEST_MAC, psrc=OWN, pdst=GATEWAY)
    as_clone = asked / ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)

    run = native.sends(as_itself, slot=SLOT)

    assert run.verdict == REDIRECT
    assert (Ether(run.frame)[ARP].hwsrc, Ether(run.frame)[ARP].pdst) == (GATEWAY_MAC, OWN)
    assert_dropped(native.sends(as_clone, slot=SLOT), "tx spoofed_address", as_clone)


@pytest.mark.parametrize(
    ("kind", "wanted", "answer"),
    [
        ("discover", None, 2),
        ("request", OWN, 5),
        ("request", GUEST, 6),  # what it had before it was attached
    ],
    ids=["discover", "own", "the-clones"],
)
def test_dhcp_gives_the_vpc_address(
    native: Node, kind: str, wanted: str | None, answer: int
) -> None:
    """Alone (/32), with the gateway as router; another address is refused."""
    options = [("message-type", kind), *([("requested_addr", wanted)] if wanted else []), "end"]
    frame = (
        Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff")
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(op=1, xid=7, chaddr=bytes.fromhex(GUEST_MAC.replace(":", "")))
        / DHCP(options=options)
    )

    run = native.sends(frame, slot=SLOT)

    assert run.verdict == REDIRECT
    assert faults(run.frame) == []
    got = Ether(run.frame)
    said = dict(one[:2] for one in got[DHCP].options if isinstance(one, tuple))
    assert said["message-type"] == answer
    assert got[BOOTP].yiaddr == ("0.0.0.0" if answer == 6 else OWN)
    if answer != 6:
        assert (said["subnet_mask"], said["router"]) == ("255.255.255.255", GATEWAY)
