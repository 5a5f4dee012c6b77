# SPDX-License-Identifier: Apache-2.0
"""The outer IP and UDP headers: what ours say, and what is checked in everybody else's.

RFC 8926 sections 3.3 and 4.3, on both underlays. Frames here are at most 3,700
bytes long, which is what BPF_PROG_TEST_RUN takes; test_real_frames.py sends longer ones.
"""

from __future__ import annotations

import random

import pytest

from tests.packets import (
    ALICE,
    ALICE6,
    BOB,
    BOB6,
    REMOTE,
    REMOTE6,
    TCP,
    UDP,
    Ether,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    arp_question,
    faults,
    from_guest,
    icmp6_error,
    icmp_error,
    in_vpc,
    ip_header,
    option,
    to_guest,
    vtep_of,
)
from tests.programs import (
    REDIRECT,
    ROUTER_MAC,
    Node,
    assert_dropped,
    assert_passed_on,
    flow_label,
    source_port,
)

HELLO = UDP(sport=1, dport=2) / b"hello"
INNER = in_vpc(HELLO, REMOTE, ALICE)
OUTER_IP = {4: 20, 6: 40}
SIZES = (0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 401, 402, 403, 404, 511, 512, 513, 1023, 1024, 1399)
SIZES += (1400, 1471, 1472, 1999, 2047, 2048, 2049, 3000, 3399, 3400)


def of_size(size: int) -> Packet:
    """An inner frame with so many bytes of data, none of which is zero."""
    data = bytes(1 + at % 255 for at in range(size))
    return in_vpc(UDP(sport=1, dport=2) / data, REMOTE, ALICE)


def udp_at(node: Node) -> int:
    return 14 + OUTER_IP[node.family]


def summed(data: bytes) -> int:
    total = sum(
        int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(node: Node, frame: bytes) -> bytes:
    """What the UDP checksum covers besides the datagram (RFC 768, RFC 8200 section 8.1)."""
    at = udp_at(node)
    length = frame[at + 4 : at + 6]
    if node.family == 4:
        return frame[26:34] + b"\0\x11" + length
    return frame[22:54] + b"\0\0" + length + b"\0\0\0\x11"


def with_checksum(node: Node, frame: bytes, checksum: int) -> bytes:
    at = udp_at(node) + 6
    return frame[:at] + checksum.to_bytes(2, "big") + frame[at + 2 :]


def right_checksum(node: Node, frame: bytes) -> int:
    blank = with_checksum(node, frame, 0)
    return 0xFFFF - summed(pseudo_header(node, blank) + blank[udp_at(node) :]) or 0xFFFF


# -- UDP checksums, received


@pytest.mark.parametrize("size", SIZES)
def test_right_outer_checksum_is_taken(any_node: Node, size):
    """Nobody but us has verified it: this frame comes from no NIC."""
    frame = any_node.arriving(of_size(size), udp={"chksum": None})
    assert faults(bytes(frame)) == []

    run = any_node.receives(frame)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(of_size(size)[UDP], REMOTE))
    assert run.counted == {}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", [1, 0x100, 0xFFFE])
def test_wrong_outer_checksum_is_dropped(any_node: Node, size, change):
    """By little and by much; one's complement sums are easily wrong by one."""
    sent = bytes(any_node.arriving(of_size(size)))
    wrong = (right_checksum(any_node, sent) + change - 1) % 0xFFFF + 1
    frame = with_checksum(any_node, sent, wrong)
    assert faults(frame) == ["outer udp checksum"]

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)


@pytest.mark.parametrize("size", [0, 1, 512, 1399, 1400])
def test_a_changed_byte_anywhere_behind_the_addresses_is_noticed(any_node: Node, size):
    """From the UDP source port to the last byte, which is the odd one in half of the sizes."""
    sent = bytes(any_node.arriving(of_size(size), udp={"chksum": None}))
    start = udp_at(any_node)
    headers = [*range(start, start + 2), *range(start + 8 + 4, start + 8 + 8)]  # source port, VNI
    payload = range(start + 16, len(sent))
    places = headers + ([*payload] if size < 10 else random.Random(size).sample(payload, 40))

    for at in (*places, len(sent) - 1):
        frame = bytearray(sent)
        frame[at] ^= 0x11
        assert_dropped(any_node.receives(bytes(frame)), "rx outer_checksum", bytes(frame))


def test_addresses_are_covered_by_the_checksum(any_node: Node):
    """A frame that was meant for another pair of VTEPs, and lost its way."""
    elsewhere = vtep_of("192.0.2.3", any_node.family)
    meant = bytes(any_node.arriving(INNER, src=elsewhere))
    here = bytes(any_node.arriving(INNER))
    frame = with_checksum(any_node, here, right_checksum(any_node, meant))

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)


@pytest.mark.parametrize("size", SIZES)
def test_no_outer_checksum_is_taken(any_node: Node, size):
    """Zero says that there is none; over IPv6 a configured VTEP may (RFC 6935 section 5)."""
    run = any_node.receives(any_node.arriving(of_size(size), udp={"chksum": 0}))

    assert run.frame == bytes(to_guest(of_size(size)[UDP], REMOTE))


