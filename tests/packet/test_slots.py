# SPDX-License-Identifier: Apache-2.0
"""Slots in the real maps: what happens to one whose maker dies in the middle of removing it."""

from __future__ import annotations

import pytest

from geneve_ebpf.dataplane import Traffic, plane
from geneve_ebpf.errors import Code, GeneveError
from tests.packets import ALICE, BLUE, BOB, UDP, from_guest, six
from tests.programs import assert_dropped, loaded


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


def test_an_attach_cut_short_leaves_no_address_to_the_next(monkeypatch):
    """A killed agent's half-attached sandbox had one of IPv6; who gets the slot then has none."""
    with loaded(1) as node:

        def die():
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(plane.time, "time_ns", die)
            with pytest.raises(Killed):
                node.attach(0, "alice", BLUE, ALICE, six(ALICE))
        node.plane.repair()
        node.attach(0, "bob", BLUE, BOB)
        frame = from_guest(UDP(sport=1, dport=2), six(ALICE))

        run = node.sends(frame)

        assert_dropped(run, "tx no_address", frame)
        attached = node.plane.attachment(0)
        assert attached is not None
        assert attached.endpoint.address6 is None


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
