# SPDX-License-Identifier: Apache-2.0
"""DHCP of a sandbox: what is answered, every byte of it, and what is not."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP

from geneve_ebpf.dataplane.uplinks import write_mtu
from tests.packets import (
    ALICE,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    IP,
    REMOTE,
    UDP,
    Ether,
    Packet,
    damaged,
    faults,
    from_guest,
)
from tests.programs import REDIRECT, SHOT, Node, Run, assert_dropped

BROADCAST, BROADCAST_MAC = "255.255.255.255", "ff:ff:ff:ff:ff:ff"
NOBODY = "0.0.0.0"
XID = 0xC0FFEE01
HARDWARE = bytes.fromhex(GUEST_MAC.replace(":", ""))
ELSEWHERE = "10.9.8.7"  # an address leased by another server

Options = list[Any]


def request(
    kind: str | int,
    *options: Any,
    src: str = NOBODY,
    dst: str = BROADCAST,
    eth_dst: str = BROADCAST_MAC,
    ip: dict[str, Any] | None = None,
    udp: dict[str, Any] | None = None,
    padding: int = 0,
    **bootp: Any,
) -> Packet:
    """A client's message; `bootp` by scapy's names."""
    fields = {"op": 1, "xid": XID, "chaddr": HARDWARE, **bootp}
    frame = Ether(src=GUEST_MAC, dst=eth_dst) / IP(src=src, dst=dst, **(ip or {}))
    frame /= UDP(**{"sport": 68, "dport": 67, **(udp or {})})
    frame /= BOOTP(**fields) / DHCP(options=[("message-type", kind), *options, "end"])
    return frame / bytes(padding) if padding else frame


def renewal(*options: Any, **fields: Any) -> Packet:
    """A request as a socket sends it: from the lease, to the server."""
    known = {"src": GUEST, "dst": GATEWAY, "eth_dst": GATEWAY_MAC, "ciaddr": GUEST}
    return request("request", *options, **{**known, **fields})


def options_of(frame: bytes) -> dict[int, bytes]:
    """By code, in a walk of our own; the last is the end and nothing but pads is left over."""
    data, found, at = frame[14 + 20 + 8 + 236 :], {}, 4
    assert data[:4] == b"\x63\x82\x53\x63"
    while data[at] != 255:
        if data[at]:
            assert data[at] not in found
            found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
            assert len(found[data[at]]) == data[at + 1]
            at += 1 + data[at + 1]
        at += 1
    assert not any(data[at + 1 :])
    return found


def assert_answer(
    run: Run,
    kind: int,
    *,
    dst: str = GUEST,
    your: str = GUEST,
    client: str = NOBODY,
    flags: int = 0,
    identifier: bytes | None = None,
    mtu: int = 1450,
) -> dict[int, bytes]:
    """Headers to the byte, sums included; returns the options."""
    frame = run.frame
    assert run.verdict == REDIRECT
    assert run.counted == {"event dhcp_answered": 1}
    assert run.traffic == {}
    assert faults(frame) == []
    assert frame[40:42] != b"\0\0"  # some clients insist on a checksum
    mac = BROADCAST_MAC if dst == BROADCAST else GUEST_MAC
    expected = (
        Ether(src=GATEWAY_MAC, dst=mac)
        / IP(src=GATEWAY, dst=dst, flags="DF", ttl=64, id=0, len=len(frame) - 14)
        / UDP(sport=67, dport=68, len=len(frame) - 34, chksum=int.from_bytes(frame[40:42], "big"))
        / BOOTP(
            op=2, xid=XID, flags=flags, ciaddr=client, yiaddr=your, chaddr=HARDWARE, options=b""
        )
    )
    assert frame[: 34 + 8 + 236] == bytes(expected)
    assert len(frame) - 42 >= 300  # old clients drop less
    found = options_of(frame)
    assert found[53] == bytes([kind])
    assert found[54] == socket.inet_aton(GATEWAY)
    assert found.get(61) == identifier
    if kind == 6:
        assert set(found) <= {53, 54, 61}
        return found
    assert found[1] == socket.inet_aton("255.255.255.252")
    assert found[3] == socket.inet_aton(GATEWAY)
    assert int.from_bytes(found[26], "big") == mtu
    return found


LEASE = {51: 86400, 58: 43200, 59: 75600}


def lease_of(options: dict[int, bytes]) -> dict[int, int]:
    """The times in it."""
    return {code: int.from_bytes(options[code], "big") for code in LEASE if code in options}


# -- what is answered


@pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
def test_discover_is_offered_the_guest_address(node: Node, slot):
    """With prefix, router, MTU and a day's lease; attached or not."""
    run = node.sends(request("discover"), slot=slot)

    options = assert_answer(run, 2)
    assert lease_of(options) == LEASE
    assert 6 not in options


