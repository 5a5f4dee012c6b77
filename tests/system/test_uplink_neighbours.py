# SPDX-License-Identifier: Apache-2.0
"""What else uses an uplink: other senders, other tunnels, other programs. And ARP from the wire."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from geneve_ebpf.host import namespaces, tc
from geneve_ebpf.host.links import index_of
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.loader import bpf, hooks
from geneve_ebpf.model import endpoint_mac
from tests.nodes import BLUE, Bed, Node, Sandbox, eventually, ping, run, socket_in
from tests.patience import PATIENCE
from tests.watcher import Watcher, hang_tcx
from tests.wire import (
    ARP,
    IPV4,
    Capture,
    arp_request,
    ethernet,
    geneve,
    parse_tunnel,
    tagged,
    udp,
)

NODE_MAC, PEER_MAC = "02:00:00:00:01:01", "02:00:00:00:09:09"
PEER = "192.0.2.9"  # a known VTEP, in tests that make it one


class Lone:
    """One node, and a namespace at the other end of its wire where frames are written by hand."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.peer_netns = bed.namespace("peer")
        netns = bed.namespace("node")
        self.lay_wire(netns)
        bed.address(self.peer_netns, "192.0.2.8/24", "far0")
        self.node: Node = bed.node(netns, "192.0.2.1")

    def lay_wire(self, netns: Path) -> None:
        """The uplink and its other end."""
        self.bed.wire(netns, "uplink0", self.peer_netns, "far0")
        for where, name, mac, address in (
            (netns, "uplink0", NODE_MAC, "192.0.2.1/24"),
            (self.peer_netns, "far0", PEER_MAC, f"{PEER}/24"),
        ):
            run("ip", "-n", where.name, "link", "set", name, "address", mac)
            self.bed.address(where, address, name)

    def outer(self, payload: bytes, *, source: str = PEER, port: int = 6081) -> bytes:
        """An outer frame to the node's VTEP."""
        return ethernet(NODE_MAC, PEER_MAC, IPV4, udp(source, "192.0.2.1", (40000, port), payload))

    def inner(self, target: str, payload: bytes = b"hello", *, vni: int = BLUE) -> bytes:
        """A Geneve payload: a UDP datagram from 10.0.2.5 to port 5000."""
        packet = udp("10.0.2.5", target, (5001, 5000), payload)
        return geneve(vni, ethernet("02:47:56:00:00:01", "02:47:0a:00:02:05", IPV4, packet))

    def send(self, *frames: bytes) -> None:
        """From the peer, as they are."""
        with socket_in(self.peer_netns, socket.AF_PACKET, socket.SOCK_RAW) as door:
            door.bind(("far0", 0))
            for frame in frames:
                door.send(frame)

    def capture(self) -> Capture:
        """What comes out of the wire at the peer."""
        return self.bed.capture(self.peer_netns, "far0")

    def listener(self, port: int) -> socket.socket:
        """A UDP socket of the node's own."""
        made = self.node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("192.0.2.1", port))
        made.settimeout(2 * PATIENCE)
        return made


@pytest.fixture(scope="module")
def bed() -> Iterator[Lone]:
    with Bed("up") as made:
        yield Lone(made)


@pytest.fixture
def lone(bed: Lone) -> Iterator[Lone]:
    bed.node.knows(PEER)
    yield bed
    bed.bed.clear()
    # pushed to its first state again, whatever the test hung there
    bed.node.bring_up()


@pytest.fixture
def sandbox(lone: Lone) -> Sandbox:
    return lone.node.sandbox(BLUE, "10.0.1.5")


@pytest.mark.kernel
def test_a_known_vtep_is_delivered(lone: Lone, sandbox: Sandbox) -> None:
    """The frame that the other tests change is a good one."""
    server = sandbox.udp(5000)

    lone.send(lone.outer(lone.inner("10.0.1.5")))

    assert server.recvfrom(100) == (b"hello", ("10.0.2.5", 5001))


