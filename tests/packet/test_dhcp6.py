# SPDX-License-Identifier: Apache-2.0
"""DHCPv6 of a sandbox: what is answered, every byte of it, and what is not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest
from scapy.layers.inet6 import ICMPv6ND_RS

from geneve_ebpf.model import AddressMode
from tests.packets import (
    BLUE,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST6,
    GUEST_MAC,
    REMOTE,
    UDP,
    Ether,
    IPv6,
    IPv6ExtHdrDestOpt,
    Packet,
    Raw,
    damaged,
    faults,
    from_guest,
    six,
)
from tests.programs import REDIRECT, SHOT, Node, Run, assert_dropped

SERVERS, SERVERS_MAC = "ff02::1:2", "33:33:00:01:00:02"
LINK_LOCAL = "fe80::47:56ff:fe00:2"
ELSEWHERE = "fd99::7"  # an address leased by another server
OWN, OWN6 = "10.0.1.9", six("10.0.1.9")  # of somebody native
NATIVE = 3  # his slot
XID = b"\xc0\xff\xee"
SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE = range(1, 10)
INFORMATION = 11
NOT_ON_LINK = b"\0\4"
DAY, HALF, SEVEN_EIGHTHS = 86400, 43200, 75600
DUID = b"\0\3\0\1" + bytes.fromhex(GUEST_MAC.replace(":", ""))
IAID = b"\7\7\7\7"


def option(code: int, value: bytes = b"") -> bytes:
    return struct.pack("!HH", code, len(value)) + value


def held(address: str, preferred: int = 0, valid: int = 0, more: bytes = b"") -> bytes:
    """An IA address option."""
    return option(5, IPv6Address(address).packed + struct.pack("!II", preferred, valid) + more)


def association(*inner: bytes, renew: int = 0, rebind: int = 0) -> bytes:
    return option(3, IAID + struct.pack("!II", renew, rebind) + b"".join(inner))


CLIENT, RAPID, EMPTY = option(1, DUID), option(14), association()
SERVER = option(2, bytes.fromhex("000474c36e2944c24e8ba41d64da842c435b"))
OTHER_SERVER = option(2, b"\0\3\0\1\2\0\0\0\0\1")
GIVEN = association(held(GUEST6, DAY, DAY), renew=HALF, rebind=SEVEN_EIGHTHS)


def message(
    kind: int,
    *options: bytes,
    src: str = LINK_LOCAL,
    dst: str = SERVERS,
    extension: bool = False,
    **udp: int,
) -> Packet:
    """A client's message; `udp` by scapy's names."""
    body = bytes([kind]) + XID + b"".join(options)
    datagram = UDP(**{"sport": 546, "dport": 547, **udp}) / Raw(body)
    ip = IPv6(src=src, dst=dst, hlim=1)
    if extension:
        ip /= IPv6ExtHdrDestOpt()
    return Ether(src=GUEST_MAC, dst=SERVERS_MAC) / ip / datagram


def assert_answer(run: Run, kind: int, *options: bytes, dst: str = LINK_LOCAL) -> None:
    """Every byte of it; our name comes first."""
    body = bytes([kind]) + XID + SERVER + b"".join(options)
    assert run.verdict == REDIRECT
    assert run.counted == {"event dhcp6_answered": 1}
    assert run.traffic == {}
    assert faults(run.frame) == []
    assert run.frame == bytes(
        Ether(src=GATEWAY_MAC, dst=GUEST_MAC)
        / IPv6(src=GATEWAY6, dst=dst, hlim=64)
        / UDP(sport=547, dport=546)
        / Raw(body)
    )


@pytest.fixture
def native(node: Node) -> Iterator[Node]:
    """Somebody native in a slot that is unbound otherwise."""
    node.attach(NATIVE, "nadia", BLUE, OWN, OWN6, mode=AddressMode.NATIVE)
    yield node
    node.plane.detach(NATIVE)
    node.plane.add_slot(NATIVE, node.slots[NATIVE])


@pytest.fixture
def native4(node: Node) -> Iterator[Node]:
    """The same without an IPv6 address."""
    node.attach(NATIVE, "nadia", BLUE, OWN, mode=AddressMode.NATIVE)
    yield node
    node.plane.detach(NATIVE)
    node.plane.add_slot(NATIVE, node.slots[NATIVE])


# -- what is answered

bound_or_not = pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
PREFERENCE = option(7, b"\xff")


@bound_or_not
def test_solicitation_is_answered_with_the_guest_address(node: Node, slot: int) -> None:
    """For a day, with the word that there is no other server to wait for; attached or not."""
    run = node.sends(message(SOLICIT, CLIENT, EMPTY), slot=slot)

    assert_answer(run, ADVERTISE, GIVEN, PREFERENCE, CLIENT)


def test_rapid_commit_gives_the_address_at_once(node: Node) -> None:
    """Two messages in place of four."""
    assert_answer(node.sends(message(SOLICIT, CLIENT, RAPID, EMPTY)), REPLY, GIVEN, RAPID, CLIENT)


def test_address_that_a_solicitation_wishes_for_is_not_heeded(node: Node) -> None:
    """There is one to give."""
    wish = association(held(ELSEWHERE))

    assert_answer(node.sends(message(SOLICIT, CLIENT, wish)), ADVERTISE, GIVEN, PREFERENCE, CLIENT)


@bound_or_not
@pytest.mark.parametrize("wish", [EMPTY, association(held(GUEST6))], ids=["any", "the-guests"])
@pytest.mark.parametrize("kind", [REQUEST, RENEW, REBIND])
def test_address_is_given_and_prolonged(node: Node, slot: int, kind: int, wish: bytes) -> None:
    """By name, or by whoever hears it."""
    named = [] if kind == REBIND else [SERVER]

    run = node.sends(message(kind, CLIENT, *named, wish), slot=slot)

    assert_answer(run, REPLY, GIVEN, CLIENT)


def test_request_for_another_address_is_told_so(node: Node) -> None:
    """Section 18.3.2: the client solicits anew."""
    run = node.sends(message(REQUEST, CLIENT, SERVER, association(held(ELSEWHERE))))

    assert_answer(run, REPLY, association(option(13, NOT_ON_LINK)), CLIENT)


@pytest.mark.parametrize("kind", [RENEW, REBIND])
def test_another_address_is_exchanged(node: Node, kind: int) -> None:
    """Section 18.3.4: the guest's in its place, and no more seconds for the one it had."""
    named = [] if kind == REBIND else [SERVER]

    run = node.sends(message(kind, CLIENT, *named, association(held(ELSEWHERE, 5, 9))))

    given = association(
        held(GUEST6, DAY, DAY), held(ELSEWHERE), renew=HALF, rebind=SEVEN_EIGHTHS
    )
    assert_answer(run, REPLY, given, CLIENT)