def test_offered_mtu_is_the_slots(node6: Node):
    """Of a node with an IPv6 underlay 20 bytes less; and it follows."""
    run = node6.sends(request("discover"))
    assert_answer(run, 2, mtu=1430)

    before = node6.plane.mtu
    write_mtu(node6.pins, 8900)
    try:
        run = node6.sends(request("discover"))
    finally:
        write_mtu(node6.pins, before)

    assert_answer(run, 2, mtu=8900)


@pytest.mark.parametrize("servers", [("9.9.9.9",), ("9.9.9.9", "149.112.112.112")], ids=len)
def test_offer_names_the_configured_dns_servers(node: Node, servers):
    """One or two, and the length says so."""
    with node.configured(dns=servers):
        run = node.sends(request("discover"))

    assert assert_answer(run, 2)[6] == b"".join(map(socket.inet_aton, servers))


ACKNOWLEDGED = {
    "selecting": (request("request", ("server_id", GATEWAY), ("requested_addr", GUEST)), NOBODY),
    "after-a-reboot": (request("request", ("requested_addr", GUEST)), NOBODY),
    "renewing": (renewal(), GUEST),
    "renewing-without-a-checksum": (renewal(udp={"chksum": 0}), GUEST),
    "rebinding": (renewal(dst=BROADCAST, eth_dst=BROADCAST_MAC), GUEST),
    "renewing-with-the-broadcast-flag": (renewal(flags=0x8000), GUEST),
}


@pytest.mark.parametrize(("frame", "client"), ACKNOWLEDGED.values(), ids=ACKNOWLEDGED.keys())
@pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
def test_request_for_the_guest_address_is_acknowledged(node: Node, slot, frame, client):
    """In each of a client's states, unicast to the lease."""
    run = node.sends(frame, slot=slot)

    options = assert_answer(run, 5, client=client, flags=frame[BOOTP].flags.value)
    assert lease_of(options) == LEASE


@pytest.mark.parametrize("kind", ["discover", "request"])
def test_client_that_hears_only_broadcasts_is_answered_so(node: Node, kind):
    """It asks for it by a flag."""
    frame = request(kind, ("requested_addr", GUEST), flags=0x8000)

    run = node.sends(frame)

    assert_answer(run, {"discover": 2, "request": 5}[kind], dst=BROADCAST, flags=0x8000)


NOT_ACKNOWLEDGED = {
    "selecting": request("request", ("server_id", GATEWAY), ("requested_addr", ELSEWHERE)),
    "after-a-reboot": request("request", ("requested_addr", ELSEWHERE)),
    "renewing": renewal(src=ELSEWHERE, ciaddr=ELSEWHERE),
    "rebinding": renewal(src=ELSEWHERE, ciaddr=ELSEWHERE, dst=BROADCAST, eth_dst=BROADCAST_MAC),
    "its-address-in-the-vpc": request("request", ("requested_addr", ALICE)),
}


@pytest.mark.parametrize("frame", NOT_ACKNOWLEDGED.values(), ids=NOT_ACKNOWLEDGED.keys())
def test_request_for_another_address_is_refused_aloud(node: Node, frame):
    """A restored snapshot asks for what it had: it must start anew, at once."""
    run = node.sends(frame)

    options = assert_answer(run, 6, dst=BROADCAST, your=NOBODY)
    assert set(options) == {53, 54}


def test_inform_is_answered_without_an_address(node: Node):
    """It has one, and no lease of ours."""
    run = node.sends(renewal(("server_id", GATEWAY)))
    run = node.sends(request("inform", src=GUEST, ciaddr=GUEST))

    options = assert_answer(run, 5, your=NOBODY, client=GUEST)
    assert lease_of(options) == {}