@pytest.mark.kernel
def test_an_unknown_vtep_is_passed_on(lone: Lone, sandbox: Sandbox) -> None:
    """It is somebody else's tunnel: whoever has the port gets it as it came, and it is counted."""
    server, listener = sandbox.udp(5000), lone.listener(6081)
    payload = lone.inner("10.0.1.5")
    before = lone.node.events().get("unknown_vtep", 0)
    drops = lone.node.drops()

    lone.send(lone.outer(payload, source="192.0.2.8"))

    assert listener.recvfrom(2000) == (payload, ("192.0.2.8", 40000))
    assert lone.node.events()["unknown_vtep"] == before + 1
    assert lone.node.drops() == drops
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(10)


def test_a_vtep_that_was_removed_is_unknown_again(lone: Lone, sandbox: Sandbox) -> None:
    """From the next packet on."""
    server, listener = sandbox.udp(5000), lone.listener(6081)
    lone.send(lone.outer(lone.inner("10.0.1.5", b"first")))
    assert server.recv(10) == b"first"

    lone.node.plane.remove_vtep(IPv4Address(PEER))
    lone.send(lone.outer(lone.inner("10.0.1.5", b"second")))

    assert b"second" in listener.recv(2000)


def test_a_tagged_outer_frame_is_not_ours(lone: Lone, sandbox: Sandbox) -> None:
    """It belongs to a VLAN interface of the host; without one nobody takes it."""
    server, heard = sandbox.udp(5000), lone.node.capture()
    drops, events = lone.node.drops(), lone.node.events()

    lone.send(tagged(lone.outer(lone.inner("10.0.1.5", b"tagged")), 100))
    lone.send(lone.outer(lone.inner("10.0.1.5", b"plain")))

    assert server.recv(100) == b"plain"
    assert [one.vlan for one in heard.frames() if not one.outgoing] == [100, None]
    assert (lone.node.drops(), lone.node.events()) == (drops, events)


def test_a_tagged_outer_frame_reaches_the_next_program_untouched(
    lone: Lone, sandbox: Sandbox
) -> None:
    """Passed on, tag and bytes as they were."""
    with Watcher() as after, namespaces.entering(lone.node.netns):
        heard = lone.node.capture()
        with hang_tcx(after, socket.if_nametoindex("uplink0")):
            frame = lone.outer(lone.inner("10.0.1.5", b"tagged"))
            lone.send(tagged(frame, 100))

            assert eventually(lambda: after.count == 1)
        assert [(one.data, one.vlan) for one in heard.frames()] == [(frame, 100)]


@pytest.mark.kernel
def test_other_ports_and_protocols_pass(lone: Lone, sandbox: Sandbox) -> None:
    """Ping, TCP and UDP between the hosts themselves."""
    node = lone.node
    listener = lone.listener(4789)
    server = node.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("192.0.2.1", 0))
    server.listen()
    client = socket_in(lone.peer_netns, socket.AF_INET, socket.SOCK_STREAM)
    lone.bed.keep(client)

    client.connect(server.getsockname())
    lone.send(lone.outer(b"not ours", port=4789))

    assert listener.recv(100) == b"not ours"
    assert ping(lone.peer_netns, "192.0.2.1") == 3


def test_a_vxlan_device_on_the_same_uplink_works(lone: Lone, sandbox: Sandbox) -> None:
    """Another overlay of the host, between the same two addresses."""
    server = sandbox.udp(5000)
    ends = (lone.node.netns, "192.0.2.1", PEER, 1), (lone.peer_netns, PEER, "192.0.2.1", 2)
    try:
        for netns, local, remote, number in ends:
            run(
                "ip", "-n", netns.name, "link", "add", "vx0", "type", "vxlan", "id", BLUE,
                "local", local, "remote", remote, "dstport", 4789,
            )  # fmt: skip
            run("ip", "-n", netns.name, "address", "add", f"203.0.113.{number}/24", "dev", "vx0")
            run("ip", "-n", netns.name, "link", "set", "vx0", "up")

        assert ping(lone.node.netns, "203.0.113.2") == 3
        assert ping(lone.peer_netns, "203.0.113.1") == 3
        lone.send(lone.outer(lone.inner("10.0.1.5")))
        assert server.recv(100) == b"hello"
    finally:
        for netns, *_ in ends:
            run("ip", "-n", netns.name, "link", "delete", "vx0")


