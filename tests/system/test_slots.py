# SPDX-License-Identifier: Apache-2.0
"""What is in a slot before anybody is attached: both families, and not a word on the link."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from geneve_ebpf.host import namespaces, slots
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.slots import GivenKind
from geneve_ebpf.host.slots.kinds import NamespaceKind
from tests.nodes import Bed, Node, eventually, inside, run, socket_in

pytestmark = pytest.mark.kernel

SLOTS = 20


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Bed("slots") as bed:
        netns, other = bed.namespace("a"), bed.namespace("b")
        bed.wire(netns, "uplink0", other, "uplink0")
        bed.address(netns, "192.0.2.1/24", "uplink0")
        yield bed.node(netns, "192.0.2.1")


def received(node: Node, slot: int) -> int:
    """Packets that came out of a slot."""
    (shown,) = json.loads(node.run("ip", "-j", "-s", "link", "show", node.host_interface(slot)))
    return int(shown["stats64"]["rx"]["packets"])


def shown(node: Node, slot: int, *words: str) -> Any:
    """What `ip` says inside a slot."""
    return json.loads(run(*inside(node.place.netns(slot), "ip", "-j", *words)) or "[]")


def test_a_slot_is_made_without_a_frame(node: Node) -> None:
    """No router solicitation, no duplicate address detection, no report of a group: thousands of
    slots are made on a node, and each frame would be one to drop."""
    made = node.make_slots(SLOTS)

    time.sleep(2.5)  # what the kernel would say twice, and at random, it has said by now

    assert [received(node, slot) for slot in made] == [0] * SLOTS
    assert node.drops() == {}
    node.bed.clear()


def test_a_slot_has_both_families(node: Node) -> None:
    """An address each, alone; a gateway each, whose MAC is known for good; nothing on the link."""
    (slot,) = node.make_slots()
    guest = node.settings.guest

    (link,) = shown(node, slot, "address", "show", "dev", "eth0")
    addresses = {(one["local"], one["prefixlen"], one["scope"]) for one in link["addr_info"]}
    routes = shown(node, slot, "-4", "route") + shown(node, slot, "-6", "route")
    neighbours = {
        (one["dst"], one["lladdr"], *one["state"]) for one in shown(node, slot, "neighbour")
    }

    assert addresses == {(str(guest.address), 32, "global"), (str(guest.address6), 128, "global")}
    assert {"BROADCAST", "MULTICAST", "UP"} <= set(link["flags"])
    assert "NOARP" not in link["flags"]
    assert {(one["dst"], one.get("gateway")) for one in routes} == {
        ("default", str(guest.gateway)),
        (str(guest.gateway), None),
        ("default", str(guest.gateway6)),
        (str(guest.address6), None),
    }
    mac = str(guest.gateway_mac)
    assert neighbours == {
        (str(guest.gateway), mac, "PERMANENT"),
        (str(guest.gateway6), mac, "PERMANENT"),
    }
    assert run(*inside(node.place.netns(slot), "sysctl", "-n", "net.ipv6.conf.eth0.accept_ra")) == (
        "0\n"
    )
    node.bed.clear()


def test_the_host_side_of_a_slot_has_no_ipv6(node: Node) -> None:
    """Nobody on the host can be spoken to from in there."""
    (slot,) = node.make_slots()
    name = node.host_interface(slot)

    assert node.run("ip", "-6", "address", "show", "dev", name) == ""
    assert node.run("sysctl", "-n", f"net.ipv6.conf.{name}.disable_ipv6") == "1\n"
    node.bed.clear()


def make_at_once(node: Node, kind: slots.Kind = slots.NAMESPACE) -> list[slots.Draft]:
    """Slots in one order, as the slot process makes them; those that were made are known."""
    settings = Settings()
    with namespaces.entering(node.netns), RouteSocket() as door:
        made = slots.make_many(door, node.place, range(SLOTS), settings, kind)
    settings.close()
    for draft in made:
        if draft.error is None:
            node.plane.add_slot(draft.index, draft.ifindex, kind.name)
    return made


def test_the_first_frame_out_of_a_slot_passes(node: Node) -> None:
    """However many are made at once: a veth whose peer came up after it throws away what is sent
    until the kernel's link watch has been there, and counts it nowhere."""
    for _ in range(3):
        made = [draft.index for draft in make_at_once(node)]

        for slot in made:
            with socket_in(node.place.netns(slot), socket.AF_INET, socket.SOCK_DGRAM) as door:
                door.sendto(b"first", (str(node.settings.guest.gateway), 9))

        assert [received(node, slot) for slot in made] == [1] * SLOTS
        node.bed.clear()


class Spoiled(NamespaceKind):
    """Fails for each, and the first one's namespace is kept at its place by somebody else."""

    def furnish(self, place: slots.Place, draft: slots.Draft) -> None:
        if draft.index == 0:
            run("mount", "--bind", place.netns(0), place.netns(0))
        raise OSError("spoiled")


def test_what_cannot_be_undone_of_one_slot_keeps_no_other(node: Node) -> None:
    """No namespace, interface or descriptor of the others stays, and each says why it failed."""
    descriptors = len(os.listdir("/proc/self/fd"))

    made = make_at_once(node, Spoiled())

    try:
        assert [str(draft.error) for draft in made[1:]] == ["spoiled"] * (SLOTS - 1)
        assert "spoiled; and it cannot be undone" in str(made[0].error)
        assert os.listdir(node.place.directory) == ["slot-0"]
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        namespaces.remove(node.place.netns(0))
    with namespaces.entering(node.netns):
        assert eventually(lambda: all(slots.gone(draft.index) for draft in made))
    node.bed.clear()


def test_a_thread_that_cannot_come_back_from_a_namespace_ends_its_process(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on in somebody else's network."""
    home = namespaces.current()
    monkeypatch.setattr(namespaces, "current", lambda: os.open(os.devnull, os.O_RDONLY))
    try:
        with pytest.raises(SystemExit, match="cannot come back"), namespaces.entering(node.netns):
            pass
    finally:
        namespaces.enter(home)
        os.close(home)


def test_who_takes_eth0_down_at_once_has_no_slot(node: Node) -> None:
    """Two seconds are waited, as no other slot is made meanwhile; of this one nothing is
    left."""

    class Hostile(GivenKind):
        """Root in the namespace was quicker than we."""

        def furnish(self, place, draft):
            super().furnish(place, draft)
            run("ip", "-n", netns.name, "link", "set", "eth0", "down")

    netns = node.bed.namespace("hostile")
    namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kind = Hostile(namespace, "eth0")
        with namespaces.entering(node.netns), RouteSocket() as door:
            assert kind.patience == 2 < NamespaceKind.patience
            with pytest.raises(TimeoutError, match="does not transmit"):
                slots.make(door, node.place, 3, kind)
        assert ": eth0@" not in run("ip", "-n", netns.name, "link")
        assert ": gnv3@" not in node.run("ip", "link")
    finally:
        os.close(namespace)