@pytest.mark.parametrize("length", [1, 7, 19, 63, 64])
@pytest.mark.parametrize("address", [GUEST, ELSEWHERE])
def test_identifier_is_repeated(node: Node, length, address):
    """RFC 6842: unaltered, in a refusal as well."""
    identifier = bytes(range(1, length + 1))

    run = node.sends(request("request", ("client_id", identifier), ("requested_addr", address)))

    if address == GUEST:
        assert_answer(run, 5, identifier=identifier)
    else:
        assert_answer(run, 6, identifier=identifier, dst=BROADCAST, your=NOBODY)


@pytest.mark.parametrize("length", [65, 128, 255])
def test_identifier_beyond_64_bytes_is_left_out(node: Node, length):
    """No client makes one, and there is no room."""
    run = node.sends(request("discover", ("client_id", bytes(length))))

    assert_answer(run, 2)


UNUSUAL = {
    "1536-bytes": request("discover", padding=1536 - len(bytes(request("discover"))) + 34),
    "pads-between-options": request("discover", "pad", "pad", ("hostname", "guest"), "pad"),
    "thirty-options": request("discover", *[("hostname", "h")] * 30),
    "overloaded-file-and-name": request("discover", ("dhcp-option-overload", 3), file=b"\x35\1\3"),
    "padded": request("discover", padding=300),
    "a-thousand-bytes": request("discover", ("client_FQDN", bytes(250)), padding=450),
    "wishes": request("discover", ("param_req_list", [1, 3, 6, 15, 26, 121])),
    "wrong-hardware-type-of-the-identifier": request("discover", ("vendor_class_id", b"udhcp")),
    "from-another-port": request("discover", udp={"sport": 12345}),
    "seconds-and-hops": request("discover", secs=77, hops=3),
    "offered-before": request("discover", ("requested_addr", ELSEWHERE)),
}