def test_programs_of_others_before_and_after_ours_keep_running(
    lone: Lone, sandbox: Sandbox
) -> None:
    """The one before sees every packet, the one after what we pass on; taking ours down or
    putting it back removes neither."""
    node = lone.node
    server, listener = sandbox.udp(5000), lone.listener(4789)
    lone.listener(6081)  # so that nothing is refused, which would be another packet
    with Watcher() as before, Watcher() as after, namespaces.entering(node.netns):
        ifindex = socket.if_nametoindex("uplink0")
        with hang_tcx(before, ifindex, first=True), hang_tcx(after, ifindex):
            lone.send(lone.outer(lone.inner("10.0.1.5")))
            assert server.recv(100) == b"hello"
            assert (before.count, after.count) == (1, 0)

            lone.send(lone.outer(b"passed on", port=4789))
            assert listener.recv(100) == b"passed on"
            assert eventually(lambda: (before.count, after.count) == (2, 1))

            with IPRoute() as ip, RouteSocket() as door:
                hooks.drop_uplink(ip, door, node.pins, "uplink0")
            lone.send(lone.outer(lone.inner("10.0.1.5")))
            assert eventually(lambda: (before.count, after.count) == (3, 2))

            node.bring_up()  # now behind both: whoever comes later hangs later
            lone.send(lone.outer(lone.inner("10.0.1.5")))
            assert server.recv(100) == b"hello"
            assert (before.count, after.count) == (4, 3)


@pytest.mark.kernel
def test_an_arp_request_through_the_tunnel_is_answered(lone: Lone, sandbox: Sandbox) -> None:
    """In place, by the endpoint's own MAC, to the VTEP and MAC that asked; no sandbox sees it."""
    inside, wire = sandbox.capture(), lone.capture()
    question = ethernet(
        "ff:ff:ff:ff:ff:ff", PEER_MAC, ARP, arp_request(PEER_MAC, "10.0.2.5", "10.0.1.5")
    )

    lone.send(lone.outer(geneve(BLUE, question)))

    answers: list[bytes] = []

    def answered() -> bool:
        answers.extend(one.data for one in wire.frames() if not one.outgoing)
        return any(parse_tunnel(data) for data in answers)

    assert eventually(answered)
    (answer,) = [found for data in answers if (found := parse_tunnel(data))]
    mac = str(endpoint_mac(sandbox.endpoint.address))
    assert (str(answer.ip.source), str(answer.ip.destination)) == ("192.0.2.1", PEER)
    assert answer.ip.header_right
    assert (answer.eth.destination, answer.eth.source) == (PEER_MAC, NODE_MAC)
    assert answer.geneve.vni == BLUE
    assert (answer.inner.destination, answer.inner.source) == (PEER_MAC, mac)
    body = answer.inner.payload
    assert answer.inner.kind == ARP
    assert body[6:8] == b"\0\2"
    assert body[8:14].hex(":") == mac
    assert (body[14:18], body[24:28]) == (bytes([10, 0, 1, 5]), bytes([10, 0, 2, 5]))
    assert lone.node.events()["wire_arp_answered"] == 1
    assert inside.frames() == []


@pytest.mark.parametrize(
    ("vni", "sender", "target", "reason"),
    [
        (BLUE, "10.0.2.5", "10.0.1.6", "no_endpoint"),
        (BLUE + 1, "10.0.2.5", "10.0.1.5", "no_endpoint"),
        (BLUE, "0.0.0.0", "10.0.1.5", "arp_refused"),
        (BLUE, "10.0.1.5", "10.0.1.5", "arp_refused"),
    ],
)
def test_other_arp_requests_through_the_tunnel_are_not(
    lone: Lone, sandbox: Sandbox, vni: int, sender: str, target: str, reason: str
) -> None:
    """For nobody here, for another VPC, a probe, an announcement: dropped and counted."""
    inside, before = sandbox.capture(), lone.node.drops()
    question = ethernet("ff:ff:ff:ff:ff:ff", PEER_MAC, ARP, arp_request(PEER_MAC, sender, target))

    lone.send(lone.outer(geneve(vni, question)))

    assert lone.node.gained(before, expected := {f"rx {reason}": 1}) == expected
    assert inside.frames() == []


