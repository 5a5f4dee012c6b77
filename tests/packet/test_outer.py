# SPDX-License-Identifier: Apache-2.0
"""The outer IP and UDP headers of what comes: which are ours to take, and what is checked in them.

RFC 8926 section 3.3, on both underlays. Checksums: test_outer_checksum.py.
"""

from __future__ import annotations

import pytest

from tests.outer_sums import OUTER_IP
from tests.packets import (
    ALICE,
    REMOTE,
    UDP,
    Ether,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    arp_question,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    in_vpc,
    ip_header,
    to_guest,
    vtep_of,
)
from tests.programs import (
    REDIRECT,
    ROUTER_MAC,
    Node,
    assert_dropped,
    assert_passed_on,
)

HELLO = UDP(sport=1, dport=2) / b"hello"
INNER = in_vpc(HELLO, REMOTE, ALICE)


@pytest.mark.parametrize("known", [True, False])
def test_icmp_error_about_our_packets_is_passed_on(any_node: Node, known):
    """Whether we learn from it or not, others of the host may be interested too."""
    peer = vtep_of("192.0.2.2" if known else "192.0.2.99", any_node.family)
    ours = bytes(any_node.tunnelled(any_node.sends(from_guest(HELLO)), INNER, dst=peer))[14:]
    hop = vtep_of("192.0.2.254", any_node.family)
    if any_node.family == 4:
        errors = [icmp_error(ours[:60], kind=kind, code=1) for kind in (3, 11, 12)]
    else:
        errors = [icmp6_error(ours[:120], kind=kind) for kind in (1, 3, 4)]
    for error in errors:
        mine = str(any_node.settings.vtep)
        frame = Ether(src=ROUTER_MAC, dst=any_node.uplink_mac) / ip_header(hop, mine) / error

        run = any_node.receives(frame)

        assert_passed_on(run, frame)
        assert run.counted == {}


# -- the outer IP header, received


@pytest.mark.parametrize("bit", range(16))
def test_wrong_ipv4_header_checksum_is_dropped(node: Node, bit):
    """tc sees frames before the host's own IP layer would have refused them."""
    frame = bytearray(bytes(node.arriving(INNER)))
    frame[24 + bit // 8] ^= 1 << (bit % 8)

    assert_dropped(node.receives(bytes(frame)), "rx outer_checksum", bytes(frame))


@pytest.mark.parametrize("at", [15, 18, 19, 22])
def test_ipv4_header_checksum_covers_what_does_not_matter_to_us(node: Node, at):
    """TOS, identification and TTL."""
    frame = bytearray(bytes(node.arriving(INNER)))
    frame[at] ^= 0x10

    assert_dropped(node.receives(bytes(frame)), "rx outer_checksum", bytes(frame))


IGNORED4 = {
    "ttl-1": {"ttl": 1},
    "no-df": {"flags": 0, "id": 77},
    "dscp": {"tos": 0xB8},
}
IGNORED6 = {
    "hop-limit-1": {"hlim": 1},
    "dscp": {"tc": 0xB8},
    "no-flow-label": {"fl": 0},
    "all-flow-label": {"fl": 0xFFFFF},
}


@pytest.mark.parametrize("ip", IGNORED4.values(), ids=IGNORED4.keys())
def test_ipv4_fields_that_do_not_matter_are_ignored(node: Node, ip):
    """They were the underlay's; the inner packet's own stay as they are."""
    assert node.receives(node.arriving(INNER, ip=ip)).frame == bytes(to_guest(HELLO, REMOTE))


@pytest.mark.parametrize("ip", IGNORED6.values(), ids=IGNORED6.keys())
def test_ipv6_fields_that_do_not_matter_are_ignored(node6: Node, ip):
    """They were the underlay's; the inner packet's own stay as they are."""
    assert node6.receives(node6.arriving(INNER, ip=ip)).frame == bytes(to_guest(HELLO, REMOTE))


def ip_length(node: Node, change: int) -> dict[str, dict[str, int]]:
    """The outer IP header says `change` bytes more than there are."""
    true = OUTER_IP[node.family] + 16 + len(INNER)
    return {"ip": {"len": true + change} if node.family == 4 else {"plen": true - 40 + change}}


@pytest.mark.parametrize("change", [1, 2, 100, 5000])
def test_ip_length_beyond_the_frame_is_dropped(any_node: Node, change):
    """Cut off on the way."""
    frame = any_node.arriving(INNER, **ip_length(any_node, change))

    assert_dropped(any_node.receives(frame), "rx outer_length", frame)


@pytest.mark.parametrize("change", [-1, -8, -len(INNER), -len(INNER) - 16])
def test_ip_length_short_of_the_datagram_is_dropped(any_node: Node, change):
    """UDP says one thing and IP another."""
    frame = any_node.arriving(INNER, **ip_length(any_node, change))

    assert_dropped(any_node.receives(frame), "rx outer_length", frame)


def test_ip_length_of_nothing_is_dropped(any_node: Node):
    """0, which in IPv6 would announce a jumbogram (RFC 2675)."""
    ip = {"len": 0} if any_node.family == 4 else {"plen": 0}
    frame = any_node.arriving(INNER, ip=ip)

    assert_dropped(any_node.receives(frame), "rx outer_length", frame)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 15])
