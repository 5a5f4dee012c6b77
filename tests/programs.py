# SPDX-License-Identifier: Apache-2.0
"""The real programs in a network namespace of their own, fed one frame at a time.

`loaded` brings a node up as the agent would: compiled by BCC, verified, pinned,
hung on a shared block and on an uplink, with real slots. `Node.sends` and
`Node.receives` run its programs on one frame (BPF_PROG_TEST_RUN); the redirects
they decide on are not carried out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from scapy.packet import Packet

from geneve_ebpf import dataplane
from geneve_ebpf.abi import (
    PROGRAMS,
    Address,
    EndpointKey,
    EndpointValue,
    HostKey,
    Key32,
    NodeConfig,
    NodeState,
    RouteKey,
    RouteValue,
    VtepValue,
    constant,
)
from geneve_ebpf.host import links, namespaces, slots
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.maps import SharedArray, Table
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import (
    AddressMode,
    Endpoint,
    MacAddress,
    NodeSettings,
    Route,
    RouteKind,
    Vtep,
)
from tests import packets

SHOT, REDIRECT, PASS_ON = 2, 7, -1  # verdicts
UPLINK, WIRE_END = "gnvu0", "gnvu1"
ROUTER_MAC = "02:00:00:00:aa:02"  # the last hop before a node, on the wire


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one frame, and everything that was counted meanwhile."""

    verdict: int
    frame: bytes
    mark: int
    priority: int
    counted: dict[str, int]  # "tx no_route" or "event arp_answered" -> packets
    counted_bytes: int  # of the drops
    traffic: dict[str, tuple[int, int]]  # "slot-0 tx_remote" -> (packets, bytes)


def source_port(frame: bytes) -> int:
    """Of the outer UDP header, whichever family is outside."""
    at = 54 if frame[12:14] == b"\x86\xdd" else 34
    return int.from_bytes(frame[at : at + 2], "big")


def flow_label(frame: bytes) -> int:
    """Of the outer IPv6 header."""
    return int.from_bytes(frame[14:18], "big") & 0xFFFFF


def assert_dropped(run: Run, row: str, frame: Packet | bytes) -> None:
    """One row of drops ("tx no_route") grew by this frame, nothing else was counted."""
    assert run.verdict == SHOT
    assert run.counted == {row: 1}
    assert run.counted_bytes == len(bytes(frame))
    assert run.traffic == {}


def assert_passed_on(run: Run, frame: Packet | bytes) -> None:
    """The next program, and then the host's stack, see every byte as it came."""
    assert run.verdict == PASS_ON
    assert run.frame == bytes(frame)
    assert run.traffic == {}


@contextmanager
def path_mtu(pins: Pins, vtep: str, mtu: int) -> Iterator[None]:
    """A hop on the way to a known VTEP has said this, meanwhile."""
    table: Table[Address, VtepValue] = Table(pins.map("vteps"), Address, VtepValue)
    state: SharedArray[NodeState] = SharedArray(pins.map("node_state"), NodeState, writable=True)
    key, until = Address.of(ip_address(vtep)), time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 10**11
    value = table.get(key)
    assert value is not None
    value.path_mtu, value.path_mtu_until = mtu, until
    table.set(key, value)
    state.row(0).path_mtu_until = until
    try:
        yield
    finally:
        value.path_mtu = value.path_mtu_until = state.row(0).path_mtu_until = 0
        table.set(key, value)
        table.close()
        state.close()


