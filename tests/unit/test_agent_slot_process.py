# SPDX-License-Identifier: Apache-2.0
"""What the slot process says to the agent where a step of its work fails; the agent is played."""

from __future__ import annotations

import errno
import json
import os
import socket
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from geneve_ebpf.agent.slot_process import SlotMaker, heard_from
from geneve_ebpf.host import slots
from geneve_ebpf.model import NodeSettings


@pytest.fixture
def channel():
    """Both ends: the agent's, the slot process's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def test_a_slot_that_the_maps_refuse_fails_alone(channel, tmp_path, monkeypatch):
    """Each index is spoken of once; those that were made are ready, and what is in no map goes."""
    ours, theirs = channel
    refused = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    known, dropped = [], []

    def add_slot(index, ifindex, kind):
        if index == 2:
            raise refused
        known.append(index)

    def drop(place, index):
        dropped.append(index)
        return True

    maker = SlotMaker.__new__(SlotMaker)
    maker._agent = theirs
    maker._plane = SimpleNamespace(add_slot=add_slot)
    guest = NodeSettings("none", IPv4Address("192.0.2.1"), ("gnv-none",)).guest
    maker._place = slots.Place(tmp_path, guest, 1450, 0, 0, 0)
    maker._route = maker._ip = maker._settings = None
    drafts = [slots.Draft(index, ifindex=100 + index) for index in range(4)]
    drafts[1].error = OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    monkeypatch.setattr(slots, "make_many", lambda *_: drafts)
    monkeypatch.setattr(slots, "drop", drop)
    monkeypatch.setattr(slots, "wait_gone", lambda ip, indexes: None)

    maker._kinds = {"namespace": slots.NAMESPACE}

    maker._obey("make", [0, 1, 2, 3], kind="namespace")
    theirs.close()

    with ours.makefile() as lines:
        said = [json.loads(line) for line in lines]
    assert [(one["event"], one.get("index")) for one in said] == [
        ("failed", 1), ("failed", 2), ("ready", None)
    ]  # fmt: skip
    assert said[2]["slots"] == [[0, 100], [3, 103]]
    assert (known, dropped) == ([0, 3], [2])


def test_an_agent_that_dies_with_words_unread_has_hung_up(channel):
    """The kernel says ECONNRESET then, to the next one who reads or writes."""
    ours, theirs = channel
    maker = SlotMaker.__new__(SlotMaker)
    maker._agent = theirs
    maker._tell(event="gone", indexes=[1])
    ours.close()

    maker._tell(event="gone", indexes=[2])
    assert heard_from(theirs) == b""

    again, other = socket.socketpair()
    with other:
        other.send(b"unread")
        again.close()
        assert heard_from(other) == b""