def test_udp_length_under_its_headers_is_dropped(any_node: Node, length):
    """Neither UDP nor Geneve would have room."""
    frame = any_node.arriving(INNER, udp={"len": length})

    assert_dropped(any_node.receives(frame), "rx outer_length", frame)


@pytest.mark.parametrize("change", [1, 8, 5000])
def test_udp_length_beyond_the_packet_is_dropped(any_node: Node, change):
    """UDP cannot be longer than the IP packet that it is in."""
    frame = any_node.arriving(INNER, udp={"len": 16 + len(INNER) + change})

    assert_dropped(any_node.receives(frame), "rx outer_length", frame)


@pytest.mark.parametrize("padding", [1, 6, 46, 400])
def test_ethernet_padding_is_no_part_of_the_packet(any_node: Node, padding):
    """A switch may pad; what it adds is behind the outer packet, and does not reach a sandbox."""
    for chksum in (0, None):
        sent = bytes(any_node.arriving(INNER, udp={"chksum": chksum})) + b"\xa5" * padding

        run = any_node.receives(sent)

        assert run.verdict == REDIRECT
        assert run.frame[: 14 + 33] == bytes(to_guest(HELLO, REMOTE))
        assert faults(run.frame) == []


def test_inner_packet_cannot_reach_into_the_padding(any_node: Node):
    """Its bytes end where the outer datagram does, whatever the frame goes on with."""
    whole = bytes(in_vpc(UDP(sport=1, dport=2) / bytes(200), REMOTE, ALICE))
    sent = bytes(any_node.arriving(whole[:100])) + whole[100:]

    assert_dropped(any_node.receives(sent), "rx short_frame", sent)


def test_arp_question_cannot_reach_into_the_padding(any_node: Node):
    """A cut-off question is none, even if the frame goes on as the question would."""
    whole = bytes(arp_question(ALICE, sender=REMOTE, sender_mac="02:00:00:00:33:01"))
    sent = bytes(any_node.arriving(whole[:-4])) + whole[-4:]

    assert_dropped(any_node.receives(sent), "rx short_frame", sent)


# -- fragments, options, extension headers


def test_first_fragment_is_dropped(node: Node):
    """Reassembly is refused: RFC 8926 section 4.4.1 wants none to be needed."""
    frame = node.arriving(INNER, ip={"flags": "MF"})

    assert_dropped(node.receives(frame), "rx outer_fragment", frame)


@pytest.mark.parametrize("ihl", range(6, 16))
def test_ipv4_options_are_dropped(node: Node, ihl):
    """Of every length."""
    options = b"\x94\x04\x00\x00" + b"\x01" * (ihl * 4 - 24)
    frame = node.arriving(INNER, ip={"options": options})

    assert_dropped(node.receives(frame), "rx outer_options", frame)


def test_fragment_with_options_is_dropped_once(node: Node):
    """Either reason is true."""
    frame = node.arriving(INNER, ip={"flags": "MF", "options": b"\x94\x04\x00\x00"})

    run = node.receives(frame)

    assert [*run.counted.values()] == [1]


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "destination-options": IPv6ExtHdrDestOpt(),
    "routing": IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=0),
    "two-of-them": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS.keys())