class Node:
    """A node that is up, with slots, in the namespace `netns`."""

    def __init__(self, settings: NodeSettings, slot_count: int) -> None:
        self.settings = settings
        self.netns = settings.netns
        self.family = settings.vtep.version  # of the underlay
        self.overhead = {4: packets.OVERHEAD, 6: packets.OVERHEAD6}[self.family]
        self.pins = Pins(settings.run_directory)
        self.plane = dataplane.bring_up(settings)
        self._programs = {name: bpf.open_pin(self.pins.program(name)) for name in PROGRAMS}
        found = dataplane.facts(settings.run_directory)
        place = slots.Place(
            settings.run_directory / "netns",
            settings.guest,
            found.mtu,
            found.block,
            found.program,
            found.guard,
        )
        self.slots: list[int] = []  # host-side interface by slot
        with namespaces.entering(self.netns), IPRoute() as ip, RouteSocket() as door:
            self.uplink = links.index_of(ip, UPLINK)
            (link,) = ip.get_links(self.uplink)
            self.uplink_mac = str(link.get("address"))
            for index in range(slot_count):
                self.slots.append(slots.make(door, place, index))
                self.plane.add_slot(index, self.slots[index])

    def close(self) -> None:
        """Give back the descriptors."""
        for fd in self._programs.values():
            os.close(fd)
        self.plane.close()

    def slot_netns(self, index: int) -> Path:
        """The namespace of a slot."""
        return self.settings.run_directory / "netns" / f"slot-{index}"

    def program_info(self, name: str) -> bpf.ProgramInfo:
        """What the kernel says of a program of ours."""
        return bpf.program_info(self._programs[name])

    # -- frames

    def sends(self, frame: Packet | bytes, *, slot: int = 0, **context: int) -> Run:
        """sandbox_tx on what the sandbox in `slot` sends."""
        return self.run("sandbox_tx", frame, ifindex=self.slots[slot], **context)

    def receives(self, frame: Packet | bytes, **context: int) -> Run:
        """uplink_rx on what comes from the wire."""
        return self.run("uplink_rx", frame, ifindex=self.uplink, **context)

    def arriving(self, inner: Packet | bytes, **fields: Any) -> Packet:
        """Geneve on the uplink, from PEER to this node unless said otherwise."""
        if isinstance(inner, bytes):
            inner = packets.Raw(inner)
        return packets.on_wire(inner, **{**self._towards_us(), **fields})

    def datagram(self, payload: bytes, **fields: Any) -> Packet:
        """The same with anything behind UDP."""
        return packets.in_udp(packets.Raw(payload), **{**self._towards_us(), **fields})

    def _towards_us(self) -> dict[str, str]:
        return {
            "src": packets.vtep_of(packets.PEER, self.family),
            "dst": str(self.settings.vtep),
            "eth_src": ROUTER_MAC,
            "eth_dst": self.uplink_mac,
        }

    def tunnelled(self, run: Run, inner: Packet | bytes, **outer: Any) -> bytes:
        """
        What `run` must have sent: this inner frame from this node to PEER.

        Source port and flow label are taken from it, as the kernel's hash of
        a flow is another after each boot.
        """
        if isinstance(inner, bytes):
            inner = packets.Raw(inner)
        ip = dict(outer.pop("ip", {}))
        if self.family == 6:
            ip.setdefault("fl", flow_label(run.frame))
        ends = {
            "src": packets.vtep_of(packets.NODE, self.family),
            "dst": packets.vtep_of(packets.PEER, self.family),
            "sport": source_port(run.frame),
        }
        return bytes(packets.on_wire(inner, ip=ip, **{**ends, **outer}))

    def made_of(self, frame: Packet | bytes) -> bytes:
        """What sandbox_tx makes of a frame of slot 0. Quick: nothing is counted along."""
        with namespaces.entering(self.netns):
            ran = bpf.test_run(self._programs["sandbox_tx"], bytes(frame), ifindex=self.slots[0])
        assert ran.verdict == REDIRECT
        return ran.frame

    def completes(self, program: str, frame: Packet | bytes) -> Run:
        """
        As `run`, on a frame whose bytes the NIC has summed up (CHECKSUM_COMPLETE).

        Fails if the sum is not that of the frame which came out. Skips where the
        kernel cannot try it.
        """
        where = self.uplink if program == "uplink_rx" else self.slots[0]
        try:
            return self.run(program, frame, ifindex=where, flags=bpf.TEST_CHECKSUM_COMPLETE)
        except OSError as error:
            if error.errno == errno.EBADMSG:
                pytest.fail(f"the NIC's sum is stale after {bytes(frame).hex()}")
            # The same frame is fine without the flag: so it is the flag that it knows nothing of.
            self.run(program, frame, ifindex=where)
            pytest.skip("this kernel's BPF_PROG_TEST_RUN has no CHECKSUM_COMPLETE")

    def run(self, program: str, frame: Packet | bytes, **context: int) -> Run:
        """A program on a frame, on any interface of the namespace."""
        before, traffic_before = self.counted(), self._traffic()
        with namespaces.entering(self.netns):
            ran = bpf.test_run(self._programs[program], bytes(frame), **context)
        grown = _growth(before, self.counted())
        return Run(
            ran.verdict,
            ran.frame,
            ran.mark,
            ran.priority,
            {row: packets for row, (packets, _) in grown.items()},
            sum(size for _, size in grown.values()),
            _growth(traffic_before, self._traffic()),
        )

    def counted(self) -> dict[str, tuple[int, int]]:
        """The whole table: (packets, bytes) of drops, and of events without bytes."""
        rows = {
            f"{drop.direction.value} {drop.reason.slug}": (drop.packets, drop.bytes)
            for drop in self.plane.drops()
        }
        return rows | {f"event {e.event.slug}": (e.packets, 0) for e in self.plane.events()}

    def _traffic(self) -> dict[str, tuple[int, int]]:
        rows = {}
        for index in range(len(self.slots)):
            counters = self.plane.counters(index)
            for way in ("tx_local", "tx_remote", "rx_local", "rx_remote"):
                traffic = getattr(counters, way)
                rows[f"slot-{index} {way}"] = (traffic.packets, traffic.bytes)
        return rows

    # -- furnishing

    def attach(
        self,
        slot: int,
        sandbox: str,
        vni: int,
        *addresses: str,
        mode: AddressMode = AddressMode.CLONE,
    ) -> None:
        """Bind a slot, as the agent does, to an address of either family or one of each."""
        found = {one.version: one for one in map(ip_address, addresses)}
        mac = MacAddress(bytes.fromhex(packets.mac_of(addresses[0]).replace(":", "")))
        four, six = found.get(4), found.get(6)
        assert four is None or isinstance(four, IPv4Address)
        assert six is None or isinstance(six, IPv6Address)
        self.plane.attach(slot, sandbox, Endpoint(vni, four, mac, six), mode)

    def route(self, vni: int, prefix: str, kind: RouteKind, vtep: str = "", mac: str = "") -> None:
        """Set one route of a VPC."""
        octets = MacAddress(bytes.fromhex(mac.replace(":", ""))) if mac else None
        route = Route("", ip_network(prefix), kind, ip_address(vtep) if vtep else None, octets)
        self.plane.set_routes([(vni, route)])

    def vtep(self, address: str, mtu: int = 0) -> None:
        """Make a VTEP known."""
        self.plane.add_vtep(Vtep(ip_address(address), mtu))

    def raw_route(self, vni: int, prefix: str, kind: int, nexthop: int) -> None:
        """A route that the data-plane library would never write."""
        network = ip_network(prefix)
        bits = 32 + (96 if network.version == 4 else 0) + network.prefixlen
        family = constant("ROUTE_IPV6") if network.version == 6 else 0
        table: Table[RouteKey, RouteValue] = Table(
            self.pins.map("routes_lpm"), RouteKey, RouteValue
        )
        key = RouteKey(bits, vni | family, Address.of(network.network_address))
        table.set(key, RouteValue(kind, nexthop))
        table.close()

    @contextmanager
    def exact_route(self, vni: int, address: str, kind: int) -> Iterator[None]:
        """A route of a whole address without a next hop, meanwhile."""
        key = HostKey(vni, Address.of(ip_address(address)))
        table: Table[HostKey, RouteValue] = Table(
            self.pins.map("routes_exact"), HostKey, RouteValue
        )
        table.set(key, RouteValue(kind, 0))
        try:
            yield
        finally:
            table.remove(key)
            table.close()

    @contextmanager
    def slot_of(self, ifindex: int, slot: int) -> Iterator[None]:
        """Say of an interface that it is a slot's, meanwhile."""
        table: Table[Key32, Key32] = Table(self.pins.map("slot_by_ifindex"), Key32, Key32)
        table.set(Key32(ifindex), Key32(slot))
        try:
            yield
        finally:
            table.remove(Key32(ifindex))
            table.close()

    @contextmanager
    def endpoint_of(self, vni: int, address: str, *, generation: int, slot: int) -> Iterator[None]:
        """Half an attachment, as a crash between two writes would leave it."""
        key = EndpointKey(vni, Address.of(ip_address(address)))
        table: Table[EndpointKey, EndpointValue] = Table(
            self.pins.map("endpoints"), EndpointKey, EndpointValue
        )
        before = table.get(key)
        table.set(key, EndpointValue(generation, slot))
        try:
            yield
        finally:
            if before:
                table.set(key, before)
            else:
                table.remove(key)
            table.close()

    @contextmanager
    def configured(
        self,
        *,
        udp_port: int | None = None,
        vtep: str | None = None,
        dns: tuple[str, ...] | None = None,
    ) -> Iterator[None]:
        """The programs' configuration is another meanwhile."""
        table: Table[Key32, NodeConfig] = Table(self.pins.map("node_config"), Key32, NodeConfig)
        before, changed = table.get(Key32(0)), table.get(Key32(0))
        assert before is not None
        assert changed is not None
        if udp_port is not None:
            changed.udp_port = (ctypes.c_uint8 * 2)(*udp_port.to_bytes(2, "big"))
        if vtep is not None:
            changed.vtep = Address.of(ip_address(vtep)) if vtep else Address()
        if dns is not None:
            servers = [ip_address(server) for server in dns]
            four = [server.packed for server in servers if server.version == 4]
            for row, octets in zip(changed.dns, (*four, bytes(4), bytes(4)), strict=False):
                row[:] = octets
            six = [Address.of(server) for server in servers if server.version == 6]
            changed.dns6 = (Address * 2)(*six)
        table.set(Key32(0), changed)
        try:
            yield
        finally:
            table.set(Key32(0), before)
            table.close()


