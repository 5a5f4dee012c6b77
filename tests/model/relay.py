# SPDX-License-Identifier: Apache-2.0
"""The relay: how TCP for a host tap is labelled, and what the far end makes of it.

In place of its two Ethernet addresses a frame has the mark 06:47, its slot (two bytes) and
the generation of whoever is in it (eight), in the machine's byte order.
"""

from __future__ import annotations

from tests.model.state import HOST_TAP, REDIRECT, SHOT, Config, Context, Drop, Node, Outcome

MARK = bytes.fromhex("0647")
MAX_SLOTS = 16384


def label(slot: int, generation: int) -> bytes:
    """What stands in place of the addresses."""
    return MARK + slot.to_bytes(2, "little") + generation.to_bytes(8, "little")


def goes_by_relay(config: Config, kind: int, protocol: int) -> bool:
    """All TCP to host taps, and nothing else."""
    return config.relay and kind == HOST_TAP and protocol == 6


def arrives(node: Node, frame: bytes, context: Context) -> Outcome:
    """What becomes of a frame at the far end."""
    try:
        return _arrives(node, frame)
    except Drop as drop:
        return Outcome(SHOT, drop=f"rx {drop.reason}")


def _arrives(node: Node, frame: bytes) -> Outcome:
    slot, generation = (int.from_bytes(field, "little") for field in (frame[2:4], frame[4:12]))
    if frame[:2] != MARK or slot >= MAX_SLOTS:
        raise Drop("no_slot")
    there = node.bindings[slot] if slot < len(node.bindings) else None
    if there is None or there.kind != HOST_TAP or not generation:
        raise Drop("stale_endpoint")
    if there.generation != generation:
        raise Drop("stale_endpoint")
    return Outcome(REDIRECT, node.config.guest_mac + node.config.gateway_mac + frame[12:])
