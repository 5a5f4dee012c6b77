# SPDX-License-Identifier: Apache-2.0
"""IPv4 and IPv6 inside, over IPv4 and IPv6: what a sandbox sends and gets, byte by byte.

test_sandbox_tx.py and test_uplink_rx.py say the rest for IPv4 over IPv4, test_refused_ipv6.py
what of IPv6 is refused, test_quotes.py what becomes of ICMP errors.
"""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from geneve_ebpf import abi
from geneve_ebpf.loader.maps import SharedArray
from tests.packets import (
    AFAR,
    ALICE,
    ALICE6,
    BOB,
    BOB6,
    CAROL6,
    DORA,
    EMIL6,
    GUEST,
    GUEST6,
    ICMP,
    NEIGHBOUR,
    RED,
    REMOTE,
    REMOTE6,
    SELF,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    PadN,
    Raw,
    damaged,
    error_about,
    faults,
    from_guest,
    in_vpc,
    mac_of,
    six,
    to_guest,
    vtep_of,
)
from tests.programs import PASS_ON, REDIRECT, SHOT, Node, assert_dropped

DATA = bytes(range(256)) * 2
SYN = TCP(sport=1, dport=2, flags="S", options=[("MSS", 1220), ("SAckOK", b""), ("NOP", None)])

# Name -> (what is behind the IP header, other fields of the IP header), by family.
PAYLOADS = {
    4: {
        "tcp": (TCP(sport=40000, dport=443, flags="PA", seq=7, ack=9) / DATA, {}),
        "tcp-syn-with-options": (SYN, {}),
        "udp": (UDP(sport=53000, dport=53) / b"odd", {}),
        "udp-without-data": (UDP(sport=1, dport=2), {}),
        "udp-without-checksum": (UDP(sport=1, dport=2, chksum=0) / DATA, {}),
        "icmp-echo": (ICMP(type=8, id=3, seq=4) / DATA, {}),
        "icmp-shortest": (ICMP(type=8), {}),
        "sctp-like": (Raw(DATA), {"proto": 132}),
        "nothing-behind-the-header": (Raw(b""), {"proto": 253}),
        "one-byte-behind-the-header": (Raw(b"!"), {"proto": 253}),
        "ip-options": (UDP(sport=1, dport=2) / DATA, {"options": b"\x94\x04\x00\x00" * 10}),
        "all-header-fields": (
            UDP(sport=1, dport=2) / DATA,
            {"tos": 0xB8, "id": 0xBEEF, "ttl": 1, "flags": "DF"},
        ),
    },
    6: {
        "tcp": (TCP(sport=40000, dport=443, flags="PA", seq=7, ack=9) / DATA, {}),
        "tcp-syn-with-options": (SYN, {}),
        "udp": (UDP(sport=53000, dport=53) / b"odd", {}),
        "udp-without-data": (UDP(sport=1, dport=2), {}),
        "icmp-echo": (ICMPv6EchoRequest(id=3, seq=4) / DATA, {}),
        "icmp-echo-reply": (ICMPv6EchoReply(id=3, seq=4) / b"odd", {}),
        "sctp-like": (Raw(DATA), {"nh": 132}),
        "nothing-behind-the-header": (Raw(b""), {"nh": 59}),
        "one-byte-behind-the-header": (Raw(b"!"), {"nh": 253}),
        "hop-by-hop": (IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]) / UDP() / DATA, {}),
        "destination-options": (
            IPv6ExtHdrDestOpt(options=[PadN(optdata=b"123456789012")]) / TCP() / DATA,
            {},
        ),
        "routing-that-is-over": (
            IPv6ExtHdrRouting(addresses=[six("10.0.3.3")], segleft=0) / UDP() / DATA,
            {},
        ),
        "three-of-them": (
            IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrFragment(id=9)
            / ICMPv6EchoRequest()
            / b"odd",
            {},
        ),
        "whole-in-a-fragment": (IPv6ExtHdrFragment(id=9) / TCP(sport=5, dport=6) / b"odd", {}),
        "all-header-fields": (
            UDP(sport=1, dport=2) / DATA,
            {"tc": 0xB8, "fl": 0xABCDE, "hlim": 1},
        ),
    },
}
ROWS = [
    pytest.param(family, payload, ip, id=f"ipv{family}-{name}")
    for family, rows in PAYLOADS.items()
    for name, (payload, ip) in rows.items()
]


