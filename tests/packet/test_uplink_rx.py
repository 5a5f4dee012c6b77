# SPDX-License-Identifier: Apache-2.0
"""What comes from the wire: delivered, answered, dropped, or somebody else's and untouched."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from tests.packets import (
    ALICE,
    BLUE,
    BOB,
    CAROL,
    GUEST,
    ICMP,
    IP,
    NODE,
    PEER,
    RED,
    REMOTE,
    TCP,
    UDP,
    Ether,
    Packet,
    Raw,
    arp_answer,
    arp_question,
    damaged,
    faults,
    icmp_error,
    in_vpc,
    mac_of,
    on_wire,
    six,
    to_guest,
)
from tests.programs import PASS_ON, REDIRECT, SHOT, Node, Run

DATA = bytes(range(256)) * 2
WIRE_MAC = "02:00:00:00:aa:02"  # of the last router
ASKER_MAC = "02:00:00:00:33:01"  # inner MAC of a peer that asks ARP
HELLO = UDP(sport=1, dport=2) / b"hello"

PAYLOADS = {
    "tcp": (TCP(sport=443, dport=40000, flags="PA", seq=7, ack=9) / DATA, {}),
    "tcp-syn-with-options": (
        TCP(sport=1, dport=2, flags="S", options=[("MSS", 1400), ("SAckOK", b""), ("NOP", None)]),
        {},
    ),
    "udp": (UDP(sport=53, dport=53000) / b"odd", {}),
    "udp-without-data": (UDP(sport=1, dport=2), {}),
    "udp-without-checksum": (UDP(sport=1, dport=2, chksum=0) / DATA, {}),
    "icmp-echo": (ICMP(type=0, id=3, seq=4) / DATA, {}),
    "sctp-like": (Raw(DATA), {"proto": 132}),
    "nothing-behind-the-header": (Raw(b""), {"proto": 253}),
    "ip-options": (UDP(sport=1, dport=2) / DATA, {"options": b"\x94\x04\x00\x00" * 10}),
    "all-header-fields": (
        UDP(sport=1, dport=2) / DATA,
        {"tos": 0xB9, "id": 0xBEEF, "ttl": 1, "flags": "DF"},
    ),
}


def arriving(node: Node, inner: Packet | bytes, **outer) -> Packet:
    """A frame on the uplink, from PEER to this node unless said otherwise."""
    if isinstance(inner, bytes):
        inner = Raw(inner)
    addressed = {"src": PEER, "dst": NODE, "eth_src": WIRE_MAC, "eth_dst": node.uplink_mac}
    return on_wire(inner, **{**addressed, **outer})


def outer_port(run: Run) -> int:
    return int.from_bytes(run.frame[34:36], "big")


def assert_dropped(run: Run, reason: str, frame) -> None:
    """One row grew by this frame, nothing else was counted, nothing delivered."""
    assert run.verdict == SHOT
    assert run.counted == {f"rx {reason}": 1}
    assert run.counted_bytes == len(bytes(frame))
    assert run.traffic == {}


def assert_passed_on(run: Run, frame) -> None:
    """The next program, and then the host's stack, see every byte as it came."""
    assert run.verdict == PASS_ON
    assert run.frame == bytes(frame)
    assert run.traffic == {}


# -- delivered


@pytest.mark.parametrize(("payload", "ip"), PAYLOADS.values(), ids=PAYLOADS.keys())
def test_packet_for_a_sandbox_comes_out_of_the_tunnel(node: Node, payload, ip):
    """Outer headers gone, destination the guest's own address, MACs the slot's, sums right."""
    inner = in_vpc(payload, REMOTE, ALICE, **ip)

    run = node.receives(arriving(node, inner))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, REMOTE, **ip))
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 rx_remote": (1, len(inner) - 14)}


@pytest.mark.parametrize("payload", [UDP(sport=1, dport=2), TCP(sport=1, dport=2)], ids=type)
def test_inner_fragments_keep_the_checksum_of_the_whole(node: Node, payload):
    """The first fragment's checksum covers all; later ones have no L4 header to touch."""
    pieces = IP(src=REMOTE, dst=ALICE, id=77) / payload / (DATA * 3)
    expected = to_guest(payload / (DATA * 3), REMOTE, id=77)[IP].fragment(400)

    for piece, wanted in zip(pieces.fragment(400), expected, strict=True):
        run = node.receives(arriving(node, Ether(src=mac_of(REMOTE), dst=mac_of(ALICE)) / piece))

        assert run.verdict == REDIRECT
        assert run.frame[14:] == bytes(wanted)
        assert faults(run.frame) == []


