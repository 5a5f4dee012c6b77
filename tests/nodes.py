# SPDX-License-Identifier: Apache-2.0
"""Nodes in network namespaces, with their data plane and sandboxes, for tests without an agent.

A `Bed` holds namespaces, the wires between them and nodes; closing it removes all
of them, whatever happened. Sockets are made inside a namespace and used from
outside: a socket stays where it was made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from socket import AF_INET
from typing import Any

from geneve_ebpf import dataplane
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.host import links, namespaces, slots
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.loader.bpf import quiesce
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import (
    GUEST_INTERFACE,
    Endpoint,
    NodeSettings,
    Route,
    RouteKind,
    SlotState,
    Vtep,
    endpoint_mac,
    host_interface,
)
from lab.network import NETNS, inside, run, set_up_namespace
from tests.patience import PATIENCE
from tests.wire import Capture

# Of this run alone, so that two runs on one machine do not meet.
PREFIX = f"gnv{os.getpid()}"
RUN_ROOT = Path(f"/run/{PREFIX}")

BLUE, RED = 42, 43  # VNIs
_SO_RCVBUFFORCE = 33


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Wait until the condition holds; whether it did."""
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def socket_in(netns: Path, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of that namespace."""
    with namespaces.entering(netns):
        return socket.socket(family, kind, protocol)


def family_of(address: object) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in str(address) else socket.AF_INET


def six(address: str) -> str:
    """The IPv6 address that belongs to an IPv4 one in every bed, or the prefix to a prefix."""
    network, _, length = address.partition("/")
    beside = IPv6Address(int(IPv6Address("fd00:6e76::")) + int(IPv4Address(network)))
    return f"{beside}/{96 + int(length)}" if length else str(beside)


def link(family: int, number: int, host: int) -> str:
    """A host's address on wire `number` of a bed with several."""
    return f"192.0.{2 + number}.{host}" if family == 4 else f"2001:db8:{2 + number}::{host}"


def keep_neighbours(interface: str) -> None:
    """What the kernel has learned of its neighbours there it does not ask again for an hour, in
    the namespace that this thread is in. When it would is not a test's matter."""
    for family in ("ipv4", "ipv6"):
        setting = Path(f"/proc/sys/net/{family}/neigh/{interface}/base_reachable_time_ms")
        setting.write_text("3600000")


def ping(netns: Path, address: object, *options: object, count: int = 3, wait: float = 1) -> int:
    """How many of `count` echo requests were answered, the last one within `wait` seconds."""
    often = ("-c", count, "-i", "0.02", "-W", wait * PATIENCE)
    words = ("ping", "-n", "-q", *often, *options, address)
    done = subprocess.run(
        inside(netns, *words),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    match = re.search(r"(\d+) received", done.stdout)
    return int(match[1]) if match else 0


class Host:
    """Somebody with an interface in a namespace, and addresses that others reach it by.

    address6: the one of IPv6 where it has both; who has one alone has it in `address`.
    """

    def __init__(
        self, bed: Bed, netns: Path, interface: str, address: str, address6: str = ""
    ) -> None:
        self.bed = bed
        self.netns = netns
        self.interface = interface
        self.address = address
        self.address6 = address6

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket inside, closed when the test ends."""
        made = socket_in(self.netns, family, kind, protocol)
        self.bed.keep(made)
        return made

    def udp(self, port: int = 0, family: int = AF_INET) -> socket.socket:
        """A UDP socket inside, with a second to wait and a large buffer."""
        made = self.socket(family, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        made.bind(("", port))
        made.settimeout(2 * PATIENCE)
        return made

    def capture(self) -> Capture:
        """Everything that passes the interface from now on."""
        return self.bed.capture(self.netns, self.interface)

    def send_frame(self, frame: bytes) -> None:
        """Put a frame on the interface as it is."""
        with socket_in(self.netns, socket.AF_PACKET, socket.SOCK_RAW) as door:
            door.bind((self.interface, 0))
            door.send(frame)

    def run(self, *words: object) -> str:
        """A command inside."""
        return run(*inside(self.netns, *words))

    def ping(self, address: object, *options: object, count: int = 3, wait: float = 1) -> int:
        """How many of `count` echo requests were answered."""
        return ping(self.netns, address, *options, count=count, wait=wait)

    def reaches(self, address: object) -> bool:
        """Whether any of three echo requests is answered; for when it should not be."""
        return ping(self.netns, address, wait=0.3) > 0


class Sandbox(Host):
    """A slot with somebody attached: an address of either family, or of both."""

    def __init__(
        self, node: Node, slot: int, name: str, vni: int, address: str, address6: str = ""
    ) -> None:
        super().__init__(node.bed, node.place.netns(slot), GUEST_INTERFACE, address, address6)
        self.node = node
        self.slot = slot
        self.name = name
        self.vni = vni
        both = [ip_address(one) for one in (address, address6) if one]
        of_ipv4 = next((one for one in both if one.version == 4), None)
        of_ipv6 = next((one for one in both if one.version == 6), None)
        self.endpoint = Endpoint(vni, of_ipv4, endpoint_mac(both[0]), of_ipv6)
        self.attachment = node.plane.attach(slot, name, self.endpoint)

    def detach(self) -> dataplane.Counters:
        """Unbind the slot; it stays, to be destroyed."""
        return self.node.plane.detach(self.slot)

    @property
    def counters(self) -> dataplane.Counters:
        """What it sent and got."""
        return self.node.plane.counters(self.slot)


class Node:
    """One node: a namespace and the data plane that was brought up in it."""

    def __init__(self, bed: Bed, settings: NodeSettings) -> None:
        self.bed = bed
        self.settings = settings
        self.plane: DataPlane = dataplane.bring_up(settings)
        self.read_facts()

    def read_facts(self) -> None:
        """Take over what the last bring-up found."""
        facts = dataplane.facts(self.settings.run_directory)
        self.facts = facts
        self.place = slots.Place(
            self.settings.run_directory / "netns",
            self.settings.guest,
            facts.mtu,
            facts.block,
            facts.program,
            facts.guard,
        )

    @property
    def netns(self) -> Path:
        """The node's namespace."""
        assert self.settings.netns is not None
        return self.settings.netns

    @property
    def vtep(self) -> str:
        """The node's outer address."""
        return str(self.settings.vtep)

    @property
    def pins(self) -> Pins:
        """Where its BPF objects are."""
        return Pins(self.settings.run_directory)

    def bring_up(self, settings: NodeSettings | None = None) -> None:
        """Once more, as an agent does when it starts again."""
        self.plane.close()
        self.plane = dataplane.bring_up(settings or self.settings)
        self.settings = settings or self.settings
        self.read_facts()

    def run(self, *words: object) -> str:
        """A command in the node's namespace."""
        return run(*inside(self.netns, *words))

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket in the node's namespace, closed when the test ends."""
        made = socket_in(self.netns, family, kind, protocol)
        self.bed.keep(made)
        return made

    def capture(self, interface: str = "uplink0") -> Capture:
        """Everything that passes an interface of the node from now on."""
        return self.bed.capture(self.netns, interface)

    def make_slots(self, count: int = 1, kind: slots.Kind = slots.NAMESPACE) -> list[int]:
        """Make slots with the lowest free indexes; returns those."""
        taken = {slot.index for slot in self.plane.slots()}
        indexes = [i for i in range(len(taken) + count) if i not in taken][:count]
        with namespaces.entering(self.netns), RouteSocket() as door:
            for index in indexes:
                ifindex = slots.make(door, self.place, index, kind)
                self.plane.add_slot(index, ifindex, kind.name)
        return indexes

    def tap_slot(self, kind: str = "tap", owner: int = 0) -> int:
        """A new slot with a tap: "tap" or "host-tap"."""
        if kind == "host-tap":
            return self.make_slots(kind=slots.HostTapKind(owner))[0]
        program = dataplane.splice_program(self.settings.run_directory)
        try:
            return self.make_slots(kind=slots.TapKind(owner, program))[0]
        finally:
            os.close(program)

    def sandbox(self, vni: int, address: str, name: str = "", address6: str = "") -> Sandbox:
        """A new sandbox on a slot of its own, with an address of either family, or of both."""
        (slot,) = self.make_slots()
        return Sandbox(self, slot, name or f"s{slot}", vni, address, address6)

    def destroy_slots(self, indexes: Iterable[int] | None = None) -> None:
        """Detach who is there and destroy slots, all of them unless some are named."""
        wanted = None if indexes is None else set(indexes)
        ended = [s for s in self.plane.slots() if wanted is None or s.index in wanted]
        attached = {attachment.slot for attachment in self.plane.attachments()}
        for slot in ended:
            if slot.index in attached:
                self.plane.detach(slot.index)
            elif slot.state in (SlotState.READY, SlotState.RESERVED):
                self.plane.retire(slot.index)
        with namespaces.entering(self.netns), IPRoute() as ip:
            for slot in ended:
                if not slots.drop(self.place, slot.index):
                    slots.cut_off(ip, slot.index)
            slots.wait_gone(ip, [slot.index for slot in ended])
        if ended:
            quiesce()
        for slot in ended:
            self.plane.remove_slot(slot.index)

    def host_interface(self, slot: int) -> str:
        """Name of a slot's interface on this side."""
        return host_interface(slot)

    def knows(self, *others: Node | str) -> None:
        """Accept Geneve from these."""
        for other in others:
            vtep = other if isinstance(other, str) else other.vtep
            self.plane.add_vtep(Vtep(ip_address(vtep)))

    def route(self, vni: int, prefix: str, to: Node | str | None, **more: Any) -> None:
        """Send a prefix to another node; None: to nowhere."""
        network = ip_network(prefix)
        if to is None:
            self.plane.set_routes([(vni, Route("", network, RouteKind.BLACKHOLE))])
            return
        vtep = ip_address(to if isinstance(to, str) else to.vtep)
        self.plane.set_routes([(vni, Route("", network, RouteKind.REMOTE, vtep, **more))])

    def drops(self) -> dict[str, int]:
        """Packets by "direction reason", without those that never happened."""
        return {
            f"{one.direction.value} {one.reason.slug}": one.packets
            for one in self.plane.drops()
            if one.packets
        }

    def gained(self, before: dict[str, int], expected: dict[str, int]) -> dict[str, int]:
        """The drops since `before`, once they are as expected or two seconds are over.

        A frame is dropped when the kernel gets round to it, a little after it was sent.
        """
        found: dict[str, int] = {}

        def as_expected() -> bool:
            nonlocal found
            now = self.drops()
            found = {key: n - before.get(key, 0) for key, n in now.items() if n != before.get(key)}
            return found == expected

        eventually(as_expected, 2)
        return found

    def events(self) -> dict[str, int]:
        """Packets by event, without those that never happened."""
        return {one.event.slug: one.packets for one in self.plane.events() if one.packets}

    def close(self) -> None:
        """Take the data plane down."""
        self.plane.close()
        dataplane.tear_down(self.settings)


class Bed:
    """Namespaces, wires, nodes; all of it goes when this closes, in the reverse order."""

    def __init__(self, name: str) -> None:
        self.prefix = f"{PREFIX}-{name}"
        self.nodes: list[Node] = []
        self._namespaces: list[str] = []
        self._open: list[Any] = []  # what the running test opened
        self._kept: list[Any] = []  # what the nodes need

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self, name: str, settings: dict[str, int] | None = None) -> Path:
        """Make a namespace with `lo` up; its path. settings: as `set_up_namespace` takes them."""
        full = f"{self.prefix}-{name}"
        self._namespaces.append(full)
        set_up_namespace(full, settings)
        return NETNS / full

    def wire(
        self, one: Path, one_name: str, other: Path, other_name: str, *, mtu: int = 1500
    ) -> None:
        """Join two namespaces with a veth pair, both ends up, without IPv6 that would talk."""
        run(
            "ip", "link", "add", one_name, "mtu", mtu, "netns", one.name, "type", "veth",
            "peer", "name", other_name, "mtu", mtu, "netns", other.name,
        )  # fmt: skip
        for netns, name in ((one, one_name), (other, other_name)):
            with namespaces.entering(netns):
                links.disable_ipv6(name)
            run("ip", "-n", netns.name, "link", "set", name, "up")

    def address(self, netns: Path, address: str, interface: str) -> None:
        """Give an interface an address, with its length. Only one of IPv6 lets it speak that."""
        words = ["ip", "-n", netns.name, "address", "add", address, "dev", interface]
        if family_of(address) == socket.AF_INET6:
            with namespaces.entering(netns):
                Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("0")
            words.append("nodad")
        run(*words)

    def route_over_both(self, netns: Path, target: str, other: int) -> None:
        """Two equal ways, by uplink0 and uplink1, to an address behind host `other`."""
        family = 6 if ":" in target else 4
        ways = (
            ("nexthop", "via", link(family, number, other), "dev", f"uplink{number}")
            for number in (0, 1)
        )
        run(
            *("ip", "-n", netns.name, "route", "replace", target),
            *(word for way in ways for word in way),
        )

    def node(self, netns: Path, vtep: str, *uplinks: str, **more: Any) -> Node:
        """Bring a node up in a namespace that has its interfaces already."""
        settings = NodeSettings(
            name=netns.name.removeprefix(f"{PREFIX}-"),
            vtep=ip_address(vtep),
            uplinks=uplinks or ("uplink0",),
            netns=netns,
            run_root=RUN_ROOT,
            **more,
        )
        try:
            made = Node(self, settings)
        except BaseException:
            dataplane.tear_down(settings)
            raise
        self.nodes.append(made)
        return made

    def keep(self, thing: Any) -> None:
        """Close it when the test ends."""
        self._open.append(thing)

    def keep_longer(self, thing: Any) -> None:
        """Close it when everything else is gone."""
        self._kept.append(thing)

    def capture(self, netns: Path, interface: str) -> Capture:
        """Everything that passes an interface from now on."""
        made = Capture(netns, interface)
        self.keep(made)
        return made

    def clear(self) -> None:
        """After a test: close its sockets, destroy its slots."""
        while self._open:
            self._open.pop().close()
        for node in self.nodes:
            node.destroy_slots()

    def close(self) -> None:
        """Remove everything, as much of it as there is."""
        with contextlib.ExitStack() as stack:
            stack.callback(_forget_run_root)
            for thing in self._kept:
                stack.callback(thing.close)
            for name in self._namespaces:
                if (NETNS / name).exists():
                    stack.callback(run, "ip", "netns", "delete", name)
            for node in self.nodes:
                stack.callback(node.close)
            while self._open:
                stack.callback(self._open.pop().close)
        self.nodes, self._namespaces, self._kept = [], [], []


def _forget_run_root() -> None:
    with contextlib.suppress(OSError):  # other beds may live in there
        RUN_ROOT.rmdir()


def two_nodes(bed: Bed, *, mtu: int = 1500, outside: int = 4, **more: Any) -> tuple[Node, Node]:
    """Two nodes on one wire that know each other, by the family `outside`.

    In both VPCs 10.0.1.0/24 is the first node's and 10.0.2.0/24 the second's, and so with `six`
    of them.
    """
    network, length = ("192.0.2.", 24) if outside == 4 else ("2001:db8::", 64)
    first, second = bed.namespace("a"), bed.namespace("b")
    bed.wire(first, "uplink0", second, "uplink0", mtu=mtu)
    bed.address(first, f"{network}1/{length}", "uplink0")
    bed.address(second, f"{network}2/{length}", "uplink0")
    a, b = bed.node(first, f"{network}1", **more), bed.node(second, f"{network}2", **more)
    introduce(a, b)
    return a, b


def introduce(a: Node, b: Node) -> None:
    """Make two nodes know each other and the usual routes, of both families."""
    a.knows(b)
    b.knows(a)
    for vni in (BLUE, RED):
        for one, two in (("10.0.1.0/24", "10.0.2.0/24"), (six("10.0.1.0/24"), six("10.0.2.0/24"))):
            a.route(vni, two, b)
            b.route(vni, one, a)


def set_features(netns: Path, interface: str, *words: str) -> None:
    """ethtool -K in a namespace."""
    run(*inside(netns, "ethtool", "-K", interface, *words))


def send_tcp(source: Host, target: Host, data: bytes, to: str = "") -> str:
    """Send all of it over one TCP connection; the SHA-256 of what arrived.

    Fails with a timeout when the stream stalls for five seconds.
    """
    family = family_of(to or target.address)
    listener = target.socket(family, socket.SOCK_STREAM)
    listener.settimeout(5 * PATIENCE)
    listener.bind(("", 0))
    listener.listen(1)
    digest = hashlib.sha256()

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    with source.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5 * PATIENCE)
        client.connect((to or target.address, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        accepted.settimeout(5 * PATIENCE)
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        with accepted:
            while part := accepted.recv(1 << 17):
                digest.update(part)
        sender.join(10)
    return digest.hexdigest()


class Stream:
    """Numbered UDP datagrams from one sandbox to another, while the test does something.

    About a thousand a second, so that queues never overflow for want of a CPU; and what has
    arrived is taken out at once, however long it all takes.
    """

    def __init__(self, source: Path, target: Path, to: str, port: int = 7000) -> None:
        self._to = (to, port)
        self._receiver = socket_in(target, family_of(to), socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._receiver.bind(("", port))
        self._sender = socket_in(source, family_of(to), socket.SOCK_DGRAM)
        self._stop = threading.Event()
        self.sent = 0
        self._arrived: set[int] = set()
        self.errors: list[OSError] = []
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        assert eventually(lambda: self.sent > 20)
        return self

    def _send(self) -> None:
        while not self._stop.is_set():
            try:
                self._sender.sendto(self.sent.to_bytes(8, "big"), self._to)
            except OSError as error:
                self.errors.append(error)
            self.sent += 1
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._take(socket.MSG_DONTWAIT)
            time.sleep(0.001)

    def _take(self, flags: int = 0) -> None:
        self._arrived.add(int.from_bytes(self._receiver.recv(64, flags), "big"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sender.close()
        self._receiver.close()

    def lost(self) -> set[int]:
        """Stop sending, wait for what is on its way; the numbers that never arrived."""
        self._stop.set()
        self._thread.join()
        self._receiver.settimeout(PATIENCE)
        with contextlib.suppress(TimeoutError):
            while len(self._arrived) < self.sent:
                self._take()
        return set(range(self.sent)) - self._arrived
