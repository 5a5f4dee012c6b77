# SPDX-License-Identifier: Apache-2.0
"""Neighbour discovery: solicitations of a sandbox and through the tunnel, and group memberships."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6MLDMultAddrRec,
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    RouterAlert,
)

from geneve_ebpf.dataplane.uplinks import write_mtu
from tests.packets import (
    ALICE6,
    BLUE,
    BOB6,
    CAROL6,
    DORA,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST,
    GUEST6,
    GUEST_MAC,
    IP,
    RED,
    REMOTE6,
    Ether,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Packet,
    Raw,
    damaged,
    faults,
    mac_of,
    option,
    six,
    vtep_of,
    with_options,
)
from tests.programs import PASS_ON, REDIRECT, SHOT, Node, assert_dropped, source_port

LINK_LOCAL = "fe80::47:56ff:fe00:2"  # what the guest makes of its MAC
GATEWAY_GROUP = "ff02::1:ff00:1"
ROUTERS, ROUTERS_MAC = "ff02::2", "33:33:00:00:00:02"
NODES, NODES_MAC = "ff02::1", "33:33:00:00:00:01"
ASKER_MAC = "02:00:00:00:33:01"  # inner MAC of a peer that asks
OWN_MAC = ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)


def solicitation(
    target: str = GATEWAY6,
    *,
    src: str = GUEST6,
    dst: str = GATEWAY_GROUP,
    hlim: int = 255,
    options: Packet | bytes | None = OWN_MAC,
    eth_src: str = GUEST_MAC,
    eth_dst: str = "33:33:ff:00:00:01",
    **fields: int,
) -> Packet:
    """Who has `target`? As a guest's kernel asks."""
    frame = Ether(src=eth_src, dst=eth_dst) / IPv6(src=src, dst=dst, hlim=hlim)
    frame /= ICMPv6ND_NS(tgt=target, **fields)
    return frame / options if options is not None else frame


def router_solicitation(
    *,
    src: str = LINK_LOCAL,
    dst: str = ROUTERS,
    hlim: int = 255,
    options: Packet | bytes | None = OWN_MAC,
    **fields: int,
) -> Packet:
    """Which routers are there?"""
    frame = Ether(src=GUEST_MAC, dst=ROUTERS_MAC) / IPv6(src=src, dst=dst, hlim=hlim)
    frame /= ICMPv6ND_RS(**fields)
    return frame / options if options is not None else frame


def advertisement(target: str, mac: str, asker: str, asker_mac: str, *, router: int) -> Packet:
    """`target` is at `mac`, said to the one that asked."""
    return (
        Ether(src=mac, dst=asker_mac)
        / IPv6(src=target, dst=asker, hlim=255)
        / ICMPv6ND_NA(R=router, S=1, O=1, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=mac)
    )


def router_advertisement(mtu: int, asker: str, asker_mac: str) -> Packet:
    """The gateway is a router for half an hour, and `mtu` bytes go through it."""
    return (
        Ether(src=GATEWAY_MAC, dst=asker_mac)
        / IPv6(src=GATEWAY6, dst=asker, hlim=255)
        / ICMPv6ND_RA(chlim=64, M=1, O=0, prf=0, routerlifetime=1800)
        / ICMPv6NDOptSrcLLAddr(lladdr=GATEWAY_MAC)
        / ICMPv6NDOptMTU(mtu=mtu)
    )


def with_checksum(frame: Packet, change: int) -> bytes:
    """The frame with its ICMPv6 checksum off by `change`."""
    data = bytearray(bytes(frame))
    data[56:58] = ((int.from_bytes(data[56:58], "big") + change) & 0xFFFF).to_bytes(2, "big")
    return bytes(data)


LONG = ICMPv6NDOptUnknown(type=200, len=8, data=bytes(62))
ANSWERED = {
    "to-the-group": {},
    "to-the-gateway": {"dst": GATEWAY6, "eth_dst": GATEWAY_MAC},
    "from-the-link-local-address": {"src": LINK_LOCAL},
    "without-an-option": {"options": None},
    "with-an-option-nobody-knows": {"options": OWN_MAC / LONG},
    "with-three-options": {"options": OWN_MAC / ICMPv6NDOptUnknown(type=14, len=1) / OWN_MAC},
    "signed": {"options": OWN_MAC / LONG / LONG / LONG / LONG / LONG / LONG / LONG / LONG},
    "reserved-bits": {"res": 0xFFFFFFFF},
}