@pytest.mark.parametrize("size", SIZES)
def test_checksum_that_a_neighbour_left_to_its_nic_is_taken(any_node: Node, size):
    """On a veth or virtio link the field holds the pseudo-header's sum alone."""
    sent = bytes(any_node.arriving(of_size(size)))
    frame = with_checksum(any_node, sent, summed(pseudo_header(any_node, sent)))

    run = any_node.receives(frame)

    assert run.frame == bytes(to_guest(of_size(size)[UDP], REMOTE))


def test_inverted_pseudo_header_sum_is_no_partial_checksum(any_node: Node):
    """What a NIC is handed is the sum, not its complement."""
    sent = bytes(any_node.arriving(INNER))
    frame = with_checksum(any_node, sent, 0xFFFF - summed(pseudo_header(any_node, sent)))

    assert_dropped(any_node.receives(frame), "rx outer_checksum", frame)


def test_checksum_that_comes_out_as_zero_is_all_ones(any_node: Node):
    """RFC 768: a sum of zero is sent as ones, because zero means none."""
    sent = bytes(any_node.arriving(INNER))
    # The source port makes up for the rest.
    at = udp_at(any_node)
    port = (50000 - 0 + right_checksum(any_node, sent) - 1) % 0xFFFF + 1
    frame = sent[:at] + port.to_bytes(2, "big") + sent[at + 2 :]
    assert right_checksum(any_node, frame) == 0xFFFF

    run = any_node.receives(with_checksum(any_node, frame, 0xFFFF))

    assert run.frame == bytes(to_guest(HELLO, REMOTE))