# -- to another node and from it


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_packet_for_another_node_leaves_in_geneve(any_node: Node, family, payload, ip):
    """Every byte; the source is the VPC's and all sums are right."""
    sent = from_guest(payload, AFAR[family], **ip)

    run = any_node.sends(sent)

    assert run.verdict == REDIRECT
    assert run.frame == any_node.tunnelled(run, in_vpc(payload, SELF[family], AFAR[family], **ip))
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 tx_remote": (1, len(sent) - 14)}


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_packet_for_a_sandbox_comes_out_of_the_tunnel(any_node: Node, family, payload, ip):
    """Outer headers gone, destination the guest's own address, MACs the slot's, sums right."""
    inner = in_vpc(payload, AFAR[family], SELF[family], **ip)

    run = any_node.receives(any_node.arriving(inner))

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, AFAR[family], **ip))
    assert faults(run.frame) == []
    assert run.counted == {}
    assert run.traffic == {"slot-0 rx_remote": (1, len(inner) - 14)}


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_sum_of_a_nic_stays_true_through_decapsulation(any_node: Node, family, payload, ip):
    """CHECKSUM_COMPLETE: outer headers leave the sum, a translated address changes it."""
    run = any_node.completes(
        "uplink_rx", any_node.arriving(in_vpc(payload, AFAR[family], SELF[family], **ip))
    )

    assert run.frame == bytes(to_guest(payload, AFAR[family], **ip))


@pytest.mark.parametrize(("family", "payload", "ip"), ROWS)
def test_packet_for_a_sandbox_of_this_node_is_handed_over(node: Node, family, payload, ip):
    """No tunnel: source the VPC's address, destination the guest's own, sums right twice over."""
    sent = from_guest(payload, NEIGHBOUR[family], **ip)

    run = node.sends(sent)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(to_guest(payload, SELF[family], **ip))
    assert faults(run.frame) == []
    size = len(sent) - 14
    assert run.traffic == {"slot-0 tx_local": (1, size), "slot-1 rx_local": (1, size)}


@pytest.mark.parametrize("size", range(20, 61))
def test_every_small_size_passes_from_either_family(any_node: Node, size):
    """A kernel that shrinks from IPv6 to IPv4 wants 40 bytes to be left; there need not be."""
    payload = Raw(bytes(range(1, size - 20 + 1)))

    run = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE, ALICE, proto=253)))

    assert run.frame == bytes(to_guest(payload, REMOTE, proto=253))
    assert run.traffic == {"slot-0 rx_remote": (1, size)}


@pytest.mark.parametrize("size", range(40, 66))
def test_every_small_size_of_ipv6_passes(any_node: Node, size):
    """From nothing behind the header on."""
    payload = Raw(bytes(range(1, size - 40 + 1)))

    run = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE6, ALICE6, nh=253)))

    assert run.frame == bytes(to_guest(payload, REMOTE6, nh=253))
    assert run.traffic == {"slot-0 rx_remote": (1, size)}