@pytest.mark.parametrize("fields", ANSWERED.values(), ids=ANSWERED.keys())
@pytest.mark.parametrize("slot", [0, 3, 4], ids=["bound", "unbound", "without-ipv6"])
def test_sandbox_learns_its_gateways_mac(any_node: Node, slot, fields):
    """Attached or not, and whether it has an IPv6 address in its VPC."""
    run = any_node.sends(solicitation(**fields), slot=slot)

    asker = fields.get("src", GUEST6)
    assert run.verdict == REDIRECT
    assert run.frame == bytes(advertisement(GATEWAY6, GATEWAY_MAC, asker, GUEST_MAC, router=1))
    assert faults(run.frame) == []
    assert run.counted == {"event nd_answered": 1}
    assert run.traffic == {}


def test_padding_behind_a_question_is_not_answered(node: Node):
    """The answer ends where its packet ends."""
    run = node.sends(bytes(solicitation()) + bytes(30))

    assert run.frame == bytes(advertisement(GATEWAY6, GATEWAY_MAC, GUEST6, GUEST_MAC, router=1))


ROUTER_ANSWERED = {
    "from-the-link-local-address": ({}, LINK_LOCAL, GUEST_MAC),
    "from-the-guest-address": ({"src": GUEST6}, GUEST6, GUEST_MAC),
    "to-the-gateway": ({"dst": GATEWAY6}, LINK_LOCAL, GUEST_MAC),
    "from-nobody": ({"src": "::", "options": None}, NODES, NODES_MAC),
    "without-an-option": ({"options": None}, LINK_LOCAL, GUEST_MAC),
}


@pytest.mark.parametrize(
    ("fields", "asker", "mac"), ROUTER_ANSWERED.values(), ids=ROUTER_ANSWERED.keys()
)
@pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
def test_sandbox_learns_of_its_router_and_its_mtu(any_node: Node, slot, fields, asker, mac):
    """Unicast to who asked with an address, to all nodes if it has none yet."""
    run = any_node.sends(router_solicitation(**fields), slot=slot)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(router_advertisement(1500 - any_node.overhead, asker, mac))
    assert faults(run.frame) == []
    assert run.counted == {"event router_answered": 1}
    assert run.traffic == {}


def test_advertised_mtu_follows_the_slots(node: Node):
    """What the node has learned last, not what was at start."""
    before = node.plane.mtu
    write_mtu(node.pins, 1777)
    try:
        run = node.sends(router_solicitation())
    finally:
        write_mtu(node.pins, before)

    assert run.frame == bytes(router_advertisement(1777, LINK_LOCAL, GUEST_MAC))


def headed(extension: Packet, frame: Packet) -> Packet:
    """The frame with an extension header behind its IPv6 header."""
    packet = frame[IPv6].copy()
    rest = packet.payload
    packet.remove_payload()
    return Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet / extension / rest


def message(kind: Packet) -> Packet:
    """Another message of neighbour discovery, from the guest."""
    return Ether(src=GUEST_MAC, dst=NODES_MAC) / IPv6(src=GUEST6, dst=NODES, hlim=255) / kind