@pytest.mark.parametrize("length", [4, 20, 252])
def test_options_are_covered_by_the_checksum(any_node: Node, length):
    """One that a hop on the way has changed is noticed."""
    sent = option(1) * (length // 4) + bytes(INNER)
    good = bytes(any_node.arriving(sent, optionlen=length // 4, udp={"chksum": None}))
    bad = bytearray(good)
    bad[udp_at(any_node) + 16 + 1] ^= 1  # the class of the first option

    assert any_node.receives(good).frame == bytes(to_guest(HELLO, REMOTE))
    assert_dropped(any_node.receives(bytes(bad)), "rx outer_checksum", bytes(bad))


def test_checksum_that_the_nic_summed_is_not_taken_for_verified(any_node: Node):
    """CHECKSUM_COMPLETE is a sum over all bytes, and says nothing by itself."""
    sent = bytes(any_node.arriving(INNER))
    wrong = with_checksum(any_node, sent, 0x1234)

    run = any_node.completes("uplink_rx", wrong)

    assert_dropped(run, "rx outer_checksum", wrong)


def test_damage_inside_is_left_for_the_sandbox_to_notice(any_node: Node):
    """A wrong inner checksum stays wrong by as much: translation adds, and repairs nothing."""
    for chksum, payload in ((0x1234, TCP), (0x4321, UDP)):
        wrong = in_vpc(payload(sport=1, dport=2, chksum=chksum) / b"data", REMOTE, ALICE)

        run = any_node.receives(any_node.arriving(wrong))

        assert run.verdict == REDIRECT
        assert len(faults(run.frame)) == 1


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


# -- what we send


@pytest.mark.parametrize("peer", [REMOTE, REMOTE6], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize(
    "ip", [{}, {"dscp": 46}, {"hops": 1}, {"hops": 255}, {"df": True}, {"label": 0x12345}], ids=str
)
def test_outer_header_is_our_own(any_node: Node, peer, ip):
    """TTL 64, DF, no DSCP, no identification: none of the inner packet's is copied (pipe model)."""
    six = ":" in peer
    names = {"dscp": ("tc", 2) if six else ("tos", 2), "hops": ("hlim" if six else "ttl", 0)}
    fields = {}
    for name, value in ip.items():
        if name in names:
            field, shift = names[name]
            fields[field] = value << shift
        elif name == "label" and six:
            fields["fl"] = value
        elif name == "df" and not six:
            fields["flags"] = "DF"

    run = any_node.sends(from_guest(HELLO, peer, **fields))

    inner = in_vpc(HELLO, ALICE6 if six else ALICE, peer, **fields)
    assert run.frame == any_node.tunnelled(run, inner)
    if any_node.family == 4:
        header = run.frame[14:34]
        length = (20 + 16 + len(inner)).to_bytes(2, "big")
        assert header[:10] == b"\x45\x00" + length + b"\x00\x00\x40\x00\x40\x11"
    else:
        header = run.frame[14:54]
        assert header[0] == 0x60
        assert header[1] >> 4 == 0
        assert header[4:8] == (16 + len(inner)).to_bytes(2, "big") + b"\x11\x40"
    assert faults(run.frame) == []


def test_udp_checksum_that_we_send_is_zero(any_node: Node):
    """A program can't have one made for the segments of a GSO frame."""
    at = udp_at(any_node) + 6

    for size in (0, 1, 1000):
        run = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(size)))
        assert run.frame[at : at + 2] == b"\0\0"


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_flows_are_spread_evenly(any_node: Node, six, layer):
    """Over a thousand flows no part of the range is much more likely than another.

    64 cells, so about 16 flows in each: chi-square has a mean of 63 and a
    deviation of 11, and 160 is beyond chance.
    """
    packet = from_guest(layer(sport=1024, dport=443), REMOTE6 if six else REMOTE)
    sent = bytes(packet)
    at = len(sent) - len(bytes(packet[layer]))
    frames = [
        any_node.made_of(sent[:at] + port.to_bytes(2, "big") + sent[at + 2 :])
        for port in range(1024, 2024)
    ]

    ports = [source_port(frame) for frame in frames]
    assert min(ports) >= 32768
    assert chi_square([(port - 32768) % 64 for port in ports]) < 160  # the low bits
    assert chi_square([(port - 32768) * 64 // 32768 for port in ports]) < 160  # the high ones
    assert len(set(ports)) > 960  # by chance about 985
    assert all(one_in_two(ports, bit) for bit in range(15))
    if any_node.family == 6:
        labels = [flow_label(frame) for frame in frames]
        assert chi_square([label % 64 for label in labels]) < 160
        assert chi_square([label >> 14 for label in labels]) < 160
        assert len(set(labels)) > 960
        assert all(one_in_two(labels, bit) for bit in range(20))


def one_in_two(numbers: list[int], bit: int) -> bool:
    """Whether the bit is set in half of a thousand numbers: five deviations of 16 aside."""
    return abs(sum(number >> bit & 1 for number in numbers) - 500) < 80


def chi_square(cells: list[int], count: int = 64) -> float:
    expected = len(cells) / count
    return sum((cells.count(cell) - expected) ** 2 / expected for cell in range(count))


def test_the_bound_is_one_that_a_skewed_spread_exceeds():
    """A port of which one bit never changes, or that takes half of the range twice as often."""
    dice = random.Random(1)
    even = [dice.randrange(64) for _ in range(1000)]
    stuck = [cell & ~1 for cell in even]
    skewed = [cell % 48 for cell in even]

    assert chi_square(even) < 160
    assert chi_square(stuck) > 160
    assert chi_square(skewed) > 160


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
def test_a_flow_keeps_its_port_and_label(any_node: Node, six):
    """Whatever the packet's size, flags, TTL and data."""
    dst = REMOTE6 if six else REMOTE
    ttl = "hlim" if six else "ttl"
    packets = [
        from_guest(TCP(sport=5000, dport=443, flags="S", options=[("MSS", 1400)]), dst),
        from_guest(TCP(sport=5000, dport=443, flags="PA", seq=9) / bytes(1200), dst),
        from_guest(TCP(sport=5000, dport=443, flags="R"), dst, **{ttl: 3}),
    ]

    runs = [any_node.sends(packet) for packet in packets * 2]

    assert len({source_port(run.frame) for run in runs}) == 1
    if any_node.family == 6:
        assert len({flow_label(run.frame) for run in runs}) == 1


def test_sandboxes_of_equal_guest_address_are_told_apart_by_their_ports_alone(any_node: Node):
    """The hash is of the packet as the guest sends it, so equal flows may share a path: no harm."""
    one = any_node.sends(from_guest(UDP(sport=7, dport=8), REMOTE), slot=0)
    other = any_node.sends(from_guest(UDP(sport=7, dport=8), REMOTE), slot=1)

    assert source_port(one.frame) == source_port(other.frame)
    assert one.frame != other.frame


# -- how big

LIMITS = {
    "interface": (REMOTE, 1500),
    "vtep": ("10.4.0.1", 1400),
    "kernel-route": ("10.6.0.1", 1300),
}


@pytest.mark.parametrize("six", [False, True], ids=["ipv4-inside", "ipv6-inside"])
@pytest.mark.parametrize(("dst", "mtu"), LIMITS.values(), ids=LIMITS.keys())
def test_packet_that_just_fits_passes_and_one_more_byte_does_not(any_node: Node, dst, mtu, six):
    """The tunnel costs 50 bytes over IPv4 and 70 over IPv6, of outer packets that take `mtu`."""
    from tests.packets import six as beside

    dst = beside(dst) if six else dst
    most = mtu - any_node.overhead - (48 if six else 28)

    fits = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(most), dst))
    over = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(most + 1), dst))

    assert fits.verdict == REDIRECT
    assert fits.counted == {}
    assert len(fits.frame) == 14 + mtu
    assert over.counted["tx too_big"] == 1
    assert over.traffic == {}


@pytest.mark.parametrize("dst", [BOB, BOB6])
def test_packet_for_this_node_has_no_outer_mtu(any_node: Node, dst):
    """No tunnel, no overhead."""
    run = any_node.sends(from_guest(UDP(sport=1, dport=2) / bytes(1452), dst))

    assert run.verdict == REDIRECT
    assert run.counted == {}