@pytest.mark.parametrize(("address", "status"), [(GUEST6, b"\0\0"), (ELSEWHERE, NOT_ON_LINK)])
def test_confirmation_says_whether_the_address_is_right(
    node: Node, address: str, status: bytes
) -> None:
    """After a change of links, as a restore is."""
    run = node.sends(message(CONFIRM, CLIENT, association(held(address))))

    assert_answer(run, REPLY, option(13, status), CLIENT)


def test_release_is_acknowledged(node: Node) -> None:
    """There is nothing to forget, but the client would ask again."""
    run = node.sends(message(RELEASE, CLIENT, SERVER, association(held(GUEST6))))

    assert_answer(run, REPLY, option(13, b"\0\0"), CLIENT)


@pytest.mark.parametrize("named", [b"", SERVER], ids=["anybody", "us"])
@pytest.mark.parametrize("client", [b"", CLIENT], ids=["nameless", "named"])
def test_information_has_no_address(node: Node, client: bytes, named: bytes) -> None:
    """For who has one already."""
    assert_answer(node.sends(message(INFORMATION, client, named)), REPLY, client)


@pytest.mark.parametrize("servers", [("2620:fe::fe",), ("2620:fe::fe", "2620:fe::9")], ids=len)
@pytest.mark.parametrize(
    ("asked", "kind", "before"),
    [
        (message(SOLICIT, CLIENT, EMPTY), ADVERTISE, GIVEN + PREFERENCE),
        (message(SOLICIT, CLIENT, EMPTY, RAPID), REPLY, GIVEN + RAPID),
        (message(REQUEST, CLIENT, SERVER, EMPTY), REPLY, GIVEN),
        (message(INFORMATION, CLIENT), REPLY, b""),
    ],
    ids=["solicit", "rapid", "request", "information"],
)
def test_answer_names_the_configured_dns_servers(
    node: Node, servers: tuple[str, ...], asked: Packet, kind: int, before: bytes
) -> None:
    """One or two of IPv6; those of IPv4 are DHCP's for IPv4."""
    with node.configured(dns=("9.9.9.9", *servers)):
        run = node.sends(asked)

    dns = option(23, b"".join(IPv6Address(one).packed for one in servers))
    assert_answer(run, kind, before, dns, CLIENT)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 63, 64, 129, 130])
