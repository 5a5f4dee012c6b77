# SPDX-License-Identifier: Apache-2.0
"""TCP to host taps, merged anew on a veth pair of the node's, which is closed.

Nothing is merged on the uplink here, as is so of most NICs without an idle tunnel device; what
comes merged is test_merging's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from bench import programs
from geneve_ebpf.dataplane import relay
from geneve_ebpf.dataplane.uplinks import Uplinks
from geneve_ebpf.host import links, namespaces
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from tests.model.relay import label
from tests.nodes import BLUE, RED, Bed, Node, set_features, two_nodes
from tests.offloads import SUPERPACKETS, complaints, kernel_log
from tests.one_poll import Wire
from tests.packets import Ether, Raw, faults
from tests.patience import PATIENCE
from tests.tap import CHECKSUM, OWN, TSO, Tap
from tests.wire import parse_ethernet, parse_ip

SEGMENT = 1000  # bytes of each in `Wire.segments`


def look(node: Node) -> str:
    """What the slot process does now and then; why there is no relay."""
    settings = replace(node.settings, merge="off")
    with namespaces.entering(node.netns), IPRoute() as ip, RouteSocket() as door:
        return Uplinks(settings, ip, door).look().no_relay


# For what another kernel may do otherwise; making it again and again takes long there.
ON_OTHER_KERNELS = pytest.mark.parametrize(
    "bed", [pytest.param(4, marks=pytest.mark.kernel), 6], indirect=True
)


@pytest.fixture(scope="module", params=[4, 6])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with Bed(f"rly{request.param}") as made:
        for node in two_nodes(made, outside=request.param):
            set_features(node.netns, "uplink0", "gro", "on", "tso", "off")
            for name in SUPERPACKETS:
                set_features(node.netns, "uplink0", name, "off")
            assert look(node) == ""
        yield made
        assert all(look(node) == "" for node in made.nodes)


@pytest.fixture
def wire(bed: Bed) -> Iterator[Wire]:
    """The kernel's log has nothing to say of what comes by it."""
    said = kernel_log()
    yield Wire(bed)
    bed.clear()
    assert complaints(said) == []


def data_of(frame: bytes) -> bytes:
    """What a TCP segment carries."""
    return parse_ip(parse_ethernet(frame).payload).payload[20:]


def read(machine: Tap, size: int) -> tuple[bytes, int]:
    """So many bytes that came, and how many of the frames are to be cut into segments."""
    came, merged = b"", 0
    while len(came) < size:
        received = machine.receive()
        merged += received.merged
        came += data_of(received.frame)
        assert received.start or received.merged or faults(received.frame) == []
    return came, merged


@ON_OTHER_KERNELS
@pytest.mark.parametrize("offloads", [0, CHECKSUM | TSO], ids=["none", "checksums-and-tso"])
def test_segments_are_merged_for_a_machine_that_takes_that(wire: Wire, offloads: int) -> None:
    """And cut up again for one that does not; each byte in its place."""
    machine = Tap(wire.b, "host-tap", offloads=offloads)
    try:
        wire.carry([wire.frame(one, vni=BLUE) for one in wire.segments(8, OWN)])

        came, merged = read(machine, 8 * SEGMENT)

        assert came == b"".join(bytes([n]) * SEGMENT for n in range(8))
        assert bool(merged) == bool(offloads)
    finally:
        machine.close()