CRITICAL = bytes.fromhex("fffe8000")  # an option of nobody's, without data


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda geneve: b"\x40" + geneve[1:], "geneve_version"),
        (lambda geneve: geneve[:1] + b"\x80" + geneve[2:], "geneve_control"),
        (lambda geneve: b"\x01\x40" + geneve[2:8] + CRITICAL + geneve[8:], "geneve_critical"),
        (lambda geneve: geneve[:2] + b"\x08\x06" + geneve[4:], "geneve_protocol"),
        (lambda geneve: b"\x3f" + geneve[1:], "short_frame"),
        (lambda geneve: geneve[:6], "short_frame"),
        (lambda geneve: geneve[:20], "short_frame"),
        (lambda geneve: geneve[:40], "short_frame"),
    ],
)
def test_bad_geneve_from_a_known_vtep_is_dropped_once(
    lone: Lone, sandbox: Sandbox, change: Callable[[bytes], bytes], reason: str
) -> None:
    """It is ours, so it goes no further: not to the host's stack either."""
    listener, before = lone.listener(6081), lone.node.drops()

    lone.send(lone.outer(change(lone.inner("10.0.1.5"))))

    assert lone.node.gained(before, expected := {f"rx {reason}": 1}) == expected
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(10)


def test_options_that_are_not_critical_are_skipped(lone: Lone, sandbox: Sandbox) -> None:
    """RFC 8926 section 3.5: all 252 bytes of them."""
    server = sandbox.udp(5000)
    plain = lone.inner("10.0.1.5")
    option = bytes.fromhex("fffe0300")  # nobody's, not critical, no data

    for count in (1, 63):
        lone.send(lone.outer(bytes([count]) + plain[1:8] + option * count + plain[8:]))
        assert server.recv(100) == b"hello"


def test_the_outer_packet_follows_the_kernels_neighbour(lone: Lone, sandbox: Sandbox) -> None:
    """A peer that changes its MAC is followed: nothing about it is kept by us."""
    node = lone.node
    node.route(BLUE, "10.0.2.0/24", PEER)
    client, wire = sandbox.udp(), lone.capture()
    far = ("ip", "-n", lone.peer_netns.name, "link", "set", "far0", "address")
    try:
        client.sendto(b"one", ("10.0.2.5", 5000))
        assert eventually(lambda: any(one.inner.payload for one in wire.tunnels()))
        run(*far, "02:00:00:00:0a:0a")
        node.run("ip", "neigh", "flush", "dev", "uplink0")

        client.sendto(b"two", ("10.0.2.5", 5000))

        sent = []
        assert eventually(lambda: sent.extend(wire.tunnels()) or sent)
        assert sent[0].eth.destination == "02:00:00:00:0a:0a"
    finally:
        run(*far, PEER_MAC)
        node.run("ip", "neigh", "flush", "dev", "uplink0")


def test_mark_priority_and_queue_do_not_travel(lone: Lone, sandbox: Sandbox) -> None:
    """A mark that the host put on the outer packet is gone inside; the frame that leaves a
    sandbox has none, nor its veth's queue."""
    node = lone.node
    node.route(BLUE, "10.0.2.0/24", PEER)
    server = sandbox.udp(5000)
    server.setsockopt(socket.SOL_SOCKET, 75, 1)  # SO_RCVMARK
    client = sandbox.udp()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 9)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 5)
    with (
        Watcher(set_mark=7) as marker,
        Watcher(collect=True) as leaving,
        namespaces.entering(node.netns),
    ):
        ifindex = socket.if_nametoindex("uplink0")
        with hang_tcx(marker, ifindex, first=True), hang_tcx(leaving, ifindex, egress=True):
            lone.send(lone.outer(lone.inner("10.0.1.5")))
            data, ancillary, _, _ = server.recvmsg(100, 64)
            client.sendto(b"out", ("10.0.2.5", 5000))
            assert eventually(lambda: leaving.count >= 1)

            assert data == b"hello"
            assert marker.count >= 1
            marks = [int.from_bytes(value, "little") for _, kind, value in ancillary if kind == 36]
            assert marks in ([], [0])
            assert leaving.collected == 0


