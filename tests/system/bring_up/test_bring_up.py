# SPDX-License-Identifier: Apache-2.0
"""A node's data plane comes up, is adopted, and refuses what it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.abi import JUMP_TABLE, PROGRAMS
from geneve_ebpf.dataplane import relay
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import links, namespaces, tc
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.loader import bpf, hooks, source
from geneve_ebpf.model import Guest, NodeSettings
from lab.network import ROOT, run
from tests.netns import hooks_of, interfaces
from tests.nodes import (
    BLUE,
    RED,
    RUN_ROOT,
    Bed,
    Node,
    Stream,
)
from tests.watcher import Watcher

OLDER = "0123456789ab"  # a hash of other programs


@pytest.fixture
def place(bed: Bed) -> Iterator[NodeSettings]:
    """A namespace with an uplink, and settings for a node in it; nothing is up yet."""
    netns, other = bed.namespace("node"), bed.namespace("peer")
    bed.wire(netns, "uplink0", other, "far0")
    bed.address(netns, "192.0.2.1/24", "uplink0")
    settings = NodeSettings(
        name="boot",
        vtep=IPv4Address("192.0.2.1"),
        uplinks=("uplink0",),
        netns=netns,
        run_root=RUN_ROOT,
    )
    yield settings
    dataplane.tear_down(settings)


@pytest.mark.kernel
def test_coming_up_again_adopts_and_loses_nothing(pair: tuple[Node, Node]) -> None:
    """Every attachment is there as before; a stream through both nodes has no gap."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    a.sandbox(RED, "10.0.1.5", name="not-the-same")
    before = list(a.plane.attachments())
    counters = one.counters

    with Stream(one.netns, two.netns, two.address) as stream:
        for node in (a, b, a, b):
            node.bring_up()
            assert node.facts.boot == "adopted"
        lost = stream.lost()

    assert (lost, stream.errors) == (set(), [])
    assert list(a.plane.attachments()) == before
    assert {attachment.sandbox for attachment in before} == {one.name, "not-the-same"}
    assert one.counters.tx_remote.packets >= counters.tx_remote.packets + stream.sent
    assert a.sandbox(BLUE, "10.0.1.6").ping("10.0.1.5") == 3


def test_new_programs_that_nobody_has_compiled_take_over_a_node_that_is_up(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An upgrade where nothing was kept; its maps are those of the compilation before."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    for path in (*map(a.pins.program, PROGRAMS), a.pins.map(JUMP_TABLE)):
        path.rename(path.with_name(path.name.replace(source.program_hash(), OLDER)))

    a.bring_up()

    assert a.facts.boot == "compiled"
    assert "earlier compilation" in a.facts.remark
    assert one.ping(two.address) == 3


@pytest.mark.kernel
def test_new_programs_take_over_under_traffic(pair: tuple[Node, Node]) -> None:
    """As after an upgrade: loaded anew, swapped under every sandbox, no packet lost."""
    a, b = pair
    one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    programs = {node: node.facts.program for node in pair}
    relays = {node: relay_of(node) for node in pair}

    with Stream(one.netns, two.netns, two.address) as stream:
        for node in (a, b):
            for path in (*map(node.pins.program, PROGRAMS), node.pins.map(JUMP_TABLE)):
                path.rename(path.with_name(path.name.replace(source.program_hash(), OLDER)))
            node.bring_up()
            assert node.facts.boot == "kept"
            assert list(node.pins.directory.glob(f"*{OLDER}")) == []
        lost = stream.lost()

    assert (lost, stream.errors) == (set(), [])
    assert all(node.facts.program != programs[node] for node in pair)
    for node, (index, program) in relays.items():
        same, another = relay_of(node)
        assert (same, another != program) == (index, True)
    assert two.ping("10.0.1.5") == 3
    assert a.sandbox(BLUE, "10.0.1.6").ping("10.0.2.5") == 3


def relay_of(node: Node) -> tuple[int, int]:
    """(interface index, id of its one program) of the far end of the relay to host taps."""
    with namespaces.entering(node.netns), RouteSocket() as door:
        index = links.index_by_name(door, relay.FAR)
        (program,) = tc.ingress_programs(door, index)
    return index, program


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"vtep": IPv4Address("192.0.2.7")}, "vtep"),
        ({"udp_port": 7777}, "udp_port"),
        (
            {
                "guest": Guest(
                    IPv4Address("169.254.99.2"),
                    IPv4Address("169.254.99.1"),
                    IPv4Network("169.254.99.0/30"),
                )
            },
            "guest_address",
        ),
    ],
)
def test_another_identity_is_refused_while_slots_exist(
    pair: tuple[Node, Node], change: dict[str, object], field: str
) -> None:
    """Slots carry it and peers know it; what runs goes on, and without slots it may change."""
    a, b = pair
    one = a.sandbox(BLUE, "10.0.1.5")
    b.sandbox(BLUE, "10.0.2.5")

    with pytest.raises(GeneveError) as refused:
        dataplane.bring_up(replace(a.settings, **change))

    assert (refused.value.code, refused.value.field) == (Code.NODE_IN_USE, field)
    assert one.ping("10.0.2.5") == 3
    a.destroy_slots()
    original = a.settings
    a.bring_up(replace(original, **change))
    a.bring_up(original)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"uplinks": ("uplink7",)}, "uplink7"),
        ({"uplinks": ("uplink0", "uplink7")}, "uplink7"),
        ({"netns": Path("/run/netns/gnv-there-is-none")}, "not a network namespace"),
        ({"netns": Path("/etc/hostname")}, "not a network namespace"),
        ({"netns": Path("/proc/self/ns/mnt")}, "not a network namespace"),
    ],
)
def test_a_place_that_is_not_there_is_refused(
    place: NodeSettings, change: dict[str, object], word: str
) -> None:
    """One line says what, and no hook hangs anywhere; taking it down removes the rest."""
    settings = replace(place, **change)
    try:
        with pytest.raises(GeneveError) as refused:
            dataplane.bring_up(settings)

        assert refused.value.code is Code.NODE_SETUP
        assert word in refused.value.message
        assert "\n" not in refused.value.message
        assert refused.value.hint
        assert place.netns is not None
        assert not [name for name in hooks_of(place.netns) if name == "uplink_rx"]
    finally:
        dataplane.tear_down(settings)
    assert not settings.run_directory.exists()


