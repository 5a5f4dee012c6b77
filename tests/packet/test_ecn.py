# SPDX-License-Identifier: Apache-2.0
"""ECN through the tunnel by RFC 6040: all combinations, both families, both ways.

The kernel is no oracle here: its own tunnels encapsulate as RFC 3168 said.
"""

from __future__ import annotations

import itertools

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
    Packet,
    faults,
    from_guest,
    in_vpc,
    to_guest,
)
from tests.programs import REDIRECT, Node, assert_dropped

NOT_ECT, ECT1, ECT0, CE = range(4)
NAMES = ("not-ect", "ect1", "ect0", "ce")
DROPPED = None
# RFC 6040 figure 4: arriving inner -> arriving outer -> what the receiver gets.
OUTGOING = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: DROPPED},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}
ALL = list(itertools.product(range(4), range(4)))
IDS = [f"{NAMES[inner]}-in-{NAMES[outer]}" for inner, outer in ALL]
PAYLOADS = {
    "tcp": TCP(sport=1, dport=2, flags="PA") / b"odd",
    "udp": UDP(sport=1, dport=2) / b"data",
}
ENDS = {4: (REMOTE, ALICE), 6: (REMOTE6, ALICE6)}


def traffic_class(family: int, value: int) -> dict[str, int]:
    """DSCP and ECN, by scapy's name."""
    return {"tos" if family == 4 else "tc": value}


def outer_ecn(node: Node, frame: bytes) -> int:
    return frame[15] & 3 if node.family == 4 else frame[15] >> 4 & 3


def arriving(node: Node, family: int, payload: Packet, inner: int, outer: int, dscp: int = 0):
    frame = in_vpc(payload, *ENDS[family], **traffic_class(family, dscp << 2 | inner))
    return node.arriving(frame, ip=traffic_class(node.family, outer))


@pytest.mark.parametrize("dscp", [0, 46, 63])
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("inner", "outer"), ALL, ids=IDS)
def test_decapsulation_follows_figure_4(any_node: Node, family, payload, inner, outer, dscp):
    """The DSCP is the inner one's, every checksum is right, and what has no answer is dropped."""
    expected = OUTGOING[inner][outer]
    frame = arriving(any_node, family, payload, inner, outer, dscp)

    run = any_node.receives(frame)

    if expected is DROPPED:
        assert_dropped(run, "rx ecn_invalid", frame)
    else:
        assert run.verdict == REDIRECT
        field = traffic_class(family, dscp << 2 | expected)
        assert run.frame == bytes(to_guest(payload, ENDS[family][0], **field))
        assert faults(run.frame) == []
        assert run.counted == {}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("inner", "outer"), ALL, ids=IDS)
def test_sum_of_a_nic_stays_true(any_node: Node, family, inner, outer):
    """CHECKSUM_COMPLETE: a changed codepoint must change it, or the sandbox drops the packet."""
    frame = arriving(any_node, family, PAYLOADS["tcp"], inner, outer)

    run = any_node.completes("uplink_rx", frame)

    assert run.verdict == (REDIRECT if OUTGOING[inner][outer] is not DROPPED else 2)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("inner", "outer"), ALL, ids=IDS)
def test_payload_without_ethernet_is_no_exception(any_node: Node, family, inner, outer):
    """The same table where Geneve carries IP itself."""
    expected = OUTGOING[inner][outer]
    whole = in_vpc(PAYLOADS["udp"], *ENDS[family], **traffic_class(family, inner))
    frame = any_node.arriving(
        bytes(whole)[14:],
        proto={4: 0x0800, 6: 0x86DD}[family],
        ip=traffic_class(any_node.family, outer),
    )

    run = any_node.receives(frame)

    if expected is DROPPED:
        assert_dropped(run, "rx ecn_invalid", frame)
    else:
        wanted = to_guest(PAYLOADS["udp"], ENDS[family][0], **traffic_class(family, expected))
        assert run.frame == bytes(wanted)


@pytest.mark.parametrize("dscp", [0, 46, 63])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("inner", range(4), ids=NAMES)
def test_encapsulation_copies_the_codepoint(any_node: Node, family, inner, dscp):
    """Normal mode (section 4.1): all four, CE too; the inner header is as it was."""
    field = traffic_class(family, dscp << 2 | inner)
    remote, alice = ENDS[family]

    run = any_node.sends(from_guest(PAYLOADS["tcp"], remote, **field))

    assert outer_ecn(any_node, run.frame) == inner
    wanted = in_vpc(PAYLOADS["tcp"], alice, remote, **field)
    outer = traffic_class(any_node.family, inner)
    assert run.frame == any_node.tunnelled(run, wanted, ip=outer)
    assert faults(run.frame) == []


@pytest.mark.parametrize("dscp", [0, 63])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("inner", range(4), ids=NAMES)
def test_codepoint_between_two_sandboxes_is_left_alone(node: Node, family, inner, dscp):
    """No tunnel, no congestion in it."""
    field = traffic_class(family, dscp << 2 | inner)
    alice, bob = {4: (ALICE, BOB), 6: (ALICE6, BOB6)}[family]

    run = node.sends(from_guest(PAYLOADS["tcp"], bob, **field))

    assert run.frame == bytes(to_guest(PAYLOADS["tcp"], alice, **field))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("inner", range(4), ids=NAMES)
def test_what_one_node_sends_another_receives_unchanged(any_node: Node, family, inner):
    """Without congestion on the way the tunnel is invisible."""
    field = traffic_class(family, inner)

    run = any_node.receives(arriving(any_node, family, PAYLOADS["udp"], inner, inner))

    assert run.frame == bytes(to_guest(PAYLOADS["udp"], ENDS[family][0], **field))