def _growth(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    return {
        row: (after[row][0] - before[row][0], after[row][1] - before[row][1])
        for row in after
        if after[row] != before[row]
    }


def _furnish_underlay(mtu: int) -> None:
    """An uplink with addresses of both families. Its other end is the wire: up, and nobody's."""
    with IPRoute() as ip:
        links.set_up(ip, 1)
        uplink = links.make_veth(ip, UPLINK, {"ifname": WIRE_END}, mtu=mtu)
        wire = links.index_of(ip, WIRE_END)
        links.disable_ipv6(WIRE_END)
        ip.addr("add", index=uplink, address=packets.NODE, prefixlen=24)
        # 2: IFA_F_NODAD, usable at once
        ip.addr("add", index=uplink, address=packets.NODE6, prefixlen=64, flags=2)
        links.set_up(ip, wire)
        links.set_up(ip, uplink)


@contextmanager
def loaded(slot_count: int, vtep: str = packets.NODE, mtu: int = 1500) -> Iterator[Node]:
    """
    A node in a new namespace, up and with its slots; everything is gone afterwards.

    Its underlay has the family of `vtep`, one of NODE and NODE6.
    """
    root = Path(tempfile.mkdtemp(prefix="gnv-test-", dir="/run"))
    netns = root / "node.netns"
    settings = NodeSettings(
        name="node",
        vtep=ip_address(vtep),
        uplinks=(UPLINK,),
        netns=netns,
        run_root=root,
        state_root=root / "state",
    )
    try:
        os.close(namespaces.create(netns))
        try:
            with namespaces.entering(netns):
                _furnish_underlay(mtu)
            try:
                node = Node(settings, slot_count)
                try:
                    yield node
                finally:
                    node.close()
            finally:
                dataplane.tear_down(settings)
        finally:
            namespaces.remove(netns)
    finally:
        shutil.rmtree(root)
