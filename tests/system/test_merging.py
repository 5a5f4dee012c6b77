# SPDX-License-Identifier: Apache-2.0
"""Segments that the kernel merges on the uplink, fed by an idle tunnel device that is closed.

The underlay has no superpackets, as most NICs have none, and GRO on: what a sandbox gets whole
has been merged on the way.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from geneve_ebpf.dataplane.merging import DEVICE, Merged
from geneve_ebpf.dataplane.uplinks import Uplinks
from geneve_ebpf.host import links, namespaces
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from tests.nodes import (
    BLUE,
    RED,
    Bed,
    Node,
    Sandbox,
    Stream,
    eventually,
    inside,
    introduce,
    run,
    send_tcp,
    set_features,
    six,
    two_nodes,
)
from tests.offloads import SUPERPACKETS, SegmentSizes, complaints, kernel_log
from tests.one_poll import Wire
from tests.packets import TCP, UDP, Ether, Raw, faults, in_vpc, ip_header
from tests.tap import CHECKSUM, OWN, TSO, Tap
from tests.wire import Capture, Captured, parse_ethernet, parse_ip, parse_tunnel

DATA = os.urandom(1 << 16) * 32  # 2 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()


def look(node: Node, merge: str = "auto") -> Merged:
    """What the slot process does when an uplink changed."""
    settings = replace(node.settings, merge=merge)
    with namespaces.entering(node.netns), IPRoute() as ip, RouteSocket() as door:
        return Uplinks(settings, ip, door).look().merged


def device(node: Node) -> int:
    """Its index; 0 if there is none."""
    with namespaces.entering(node.netns), IPRoute() as ip:
        return links.index_of(ip, DEVICE)


@pytest.fixture(scope="module", params=[pytest.param(4, marks=pytest.mark.kernel), 6])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with Bed(f"mrg{request.param}") as made:
        for node in two_nodes(made, outside=request.param):
            set_features(node.netns, "uplink0", "gro", "on", "tso", "off")
            for name in SUPERPACKETS:
                set_features(node.netns, "uplink0", name, "off")
            assert look(node).uplinks == ("uplink0",)
        yield made


@pytest.fixture
def ends(bed: Bed) -> Iterator[tuple[Sandbox, Sandbox]]:
    """A sandbox on either node; the kernel's log has nothing to say of what they do."""
    a, b = bed.nodes
    said = kernel_log()
    yield a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
    bed.clear()
    assert complaints(said) == []