def test_identifier_is_repeated(node: Node, length: int) -> None:
    """Unaltered, as long as it may be."""
    client = option(1, bytes(range(1, length + 1)))

    run = node.sends(message(SOLICIT, EMPTY, client))

    assert_answer(run, ADVERTISE, GIVEN, PREFERENCE, client)


UNUSUAL = {
    "1536-bytes": message(SOLICIT, CLIENT, EMPTY, option(99, bytes(1536 - 8 - 4 - 14 - 16 - 4))),
    "thirty-two-options": message(SOLICIT, CLIENT, *[option(99, b"x")] * 30, EMPTY),
    "wishes": message(SOLICIT, CLIENT, option(6, b"\0\x17"), option(8, b"\0\0"), EMPTY),
    "the-last-of-two-associations": message(SOLICIT, CLIENT, option(3, bytes(12)), EMPTY),
    "a-prefix-too": message(SOLICIT, CLIENT, EMPTY, option(25, bytes(12))),
    "padded": bytes(message(SOLICIT, CLIENT, EMPTY)) + bytes(30),
    "from-another-port": message(SOLICIT, CLIENT, EMPTY, sport=12345),
    "an-association-with-statuses": message(
        SOLICIT,
        CLIENT,
        association(option(13, NOT_ON_LINK), held(GUEST6, more=option(13, b"\0\0"))),
    ),
}