REFUSED = {
    "duplicate-search-for-the-gateway": solicitation(src="::", options=None),
    "duplicate-search-for-its-own": solicitation(
        GUEST6, src="::", dst="ff02::1:ff00:2", options=None
    ),
    "question-for-its-own": solicitation(GUEST6, dst="ff02::1:ff00:2"),
    "question-as-the-gateway": solicitation(src=GATEWAY6),
    "question-for-another": solicitation(REMOTE6, dst=REMOTE6),
    "question-for-a-group": solicitation(NODES),
    "to-another-group": solicitation(dst="ff02::1:ff00:2"),
    "to-another-address": solicitation(dst=REMOTE6),
    "through-a-router": solicitation(hlim=254),
    "with-a-code": solicitation(code=1),
    "sum-one-up": with_checksum(solicitation(), 1),
    "sum-one-down": with_checksum(solicitation(), -1),
    "no-sum": solicitation(cksum=0),
    "option-of-no-length": solicitation(options=b"\x01\x00" + bytes(6)),
    "option-beyond-the-end": solicitation(options=b"\x01\x02" + bytes(6)),
    "half-an-option": solicitation(options=b"\x01\x01" + bytes(2)),
    "more-than-a-kilobyte": solicitation(options=(b"\xc8\x20" + bytes(254)) * 4),
    "thirty-three-options": solicitation(options=(b"\x0e\x01" + bytes(6)) * 33),
    "behind-hop-by-hop": headed(IPv6ExtHdrHopByHop(), solicitation()),
    "behind-destination-options": headed(IPv6ExtHdrDestOpt(), solicitation()),
    "behind-a-fragment-header": headed(IPv6ExtHdrFragment(), solicitation()),
    "first-fragment": headed(IPv6ExtHdrFragment(m=1), solicitation()),
    "routers-through-a-router": router_solicitation(hlim=64),
    "routers-with-a-code": router_solicitation(code=7),
    "routers-wrong-sum": with_checksum(router_solicitation(), 1),
    "routers-from-nobody-with-a-mac": router_solicitation(src="::"),
    "routers-option-of-no-length": router_solicitation(options=bytes(8)),
    "routers-asked-at-another": router_solicitation(dst=NODES),
    "neighbour-advertisement": message(ICMPv6ND_NA(tgt=GUEST6)),
    "router-advertisement": message(ICMPv6ND_RA()),
    "redirect": message(ICMPv6ND_Redirect()),
}


@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
def test_other_neighbour_discovery_is_refused(node: Node, slot, frame):
    """Whoever looks for duplicates must find none, and what is not valid gets no answer."""
    assert_dropped(node.sends(frame, slot=slot), "tx nd_refused", frame)


ELSEWHERE = {
    "another-source": (solicitation(src=ALICE6), "spoofed_address"),
    "router-for-another-source": (router_solicitation(src=ALICE6), "spoofed_address"),
    "another-mac": (solicitation(eth_src=ASKER_MAC), "spoofed_mac"),
    "cut-off-router-solicitation": (
        Ether(src=GUEST_MAC, dst=GATEWAY_MAC)
        / IPv6(src=GUEST6, dst=ROUTERS, hlim=255, nh=58)
        / Raw(b"\x85\0\0\0"),
        "short_frame",
    ),
}


@pytest.mark.parametrize(("frame", "reason"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_question_that_is_wrong_for_another_reason(node: Node, frame, reason):
    """Who asks under a false name, or not to the end."""
    assert_dropped(node.sends(frame), f"tx {reason}", frame)


def test_ping_of_the_gateway_is_no_neighbour_discovery(node: Node):
    """It is on the link only, so that no route leads there."""
    frame = Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IPv6(src=GUEST6, dst=GATEWAY6)
    frame /= ICMPv6EchoRequest()

    assert_dropped(node.sends(frame), "tx not_unicast", frame)


# -- group memberships


def mld(report: Packet, dst: str = "ff02::16") -> Packet:
    """As kernels send it: with a router alert."""
    return (
        Ether(src=GUEST_MAC, dst="33:33:00:00:00:16")
        / IPv6(src=LINK_LOCAL, dst=dst, hlim=1)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / report
    )


MEMBERSHIPS = {
    "mld2-report": mld(ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(dst=GATEWAY_GROUP)])),
    "mld-report": mld(ICMPv6MLReport(mladdr=GATEWAY_GROUP), GATEWAY_GROUP),
    "mld-done": mld(ICMPv6MLDone(mladdr=GATEWAY_GROUP), ROUTERS),
    "mld-query": mld(ICMPv6MLQuery(), NODES),
    "igmp": Ether(src=GUEST_MAC, dst="01:00:5e:00:00:16")
    / IP(src=GUEST, dst="224.0.0.22", ttl=1, options=[IPOption_Router_Alert()], proto=2)
    / Raw(bytes.fromhex("16000804e00000fb")),
    "igmp-from-nobody": Ether(src=GUEST_MAC, dst="01:00:5e:00:00:16")
    / IP(src="0.0.0.0", dst="224.0.0.22", ttl=1, proto=2)
    / Raw(b"\x22" + bytes(15)),
}