@pytest.mark.parametrize("frame", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_message_is_answered_as_any(node: Node, frame):
    """What we have no use for is not looked at; the answer has its one length."""
    assert_answer(node.sends(frame), 2)


def test_message_without_an_end_is_answered(node: Node):
    """The datagram's end will do."""
    frame = bytes(request("discover"))
    cut = Ether(frame)[BOOTP].copy()
    whole = bytes(cut)[:-1]

    run = node.sends(
        Ether(src=GUEST_MAC, dst=BROADCAST_MAC)
        / IP(src=NOBODY, dst=BROADCAST)
        / UDP(sport=68, dport=67)
        / whole
    )

    assert_answer(run, 2)


def test_unfinished_checksum_is_answered_with_one(node: Node):
    """The device would finish the one and does the other: the field holds the pseudo-header's."""
    frame = bytearray(bytes(renewal()))
    length = len(frame) - 34
    pseudo = socket.inet_aton(GUEST) + socket.inet_aton(GATEWAY)
    frame[40:42] = folded(pseudo + bytes([0, 17]) + length.to_bytes(2, "big"))

    run = node.sends(bytes(frame))

    assert run.counted == {"event dhcp_answered": 1}
    length = len(run.frame) - 34
    pseudo = socket.inet_aton(GATEWAY) + socket.inet_aton(GUEST)
    assert run.frame[40:42] == folded(pseudo + bytes([0, 17]) + length.to_bytes(2, "big"))


def folded(data: bytes) -> bytes:
    """The one's complement sum."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total.to_bytes(2, "big")


# -- what is not


def changed(frame: Packet, at: int, value: bytes) -> bytes:
    """The frame with other bytes at an offset, and no UDP checksum to tell."""
    data = bytearray(bytes(frame))
    data[40:42] = b"\0\0"
    data[at : at + len(value)] = value
    return bytes(data)


DISCOVER = request("discover")
LENGTH = len(bytes(DISCOVER)) - 34
REFUSED = {
    "decline": request("decline", ("server_id", GATEWAY), ("requested_addr", GUEST)),
    "release": request("release", ("server_id", GATEWAY), src=GUEST, dst=GATEWAY, ciaddr=GUEST),
    "offer": request("offer"),
    "acknowledgement": request("ack"),
    "of-a-type-nobody-knows": request(99),
    "of-no-type": changed(DISCOVER, 42 + 240, b"\x0c"),
    "bootp-without-options": changed(DISCOVER, 42 + 236, bytes(4)),
    "to-another-server": request("request", ("server_id", REMOTE), ("requested_addr", GUEST)),
    "request-for-nothing": request("request"),
    "inform-of-another-address": request("inform", src=ELSEWHERE, ciaddr=ELSEWHERE),
    "inform-of-no-address": request("inform", src=GUEST),
    "answer-of-a-server": request("discover", op=2),
    "another-hardware": request("discover", htype=6),
    "another-hardware-length": request("discover", hlen=16),
    "another-mac": request("discover", chaddr=bytes.fromhex("024756000003")),
    "through-a-relay": request("discover", giaddr=GATEWAY),
    "option-beyond-the-end": changed(DISCOVER, len(bytes(DISCOVER)) - 2, b"\x01\x09"),
    "option-without-a-length": changed(DISCOVER, len(bytes(DISCOVER)) - 1, b"\x01"),
    "more-than-1536-bytes": request("discover", padding=1536 - LENGTH + 1),
    "forty-options": request("discover", *[("hostname", "h")] * 40),
    "wrong-sum": request("discover", udp={"chksum": 0x1234}),
    "wrong-ip-sum": request("discover", ip={"chksum": 0x1234}),
    "first-fragment": request("discover", ip={"flags": "MF"}),
    "ip-options": request("discover", ip={"options": b"\x94\x04\x00\x00"}),
    "udp-shorter-than-bootp": request("discover", udp={"len": 200, "chksum": 0}),
    "udp-longer-than-the-packet": request("discover", udp={"len": LENGTH + 1, "chksum": 0}),
}


@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
def test_other_dhcp_is_refused(node: Node, slot, frame):
    """No answer, and nothing of it reaches the VPC."""
    assert_dropped(node.sends(frame, slot=slot), "tx dhcp_refused", frame)


def test_message_from_an_address_that_nobody_leased(node: Node):
    """Neither the guest's nor the one that the message itself is about."""
    frame = request("discover", src=ALICE)

    assert_dropped(node.sends(frame), "tx spoofed_address", frame)


def test_message_that_ends_before_its_options(node: Node):
    """Not even a cookie."""
    frame = (
        Ether(src=GUEST_MAC, dst=BROADCAST_MAC)
        / IP(src=NOBODY, dst=BROADCAST)
        / UDP(sport=68, dport=67)
        / bytes(BOOTP(chaddr=HARDWARE, options=b""))
    )

    assert_dropped(node.sends(frame), "tx short_frame", frame)


def test_dhcp_server_in_the_vpc_can_be_asked(node: Node):
    """Port 67 of another address is like any other port."""
    frame = from_guest(UDP(sport=68, dport=67) / bytes(DISCOVER[BOOTP]))

    run = node.sends(frame)

    assert run.verdict == REDIRECT
    assert run.counted == {}
    assert list(run.traffic) == ["slot-0 tx_remote"]


def test_other_broadcast_is_no_dhcp(node: Node):
    """Counted as what it is."""
    frame = request("discover", udp={"dport": 69})

    assert_dropped(node.sends(frame), "tx spoofed_address", frame)


@pytest.mark.parametrize("seed", range(6))
def test_damaged_messages_are_answered_or_counted_once(node: Node, seed):
    """Never both, and an answer is a right one."""
    frames = [DISCOVER, renewal(), request("request", ("requested_addr", GUEST))]
    frames += [request("discover", ("client_id", bytes(range(30))), udp={"chksum": 0})]

    for frame in damaged(frames, seed):
        run = node.sends(frame)

        if run.counted == {"event dhcp_answered": 1}:
            assert run.verdict == REDIRECT, frame.hex()
            assert faults(run.frame) == [], frame.hex()
            options_of(run.frame)
        elif not run.traffic:
            assert run.verdict == SHOT, frame.hex()
            assert sum(run.counted.values()) == 1, frame.hex()