def test_zero_udp_checksum_in_ipv6_stays_zero(any_node: Node):
    """Not for us to judge: a tunnel of the sandbox's own may send so (RFC 6935)."""
    payload = UDP(sport=1, dport=2, chksum=0) / DATA

    sent = any_node.sends(from_guest(payload, REMOTE6))
    got = any_node.receives(any_node.arriving(in_vpc(payload, REMOTE6, ALICE6)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(payload, ALICE6, REMOTE6))
    assert got.frame == bytes(to_guest(payload, REMOTE6))


@pytest.mark.parametrize("family", [4, 6])
def test_udp_checksum_that_comes_out_as_zero_is_ones(any_node: Node, family):
    """Zero would mean that there is none (RFC 768); both ways."""
    for outbound in (True, False):
        ends = (SELF[family], AFAR[family]) if outbound else (AFAR[family], SELF[family])
        mine, other = (GUEST6 if family == 6 else GUEST), AFAR[family]
        translated = ends if outbound else (other, mine)
        probe = in_vpc(UDP(sport=1, dport=2) / b"\0\0", *translated)
        data = Ether(bytes(probe))[UDP].chksum.to_bytes(2, "big")
        payload = UDP(sport=1, dport=2) / data

        if outbound:
            run = any_node.sends(from_guest(payload, AFAR[family]))
        else:
            run = any_node.receives(any_node.arriving(in_vpc(payload, *ends)))

        assert run.frame[-4:-2] == b"\xff\xff"
        assert faults(run.frame) == []


def test_ethernet_padding_behind_ipv6(any_node: Node):
    """It travels, is counted against nothing, and no checksum covers it."""
    payload = UDP(sport=1, dport=2) / b"x"
    padding = b"\xa5" * 9

    sent = any_node.sends(bytes(from_guest(payload, REMOTE6)) + padding)
    got = any_node.receives(any_node.arriving(bytes(in_vpc(payload, REMOTE6, ALICE6)) + padding))

    inner = bytes(in_vpc(payload, ALICE6, REMOTE6)) + padding
    assert sent.frame == any_node.tunnelled(sent, inner)
    assert sent.traffic == {"slot-0 tx_remote": (1, 49)}
    assert got.frame[:63] == bytes(to_guest(payload, REMOTE6))
    assert got.traffic == {"slot-0 rx_remote": (1, 49)}


@pytest.mark.parametrize(
    ("slot", "own", "peer"), [(4, DORA, REMOTE), (5, EMIL6, REMOTE6)], ids=["ipv4", "ipv6"]
)
def test_sandbox_of_one_family_uses_it(any_node: Node, slot, own, peer):
    """It need not have both."""
    payload = UDP(sport=1, dport=2) / b"x"

    sent = any_node.sends(from_guest(payload, peer), slot=slot)
    got = any_node.receives(any_node.arriving(in_vpc(payload, peer, own)))

    assert sent.frame == any_node.tunnelled(sent, in_vpc(payload, own, peer))
    assert got.frame == bytes(to_guest(payload, peer))


@pytest.mark.parametrize(("slot", "peer"), [(4, REMOTE6), (4, BOB6), (5, REMOTE), (5, BOB)])
def test_sandbox_cannot_send_a_family_it_has_no_address_of(any_node: Node, slot, peer):
    """Every slot has both on eth0; the VPC gave this one a single address."""
    sent = from_guest(UDP(), peer)

    assert_dropped(any_node.sends(sent, slot=slot), "tx no_address", sent)


def test_ipv6_address_with_zeros_at_both_ends_is_one(any_node: Node):
    """0:0:1:: is not ::, which says that there is none."""
    bindings = SharedArray(any_node.pins.map("bindings"), abi.Binding, writable=True)
    bindings.row(4).address6 = abi.Address.of(IPv6Address("0:0:1::"))
    try:
        run = any_node.sends(from_guest(UDP(), REMOTE6), slot=4)
    finally:
        bindings.row(4).address6 = abi.Address()
        bindings.close()

    assert run.verdict == REDIRECT


@pytest.mark.parametrize(
    ("dst", "vtep"),
    [
        pytest.param("10.0.2.78", "192.0.2.2", id="prefix-of-24"),
        pytest.param("10.0.2.77", "192.0.2.4", id="whole-address-before-prefix"),
        pytest.param("10.0.3.1", "192.0.2.3", id="shorter-prefix-for-the-rest"),
    ],
)
def test_most_specific_route_of_ipv6_wins(any_node: Node, dst, vtep):
    """A whole address, then the longest prefix."""
    payload = UDP(sport=1, dport=2)

    run = any_node.sends(from_guest(payload, six(dst)))

    inner = in_vpc(payload, ALICE6, six(dst))
    assert run.frame == any_node.tunnelled(run, inner, dst=vtep_of(vtep, any_node.family))


def test_vpc_of_the_slot_is_the_frames(any_node: Node):
    """The same frame from another slot leaves in another VPC, or nowhere."""
    payload = UDP(sport=1, dport=2)
    dst = six("10.9.0.1")

    red = any_node.sends(from_guest(payload, dst), slot=2)
    blue = any_node.sends(from_guest(payload, dst), slot=0)

    assert red.frame == any_node.tunnelled(red, in_vpc(payload, CAROL6, dst), vni=RED)
    assert_dropped(blue, "tx no_route", from_guest(payload, dst))


@pytest.mark.parametrize("dst", [BOB6, REMOTE6], ids=["local", "remote"])
def test_mark_and_priority_do_not_leave_the_slot(any_node: Node, dst):
    """They mean something to the host's own rules."""
    run = any_node.sends(from_guest(UDP(sport=1, dport=2), dst), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


# -- anything


def some_frames(family: int) -> list[Packet]:
    """What a sandbox sends, of each kind, to another node and to its neighbour."""
    guest = GUEST6 if family == 6 else GUEST
    payloads = [payload for payload, ip in PAYLOADS[family].values() if not ip]
    payloads.append(error_about(AFAR[family], guest, TCP() / DATA, 8))
    return [from_guest(one, dst) for dst in (AFAR[family], NEIGHBOUR[family]) for one in payloads]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [4, 6])
def test_any_frame_from_a_sandbox_is_counted_exactly_once(any_node: Node, family, seed):
    """Random damage: each frame is dropped, answered or forwarded, and never the stack's."""
    for frame in damaged(some_frames(family), seed, 150):
        run = any_node.sends(frame)

        assert run.verdict in (SHOT, REDIRECT), frame.hex()
        if run.verdict == SHOT:
            assert [*run.counted.values()] == [1], frame.hex()
            assert run.traffic == {}, frame.hex()
        elif run.traffic:
            ways = sorted(row.split()[1] for row in run.traffic)
            assert ways in (["tx_remote"], ["rx_local", "tx_local"]), frame.hex()
            assert faults(frame) != [] or faults(run.frame) == [], frame.hex()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [4, 6])