@pytest.mark.parametrize("frame", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_message_is_answered_as_any(node: Node, frame: Packet | bytes) -> None:
    """What we have no use for is not looked at."""
    assert_answer(node.sends(frame), ADVERTISE, GIVEN, PREFERENCE, CLIENT)


def test_message_from_the_guest_address_is_answered_there(node: Node) -> None:
    """Link-local it should be, and need not."""
    run = node.sends(message(SOLICIT, CLIENT, EMPTY, src=GUEST6))

    assert_answer(run, ADVERTISE, GIVEN, PREFERENCE, CLIENT, dst=GUEST6)


def test_unfinished_checksum_is_answered_with_one(node: Node) -> None:
    """The device would finish the one and does the other: the field holds the pseudo-header's."""
    frame = bytearray(bytes(message(SOLICIT, CLIENT, EMPTY)))
    frame[60:62] = pseudo_sum(frame)

    run = node.sends(bytes(frame))

    assert run.counted == {"event dhcp6_answered": 1}
    assert run.frame[60:62] == pseudo_sum(run.frame)


def pseudo_sum(frame: bytes) -> bytes:
    """The one's complement sum of a frame's pseudo-header."""
    data = bytes(frame[22:54]) + bytes(frame[18:20]) + b"\0\x11"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total.to_bytes(2, "big")


# -- native guests


@pytest.mark.parametrize("kind", [SOLICIT, REBIND])
def test_native_guest_gets_its_own_address(native: Node, kind: int) -> None:
    """That in its VPC."""
    run = native.sends(message(kind, CLIENT, EMPTY), slot=NATIVE)

    given = association(held(OWN6, DAY, DAY), renew=HALF, rebind=SEVEN_EIGHTHS)
    preference = [PREFERENCE] if kind == SOLICIT else []
    assert_answer(run, ADVERTISE if kind == SOLICIT else REPLY, given, *preference, CLIENT)


def test_guest_that_has_become_native_renews_into_its_own_address(native: Node) -> None:
    """What it had before it was attached has no more time."""
    frame = message(RENEW, CLIENT, SERVER, association(held(GUEST6, DAY, DAY)))

    run = native.sends(frame, slot=NATIVE)

    given = association(held(OWN6, DAY, DAY), held(GUEST6), renew=HALF, rebind=SEVEN_EIGHTHS)
    assert_answer(run, REPLY, given, CLIENT)


def test_native_guest_without_an_address_has_none_to_get(native4: Node) -> None:
    """But what else there is to know, and no word that an address of another is right."""
    for frame in (
        message(SOLICIT, CLIENT, EMPTY),
        message(RENEW, CLIENT, SERVER, association(held(GUEST6))),
        message(REBIND, CLIENT, association(held("::"))),
    ):
        assert_dropped(native4.sends(frame, slot=NATIVE), "tx dhcp6_refused", frame)
    confirm = message(CONFIRM, CLIENT, association(held("::")))
    assert_answer(
        native4.sends(confirm, slot=NATIVE), REPLY, option(13, NOT_ON_LINK), CLIENT
    )
    assert_answer(native4.sends(message(INFORMATION, CLIENT), slot=NATIVE), REPLY, CLIENT)


def router_flags(run: Run) -> int:
    """Of an advertisement."""
    assert run.counted == {"event router_answered": 1}
    return run.frame[14 + 40 + 5]


def test_router_says_whether_there_is_an_address_to_ask_for(native: Node) -> None:
    """By the flag M, as to every guest that has one."""
    frame = from_guest(ICMPv6ND_RS(), "ff02::2", src=LINK_LOCAL, hlim=255)

    assert [router_flags(native.sends(frame, slot=slot)) for slot in (0, NATIVE)] == [0x80, 0x80]


def test_router_says_that_there_is_no_address_to_ask_for(native4: Node) -> None:
    """By the flag O in its place: there is more to ask for."""
    frame = from_guest(ICMPv6ND_RS(), "ff02::2", src=LINK_LOCAL, hlim=255)

    assert router_flags(native4.sends(frame, slot=NATIVE)) == 0x40


# -- what is not


ASKED = message(SOLICIT, CLIENT, EMPTY)
LENGTH = len(bytes(ASKED)) - 54
REFUSED = {
    "decline": message(DECLINE, CLIENT, SERVER, association(held(GUEST6))),
    "advertisement": message(ADVERTISE, CLIENT, SERVER, GIVEN),
    "reply": message(REPLY, CLIENT, SERVER, GIVEN),
    "reconfiguration": message(10, CLIENT, SERVER),
    "of-a-relay": message(12, CLIENT, EMPTY),
    "of-a-type-nobody-knows": message(200, CLIENT, EMPTY),
    "solicitation-of-nobody": message(SOLICIT, EMPTY),
    "solicitation-of-a-server": message(SOLICIT, CLIENT, SERVER, EMPTY),
    "solicitation-of-nothing": message(SOLICIT, CLIENT),
    "solicitation-of-a-prefix": message(SOLICIT, CLIENT, option(25, bytes(12))),
    "solicitation-of-a-short-name": message(SOLICIT, option(1), EMPTY),
    "solicitation-of-a-long-name": message(SOLICIT, option(1, bytes(131)), EMPTY),
    "request-to-nobody": message(REQUEST, CLIENT, EMPTY),
    "request-to-another": message(REQUEST, CLIENT, OTHER_SERVER, EMPTY),
    "request-to-a-longer-name": message(REQUEST, CLIENT, EMPTY, option(2, SERVER[4:] + b"\0")),
    "request-to-a-name-cut-off": message(REQUEST, CLIENT, EMPTY, option(2, SERVER[4:-1])),
    "renewal-by-another": message(RENEW, CLIENT, OTHER_SERVER, EMPTY),
    "rebinding-by-us": message(REBIND, CLIENT, SERVER, EMPTY),
    "release-by-nobody": message(RELEASE, CLIENT, association(held(GUEST6))),
    "confirmation-of-nothing": message(CONFIRM, CLIENT, EMPTY),
    "confirmation-by-us": message(CONFIRM, CLIENT, SERVER, association(held(GUEST6))),
    "confirmation-outside-an-association": message(CONFIRM, CLIENT, EMPTY, held(GUEST6)),
    "information-of-another": message(INFORMATION, CLIENT, OTHER_SERVER),
    "information-and-an-address": message(INFORMATION, CLIENT, EMPTY),
    "short-association": message(SOLICIT, CLIENT, option(3, bytes(11))),
    "option-beyond-the-end": message(SOLICIT, CLIENT, EMPTY, b"\0\x63\0\1"),
    "half-an-option": message(SOLICIT, CLIENT, EMPTY, b"\0\x63\0"),
    "option-beyond-its-association": message(
        SOLICIT, CLIENT, association(b"\0\x63\0\4"), option(99)
    ),
    "thirty-three-options": message(SOLICIT, CLIENT, *[option(99, b"x")] * 31, EMPTY),
    "more-than-1536-bytes": message(SOLICIT, CLIENT, EMPTY, option(99, bytes(1491))),
    "wrong-sum": message(SOLICIT, CLIENT, EMPTY, chksum=0x1234),
    "no-sum": message(SOLICIT, CLIENT, EMPTY, chksum=0),
    "udp-shorter-than-a-message": message(SOLICIT, CLIENT, EMPTY, len=11, chksum=0x1234),
    "udp-longer-than-the-packet": message(SOLICIT, CLIENT, EMPTY, len=LENGTH + 1, chksum=0x1234),
    "behind-an-extension-header": message(SOLICIT, CLIENT, EMPTY, extension=True),
}


@bound_or_not
@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED.keys())
def test_other_dhcp6_is_refused(node: Node, slot: int, frame: Packet) -> None:
    """No answer, and nothing of it reaches the VPC."""
    assert_dropped(node.sends(frame, slot=slot), "tx dhcp6_refused", frame)