@ON_OTHER_KERNELS
def test_machines_are_never_mixed(wire: Wire) -> None:
    """Two clones with one address, in one flow of the same ports and sequence numbers, by turns:
    each gets its own bytes, merged."""
    machines = {
        vni: Tap(wire.b, "host-tap", offloads=CHECKSUM | TSO, vni=vni) for vni in (BLUE, RED)
    }
    frames = []
    for number, segment in enumerate(wire.segments(8, OWN)):
        for vni in machines:
            mine = segment.copy()
            mine[Raw].load = bytes([vni, number]) * (SEGMENT // 2)
            frames.append(wire.frame(mine, vni=vni))
    try:
        wire.carry(frames)

        for vni, machine in machines.items():
            came, merged = read(machine, 8 * SEGMENT)
            assert came == b"".join(bytes([vni, n]) * (SEGMENT // 2) for n in range(8))
            assert merged
    finally:
        for machine in machines.values():
            machine.close()


@ON_OTHER_KERNELS
@pytest.mark.parametrize("end", [relay.NEAR, relay.FAR])
def test_nothing_enters_or_leaves_the_host_by_either_end(wire: Wire, end: str) -> None:
    """What a program of the host sends into it is dropped there; no end speaks of itself."""
    node = wire.b
    door = node.socket(socket.AF_PACKET, socket.SOCK_RAW)
    door.bind((end, 0))
    before = node.drops()

    with pytest.raises(OSError, match="No buffer space"):  # that is how a drop shows here
        door.send(bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / Raw(bytes(60))))

    assert node.gained(before, {"rx host_frame": 1}) == {"rx host_frame": 1}
    assert "inet" not in node.run("ip", "address", "show", end)
    assert "NOARP" in node.run("ip", "link", "show", end)


def index_of(node: Node, name: str) -> int:
    with namespaces.entering(node.netns):
        return socket.if_nametoindex(name)


@contextmanager
def led_into(node: Node, end: str) -> Iterator[socket.socket]:
    """A socket whose frames somebody's redirect leads into one end of the relay."""
    node.run("ip", "link", "add", "away0", "type", "veth", "peer", "away1")
    try:
        for name in ("away0", "away1"):
            with namespaces.entering(node.netns):
                links.disable_ipv6(name)
            node.run("ip", "link", "set", name, "up")
        towards = programs.redirect(index_of(node, end))
        programs.hang(node.netns, index_of(node, "away1"), towards)
        with namespaces.entering(node.netns), RouteSocket() as asked:
            links.wait_transmits(asked, links.index_by_name(asked, "away0"), 10 * PATIENCE)
        door = node.socket(socket.AF_PACKET, socket.SOCK_RAW)
        door.bind(("away0", 0))
        yield door
    finally:
        node.run("ip", "link", "del", "away0")


def test_what_somebody_redirects_into_it_is_dropped_behind_it(wire: Wire) -> None:
    """At either end: it names nobody of ours."""
    node = wire.b
    frame = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / Raw(bytes(60)))
    for end, reason in ((relay.NEAR, "rx no_slot"), (relay.FAR, "tx no_slot")):
        with led_into(node, end) as door:
            before = node.drops()

            door.send(frame)

            assert node.gained(before, {reason: 1}) == {reason: 1}


def test_what_was_on_its_way_when_somebody_left_is_a_drop(wire: Wire) -> None:
    """It is not for who comes after."""
    node = wire.b
    machine = Tap(node, "host-tap", offloads=CHECKSUM | TSO)
    machine.close()
    held = node.plane.attachment(machine.slot)
    assert held is not None
    frame = label(machine.slot, held.generation) + bytes(wire.segments(1, OWN)[0])[12:]
    with led_into(node, relay.NEAR) as door:
        node.plane.detach(machine.slot)
        before = node.drops()

        door.send(frame)

        assert node.gained(before, {"rx stale_endpoint": 1}) == {"rx stale_endpoint": 1}


def test_whatever_happens_to_it_is_mended(wire: Wire) -> None:
    """Deleted, taken down, taken out of our blocks, without its program or with other offloads:
    the next look makes it right, anew only where it must; and machines get their TCP."""
    node = wire.b
    before = index_of(node, relay.NEAR)
    assert look(node) == ""
    assert index_of(node, relay.NEAR) == before  # not made anew when nothing is wrong

    for anew, harm in (
        (False, ("ip", "link", "set", relay.NEAR, "down")),
        (False, ("ip", "link", "set", relay.FAR, "down")),
        (False, ("tc", "filter", "del", "dev", relay.FAR, "ingress")),
        (False, ("ethtool", "-K", relay.NEAR, "tso", "on")),
        (False, ("ethtool", "-K", relay.FAR, "gro", "off")),
        (True, ("ip", "link", "del", relay.NEAR)),
        (True, ("tc", "qdisc", "del", "dev", relay.NEAR, "clsact")),
        (True, ("tc", "qdisc", "del", "dev", relay.FAR, "clsact")),
    ):
        node.run(*harm)
        assert look(node) == ""
        now = index_of(node, relay.NEAR)
        assert (now != before) == anew, harm
        before = now
        assert merged_for_a_machine(wire), harm


def merged_for_a_machine(wire: Wire) -> int:
    """Whether it gets its bytes, and how many frames came merged."""
    machine = Tap(wire.b, "host-tap", offloads=CHECKSUM | TSO)
    try:
        wire.carry([wire.frame(one, vni=BLUE) for one in wire.segments(8, OWN)])
        came, merged = read(machine, 8 * SEGMENT)
        assert came == b"".join(bytes([n]) * SEGMENT for n in range(8))
        return merged
    finally:
        machine.close()
        wire.b.destroy_slots()


def test_without_one_machines_get_segments_and_the_node_says_why(wire: Wire) -> None:
    """As when its program is gone; until it can be made."""
    node = wire.b
    pin = node.pins.program(relay.PROGRAM)
    away = pin.with_name("away")
    pin.rename(away)
    try:
        assert "gnv-relay0 cannot be made: " in look(node)
        assert not merged_for_a_machine(wire)
        assert relay.NEAR not in node.run("ip", "link")
    finally:
        away.rename(pin)
    assert look(node) == ""
    assert merged_for_a_machine(wire)