def options(length: int) -> bytes:
    """Geneve options that fill so many bytes: nobody's, not critical, as long as can be."""
    size = min(length - 4, 124)
    one = bytes((0xFF, 0xFE, 0x5A, size // 4)) + b"\xa5" * size
    return one if len(one) == length else one + options(length - len(one))


@pytest.mark.parametrize("length", range(4, 256, 4))
def test_options_are_skipped(node: Node, length):
    """Whatever is in them, from the shortest to all 63 words."""
    inner = bytes(in_vpc(HELLO, REMOTE, ALICE))

    run = node.receives(arriving(node, options(length) + inner, optionlen=length // 4))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(HELLO, REMOTE))


@pytest.mark.parametrize(
    "outer",
    [
        pytest.param({"reserved": 0x3F}, id="reserved-flags"),
        pytest.param({"reserved2": 0xFF}, id="reserved-byte-behind-the-vni"),
        pytest.param({"udp": {"chksum": None}}, id="outer-checksum-that-is-right"),
        pytest.param({"sport": 1}, id="any-source-port"),
        pytest.param({"ip": {"tos": 0xFC, "ttl": 1, "flags": 0, "id": 9}}, id="outer-ip-fields"),
        pytest.param({"src": "192.0.2.40"}, id="any-known-vtep"),
    ],
)
def test_outer_fields_that_do_not_matter_are_ignored(node: Node, outer):
    """RFC 8926 section 3.4: reserved bits are ignored on receipt."""
    run = node.receives(arriving(node, in_vpc(HELLO, REMOTE, ALICE), **outer))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(HELLO, REMOTE))
    assert run.counted == {}


@pytest.mark.parametrize("mac", [mac_of(ALICE), "02:47:56:00:00:01", "02:99:99:99:99:99"])
def test_inner_destination_mac_is_not_insisted_on(node: Node, mac):
    """Our own nodes send to the gateway's, an Ethernet peer to the one ARP gave."""
    run = node.receives(arriving(node, in_vpc(HELLO, REMOTE, ALICE, eth_dst=mac)))

    assert run.frame == bytes(to_guest(HELLO, REMOTE))


def test_vni_chooses_between_equal_addresses(node: Node):
    """Alice and Carol have one address in two VPCs."""
    assert ALICE == CAROL
    inner = in_vpc(HELLO, REMOTE, CAROL)

    blue = node.receives(arriving(node, inner, vni=BLUE))
    red = node.receives(arriving(node, inner, vni=RED))

    assert blue.traffic == {"slot-0 rx_remote": (1, 33)}
    assert red.traffic == {"slot-2 rx_remote": (1, 33)}


def test_mark_and_priority_do_not_reach_the_sandbox(node: Node):
    """They mean something to the host's own rules."""
    run = node.receives(arriving(node, in_vpc(HELLO, REMOTE, ALICE)), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


QUOTES = {
    "udp-whole": (UDP(sport=5353, dport=53) / DATA, None),
    "udp-without-checksum": (UDP(sport=5353, dport=53, chksum=0) / DATA, None),
    "udp-eight-bytes": (UDP(sport=5353, dport=53) / DATA, 28),
    "tcp-whole": (TCP(sport=8080, dport=80) / DATA, None),
    "tcp-eight-bytes": (TCP(sport=8080, dport=80) / DATA, 28),
    "icmp-echo": (ICMP(type=8, id=1, seq=1) / DATA, None),
}


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
@pytest.mark.parametrize(("payload", "length"), QUOTES.values(), ids=QUOTES.keys())
def test_icmp_error_quotes_the_packet_as_the_guest_sent_it(node: Node, payload, length, kind):
    """The quoted source is the guest's own address again, or it would not know the connection."""

    def error(source: str) -> Packet:
        return icmp_error(bytes(IP(src=source, dst=REMOTE, id=5) / payload)[:length], kind=kind)

    run = node.receives(arriving(node, in_vpc(error(ALICE), REMOTE, ALICE)))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(error(GUEST), REMOTE))
    assert faults(run.frame) == []


def test_quote_of_somebody_elses_packet_is_left_alone(node: Node):
    """Only the addressee's own address is translated."""
    error = icmp_error(bytes(IP(src=BOB, dst=REMOTE) / UDP() / DATA))

    run = node.receives(arriving(node, in_vpc(error, REMOTE, ALICE)))

    assert run.frame == bytes(to_guest(error, REMOTE))


def test_another_udp_port_is_listened_on_when_configured(node: Node):
    """And the default one is then somebody else's."""
    inner = in_vpc(HELLO, REMOTE, ALICE)
    other = arriving(node, inner, dport=6081)

    with node.configured(udp_port=6082):
        ours = node.receives(arriving(node, inner, dport=6082))
        theirs = node.receives(other)

    assert ours.frame == bytes(to_guest(HELLO, REMOTE))
    assert_passed_on(theirs, other)
    assert theirs.counted == {}


# -- somebody else's

INNER = in_vpc(HELLO, REMOTE, ALICE)
OTHERS = {
    "another-mac": {"eth_dst": "02:00:00:00:00:77"},
    "broadcast-mac": {"eth_dst": "ff:ff:ff:ff:ff:ff"},
    "another-address": {"dst": "192.0.2.77"},
    "another-port": {"dport": 4789},
    "port-with-its-bytes-swapped": {"dport": 0xC117},
    "ip-version": {"ip": {"version": 5}},
    "a-later-fragment": {"ip": {"frag": 10, "flags": 0}},
    "the-fragment-before-the-last": {"ip": {"frag": 10, "flags": "MF"}},
    "tcp": {"ip": {"proto": 6}},
    "udp-lite": {"ip": {"proto": 136}},
}


@pytest.mark.parametrize("outer", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_not_for_our_vtep_and_port_is_passed_on(node: Node, outer):
    """Untouched and uncounted, though it comes from a known VTEP."""
    frame = arriving(node, INNER, **outer)

    run = node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {}


def test_geneve_in_ipv6_is_passed_on(node: Node):
    """The underlay is IPv4."""
    frame = Ether(src=WIRE_MAC, dst=node.uplink_mac, type=0x86DD) / Raw(bytes([0x60]) + bytes(80))

    assert_passed_on(node.receives(frame), frame)


def test_arp_of_the_underlay_is_passed_on(node: Node):
    """Our own neighbours ask the host, not us."""
    frame = arp_question(NODE, sender=PEER, sender_mac=WIRE_MAC)

    assert_passed_on(node.receives(frame), frame)


def test_cut_off_udp_header_is_passed_on(node: Node):
    """Without a port nobody can say that it is ours."""
    frame = bytes(arriving(node, INNER))[: 14 + 20 + 7]

    assert_passed_on(node.receives(frame), frame)


def test_geneve_from_an_unknown_sender_is_passed_on_and_counted(node: Node):
    """Another tunnel user of this host may know it."""
    frame = arriving(node, INNER, src="192.0.2.99")

    run = node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {"event unknown_vtep": 1}


def test_broken_geneve_from_an_unknown_sender_is_not_ours_to_drop(node: Node):
    """Whoever it is for decides what is wrong with it."""
    frame = arriving(node, INNER, src="192.0.2.99", version=3, critical=1, ip={"flags": "MF"})

    run = node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {"event unknown_vtep": 1}


def test_everything_is_passed_on_before_the_node_is_configured(node: Node):
    """The hook may be there an instant before its configuration."""
    frame = arriving(node, INNER)

    with node.configured(vtep=""):
        run = node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {}


# -- dropped

DROPPED_OUTER = {
    "first-fragment": ({"ip": {"flags": "MF"}}, "outer_fragment"),
    "outer-ip-options": ({"ip": {"options": b"\x94\x04\x00\x00"}}, "outer_options"),
    "version-1": ({"version": 1}, "geneve_version"),
    "version-2": ({"version": 2}, "geneve_version"),
    "version-3": ({"version": 3}, "geneve_version"),
    "control": ({"oam": 1}, "geneve_control"),
    "control-and-critical": ({"oam": 1, "critical": 1}, "geneve_control"),
    "payload-zero": ({"proto": 0}, "geneve_protocol"),
    "payload-6559": ({"proto": 0x6559}, "geneve_protocol"),
    "options-beyond-the-frame": ({"optionlen": 63}, "short_frame"),
    "unknown-vni": ({"vni": BLUE + 1}, "no_endpoint"),
    "vni-0": ({"vni": 0}, "no_endpoint"),
    "vni-all-ones": ({"vni": 0xFFFFFF}, "no_endpoint"),
    "vni-with-its-bytes-swapped": ({"vni": 0xCDAB00}, "no_endpoint"),
}


@pytest.mark.parametrize(("outer", "reason"), DROPPED_OUTER.values(), ids=DROPPED_OUTER.keys())
def test_geneve_that_we_cannot_take_is_dropped(node: Node, outer, reason):
    """From a known VTEP it is ours, so nobody else may see it; one row grows by one."""
    frame = arriving(node, INNER, **outer)

    assert_dropped(node.receives(frame), reason, frame)


def inner_with(**fields) -> Packet:
    return in_vpc(UDP(sport=1, dport=2) / DATA, REMOTE, ALICE, **fields)


def ethernet(ethertype: int, payload: bytes) -> Packet:
    return Ether(src=mac_of(REMOTE), dst=mac_of(ALICE), type=ethertype) / Raw(payload)


DROPPED_INNER = {
    "ipv6-without-its-version": (ethernet(0x86DD, bytes(60)), "bad_ip_header"),
    "vlan-tag": (ethernet(0x8100, b"\0\x64\x08\0" + bytes(INNER)[14:]), "not_ip"),
    "length-field-802.3": (ethernet(60, bytes(60)), "not_ip"),
    "ip-version": (inner_with(version=6), "bad_ip_header"),
    "ip-header-of-16": (inner_with(ihl=4), "bad_ip_header"),
    "total-length-under-header": (inner_with(len=19), "bad_ip_header"),
    "total-length-of-0": (inner_with(len=0), "bad_ip_header"),
    "total-length-under-options": (inner_with(ihl=15, len=59), "bad_ip_header"),
    "total-length-one-beyond-frame": (inner_with(len=20 + 8 + len(DATA) + 1), "short_frame"),
    "cut-off-by-one": (bytes(inner_with())[:-1], "short_frame"),
    "cut-off-in-ip-header": (bytes(inner_with())[:33], "short_frame"),
    "cut-off-in-ethernet": (bytes(inner_with())[:13], "short_frame"),
    "nothing-inside": (b"", "short_frame"),
    "udp-header-cut-off": (in_vpc(Raw(bytes(5)), REMOTE, ALICE, proto=17), "short_frame"),
    "tcp-header-cut-off": (in_vpc(Raw(bytes(17)), REMOTE, ALICE, proto=6), "short_frame"),
    "broken-quote": (in_vpc(icmp_error(bytes(19)), REMOTE, ALICE), "short_frame"),
    "nobody-has-the-address": (in_vpc(UDP(), REMOTE, "10.0.1.200"), "no_endpoint"),
    "guest-address-itself": (in_vpc(UDP(), REMOTE, GUEST), "no_endpoint"),
    "multicast": (in_vpc(UDP(), REMOTE, "224.0.0.1"), "no_endpoint"),
    "underlay-address": (in_vpc(UDP(), REMOTE, NODE), "no_endpoint"),
}


@pytest.mark.parametrize(("inner", "reason"), DROPPED_INNER.values(), ids=DROPPED_INNER.keys())
def test_inner_frame_that_we_cannot_deliver_is_dropped(node: Node, inner, reason):
    """One row grows by one packet and the bytes of the whole frame."""
    frame = arriving(node, inner)

    assert_dropped(node.receives(frame), reason, frame)


@pytest.mark.parametrize("length", [0, 4, 7])
def test_cut_off_geneve_header_is_dropped(node: Node, length):
    """The UDP header was whole, so it is ours."""
    frame = bytes(arriving(node, INNER))[: 14 + 20 + 8 + length]

    assert_dropped(node.receives(frame), "short_frame", frame)


@pytest.mark.parametrize(
    ("generation", "slot"), [(1 << 40, 1), (2, 3)], ids=["bound-again", "unbound"]
)
def test_half_an_attachment_gets_no_packet(node: Node, generation, slot):
    """Endpoint and binding must name the same generation."""
    frame = arriving(node, in_vpc(HELLO, REMOTE, "10.0.1.99"))

    with node.endpoint_of(BLUE, "10.0.1.99", generation=generation, slot=slot):
        run = node.receives(frame)

    assert_dropped(run, "stale_endpoint", frame)


@pytest.mark.parametrize("slot", [2, 1], ids=["of-another-vpc", "of-the-same-vpc"])
@pytest.mark.parametrize("address", ["10.0.1.99", six("10.0.1.99")], ids=["ipv4", "ipv6"])
def test_row_that_became_somebody_elses_gives_him_no_packet(node: Node, slot, address):
    """The kernel uses a removed row's room at once, while a program still reads it."""
    attachment = node.plane.attachment(slot)
    frame = arriving(node, in_vpc(HELLO, six(REMOTE) if ":" in address else REMOTE, address))

    with node.endpoint_of(BLUE, address, generation=attachment.generation, slot=slot):
        run = node.receives(frame)

    assert_dropped(run, "stale_endpoint", frame)


def test_frame_merged_of_several_inner_packets_is_dropped(node: Node):
    """GRO that knows outer UDP only glues them together; the first one's length tells."""
    frame = arriving(node, bytes(inner_with()) + bytes(inner_with()))

    assert_dropped(node.receives(frame, gso_size=500), "inner_length", frame)


def test_merged_frame_that_cannot_shrink_is_dropped(node: Node):
    """The kernel refuses to in a merged frame of a kind that it does not know."""
    frame = arriving(node, in_vpc(TCP(sport=1, dport=2) / DATA, REMOTE, ALICE))

    assert_dropped(node.receives(frame, gso_size=500), "no_room", frame)


def test_merged_udp_is_dropped(node: Node):
    """Nobody behind us could take it apart, and nobody would count it."""
    frame = arriving(node, inner_with())

    assert_dropped(node.receives(frame, gso_size=500), "merged_udp", frame)


# -- ARP through the tunnel


def question(target: str = ALICE, **fields) -> Packet:
    return arp_question(target, **{"sender": REMOTE, "sender_mac": ASKER_MAC, **fields})


def answer_on_wire(run: Run, target: str = ALICE, vni: int = BLUE, padding: bytes = b"") -> bytes:
    inner = arp_answer(target, mac_of(target), asker=REMOTE, asker_mac=ASKER_MAC)
    return bytes(on_wire(Raw(bytes(inner) + padding), sport=outer_port(run), vni=vni))


@pytest.mark.parametrize(("vni", "target"), [(BLUE, ALICE), (BLUE, BOB), (RED, CAROL)])
def test_arp_through_the_tunnel_is_answered(node: Node, vni, target):
    """With the endpoint's own MAC, to the VTEP that asked."""
    run = node.receives(arriving(node, question(target), vni=vni))

    assert run.verdict == REDIRECT
    assert run.frame == answer_on_wire(run, target=target, vni=vni)
    assert outer_port(run) >= 32768
    assert faults(run.frame) == []
    assert run.counted == {"event wire_arp_answered": 1}
    assert run.traffic == {}


@pytest.mark.parametrize("length", [4, 8, 20, 64, 252])
def test_answer_to_a_question_with_options_has_none(node: Node, length):
    """They were the sender's."""
    sent = options(length) + bytes(question())

    run = node.receives(arriving(node, sent, optionlen=length // 4))

    assert run.frame == answer_on_wire(run)
    assert run.counted == {"event wire_arp_answered": 1}


def unsummed(src: str, dst: str, length: int) -> int:
    """What a UDP checksum's field holds while the sum is still a device's to make."""
    words = IPv4Address(src).packed + IPv4Address(dst).packed + struct.pack(">HH", 17, length)
    return sum(struct.unpack(">6H", words)) % 0xFFFF


def test_answer_to_a_question_that_a_device_was_to_sum_is_one_too(node: Node):
    """The kernel would complete the answer's checksum from what stands in its field."""
    length = 8 + 8 + len(question())
    sent = arriving(node, question(), udp={"chksum": unsummed(PEER, NODE, length)})

    run = node.receives(sent)

    assert run.counted == {"event wire_arp_answered": 1}
    assert int.from_bytes(run.frame[40:42], "big") == unsummed(NODE, PEER, length)
    assert run.frame[:40] + bytes(2) + run.frame[42:] == answer_on_wire(run)


def test_question_with_options_that_a_device_was_to_sum_has_no_answer(node: Node):
    """Without them the device would sum somewhere else."""
    length = 8 + 8 + 8 + len(question())
    inner = options(8) + bytes(question())
    sent = arriving(node, inner, optionlen=2, udp={"chksum": unsummed(PEER, NODE, length)})

    assert_dropped(node.receives(sent), "no_room", sent)


def test_answer_keeps_the_questions_padding(node: Node):
    """A peer's virtual switch pads to Ethernet's minimum."""
    run = node.receives(arriving(node, bytes(question()) + bytes(18)))

    assert run.frame == answer_on_wire(run, padding=bytes(18))


def test_answer_leaves_mark_and_priority_behind(node: Node):
    """As any packet of ours does."""
    run = node.receives(arriving(node, question()), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


def test_answer_goes_to_the_configured_port(node: Node):
    """The same on which the question came."""
    with node.configured(udp_port=6082):
        run = node.receives(arriving(node, question(), dport=6082))

    assert run.counted == {"event wire_arp_answered": 1}
    assert run.frame[36:38] == (6082).to_bytes(2, "big")


ARP_DROPPED = {
    "unknown-address": (question("10.0.1.200"), {}, "no_endpoint"),
    "unknown-vni": (question(), {"vni": 999}, "no_endpoint"),
    "probe": (question(sender="0.0.0.0"), {}, "arp_refused"),
    "gratuitous": (question(ALICE, sender=ALICE), {}, "arp_refused"),
    "reply": (question(op=2), {}, "arp_refused"),
    "other-hardware": (question(hwtype=6), {}, "arp_refused"),
    "other-protocol": (question(ptype=0x86DD), {}, "arp_refused"),
    "cut-off": (bytes(question())[:-1], {}, "short_frame"),
    "no-way-back": (question(), {"src": "203.0.113.5"}, "no_underlay_route"),
    "no-way-back-for-an-answer-without-options": (
        bytes(8) + bytes(question()),
        {"src": "203.0.113.5", "optionlen": 2},
        "no_underlay_route",
    ),
    "too-big-for-the-way-back": (
        bytes(question()) + bytes(1300),
        {"src": "203.0.113.6"},
        "too_big",
    ),
}


@pytest.mark.parametrize(("inner", "outer", "reason"), ARP_DROPPED.values(), ids=ARP_DROPPED.keys())
def test_other_arp_through_the_tunnel_is_dropped(node: Node, inner, outer, reason):
    """Only a question for somebody who is here gets an answer."""
    frame = arriving(node, inner, **outer)

    assert_dropped(node.receives(frame), reason, frame)


def test_arp_for_half_an_attachment_is_dropped(node: Node):
    """Who is being attached is not here yet."""
    frame = arriving(node, question("10.0.1.99"))

    with node.endpoint_of(BLUE, "10.0.1.99", generation=1 << 40, slot=1):
        run = node.receives(frame)

    assert_dropped(run, "stale_endpoint", frame)


# -- anything


@pytest.mark.parametrize("seed", range(4))
def test_any_frame_is_ours_or_untouched(node: Node, seed):
    """Random damage: a frame is dropped, delivered or answered and counted once, or as it came."""
    inners = [
        in_vpc(TCP(sport=1, dport=2) / b"data", REMOTE, ALICE),
        in_vpc(UDP(sport=1, dport=2) / b"data", REMOTE, BOB),
        in_vpc(icmp_error(bytes(IP(src=ALICE, dst=REMOTE) / TCP())), REMOTE, ALICE),
        question(),
    ]
    frames = [arriving(node, inner) for inner in inners]
    frames += [arriving(node, bytes(8) + bytes(inner), optionlen=2) for inner in inners]

    for frame in damaged(frames, seed):
        run = node.receives(frame)

        if run.verdict == PASS_ON:
            assert_passed_on(run, frame)
            assert run.counted in ({}, {"event unknown_vtep": 1}), frame.hex()
        elif run.verdict == SHOT:
            assert [*run.counted.values()] == [1], frame.hex()
            assert run.traffic == {}, frame.hex()
        else:
            assert run.verdict == REDIRECT
            happened = [*run.counted, *(row.split()[1] for row in run.traffic)]
            assert happened in (["event wire_arp_answered"], ["rx_remote"]), frame.hex()