@pytest.mark.parametrize("frame", MEMBERSHIPS.values(), ids=MEMBERSHIPS.keys())
@pytest.mark.parametrize("slot", [0, 3], ids=["bound", "unbound"])
def test_group_memberships_have_a_reason_of_their_own(node: Node, slot, frame):
    """Every kernel sends them when an interface comes up, so they must not hide the rest."""
    assert_dropped(node.sends(frame, slot=slot), "tx group_membership", frame)


# -- through the tunnel


def group_of(address: str) -> str:
    """The group that a solicitation for the address goes to."""
    return str(
        IPv6Address(bytes.fromhex("ff02" + "00" * 9 + "01ff") + IPv6Address(address).packed[-3:])
    )


def asked(target: str = ALICE6, **fields: object) -> Packet:
    """As a peer asks that sees the VPC as one Ethernet."""
    own = ICMPv6NDOptSrcLLAddr(lladdr=ASKER_MAC)
    known = {"src": REMOTE6, "dst": group_of(target), "eth_src": ASKER_MAC, "options": own}
    return solicitation(target, **{**known, **fields})


WIRE_ANSWERED = {
    "to-the-group": {},
    "to-the-address": {"dst": ALICE6},
    "without-an-option": {"options": None},
    "with-an-option-nobody-knows": {"options": LONG},
    "from-a-link-local-address": {"src": "fe80::33:1"},
}


@pytest.mark.parametrize("fields", WIRE_ANSWERED.values(), ids=WIRE_ANSWERED.keys())
def test_solicitation_through_the_tunnel_is_answered(any_node: Node, fields):
    """With the endpoint's own MAC, to the VTEP that asked, and as no router."""
    run = any_node.receives(any_node.arriving(asked(**fields)))

    answer = advertisement(ALICE6, mac_of(ALICE6), fields.get("src", REMOTE6), ASKER_MAC, router=0)
    assert run.verdict == REDIRECT
    assert run.frame == any_node.tunnelled(run, answer)
    assert source_port(run.frame) >= 32768
    assert faults(run.frame) == []
    assert run.counted == {"event wire_nd_answered": 1}
    assert run.traffic == {}


@pytest.mark.parametrize(("vni", "target"), [(BLUE, BOB6), (RED, CAROL6)])
def test_each_vpc_has_its_own_neighbours(node: Node, vni, target):
    """The same address has another MAC in another VPC."""
    run = node.receives(node.arriving(asked(target), vni=vni))

    answer = advertisement(target, mac_of(target), REMOTE6, ASKER_MAC, router=0)
    assert run.frame == node.tunnelled(run, answer, vni=vni)


@pytest.mark.parametrize("length", [4, 8, 20, 64, 252])
@pytest.mark.parametrize("options", [None, LONG], ids=["shorter", "longer"])
def test_answer_to_a_solicitation_with_options_has_none(any_node: Node, length, options):
    """Geneve's options were the sender's; the answer has its own length, too."""
    behind = (
        option(7, bytes(length - 4))
        if length <= 128
        else option(7, bytes(124)) + option(8, bytes(length - 128 - 4))
    )
    sent, fields = with_options(behind, asked(options=options))

    run = any_node.receives(any_node.arriving(sent, **fields))

    answer = advertisement(ALICE6, mac_of(ALICE6), REMOTE6, ASKER_MAC, router=0)
    assert run.frame == any_node.tunnelled(run, answer)
    assert faults(run.frame) == []
    assert run.counted == {"event wire_nd_answered": 1}


def test_answer_leaves_mark_and_priority_behind(node: Node):
    """As any packet of ours does."""
    run = node.receives(node.arriving(asked()), mark=0xBAD, priority=7)

    assert (run.verdict, run.mark, run.priority) == (REDIRECT, 0, 0)