def test_a_private_mount_namespace_is_refused(place: NodeSettings) -> None:
    """Pins and slots made there would vanish with whoever made them."""
    code = (
        "import sys\n"
        "from geneve_ebpf import dataplane\n"
        "from geneve_ebpf.errors import GeneveError\n"
        "from geneve_ebpf.model import NodeSettings\n"
        "try:\n"
        "    dataplane.bring_up(NodeSettings.from_json(sys.argv[1]))\n"
        "except GeneveError as error:\n"
        "    print(error.code.name, error.hint)\n"
    )
    for command in (
        ["unshare", "-m"],
        ["ip", "netns", "exec", str(place.netns and place.netns.name)],
    ):
        done = subprocess.run(
            [*command, sys.executable, "-c", code, place.as_json()],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

        assert done.stdout.startswith("MOUNT_NAMESPACE "), done
        assert "netns" in done.stdout
    assert not place.run_directory.exists()


def test_pins_of_another_layout_are_refused(pair: tuple[Node, Node]) -> None:
    """They may hold live sandboxes of another version: neither adopted nor touched."""
    a, b = pair
    one = a.sandbox(BLUE, "10.0.1.5")
    b.sandbox(BLUE, "10.0.2.5")
    other = a.pins.root / "0123456789ab"
    other.mkdir()
    fd = bpf.call(0, bpf.create_attr("<5I44x", 2, 4, 8, 1, 0))  # an array
    bpf.pin(fd, other / "bindings")
    os.close(fd)
    try:
        for attempt in (
            lambda: dataplane.bring_up(a.settings),
            lambda: dataplane.DataPlane.open(a.settings.run_directory),
        ):
            with pytest.raises(GeneveError) as refused:
                attempt()
            assert refused.value.code is Code.LAYOUT_MISMATCH
            assert "0123456789ab" in refused.value.message
            assert "node down" in refused.value.hint
        assert one.ping("10.0.2.5") == 3
        assert (other / "bindings").exists()
    finally:
        (other / "bindings").unlink()
        other.rmdir()


def test_a_library_user_without_a_node_is_told_so(place: NodeSettings) -> None:
    """Nothing was brought up at that place."""
    with pytest.raises(GeneveError) as refused:
        dataplane.DataPlane.open(place.run_directory)

    assert refused.value.code is Code.NODE_SETUP


def test_another_program_on_the_block_is_noticed(pair: tuple[Node, Node]) -> None:
    """No slot is made and no start succeeds while the block holds more than our program."""
    a, b = pair
    b.sandbox(BLUE, "10.0.2.5")
    with Watcher() as foreign:
        pinned = a.pins.root / "foreign"
        bpf.pin(foreign.program, pinned)
        try:
            where = ("block", a.facts.block, "ingress", "pref", 1)
            a.run("tc", "filter", "add", *where, "bpf", "da", "object-pinned", pinned)
            links = a.run("ip", "-o", "link", "show")

            for attempt in (a.make_slots, lambda: dataplane.bring_up(a.settings)):
                with pytest.raises(GeneveError) as refused:
                    attempt()
                assert refused.value.code is Code.NODE_SETUP
                assert "block" in refused.value.message

            assert a.run("ip", "-o", "link", "show") == links
            assert list(a.place.directory.iterdir()) == []
            a.run("tc", "filter", "delete", *where)
        finally:
            pinned.unlink()
    a.bring_up()
    assert a.sandbox(BLUE, "10.0.1.5").ping("10.0.2.5") == 3


def test_a_block_number_in_use_is_left_to_its_user(bed: Bed, place: NodeSettings) -> None:
    """Blocks are numbers that anybody may name: ours is one that nobody had."""
    netns = place.netns
    assert netns is not None
    run("ip", "-n", netns.name, "link", "add", "other0", "type", "veth", "peer", "name", "other1")
    run("tc", "-n", netns.name, "qdisc", "add", "dev", "other0", "ingress_block", 6081, "clsact")

    node = bed.node(netns, "192.0.2.1")

    assert node.facts.block != 6081
    shown = run("tc", "-n", netns.name, "qdisc", "show", "dev", "other0")
    assert "ingress_block 6081" in shown
    node.close()
    bed.nodes.remove(node)
    assert "ingress_block 6081" in run("tc", "-n", netns.name, "qdisc", "show", "dev", "other0")


def test_an_uplink_may_be_the_interface_of_a_vlan(bed: Bed) -> None:
    """Its name has a dot, which a BPF file system takes in none of its own. None is taken from
    under a sandbox.
    """
    netns, other = bed.namespace("named"), bed.namespace("far")
    for name in ("eth0.100", "eth0.200"):
        bed.wire(netns, name, other, f"far-{name}")
    node = bed.node(netns, "192.0.2.1", "eth0.100", "eth0.200")
    assert hooks.hung_uplinks(node.pins) == {"eth0.100", "eth0.200"}

    node.sandbox(BLUE, "10.0.1.5")
    with pytest.raises(GeneveError) as refused:
        dataplane.bring_up(replace(node.settings, uplinks=("eth0.100",)))
    assert (refused.value.code, refused.value.field) == (Code.NODE_IN_USE, "uplinks")
    assert hooks.hung_uplinks(node.pins) == {"eth0.100", "eth0.200"}
    node.destroy_slots()
    node.bring_up(replace(node.settings, uplinks=("eth0.100",)))

    assert hooks.hung_uplinks(node.pins) == {"eth0.100"}


def test_a_node_with_slots_does_not_move_to_another_namespace(
    bed: Bed, place: NodeSettings
) -> None:
    """Its slots would be adopted without their interfaces, and attached to without effect."""
    netns, other = bed.namespace("elsewhere"), bed.namespace("far")
    bed.wire(netns, "uplink0", other, "far0")
    bed.address(netns, "192.0.2.1/24", "uplink0")
    assert place.netns is not None
    node = bed.node(place.netns, "192.0.2.1")
    node.make_slots()

    with pytest.raises(GeneveError) as refused:
        dataplane.bring_up(replace(node.settings, netns=netns))

    assert (refused.value.code, refused.value.field) == (Code.NODE_IN_USE, "netns")
    assert interfaces(netns) == {"lo", "uplink0"}
    node.bring_up()


def test_a_second_node_in_one_namespace_is_refused(pair: tuple[Node, Node]) -> None:
    """It would take the first one's program and interfaces; taking it down takes nothing either."""
    a, b = pair
    one = a.sandbox(BLUE, "10.0.1.5")
    b.sandbox(BLUE, "10.0.2.5")
    before = interfaces(a.netns), hooks_of(a.netns)
    second = replace(a.settings, name="second")

    with pytest.raises(GeneveError) as refused:
        dataplane.bring_up(second)

    assert (refused.value.code, refused.value.field) == (Code.NODE_IN_USE, "netns")
    assert str(a.settings.run_directory) in refused.value.message
    dataplane.tear_down(second)
    assert not second.run_directory.exists()
    assert (interfaces(a.netns), hooks_of(a.netns)) == before
    assert one.ping("10.0.2.5") == 3


def test_facts_are_what_the_kernel_says(pair: tuple[Node, Node]) -> None:
    """The block's program, by another reader than ours."""
    a, _ = pair
    (slot,) = a.make_slots()

    shown = json.loads(a.run("bpftool", "-j", "net", "show"))[0]["tc"]
    anchor = next(entry for entry in shown if entry["devname"] == hooks.ANCHOR)
    ours = next(entry for entry in shown if entry["devname"] == a.host_interface(slot))

    assert anchor["name"] == ours["name"] == "sandbox_tx"
    assert anchor["id"] == ours["id"] == a.facts.program
    assert a.facts.uplink_hook == "tcx"
    with namespaces.entering(a.netns):
        assert hooks.hung_uplinks(a.pins) == {"uplink0"}