def test_any_frame_from_the_wire_is_ours_or_untouched(any_node: Node, family, seed):
    """Random damage: dropped, delivered or answered and counted once, or as it came."""
    inners = [
        in_vpc(payload, AFAR[family], SELF[family])
        for payload, ip in PAYLOADS[family].values()
        if not ip
    ]
    quote = error_about(SELF[family], AFAR[family], TCP() / DATA, 8)
    inners.append(in_vpc(quote, AFAR[family], SELF[family]))
    frames = [any_node.arriving(inner) for inner in inners]
    frames += [any_node.arriving(bytes(8) + bytes(inner), optionlen=2) for inner in inners]

    for frame in damaged(frames, seed, 150):
        run = any_node.receives(frame)

        if run.verdict == PASS_ON:
            assert run.frame == frame
            assert run.traffic == {}
        elif run.verdict == SHOT:
            assert [*run.counted.values()] == [1], frame.hex()
            assert run.traffic == {}, frame.hex()
        else:
            assert run.verdict == REDIRECT, frame.hex()


def test_mac_is_the_endpoints_in_both_families(any_node: Node):
    """One interface, one MAC, whichever address it uses."""
    macs = [any_node.sends(from_guest(UDP(), AFAR[family])).frame for family in (4, 6)]

    at = 14 + {4: 20, 6: 40}[any_node.family] + 16 + 6
    assert {frame[at : at + 6].hex(":") for frame in macs} == {mac_of(ALICE)}
