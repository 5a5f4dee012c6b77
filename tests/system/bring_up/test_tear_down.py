# SPDX-License-Identifier: Apache-2.0
"""A node is taken down, whatever is under way there: all of it goes, and nothing of others'."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from geneve_ebpf import dataplane
from geneve_ebpf.host import links, slots
from tests.netns import hooks_of, interfaces
from tests.nodes import (
    BLUE,
    Bed,
    Node,
    Stream,
    eventually,
    introduce,
    ping,
    two_nodes,
)


def test_down_removes_everything_and_twice_is_fine(bed: Bed) -> None:
    """With sandboxes attached and traffic under way: no hook, block, interface, mount or file."""
    a, b = two_nodes(bed)
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    a.make_slots(3)
    assert interfaces(a.netns) >= {"gnv-anchor", "gnv0", "gnv1", "uplink0"}

    with Stream(one.netns, two.netns, two.address):
        for _ in range(2):
            dataplane.tear_down(a.settings)

    assert interfaces(a.netns) == {"lo", "uplink0"}
    assert not a.settings.run_directory.exists()
    assert hooks_of(a.netns) == []
    assert "clsact" not in a.run("tc", "qdisc", "show")
    assert ping(a.netns, "192.0.2.2") == 3


def test_down_removes_hundreds_of_taps_and_nothing_else(bed: Bed) -> None:
    """They are deleted together; one that is gone already is in nobody's way, nor is what others
    have in the namespace."""
    a, _ = two_nodes(bed)
    a.run("ip", "link", "add", "bystander", "type", "veth", "peer", "name", "other")
    a.make_slots(links._TOGETHER + 3, slots.HostTapKind(0))
    a.run("ip", "link", "delete", a.host_interface(7))

    dataplane.tear_down(a.settings)

    assert interfaces(a.netns) == {"lo", "uplink0", "bystander", "other"}


def test_down_takes_the_interface_from_whoever_lingers(bed: Bed) -> None:
    """Also of a slot whose destruction was under way: its mount is gone, its interface not yet."""
    a, _ = two_nodes(bed)
    netns = a.place.netns(*a.make_slots())
    with subprocess.Popen(["nsenter", f"--net={netns}", "sleep", "60"]) as lingering:
        try:
            inside = Path(f"/proc/{lingering.pid}/ns/net")
            assert eventually(lambda: os.readlink(inside) != os.readlink("/proc/self/ns/net"))
            a.plane.retire(0)
            slots.drop(a.place, 0)

            dataplane.tear_down(a.settings)

            assert interfaces(a.netns) == {"lo", "uplink0"}
            assert interfaces(inside) == {"lo"}
        finally:
            lingering.kill()


def test_two_nodes_of_one_machine_share_nothing(pair: tuple[Node, Node]) -> None:
    """Same block number, same slot names, other pins: one goes down, the other does not notice."""
    a, b = pair
    one, two = b.sandbox(BLUE, "10.0.2.5"), b.sandbox(BLUE, "10.0.2.6")
    a.sandbox(BLUE, "10.0.1.5")
    assert a.facts.block == b.facts.block

    try:
        dataplane.tear_down(a.settings)

        assert one.ping("10.0.2.6") == two.ping("10.0.2.5") == 3
    finally:
        a.bring_up()
        introduce(a, b)