@pytest.mark.parametrize("source", ["::", ELSEWHERE, six(OWN)])
def test_message_from_an_address_that_is_not_the_guests(node: Node, source: str) -> None:
    """Neither its own nor link-local."""
    frame = message(SOLICIT, CLIENT, EMPTY, src=source)

    assert_dropped(node.sends(frame), "tx spoofed_address", frame)


def test_message_that_ends_before_its_type(node: Node) -> None:
    """A datagram's header and nothing else."""
    frame = Ether(src=GUEST_MAC, dst=SERVERS_MAC) / IPv6(src=LINK_LOCAL, dst=SERVERS)
    frame /= UDP(sport=546, dport=547)

    assert_dropped(node.sends(frame), "tx short_frame", frame)


@pytest.mark.parametrize("where", [GATEWAY6, "ff05::1:3", "ff02::1"])
def test_servers_are_asked_at_their_group_alone(node: Node, where: str) -> None:
    """Section 16: no message that we answer may come elsewhere."""
    frame = message(SOLICIT, CLIENT, EMPTY, src=GUEST6, dst=where)

    assert_dropped(node.sends(frame), "tx not_unicast", frame)


def test_dhcp6_server_in_the_vpc_can_be_asked(node: Node) -> None:
    """Port 547 of another address is like any other port."""
    frame = from_guest(UDP(sport=546, dport=547) / Raw(bytes([SOLICIT]) + XID), six(REMOTE))

    run = node.sends(frame)

    assert run.verdict == REDIRECT
    assert list(run.traffic) == ["slot-0 tx_remote"]


@pytest.mark.parametrize("seed", range(6))
def test_damaged_messages_are_answered_or_counted_once(node: Node, seed: int) -> None:
    """Never both, and an answer is a right one."""
    frames = [
        ASKED,
        message(SOLICIT, CLIENT, EMPTY, RAPID),
        message(RENEW, CLIENT, SERVER, association(held(ELSEWHERE))),
        message(CONFIRM, CLIENT, association(held(GUEST6))),
    ]

    for frame in damaged(frames, seed):
        run = node.sends(frame)

        if run.counted == {"event dhcp6_answered": 1}:
            assert run.verdict == REDIRECT, frame.hex()
            assert faults(run.frame) == [], frame.hex()
        elif not run.traffic:
            assert run.verdict == SHOT, frame.hex()
            assert sum(run.counted.values()) == 1, frame.hex()