@pytest.mark.kernel
def test_the_clsact_hook_works_beside_a_foreign_filter(lone: Lone, sandbox: Sandbox) -> None:
    """Where a kernel has no TCX: our filter delivers, the other's sees what comes first, and
    taking ours away leaves the other's and its qdisc alone."""
    node = lone.node
    server, listener = sandbox.udp(5000), lone.listener(6081)
    with (
        Watcher() as watcher,
        namespaces.entering(node.netns),
        IPRoute() as ip,
        RouteSocket() as door,
    ):
        hooks.drop_uplink(ip, door, node.pins, "uplink0")
        pinned = node.pins.root / "foreign"
        bpf.pin(watcher.program, pinned)
        try:
            node.run("tc", "qdisc", "add", "dev", "uplink0", "clsact")
            node.run(
                "tc", "filter", "add", "dev", "uplink0", "ingress", "pref", 1, "bpf", "da",
                "object-pinned", pinned,
            )  # fmt: skip
            hooks.hang_uplink(ip, door, node.pins, "uplink0", tcx=False)
            hooks.hang_uplink(ip, door, node.pins, "uplink0", tcx=False)  # once is enough

            # An uplink that is taken out of the configuration is found, and its hook goes.
            assert hooks.hung_uplinks(node.pins) == {"uplink0"}
            assert len(tc.ingress_programs(door, index_of(ip, "uplink0"))) == 2
            lone.send(lone.outer(lone.inner("10.0.1.5")))
            assert server.recv(100) == b"hello"
            lone.send(lone.outer(b"unknown", source="192.0.2.8"))
            assert listener.recv(100) == b"unknown"
            assert watcher.count == 2

            hooks.drop_uplink(ip, door, node.pins, "uplink0")
            assert hooks.hung_uplinks(node.pins) == set()
            lone.send(lone.outer(b"no longer ours"))
            assert listener.recv(100) == b"no longer ours"
            assert watcher.count == 3
            assert "clsact" in node.run("tc", "qdisc", "show", "dev", "uplink0")
        finally:
            node.run("tc", "qdisc", "delete", "dev", "uplink0", "clsact")
            pinned.unlink()


@pytest.mark.kernel
def test_the_clsact_hook_takes_its_own_qdisc_with_it(lone: Lone, sandbox: Sandbox) -> None:
    """Made by us, gone with us."""
    node, server = lone.node, sandbox.udp(5000)
    with namespaces.entering(node.netns), IPRoute() as ip, RouteSocket() as door:
        hooks.drop_uplink(ip, door, node.pins, "uplink0")
        hooks.hang_uplink(ip, door, node.pins, "uplink0", tcx=False)
        lone.send(lone.outer(lone.inner("10.0.1.5")))
        assert server.recv(100) == b"hello"

        hooks.drop_uplink(ip, door, node.pins, "uplink0")

    assert "clsact" not in node.run("tc", "qdisc", "show", "dev", "uplink0")
    assert hooks.hung_uplinks(node.pins) == set()


def test_an_uplink_that_comes_back_under_its_name_is_hooked_again(bed: Lone) -> None:
    """The link to the old interface leads nowhere; the next start makes a new one."""
    with Bed("again") as other:
        lone = Lone(other)
        lone.node.knows(PEER)
        sandbox = lone.node.sandbox(BLUE, "10.0.1.5")
        server = sandbox.udp(5000)
        run("ip", "-n", lone.node.netns.name, "link", "delete", "uplink0")
        lone.lay_wire(lone.node.netns)
        lone.send(lone.outer(lone.inner("10.0.1.5", b"too early")))

        lone.node.bring_up()
        lone.send(lone.outer(lone.inner("10.0.1.5")))

        assert server.recv(100) == b"hello"
        assert lone.node.facts.boot == "adopted"
        other.clear()
