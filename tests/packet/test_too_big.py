# SPDX-License-Identifier: Apache-2.0
"""A packet that no outer packet can carry: refused, and its sender told what would pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from geneve_ebpf.abi import Key32, Key64
from geneve_ebpf.loader.maps import Table
from tests.packets import (
    BOB,
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST,
    GUEST6,
    GUEST_MAC,
    ICMP,
    IP,
    REMOTE,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    Packet,
    Raw,
    damaged,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    is_six,
    six,
    vtep_of,
)
from tests.programs import REDIRECT, SHOT, Node, Run, assert_dropped

# Where to, and what an outer packet there may have; see conftest.py.
VTEPS_OWN, LOCKED = "10.4.0.1", "10.6.0.1"
OUTER = {REMOTE: 1500, VTEPS_OWN: 1400, LOCKED: 1300}
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
INTERVAL = 10_000_000  # ns, between two answers to one slot
TCP_DATA = {"sport": 40000, "dport": 443, "flags": "PA", "seq": 7, "ack": 9}


@pytest.fixture
def node(any_node: Node) -> Node:
    """Either underlay, and slot 0 has not been told anything for long."""
    with_limits(any_node, due=0)
    return any_node


def with_limits(node: Node, *, slot: int = 0, due: int | None = None) -> int:
    """When a slot's next answer is due, in ns since boot; changed if said so."""
    table: Table[Key32, Key64] = Table(node.pins.map("too_big_limits"), Key32, Key64)
    if due is not None:
        table.set(Key32(slot), Key64(due))
    found = table.get(Key32(slot))
    table.close()
    assert found is not None
    return int(found.value)


@contextmanager
def vtep_with(node: Node, mtu: int) -> Iterator[None]:
    """The VTEP that takes 1400 takes less meanwhile."""
    address = vtep_of("192.0.2.40", node.family)
    node.vtep(address, mtu)
    try:
        yield
    finally:
        node.vtep(address, 1400)


def there(family: int, address: str = REMOTE) -> str:
    """The same place by an address of this family."""
    return six(address) if family == 6 else address


def mtu_to(node: Node, dst: str = REMOTE) -> int:
    """Of an inner packet."""
    return OUTER[dst] - node.overhead


def long_packet(dst: str, length: int, header: Packet | None = None, **ip: object) -> Packet:
    """A frame whose IP packet has this many bytes: a TCP segment unless `header` says otherwise."""
    header = TCP(**TCP_DATA) if header is None else header
    if not is_six(dst):
        ip.setdefault("flags", "DF")
    empty = len(from_guest(header, dst, **ip)) - 14
    return from_guest(header / Raw(bytes(at % 251 for at in range(length - empty))), dst, **ip)


def answer_to(sent: Packet | bytes, mtu: int) -> bytes:
    """What the sandbox is told about a frame of its own: as much of it as an error may quote."""
    packet = bytes(sent)[14:]
    ether = Ether(src=GATEWAY_MAC, dst=GUEST_MAC)
    if packet[0] >> 4 == 6:
        error = icmp6_error(packet[: 1280 - 48], kind=2, value=mtu)
        return bytes(ether / IPv6(src=GATEWAY6, dst=GUEST6, hlim=64) / error)
    error = ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(packet[: 576 - 28])
    header = IP(src=GATEWAY, dst=GUEST, id=0, flags="DF", ttl=64, tos=0xC0)
    return bytes(ether / header / error)


def assert_told(run: Run, sent: Packet | bytes, mtu: int) -> None:
    """Back to the sandbox went the error about this frame, once, and one drop was counted."""
    assert run.verdict == REDIRECT
    assert run.frame == answer_to(sent, mtu)
    assert faults(run.frame) == []
    assert run.counted == {"tx too_big": 1, "event too_big_sent": 1}
    assert run.counted_bytes == len(bytes(sent))
    assert run.traffic == {}


# -- told


@pytest.mark.parametrize("dst", OUTER, ids=["interface", "vtep", "kernel-route"])
def test_sender_is_told_what_the_way_carries(node: Node, dst: str):
    """The interface's MTU, the VTEP's own or that of a kernel route, less the tunnel's headers."""
    mtu = mtu_to(node, dst)
    sent = long_packet(dst, mtu + 1)

    assert_told(node.sends(sent), sent, mtu)


