# SPDX-License-Identifier: Apache-2.0
"""TCP on its way to a host tap: labelled with slot and generation, and addressed again at the far
end, if who was meant is still there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from geneve_ebpf.abi import Binding, NodeState, constant
from geneve_ebpf.loader.maps import SharedArray
from geneve_ebpf.model import SlotKind
from tests.model.relay import label
from tests.packets import (
    ALICE,
    ICMP,
    REMOTE,
    TCP,
    UDP,
    Packet,
    Raw,
    in_vpc,
    six,
    to_guest,
)
from tests.programs import REDIRECT, Node, Run, assert_dropped

SLOT = 0
HELLO = TCP(sport=1, dport=2, flags="PA") / Raw(b"hello")
KINDS = {SlotKind.NAMESPACE: 0, SlotKind.TAP: 1, SlotKind.HOST_TAP: 2}


@contextmanager
def row_of(node: Node, slot: int) -> Iterator[Binding]:
    """Somebody's binding, which is as it was afterwards."""
    bindings: SharedArray[Binding] = SharedArray(node.pins.map("bindings"), Binding, writable=True)
    try:
        row = bindings.row(slot)
        kind, generation = row.kind, row.generation
        try:
            yield row
        finally:
            row.kind, row.generation = kind, generation
    finally:
        bindings.close()


@pytest.fixture
def generation(any_node: Node) -> Iterator[int]:
    """Of who is in SLOT, which is a host tap meanwhile."""
    with row_of(any_node, SLOT) as row:
        row.kind = KINDS[SlotKind.HOST_TAP]
        yield row.generation


def arrives(node: Node, frame: bytes) -> Run:
    """relay_rx on what comes out of the far end."""
    return node.run("relay_rx", frame, ifindex=node.uplink)


def labelled(slot: int, generation: int) -> bytes:
    """HELLO, as uplink_rx sends it through."""
    return label(slot, generation) + bytes(to_guest(HELLO, REMOTE))[12:]


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
def test_tcp_to_a_host_tap_says_whom_it_is_for(
    any_node: Node, generation: int, version: int
) -> None:
    """In place of its Ethernet addresses; the far end puts those back, and changes nothing else."""
    src, dst = (REMOTE, ALICE) if version == 4 else (six(REMOTE), six(ALICE))
    inner, wanted = in_vpc(HELLO, src, dst), bytes(to_guest(HELLO, src))

    sent = any_node.receives(any_node.arriving(inner))
    got = arrives(any_node, sent.frame)

    assert (sent.verdict, got.verdict) == (REDIRECT, REDIRECT)
    assert sent.frame == label(SLOT, generation) + wanted[12:]
    assert got.frame == wanted
    assert [*sent.traffic] == ["slot-0 rx_remote"]
    assert (sent.counted, got.counted, got.traffic) == ({}, {}, {})


@pytest.mark.parametrize(
    "layer", [UDP(sport=1, dport=2) / b"hello", ICMP(type=0) / b"hello"], ids=["udp", "icmp"]
)
def test_what_cannot_be_merged_goes_straight(
    any_node: Node, generation: int, layer: Packet
) -> None:
    """To the tap, without the detour."""
    inner = in_vpc(layer, REMOTE, ALICE)

    assert any_node.receives(any_node.arriving(inner)).frame == bytes(to_guest(layer, REMOTE))


@pytest.mark.parametrize("kind", [SlotKind.NAMESPACE, SlotKind.TAP])
def test_who_has_a_veth_has_no_need_of_it(any_node: Node, kind: SlotKind) -> None:
    """TCP is merged there."""
    inner = in_vpc(HELLO, REMOTE, ALICE)
    with row_of(any_node, SLOT) as row:
        row.kind = KINDS[kind]

        assert any_node.receives(any_node.arriving(inner)).frame == bytes(to_guest(HELLO, REMOTE))


def test_without_a_relay_tcp_goes_straight(any_node: Node, generation: int) -> None:
    """As the node says that it could make none."""
    inner = in_vpc(HELLO, REMOTE, ALICE)
    state: SharedArray[NodeState] = SharedArray(
        any_node.pins.map("node_state"), NodeState, writable=True
    )
    relay = state.row(0).relay
    assert relay
    state.row(0).relay = 0
    try:
        assert any_node.receives(any_node.arriving(inner)).frame == bytes(to_guest(HELLO, REMOTE))
    finally:
        state.row(0).relay = relay
        state.close()


def test_who_came_after_gets_nothing_of_it(any_node: Node, generation: int) -> None:
    """Another generation, or nobody, in a slot that a frame was on its way to."""
    for there, meant in (
        (generation + 1, generation),
        (generation, generation + (1 << 32)),
        (0, generation),
        (0, 0),
    ):
        with row_of(any_node, SLOT) as row:
            row.generation = there
            frame = labelled(SLOT, meant)
            assert_dropped(arrives(any_node, frame), "rx stale_endpoint", frame)


def test_a_slot_that_is_no_host_tap_gets_nothing(any_node: Node) -> None:
    """Whatever its generation is."""
    with row_of(any_node, SLOT) as row:
        frame = labelled(SLOT, row.generation)

        assert_dropped(arrives(any_node, frame), "rx stale_endpoint", frame)


def test_what_names_no_slot_is_dropped(any_node: Node, generation: int) -> None:
    """Somebody else sent it."""
    for frame in (
        bytes(to_guest(HELLO, REMOTE)),
        b"\x06\x46" + labelled(SLOT, generation)[2:],
        labelled(constant("MAX_SLOTS"), generation),
    ):
        assert_dropped(arrives(any_node, frame), "rx no_slot", frame)
