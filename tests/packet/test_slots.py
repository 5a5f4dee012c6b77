# SPDX-License-Identifier: Apache-2.0
"""Slots in the real maps: what happens to one whose maker dies in the middle of removing it."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from geneve_ebpf.abi import Address, EndpointKey, EndpointValue
from geneve_ebpf.dataplane import Traffic, sandboxes
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Endpoint, endpoint_mac
from tests.packets import ALICE, BLUE, BOB, DORA, UDP, from_guest, six
from tests.programs import assert_dropped, loaded


def wanted(which):
    """What `attach_many` takes, of slots and addresses."""
    return [
        (slot, f"s{slot}", Endpoint(BLUE, IPv4Address(text), endpoint_mac(IPv4Address(text))))
        for slot, text in which
    ]


def contents(node):
    """Who is attached, and every endpoint."""
    return list(node.plane.attachments()), [bytes(key) for key, _ in node.plane._endpoints.items()]


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


def test_a_slot_that_goes_while_totals_are_read_counts_once(monkeypatch):
    """Where slots come and go all the time no reading would be without one that goes."""
    with loaded(2) as node:
        node.attach(0, "alice", BLUE, ALICE)
        node.attach(1, "bob", BLUE, BOB)
        assert node.sends(from_guest(UDP(sport=1, dport=2), BOB)).counted == {}
        before = node.plane.vpc_totals()
        assert before[BLUE].tx_local == before[BLUE].rx_local == Traffic(1, 28)
        read = node.plane.counters

        def read_and_go(slot):
            monkeypatch.undo()
            counted = read(slot)
            node.plane.detach(slot)
            node.plane.remove_slot(slot)
            node.plane.add_slot(slot, 1)  # and another is there at once
            node.attach(slot, "dora", BLUE, DORA)
            return counted

        monkeypatch.setattr(node.plane, "counters", read_and_go)
        assert node.plane.vpc_totals() == before
        assert node.plane.attachment(0).sandbox == "dora"
        assert node.plane.vpc_totals() == before


def test_totals_are_not_told_in_the_middle_of_a_fold(monkeypatch):
    """The process that folded has died there. The next one ends it."""
    with loaded(2) as node:
        node.attach(0, "alice", BLUE, ALICE)
        before = node.plane.vpc_totals()
        node.plane.detach(0)

        def die(*_):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(node.plane._folded, "set", die)
            with pytest.raises(Killed):
                node.plane.remove_slot(0)
        with pytest.raises(TimeoutError, match="folded for long"):
            node.plane.vpc_totals()
        node.plane.repair()
        assert node.plane.vpc_totals() == before


def test_an_attach_cut_short_leaves_no_address_to_the_next(monkeypatch):
    """A killed agent's half-attached sandbox had one of IPv6; who gets the slot then has none."""
    with loaded(1) as node:

        class Layout:
            @staticmethod
            def pack_into(*_):
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(sandboxes, "_TENANT", Layout)
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


def test_many_are_attached_together_or_none():
    """Packets pass between them; what one of them may not have leaves the maps as they were."""
    with loaded(6) as node:
        node.attach(0, "alice", BLUE, ALICE)
        before = contents(node)

        for others, code in (
            ([(1, BOB), (2, ALICE)], Code.ADDRESS_IN_USE),
            ([(1, BOB), (2, BOB)], Code.ADDRESS_IN_USE),
            ([(1, BOB), (0, DORA)], Code.SLOT_TAKEN),
            ([(1, BOB), (1, DORA)], Code.SLOT_TAKEN),
        ):
            with pytest.raises(GeneveError) as caught:
                node.plane.attach_many(wanted(others))
            assert caught.value.code is code
            assert contents(node) == before

        made = node.plane.attach_many(wanted([(1, BOB), (2, DORA)]))

        assert [one.generation for one in made] == [2, 3]
        assert list(node.plane.attachments())[1:] == made
        assert node.sends(from_guest(UDP(sport=1, dport=2), BOB)).counted == {}
        node.plane.detach(1)
        assert node.plane.attach_many(wanted([(3, BOB)]))[0].generation == 4
        assert node.plane.repair() == 0


def test_without_room_for_all_none_is_attached():
    """The kernel stops in the middle: what it had taken is taken out again."""
    with loaded(6) as node:
        table = node.plane._endpoints
        nobody = EndpointValue(generation=1)
        others = [
            EndpointKey(9999, Address.of(IPv4Address(number)))
            for number in range(table.max_entries - 1)
        ]
        table.set_many((key, nobody) for key in others)
        with pytest.raises(GeneveError) as caught:
            node.plane.attach_many(wanted([(1, BOB), (2, DORA)]))
        assert caught.value.code is Code.MAP_FULL
        assert table.count() == len(others)

        table.remove_many(others)
        assert len(node.plane.attach_many(wanted([(1, BOB), (2, DORA)]))) == 2