WIRE_REFUSED = {
    "unknown-address": (asked(six("10.0.1.200")), {}, "no_endpoint"),
    "no-ipv6-there": (asked(six(DORA)), {}, "no_endpoint"),
    "unknown-vni": (asked(), {"vni": 999}, "no_endpoint"),
    "duplicate-search": (asked(src="::", options=None), {}, "nd_refused"),
    "announcement": (asked(src=ALICE6), {}, "nd_refused"),
    "to-another-group": (asked(dst=group_of(BOB6)), {}, "nd_refused"),
    "through-a-router": (asked(hlim=64), {}, "nd_refused"),
    "with-a-code": (asked(code=1), {}, "nd_refused"),
    "wrong-sum": (Raw(with_checksum(asked(), 1)), {}, "nd_refused"),
    "option-of-no-length": (asked(options=bytes(8)), {}, "nd_refused"),
    "router-solicitation": (router_solicitation(), {}, "nd_refused"),
    "router-advertisement": (message(ICMPv6ND_RA()), {}, "nd_refused"),
    "advertisement-to-a-sandbox": (
        advertisement(REMOTE6, ASKER_MAC, ALICE6, mac_of(ALICE6), router=0),
        {},
        "nd_refused",
    ),
    "redirect-to-a-sandbox": (
        Ether(src=ASKER_MAC, dst=mac_of(ALICE6))
        / IPv6(src="fe80::9", dst=ALICE6, hlim=255)
        / ICMPv6ND_Redirect(tgt="fe80::9", dst=BOB6),
        {},
        "nd_refused",
    ),
    "without-ethernet": (Raw(bytes(asked())[14:]), {"proto": 0x86DD}, "nd_refused"),
    "no-way-back": (asked(), {"afar": "203.0.113.5"}, "no_underlay_route"),
    "no-way-back-for-a-longer-answer": (
        asked(options=None),
        {"afar": "203.0.113.5"},
        "no_underlay_route",
    ),
}


@pytest.mark.parametrize(
    ("inner", "outer", "reason"), WIRE_REFUSED.values(), ids=WIRE_REFUSED.keys()
)
def test_other_neighbour_discovery_through_the_tunnel_is_dropped(
    any_node: Node, inner, outer, reason
):
    """No sandbox ever hears of routers and neighbours from afar."""
    outer = dict(outer)
    if afar := outer.pop("afar", None):
        outer["src"] = vtep_of(afar, any_node.family)
    frame = any_node.arriving(inner, **outer)

    assert_dropped(any_node.receives(frame), f"rx {reason}", frame)


def test_other_icmpv6_of_the_tunnel_is_delivered(node: Node):
    """An echo request is no neighbour discovery."""
    inner = Ether(src=GATEWAY_MAC, dst=GATEWAY_MAC) / IPv6(src=REMOTE6, dst=ALICE6)

    run = node.receives(node.arriving(inner / ICMPv6EchoRequest()))

    assert run.verdict == REDIRECT
    assert run.counted == {}


# -- anything at all


@pytest.mark.parametrize("seed", range(4))
def test_damaged_questions_are_answered_or_counted_once(any_node: Node, seed):
    """Never both, and an answer is always a right one of the one length."""
    frames = [
        solicitation(),
        solicitation(options=None),
        router_solicitation(),
        *MEMBERSHIPS.values(),
    ]

    for frame in damaged(frames, seed):
        run = any_node.sends(frame)

        assert sum(run.counted.values()) + len(run.traffic) >= 1, frame.hex()
        if run.verdict == REDIRECT and not run.traffic:
            assert len(run.frame) == 86, frame.hex()
            assert faults(run.frame) == [], frame.hex()
        else:
            assert run.verdict in (SHOT, REDIRECT), frame.hex()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_questions_through_the_tunnel(any_node: Node, seed):
    """The same for what comes from afar."""
    frames = [any_node.arriving(asked()), any_node.arriving(asked(options=None))]

    for frame in damaged(frames, seed):
        run = any_node.receives(frame)

        if run.verdict == REDIRECT and run.counted:
            assert run.counted == {"event wire_nd_answered": 1}, frame.hex()
            assert faults(run.frame) == [], frame.hex()
        elif run.verdict == PASS_ON:
            assert run.frame == frame, frame.hex()
