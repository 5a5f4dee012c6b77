# SPDX-License-Identifier: Apache-2.0
"""Slots that others have laid hands on: their names, interfaces and namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces, slots
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.host.settings import Settings
from lab.network import run
from tests.netns import interfaces
from tests.nodes import (
    BLUE,
    Bed,
    Node,
    eventually,
    two_nodes,
)


def test_a_slot_that_cannot_be_made_leaves_nothing(pair: tuple[Node, Node]) -> None:
    """Its interface's name is taken, or its place on disk: what was there stays as it was."""
    a, _ = pair
    name = a.host_interface(3)
    a.run("ip", "link", "add", name, "type", "veth", "peer", "name", "taken1")
    links = a.run("ip", "-o", "link", "show")
    try:
        with namespaces.entering(a.netns), RouteSocket() as door:
            with pytest.raises(Exception, match="exist"):
                slots.make(door, a.place, 3)
            a.place.netns(4).touch()
            with pytest.raises(OSError, match="exist"):
                slots.make(door, a.place, 4)

        assert a.run("ip", "-o", "link", "show") == links
        assert sorted(a.place.directory.iterdir()) == [a.place.netns(4)]
        assert list(a.plane.slots()) == []
    finally:
        a.run("ip", "link", "delete", name)
        a.place.netns(4).unlink()


def test_a_process_that_lingers_keeps_no_interface(pair: tuple[Node, Node]) -> None:
    """A destroyed slot's eth0 is taken from whoever still sits in its namespace."""
    a, b = pair
    b.sandbox(BLUE, "10.0.2.5")
    one = a.sandbox(BLUE, "10.0.1.5")
    with subprocess.Popen(["nsenter", f"--net={one.netns}", "sleep", "60"]) as lingering:
        try:
            inside = Path(f"/proc/{lingering.pid}/ns/net")
            assert eventually(lambda: os.readlink(inside) != os.readlink("/proc/self/ns/net"))

            a.destroy_slots([one.slot])

            assert a.host_interface(one.slot) not in a.run("ip", "-o", "link", "show")
            assert "eth0" not in run("nsenter", f"--net={inside}", "ip", "-o", "link", "show")
            assert lingering.poll() is None
        finally:
            lingering.kill()
    assert a.sandbox(BLUE, "10.0.1.5").ping("10.0.2.5") == 3  # the index again


def test_a_namespace_deleted_behind_our_back(bed: Bed) -> None:
    """A slot's first, then the node's own: the rest works on, and all of it can be taken down."""
    a, b = two_nodes(bed)
    one, two = a.sandbox(BLUE, "10.0.1.5"), a.sandbox(BLUE, "10.0.1.6")
    three = b.sandbox(BLUE, "10.0.2.5")
    namespaces.remove(one.netns)
    assert eventually(lambda: a.host_interface(one.slot) not in a.run("ip", "-o", "link", "show"))

    assert two.ping("10.0.2.5") == 3
    assert not three.reaches("10.0.1.5")
    a.destroy_slots([one.slot])
    assert a.sandbox(BLUE, "10.0.1.5").ping("10.0.2.5") == 3

    run("ip", "netns", "delete", a.netns.name)
    dataplane.tear_down(a.settings)
    assert not a.settings.run_directory.exists()
    assert str(a.settings.run_directory) not in Path("/proc/mounts").read_text()


def test_a_slot_whose_interface_another_tool_took_never_comes_up(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clsact of its own it is in no block, so no program of ours would see its frames."""
    a, _ = pair
    connect = slots.NAMESPACE.connect

    def connect_and_be_late(
        door: RouteSocket, place: slots.Place, drafts: Sequence[slots.Draft]
    ) -> None:
        connect(door, place, drafts)
        a.run("tc", "qdisc", "add", "dev", "gnv1", "clsact")

    monkeypatch.setattr(slots.NAMESPACE, "connect", connect_and_be_late)
    settings = Settings()
    with namespaces.entering(a.netns), RouteSocket() as door:
        first, second, third = slots.make_many(door, a.place, [0, 1, 2], settings)
    settings.close()

    refused = second.error
    assert isinstance(refused, GeneveError)
    assert refused.code is Code.NODE_SETUP
    assert "gnv1" not in interfaces(a.netns)
    assert {"gnv0", "gnv2"} <= interfaces(a.netns)
    assert first.error is third.error is None
    assert sorted(a.place.directory.iterdir()) == [a.place.netns(0), a.place.netns(2)]
    for made in (first, third):
        a.plane.add_slot(made.index, made.ifindex)
