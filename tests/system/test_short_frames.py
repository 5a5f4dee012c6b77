# SPDX-License-Identifier: Apache-2.0
"""Frames that BPF_PROG_TEST_RUN refuses or cannot make, sent through real interfaces.

IPv4 shorter than its header (EINVAL there), and VLAN tags, which the kernel
keeps beside the packet.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.model import RouteKind
from tests import packets, programs
from tests.packets import BLUE, UDP, Ether, Raw, from_guest, in_vpc, on_wire
from tests.patience import PATIENCE

SECONDS = 5 * PATIENCE  # for a frame to be counted; it takes microseconds


@pytest.fixture(scope="module")
def node() -> Iterator[programs.Node]:
    if os.geteuid() != 0:
        pytest.skip("a node needs root")
    with programs.loaded(slot_count=1) as node:
        node.attach(0, "alice", BLUE, packets.ALICE)
        node.vtep(packets.PEER)
        node.route(BLUE, "10.0.2.0/24", RouteKind.REMOTE, packets.PEER)
        yield node


def raw_socket(netns: Path, interface: str) -> socket.socket:
    """A packet socket on an interface of another namespace, blocking for at most SECONDS."""
    with namespaces.entering(netns):
        door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        door.bind((interface, 0))
    door.settimeout(SECONDS)
    return door


def counted_while(node: programs.Node, act: Callable[[], object]) -> dict[str, int]:
    """Rows that grow, waiting until one does."""
    before, end = node.counted(), time.monotonic() + SECONDS
    act()
    while time.monotonic() < end:
        after = node.counted()
        if after != before:
            return {
                row: after[row][0] - before[row][0] for row in after if after[row] != before[row]
            }
        time.sleep(0.002)
    return {}


@pytest.fixture
def guest(node: programs.Node) -> Iterator[socket.socket]:
    """eth0 of the sandbox."""
    with raw_socket(node.slot_netns(0), "eth0") as door:
        yield door


@pytest.fixture
def wire(node: programs.Node) -> Iterator[socket.socket]:
    """The far end of the uplink."""
    with raw_socket(node.settings.netns, programs.WIRE_END) as door:
        yield door


@pytest.mark.kernel
@pytest.mark.parametrize("length", [15, 20, 33])
def test_ipv4_shorter_than_its_header_is_dropped(node, guest, length):
    """From one byte behind Ethernet to one less than the header."""
    frame = bytes(from_guest(UDP()))[:length]

    counted = counted_while(node, lambda: guest.send(frame))

    assert counted == {"tx short_frame": 1}


@pytest.mark.kernel
def test_short_ipv4_on_the_uplink_is_left_to_the_host(node, wire):
    """It cannot be Geneve for us: nothing is counted, and the next whole frame is looked at."""
    whole = on_wire(in_vpc(UDP(), packets.REMOTE, "10.0.1.200"), src=packets.PEER, dst=packets.NODE)
    whole.dst = node.uplink_mac

    def act() -> None:
        for length in (15, 20, 33):
            wire.send(bytes(whole)[:length])
        wire.send(bytes(whole))

    assert counted_while(node, act) == {"rx no_endpoint": 1}


def tagged(frame: bytes, ethertype: int) -> bytes:
    """The same with the tag of VLAN 100."""
    return frame[:12] + ethertype.to_bytes(2, "big") + b"\0\x64" + frame[12:]


@pytest.mark.kernel
@pytest.mark.parametrize("ethertype", [0x8100, 0x88A8], ids=["802.1Q", "802.1ad"])
@pytest.mark.parametrize(
    "frame",
    [
        from_guest(UDP(sport=1, dport=2) / b"data"),
        packets.arp_question(),
        Ether(src=packets.GUEST_MAC, dst=packets.GATEWAY_MAC, type=0x86DD) / Raw(bytes(60)),
    ],
    ids=["ipv4", "arp", "ipv6"],
)
def test_vlan_tag_of_a_sandbox_is_refused(node, guest, frame, ethertype):
    """Or a tenant would choose the underlay's VLAN: the tag would ride on the outer frame."""
    counted = counted_while(node, lambda: guest.send(tagged(bytes(frame), ethertype)))

    assert counted == {"tx vlan_tagged": 1}


@pytest.mark.kernel
def test_vlan_tag_on_the_uplink_is_somebody_elses(node, wire):
    """Geneve for us in a VLAN belongs to a VLAN interface; only the untagged one is ours."""
    frame = on_wire(in_vpc(UDP(), packets.REMOTE, "10.0.1.200"), src=packets.PEER, dst=packets.NODE)
    frame.dst = node.uplink_mac

    def act() -> None:
        wire.send(tagged(bytes(frame), 0x8100))
        wire.send(bytes(frame))

    assert counted_while(node, act) == {"rx no_endpoint": 1}
