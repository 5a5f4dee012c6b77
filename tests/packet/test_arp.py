# SPDX-License-Identifier: Apache-2.0
"""ARP of a sandbox: the gateway's address is answered, everything else refused."""

from __future__ import annotations

import pytest

from tests.packets import (
    ALICE,
    BOB,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    arp_answer,
    arp_question,
)
from tests.programs import REDIRECT, Node, assert_dropped


@pytest.mark.parametrize("slot", [0, 3], ids=["attached", "unbound"])
@pytest.mark.parametrize("eth_dst", ["ff:ff:ff:ff:ff:ff", GATEWAY_MAC], ids=["asked", "verified"])
def test_arp_for_the_gateway_is_answered(node: Node, slot, eth_dst):
    """Back to the asker, attached or not: a guest that boots first must not give up."""
    run = node.sends(arp_question(eth_dst=eth_dst), slot=slot)

    assert run.verdict == REDIRECT
    assert run.frame == bytes(arp_answer(GATEWAY, GATEWAY_MAC))
    assert run.counted == {"event arp_answered": 1}
    assert run.traffic == {}


def test_padded_arp_is_answered_with_its_padding(node: Node):
    """Ethernet's shortest frame has 18 bytes more than ARP needs."""
    run = node.sends(bytes(arp_question()) + bytes(18))

    assert run.frame == bytes(arp_answer(GATEWAY, GATEWAY_MAC)) + bytes(18)


def with_byte(frame, at: int, value: int) -> bytes:
    """The frame with one byte changed and all others where they were."""
    raw = bytearray(bytes(frame))
    raw[at] = value
    return bytes(raw)


REFUSED = {
    "probe": arp_question(sender="0.0.0.0"),
    "probe-for-own-address": arp_question(GUEST, sender="0.0.0.0"),
    "own-address": arp_question(GUEST),
    "other-address": arp_question(BOB),
    "gratuitous": arp_question(GATEWAY, sender=GATEWAY),
    "reply": arp_question(op=2),
    "rarp": arp_question(op=3),
    "other-hardware": arp_question(hwtype=6),
    "other-protocol": arp_question(ptype=0x86DD),
    "hardware-length": with_byte(arp_question(), 18, 8),
    "protocol-length": with_byte(arp_question(), 19, 16),
}


@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED.keys())
def test_other_arp_is_refused(node: Node, frame):
    """Answering a probe would make a guest give its own address up."""
    assert_dropped(node.sends(frame), "tx arp_refused", frame)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (arp_question(sender=ALICE), "spoofed_address"),
        (arp_question(sender_mac="02:00:00:00:00:99", eth_src=GUEST_MAC), "spoofed_mac"),
        (arp_question(eth_src="02:00:00:00:00:99"), "spoofed_mac"),
        (arp_question(sender_mac="02:00:00:00:00:99"), "spoofed_mac"),
    ],
    ids=["address", "mac-in-arp", "mac-in-ethernet", "mac-in-both"],
)
def test_arp_in_another_name_is_refused(node: Node, frame, reason):
    """A sandbox asks as itself."""
    assert_dropped(node.sends(frame), f"tx {reason}", frame)


@pytest.mark.parametrize("length", [14, 15, 41])
def test_cut_off_arp_is_dropped(node: Node, length):
    """From the bare Ethernet header to one byte less than ARP."""
    frame = bytes(arp_question())[:length]

    assert_dropped(node.sends(frame), "tx short_frame", frame)