def test_ipv6_extension_headers_are_not_delivered(node6: Node, extension):
    """Dropped and counted: nothing that we know of puts one in front of Geneve."""
    frame = node6.arriving(INNER, ip={"extension": extension})

    assert_dropped(node6.receives(frame), "rx outer_options", frame)


@pytest.mark.parametrize("more", [1, 0], ids=["first", "whole"])
def test_ipv6_fragments_are_not_delivered(node6: Node, more):
    """As over IPv4; in IPv6 only the sender can have made them."""
    frame = node6.arriving(INNER, ip={"extension": IPv6ExtHdrFragment(m=more, id=9)})

    assert_dropped(node6.receives(frame), "rx outer_fragment", frame)


@pytest.mark.parametrize(("offset", "more"), [(185, 0), (185, 1)], ids=["last", "middle"])
def test_later_fragments_are_passed_on(any_node: Node, offset, more):
    """They show no port: whose they are nobody can say, and their first one is dropped."""
    if any_node.family == 4:
        ip = {"frag": offset, "flags": "MF" if more else 0}
    else:
        ip = {"extension": IPv6ExtHdrFragment(offset=offset, m=more, id=9)}
    frame = any_node.arriving(INNER, ip=ip)

    run = any_node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {}


# -- whose it is


OTHERS = {
    "another-mac": {"eth_dst": "02:00:00:00:00:77"},
    "broadcast-mac": {"eth_dst": "ff:ff:ff:ff:ff:ff"},
    "multicast-mac": {"eth_dst": "33:33:00:00:00:01"},
    "another-address": {"dst": "192.0.2.77"},
    "another-port": {"dport": 4789},
    "port-with-its-bytes-swapped": {"dport": 0xC117},
    "our-port-as-source-only": {"sport": 6081, "dport": 6082},
}


@pytest.mark.parametrize("outer", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_not_for_our_vtep_and_port_is_passed_on(any_node: Node, outer):
    """Untouched and uncounted, though it comes from a known VTEP."""
    outer = dict(outer)
    if "dst" in outer:
        outer["dst"] = vtep_of(outer["dst"], any_node.family)
    frame = any_node.arriving(INNER, **outer)

    run = any_node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {}


@pytest.mark.parametrize("word", range(4))
def test_every_word_of_an_ipv6_vtep_counts(node6: Node, word):
    """An address that differs in one part only is another host's."""
    wrong = [0x20010DB8, 0, 0, 1]
    wrong[word] ^= 0x10000
    address = ":".join(f"{one >> 16:x}:{one & 0xFFFF:x}" for one in wrong)

    for ends in ({"dst": address}, {"src": address}):
        frame = node6.arriving(INNER, **ends)
        run = node6.receives(frame)
        assert_passed_on(run, frame)
        assert run.counted == ({} if "dst" in ends else {"event unknown_vtep": 1})


def test_geneve_from_an_unknown_sender_is_passed_on_and_counted(any_node: Node):
    """Whatever its checksum and its options say: it is somebody else's to judge."""
    unknown = vtep_of("192.0.2.99", any_node.family)
    for fields in ({}, {"udp": {"chksum": 0x1234}}, {"version": 3}, {"optionlen": 63}, {"oam": 1}):
        frame = any_node.arriving(INNER, src=unknown, **fields)

        run = any_node.receives(frame)

        assert_passed_on(run, frame)
        assert run.counted == {"event unknown_vtep": 1}


def test_the_other_family_is_passed_on(node: Node, node6: Node):
    """A node has one VTEP; Geneve to another address that it happens to have is not ours."""
    six = node6.arriving(INNER, eth_dst=node.uplink_mac)
    four = node.arriving(INNER, eth_dst=node6.uplink_mac)

    assert_passed_on(node.receives(six), six)
    assert_passed_on(node6.receives(four), four)


def test_ipv4_vtep_is_not_its_mapped_address(node: Node):
    """::ffff:192.0.2.1 on the wire is nobody's: maps hold IPv4 that way, packets do not."""
    frame = Ether(bytes(node.arriving(INNER, src="::ffff:192.0.2.2", dst="::ffff:192.0.2.1")))

    assert_passed_on(node.receives(frame), frame)