def test_segments_on_the_wire_arrive_merged_and_in_order(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """Not a byte wrong, few frames in the sandbox for many on the wire, none before its turn;
    datagrams beside them are not merged, nor lost."""
    one, two = ends
    wire, inside_two, sizes = bed.nodes[0].capture(), two.capture(), SegmentSizes(two)

    with Stream(one.netns, two.netns, two.address) as stream:
        assert send_tcp(one, two, DATA) == DIGEST
        lost = stream.lost()

    assert lost == set()
    sent = [frame for frame in wire.frames() if frame.outgoing and len(frame.data) > 1000]
    packets = [
        parse_ip(parse_ethernet(f.data).payload) for f in inside_two.frames() if not f.outgoing
    ]
    starts = [int.from_bytes(one.payload[4:8], "big") for one in packets if one.protocol == 6]
    assert max(len(frame.data) for frame in sent) <= 1514
    assert len(starts) < len(sent) / 3
    # What a hasty sender has sent twice may come twice, and what it sends late comes late.
    highest, again = -1, set()
    for frame in sent:
        found = parse_tunnel(frame.data)
        if found and found.packet.protocol == 6:
            start = int.from_bytes(found.packet.payload[4:8], "big")
            place = (start - starts[0]) & 0xFFFFFFFF
            if place <= highest:
                again.add(place)
            highest = max(highest, place)
    places = [(start - starts[0]) & 0xFFFFFFFF for start in starts]
    order = [place for place in places if place not in again]
    assert order == sorted(order)
    assert sizes.seen() == {len(sent[10].data) - (116 if ":" in bed.nodes[0].vtep else 96) - 20}
    # A slot's kernel may speak of its groups; nothing else.
    assert {*bed.nodes[0].drops(), *bed.nodes[1].drops()} <= {"tx group_membership"}


def test_both_families_and_both_ways_at_once(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """IPv6 inside is merged as IPv4 is."""
    a, b = bed.nodes
    one, two = a.sandbox(BLUE, six("10.0.1.6")), b.sandbox(BLUE, six("10.0.2.6"))
    inside_one = one.capture()

    assert send_tcp(two, one, DATA) == DIGEST

    came = [frame for frame in inside_one.frames() if not frame.outgoing]
    assert len(came) < len(DATA) / 1400 / 3


def gathered(capture: Capture, segments: int) -> list[Captured]:
    """What came in, once it carries so many segments of 1,000 bytes, or time is over."""
    came: list[Captured] = []

    def carried(one: Captured) -> int:
        return len(parse_ip(parse_ethernet(one.data).payload).payload[20:]) // 1000

    def whole() -> bool:
        came.extend(one for one in capture.frames() if not one.outgoing)
        return sum(map(carried, came)) >= segments

    eventually(whole, 2)
    return came


def test_vpcs_are_never_mixed(bed: Bed) -> None:
    """One flow in two VPCs with the same addresses, ports and sequence numbers, by turns, in outer
    headers that are the same: each tenant gets its own bytes, merged."""
    wire = Wire(bed)
    sandboxes = {vni: bed.nodes[1].sandbox(vni, "10.0.2.5") for vni in (BLUE, RED)}
    heard = {vni: sandbox.capture() for vni, sandbox in sandboxes.items()}
    frames = []
    for number, segment in enumerate(wire.segments(8)):
        for vni in (BLUE, RED):
            mine = segment.copy()
            mine[Raw].load = bytes([vni, number]) * 500
            frames.append(wire.frame(mine, vni=vni))
    try:
        wire.carry(frames)

        for vni, capture in heard.items():
            came = gathered(capture, 8)
            payloads = [parse_ip(parse_ethernet(one.data).payload).payload[20:] for one in came]
            assert b"".join(payloads) == b"".join(bytes([vni, n]) * 500 for n in range(8))
            assert len(came) < 8
    finally:
        bed.clear()


def test_congestion_marks_are_kept(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """A segment that the underlay marked is not merged with those that it did not mark."""
    wire, inside_two = Wire(bed), ends[1].capture()
    of_ipv6 = ":" in bed.nodes[0].vtep
    frames = []
    for number, segment in enumerate(wire.segments(6)):
        mark = 3 if number == 2 else 2
        frames.append(wire.frame(segment, vni=BLUE, ip={"tc" if of_ipv6 else "tos": mark}))

    wire.carry(frames)

    marks = []
    for one in gathered(inside_two, 6):
        raw = parse_ethernet(one.data).payload
        marks += [raw[1] & 3] * (len(parse_ip(raw).payload[20:]) // 1000)
    assert marks == [2, 2, 3, 2, 2, 2]


def test_what_was_verified_inside_is_not_verified_again(
    bed: Bed, ends: tuple[Sandbox, Sandbox]
) -> None:
    """On its way through GRO the kernel verifies both sums, the outer and the inner one.

    Decapsulation takes the outer one off and leaves the inner one (NO_CSUM_RESET).
    """
    wire, inside_two = Wire(bed), ends[1].capture()
    for layer in (UDP(sport=1, dport=2), TCP(sport=1, dport=2, flags="PA")):
        inner = in_vpc(layer / Raw(bytes(100)), "10.0.1.5", "10.0.2.5")
        wire.carry([wire.frame(inner, vni=BLUE, udp={"chksum": None})])

        (came,) = [one for one in inside_two.wait() if not one.outgoing]
        assert came.checksum_verified


def test_a_wrong_checksum_stays_wrong(bed: Bed, ends: tuple[Sandbox, Sandbox]) -> None:
    """Merging makes checksums anew, but not that of a segment whose own did not hold."""
    wire, inside_two = Wire(bed), ends[1].capture()
    segments = wire.segments(5)
    segments[2][TCP].chksum = 0x1234

    wire.carry([wire.frame(segment, vni=BLUE) for segment in segments])

    found = {}
    for one in gathered(inside_two, 5):
        packet = parse_ip(parse_ethernet(one.data).payload)
        found[packet.payload[20]] = (
            len(packet.payload[20:]) // 1000,
            one.checksum_pending or packet.payload_right,
        )
    assert found[2] == (1, False)
    assert sum(count for count, right in found.values() if right) == 4


@pytest.mark.parametrize("kind", ["tap", "host-tap"])
@pytest.mark.parametrize("offloads", [0, CHECKSUM | TSO], ids=["none", "checksums-and-tso"])
def test_a_machine_gets_what_its_tap_takes(bed: Bed, kind: str, offloads: int) -> None:
    """Merged on the uplink, and cut up again for a device that takes no superpackets; each byte in
    its place, each checksum right, or left to the machine if it said that it makes them. They are
    merged anew on the veth before the tap, and given so to a machine that takes it; but the taps
    of 6.1 cut up whatever was in a merged frame before."""
    merged = 0
    machine, wire = Tap(bed.nodes[1], kind, offloads=offloads), Wire(bed)
    seen, came, said = bed.nodes[1].capture(), b"", kernel_log()
    try:
        # The outer headers' identification goes up, as it does where a kernel cuts frames up: a
        # tap takes no superpacket whose segments are all to have the same.
        wire.carry(
            [
                wire.frame(one, vni=BLUE, ip={} if ":" in bed.nodes[1].vtep else {"id": number})
                for number, one in enumerate(wire.segments(8, OWN))
            ]
        )

        while len(came) < 8000:
            received = machine.receive()
            merged += received.merged
            if not received.merged:
                assert len(received.frame) <= 14 + 1450
                assert received.start or faults(received.frame) == []
            assert offloads or not (received.start or received.merged)
            came += parse_ip(parse_ethernet(received.frame).payload).payload[20:]
        assert came == b"".join(bytes([n]) * 1000 for n in range(8))
        assert len([one for one in seen.frames() if not one.outgoing]) < 8  # it was merged before
        anew = bool(offloads) and not platform.release().startswith("6.1.")
        assert bool(merged) == anew
        assert complaints(said) == []
    finally:
        machine.close()
        bed.clear()


def test_nothing_enters_or_leaves_the_host_by_the_device(bed: Bed) -> None:
    """What a stranger sends to the port, for the device to unpack, is dropped behind it; so is what
    a program of the host sends through it."""
    wire, b = Wire(bed), bed.nodes[1]
    own = device(b)
    with namespaces.entering(b.netns), IPRoute() as ip:
        mac = next(iter(ip.link("get", index=own))).get_attr("IFLA_ADDRESS")
    of_ipv6 = ":" in b.vtep
    bait = b.socket(socket.AF_INET6 if of_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    bait.bind(("", 999))
    bait.settimeout(0.3)
    stranger = "2001:db8::77" if of_ipv6 else "192.0.2.77"
    header = ip_header("203.0.113.9" if not of_ipv6 else "2001:db8:9::9", b.vtep)
    inner = Ether(src="02:00:00:00:00:01", dst=mac) / header / UDP(sport=1, dport=999) / Raw(b"in")
    fields: dict[str, object] = {"vni": 7, "src": stranger, "udp": {"chksum": None}}
    if look(b).device == "vxlan":  # as VXLAN has it: the flag for "the VNI is valid", and no more
        fields |= {"optionlen": 8, "proto": 0}
    before = b.drops()

    wire.carry([wire.frame(inner, **fields)])
    door = b.socket(socket.AF_PACKET, socket.SOCK_RAW)
    door.bind((DEVICE, 0))
    with pytest.raises(OSError, match="No buffer space"):  # that is how a drop shows here
        door.send(bytes(inner))

    expected = {"tx no_slot": 1, "rx host_frame": 1}
    assert b.gained(before, expected) == expected
    with pytest.raises(TimeoutError):
        bait.recv(100)


def test_it_follows_what_happens_to_uplink_and_device(bed: Bed) -> None:
    """GRO off and on, its worse form, the device deleted, taken down or taken out of our blocks,
    the port taken by somebody, the setting: each time the node says what is and why."""
    node = bed.nodes[0]
    merged = look(node)
    assert (merged.uplinks, merged.reasons) == (("uplink0",), ())
    assert merged.device in ("geneve", "vxlan")

    set_features(node.netns, "uplink0", "gro", "off")
    assert look(node) == Merged(reasons=("GRO is off on uplink0: ethtool -K uplink0 gro on",))
    assert not device(node)
    set_features(node.netns, "uplink0", "gro", "on", "rx-gro-list", "on")
    assert "rx-gro-list off" in look(node).reasons[0]
    assert not device(node)
    set_features(node.netns, "uplink0", "rx-gro-list", "off")
    assert look(node) == merged

    for harm in (
        ("ip", "link", "del", DEVICE),
        ("ip", "link", "set", DEVICE, "down"),
        ("tc", "qdisc", "del", "dev", DEVICE, "clsact"),
    ):
        node.run(*harm)
        assert look(node) == merged
        assert "state DOWN" not in node.run("ip", "link", "show", DEVICE)
        assert "ingress_block" in node.run("tc", "qdisc", "show", "dev", DEVICE, "clsact")
    before = device(node)
    assert look(node) == merged
    assert device(node) == before  # not made anew when nothing is wrong

    assert look(node, "off") == Merged(reasons=('switched off: merge = "off"',))
    assert not device(node)
    rival = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
    rival.bind(("", 6081))
    with namespaces.entering(node.netns), IPRoute() as ip, RouteSocket() as door:
        uplinks = Uplinks(node.settings, ip, door)
        assert "is taken" in uplinks.look().merged.reasons[0]
        assert DEVICE not in uplinks.watched  # its own attempt is not what it waits for
    assert not device(node)
    rival.close()
    assert look(node) == merged


@pytest.mark.kernel
def test_what_taps_would_cut_up_again_is_not_merged() -> None:
    """Where a node keeps taps alone, of a kernel as old as 6.1; `on` merges all the same."""
    with Bed("mrgtap") as made:
        node = two_nodes(made)[1]
        set_features(node.netns, "uplink0", "gro", "on", "tso", "off")
        found = {}
        for slots, merge in ((1, "auto"), (0, "auto"), (0, "on")):
            settings = replace(node.settings, slots=slots, host_tap_slots=1, merge=merge)
            with namespaces.entering(node.netns), IPRoute() as ip, RouteSocket() as door:
                found[slots, merge] = Uplinks(settings, ip, door).look().merged

        cuts_up = platform.release().startswith("6.1.")
        assert found[1, "auto"].uplinks == found[0, "on"].uplinks == ("uplink0",)
        assert found[0, "auto"].uplinks == (() if cuts_up else ("uplink0",))
        assert ("cut up" in "".join(found[0, "auto"].reasons)) == cuts_up
        assert "gnv-probe" not in node.run("ip", "link")


@pytest.mark.kernel
def test_uplinks_in_a_vrf_and_below_a_vlan() -> None:
    """The device's socket is in the VRF; what counts of a VLAN's interface is the one below."""
    with Bed("mrgvrf") as bed:
        ends = [bed.namespace(name) for name in "ab"]
        bed.wire(ends[0], "wire0", ends[1], "wire0")
        for number, netns in enumerate(ends, 1):
            for words in (
                ("ip", "link", "add", "vrf0", "type", "vrf", "table", 100),
                ("ip", "link", "set", "vrf0", "up"),
                ("ip", "link", "add", "link", "wire0", "name", "uplink0", "type", "vlan", "id", 9),
                ("ip", "link", "set", "uplink0", "master", "vrf0", "up"),
            ):
                try:
                    run(*inside(netns, *words))
                except RuntimeError as error:
                    if "Unknown device type" in str(error):
                        pytest.skip("this kernel has no VRF or no VLAN")
                    raise
            bed.address(netns, f"192.0.2.{number}/24", "uplink0")
            for name in SUPERPACKETS:
                set_features(netns, "wire0", name, "off")
            set_features(netns, "wire0", "gro", "on", "tso", "off")
        a, b = (bed.node(netns, f"192.0.2.{n}") for n, netns in enumerate(ends, 1))
        introduce(a, b)
        for node in (a, b):
            assert look(node) == Merged("vxlan", ("uplink0",))
        one, two = a.sandbox(BLUE, "10.0.1.5"), b.sandbox(BLUE, "10.0.2.5")
        inside_two = two.capture()

        assert send_tcp(one, two, DATA) == DIGEST

        came = [frame for frame in inside_two.frames() if not frame.outgoing]
        print(len(came), len(DATA) / 1400)
        assert len(came) < len(DATA) / 1400 / 3
        set_features(a.netns, "wire0", "gro", "off")
        assert look(a).reasons == ("GRO is off on wire0: ethtool -K wire0 gro on",)
        bed.clear()
