# SPDX-License-Identifier: Apache-2.0
"""Slots in the real maps: what happens to one whose maker dies in the middle of removing it."""

from __future__ import annotations

import pytest

from geneve_ebpf.dataplane import Traffic
from geneve_ebpf.errors import Code, GeneveError
from tests.packets import ALICE, BLUE, BOB, UDP, from_guest
from tests.programs import loaded


class Killed(BaseException):
    """The process ended here."""


@pytest.mark.parametrize(
    ("table", "call"),
    [("_folded", "set"), ("_counters", "clear_row"), ("_slots_by_ifindex", "remove")],
)
def test_a_removal_cut_short_is_done_again_and_counts_once(monkeypatch, table, call):
    """The VPC keeps what the slot counted, once; whoever gets the index starts at zero."""
    with loaded(2) as node:
        node.attach(0, "alice", BLUE, ALICE)
        node.attach(1, "bob", BLUE, BOB)
        assert node.sends(from_guest(UDP(sport=1, dport=2), BOB)).counted == {}
        before = node.plane.vpc_totals()
        assert before[BLUE].tx_local == Traffic(1, 28)
        node.plane.detach(0)

        def die(*_):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(getattr(node.plane, table), call, die)
            with pytest.raises(Killed):
                node.plane.remove_slot(0)
        assert [slot.index for slot in node.plane.slots()] == [0, 1]
        node.plane.remove_slot(0)

        assert [slot.index for slot in node.plane.slots()] == [1]
        assert node.plane.vpc_totals() == before
        assert node.plane.counters(0).tx_local == Traffic()


def test_a_slot_goes_although_its_vpc_cannot_be_counted(monkeypatch):
    """A full table of VPCs must not keep slots, or the node runs out of them."""
    with loaded(1) as node:
        node.attach(0, "alice", BLUE, ALICE)
        node.plane.detach(0)

        def full(*_):
            raise GeneveError(Code.MAP_FULL, "no room")

        monkeypatch.setattr(node.plane._folded, "set", full)
        node.plane.remove_slot(0)

        assert list(node.plane.slots()) == []