@pytest.mark.parametrize("dst", [REMOTE, VTEPS_OWN], ids=["interface", "vtep"])
def test_sender_of_ipv6_is_told_what_the_way_carries(node: Node, dst: str):
    """ICMPv6 "packet too big", from the gateway's link-local address."""
    mtu = mtu_to(node, dst)
    sent = long_packet(six(dst), mtu + 1)

    assert_told(node.sends(sent), sent, mtu)


HEADERS = {
    "tcp": TCP(**TCP_DATA),
    "tcp-with-options": TCP(**TCP_DATA, options=[("Timestamp", (1, 2)), ("NOP", None)] * 3),
    "udp": UDP(sport=53, dport=5353),
    "udp-without-checksum": UDP(sport=53, dport=5353, chksum=0),
    "echo": ICMP(type=8, id=3, seq=4),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_whatever_it_is_but_an_error_is_answered(node: Node, header: Packet):
    """And what is quoted of it is as the sandbox sent it."""
    sent = long_packet(REMOTE, mtu_to(node) + 9, header)

    assert_told(node.sends(sent), sent, mtu_to(node))


def test_echo_of_ipv6_is_answered(node: Node):
    """How ping finds the MTU out."""
    sent = long_packet(six(REMOTE), mtu_to(node) + 1, ICMPv6EchoRequest(id=1, seq=2))

    assert_told(node.sends(sent), sent, mtu_to(node))


def test_packet_without_df_is_answered_too(node: Node):
    """Nobody fragments it on the way, so its sender has to."""
    sent = long_packet(REMOTE, mtu_to(node) + 1, flags=0)

    assert_told(node.sends(sent), sent, mtu_to(node))


def test_first_fragment_is_answered(node: Node):
    """A guest that cuts up its datagrams to the MTU it was born with learns a smaller one."""
    sent = long_packet(REMOTE, mtu_to(node) + 8, UDP(sport=1, dport=2), flags="MF")

    assert_told(node.sends(sent), sent, mtu_to(node))


def test_first_fragment_of_ipv6_is_answered(node: Node):
    """Its L4 header is behind the fragment header."""
    sent = long_packet(
        six(REMOTE), mtu_to(node) + 8, IPv6ExtHdrFragment(m=1, id=5) / UDP(sport=1, dport=2)
    )

    assert_told(node.sends(sent), sent, mtu_to(node))


def test_quote_begins_with_all_headers(node: Node):
    """40 bytes of IPv4 options and 40 of TCP's; an extension header of IPv6."""
    options = {"options": b"\x94\x04\x00\x00" * 10}
    header = TCP(**TCP_DATA, options=[("NOP", None)] * 40)
    for sent in (
        long_packet(REMOTE, mtu_to(node) + 1, header, **options),
        long_packet(six(REMOTE), mtu_to(node) + 1, IPv6ExtHdrDestOpt() / header),
    ):
        assert_told(node.sends(sent), sent, mtu_to(node))


def test_short_quote_is_the_whole_packet(node: Node):
    """A way that carries less than an error may have."""
    with vtep_with(node, mtu=576):
        sent = long_packet(VTEPS_OWN, 576 - node.overhead + 1)
        run = node.sends(sent)

    assert len(bytes(sent)) - 14 < 548
    assert_told(run, sent, 576 - node.overhead)


@FAMILIES
def test_mark_and_priority_do_not_come_back(node: Node, family: int):
    """They mean something to the host's own rules."""
    run = node.sends(long_packet(there(family), 1490), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


# -- GSO


@FAMILIES
def test_gso_frame_is_judged_by_its_segments(node: Node, family: int):
    """One that fits piece by piece is not too big, however long it is."""
    dst = there(family)
    room = mtu_to(node) - len(from_guest(TCP(**TCP_DATA), dst)) + 14
    sent = long_packet(dst, 3000)

    fits = node.sends(sent, gso_size=room)
    with_limits(node, due=0)
    too_big = node.sends(sent, gso_size=room + 1)

    # BPF_PROG_TEST_RUN makes no real GSO frame, so this one gets no room for the tunnel.
    assert fits.counted == {"tx no_room": 1}
    assert_told(too_big, sent, mtu_to(node))


# -- a checksum that the kernel still owes (CHECKSUM_PARTIAL)


def owed(frame: Packet, l4: int) -> bytes:
    """The frame with only the pseudo-header's sum in its TCP or UDP checksum."""
    raw = bytearray(bytes(frame))
    six = raw[12:14] == b"\x86\xdd"
    ends = raw[22:54] if six else raw[26:34]
    kind = TCP if frame.haslayer(TCP) else UDP
    at = l4 + (16 if kind is TCP else 6)
    protocol = 6 if kind is TCP else 17
    raw[at : at + 2] = folded(ends + bytes([0, protocol]) + (len(raw) - l4).to_bytes(4, "big"))
    return bytes(raw)


def folded(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return (total % 0xFFFF or 0xFFFF).to_bytes(2, "big")


def completed(frame: bytes, start: int, field: int) -> bytes:
    """What the kernel makes of it for an interface without checksum offload."""
    data = frame[start:] + bytes(len(frame[start:]) % 2)
    value = 0xFFFF - int.from_bytes(folded(data), "big")
    return frame[:field] + (value or 0xFFFF).to_bytes(2, "big") + frame[field + 2 :]


OWED = {
    "tcp": (REMOTE, TCP(**TCP_DATA), {}, 0),
    "udp": (REMOTE, UDP(sport=1, dport=2), {}, 0),
    "tcp-behind-options": (REMOTE, TCP(**TCP_DATA), {"options": b"\x94\x04\0\0" * 3}, 12),
    "tcp6": (six(REMOTE), TCP(**TCP_DATA), {}, 0),
    "udp6": (six(REMOTE), UDP(sport=1, dport=2), {}, 0),
    "tcp6-behind-an-extension": (six(REMOTE), IPv6ExtHdrDestOpt() / TCP(**TCP_DATA), {}, 8),
}


@pytest.mark.parametrize(("dst", "header", "ip", "more"), OWED.values(), ids=OWED.keys())
@pytest.mark.parametrize("extra", range(1, 6))
def test_sum_holds_whether_the_kernel_completes_the_quote_or_not(
    node: Node, dst: str, header: Packet, ip: dict[str, object], more: int, extra: int
):
    """Towards a veth it never does, towards a tap without offload it does, over what is quoted."""
    headers = (40 if is_six(dst) else 20) + more
    sent = owed(long_packet(dst, mtu_to(node) + extra, header, **ip), 14 + headers)

    run = node.sends(sent)

    quote = 14 + (48 if is_six(dst) else 28)
    start = quote + headers
    field = start + (16 if header.haslayer(TCP) else 6)
    expected = answer_to(sent, mtu_to(node))
    assert faults(run.frame) == []
    assert faults(completed(run.frame, start, field)) == []
    assert run.frame[field + 2 :] == expected[field + 2 :]
    assert run.frame[quote:field] == expected[quote:field]
    assert run.frame[:36] == expected[:36]


# -- not told


def assert_not_told(run: Run, sent: Packet | bytes) -> None:
    assert_dropped(run, "tx too_big", sent)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_error_is_not_answered_by_another(node: Node, kind: int):
    """RFC 1122 section 3.2.2: or two hosts could go on for ever."""
    sent = long_packet(REMOTE, mtu_to(node) + 1, icmp_error(b"", kind=kind))

    assert_not_told(node.sends(sent), sent)


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_error_of_icmpv6_is_not_answered_by_another(node: Node, kind: int):
    """RFC 4443 section 2.4 (e)."""
    quote = bytes(IPv6(src=six(REMOTE), dst=GUEST6) / UDP() / bytes(1500))
    sent = long_packet(six(REMOTE), mtu_to(node) + 1, icmp6_error(quote[:1000], kind=kind))

    assert_not_told(node.sends(sent), sent)


def test_later_fragment_is_not_answered(node: Node):
    """RFC 1122 section 3.2.2: the first one was."""
    sent = long_packet(REMOTE, mtu_to(node) + 1, Raw(b"x"), frag=100, proto=17)

    assert_not_told(node.sends(sent), sent)


def test_later_fragment_of_ipv6_is_not_answered(node: Node):
    """Likewise, though RFC 4443 would let us."""
    sent = long_packet(six(REMOTE), mtu_to(node) + 1, IPv6ExtHdrFragment(offset=100, nh=17))

    assert_not_told(node.sends(sent), sent)


@FAMILIES
def test_padding_alone_is_not_answered(node: Node, family: int):
    """The packet has the right size already: no MTU would change that."""
    for short in (6, 0):
        just_fits = bytes(long_packet(there(family), mtu_to(node) - short)) + bytes(short)

        assert node.sends(just_fits).counted == {}
        assert_not_told(node.sends(just_fits + b"\0"), just_fits + b"\0")


def test_nothing_under_1280_is_said_of_ipv6(node: Node):
    """RFC 8201 section 4: hosts do not heed it. Such a way carries no IPv6."""
    sent = long_packet(six(LOCKED), 1280)

    assert_not_told(node.sends(sent), sent)


# -- how often


def test_slot_that_asked_for_too_much_waits(node: Node):
    """The packet is dropped and counted all the same, and its waiting gets no longer."""
    due = with_limits(node, due=time.monotonic_ns() + 10**12)
    sent = long_packet(REMOTE, 1490)

    assert_not_told(node.sends(sent), sent)
    assert with_limits(node) == due


def test_other_slots_do_not_wait(node: Node):
    """Each has its own limit."""
    with_limits(node, due=time.monotonic_ns() + 10**12)
    with_limits(node, slot=1, due=0)
    sent = long_packet(REMOTE, 1490)

    assert_told(node.sends(sent, slot=1), sent, mtu_to(node))


def test_ten_answers_come_at_once(node: Node):
    """After nine that were not waited for there is a tenth."""
    with_limits(node, due=time.monotonic_ns() + 9 * INTERVAL)
    sent = long_packet(REMOTE, 1490)

    assert_told(node.sends(sent), sent, mtu_to(node))


def test_each_answer_is_worth_ten_milliseconds(node: Node):
    """From the time that the last one was due, or from now if that is over."""
    before = time.monotonic_ns()
    node.sends(long_packet(REMOTE, 1490))
    after = time.monotonic_ns()

    assert before + INTERVAL <= with_limits(node) <= after + INTERVAL


def test_answers_that_were_not_waited_for_add_up(node: Node):
    """Or ten at once would be ten every time."""
    due = with_limits(node, due=time.monotonic_ns() + 8 * INTERVAL)

    node.sends(long_packet(REMOTE, 1490))

    assert with_limits(node) >= due + INTERVAL


def test_what_may_not_be_answered_uses_nothing_up(node: Node):
    """Errors and fragments do not take a later packet's answer away."""
    node.sends(long_packet(REMOTE, 1490, icmp_error(b"")))

    assert with_limits(node) == 0


# -- within the node


@FAMILIES
def test_packet_larger_than_any_wire_passes_within_the_node(node: Node, family: int):
    """There is none between two sandboxes of it, and the receiver's eth0 limits what it sends."""
    run = node.sends(long_packet(there(family, BOB), 3000))

    assert run.verdict == REDIRECT
    assert run.counted == {}


# -- whatever comes


@FAMILIES
def test_damaged_packets_get_right_answers_or_none(node: Node, family: int):
    """Whatever is quoted, what stands around it is right."""
    dst = there(family)
    frames = [long_packet(dst, mtu_to(node) + 99), long_packet(dst, 1490, UDP(sport=1, dport=2))]
    answered = 0
    for frame in damaged(frames, seed=77):
        with_limits(node, due=0)

        run = node.sends(frame)

        assert run.verdict in (SHOT, REDIRECT)
        if "event too_big_sent" in run.counted:
            answered += 1
            assert [fault for fault in faults(run.frame) if "quoted" not in fault] == []
            assert run.counted["tx too_big"] == 1
    assert answered > 50
