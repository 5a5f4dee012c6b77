# SPDX-License-Identifier: Apache-2.0
"""The real programs, at speed: a state in their maps, one frame after the other through them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from geneve_ebpf import abi
from geneve_ebpf.host import namespaces
from geneve_ebpf.host.netlink import IPRoute
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.maps import Table, possible_cpus
from tests import programs
from tests.model.state import Binding, Config, Node, Vtep

SLOTS = 4
HOOKS = ("sandbox_tx", "uplink_rx", "relay_rx")
CHECKSUM_COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.11
_ROUTE_IPV6 = abi.constant("ROUTE_IPV6")
_MINUTES = 60 * 10**9
_ATTR = struct.Struct("<IiIIQQIIIIQQIIII")
_ROOM = 8192
_CONTEXT = 192  # struct __sk_buff

Bytes4, Bytes6 = ctypes.c_uint8 * 4, ctypes.c_uint8 * 6

DROP_ROWS = {
    f"{direction.value} {reason.slug}": reason.number * 2 + place
    for reason in abi.drop_reasons()
    for place, direction in enumerate(abi.Direction)
}
EVENT_ROWS = {event.slug: event.number for event in abi.event_kinds()}
WAYS = ("tx_local", "tx_remote", "rx_local", "rx_remote")


def _address(octets: bytes) -> abi.Address:
    return abi.Address.of(ip_address(octets)) if octets else abi.Address()


class _Counters:
    """A per-CPU array of (packets, bytes) rows, summed over the CPUs."""

    def __init__(self, path: os.PathLike[str], pairs: int) -> None:
        self._fd = bpf.open_pin(path)
        cpus = possible_cpus()
        self._row = struct.Struct(f"<{2 * pairs * cpus}Q")
        self._width = 2 * pairs
        self._key = ctypes.c_uint32()
        self._value = ctypes.create_string_buffer(self._row.size)
        self._attr = bpf.create_attr(
            "<IIQQQ", self._fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0
        )

    def row(self, index: int) -> tuple[int, ...]:
        """Packets and bytes, pair after pair."""
        self._key.value = index
        bpf.call(bpf.MAP_LOOKUP_ELEM, self._attr)
        values = self._row.unpack(self._value)
        return tuple(sum(values[at :: self._width]) for at in range(self._width))

    def close(self) -> None:
        os.close(self._fd)


class UnderTest:
    """The programs of a node that is up."""

    def __init__(self, node: programs.Node) -> None:
        self._node = node
        self._tables = {
            name: Table(node.pins.map(name), *abi.MAPS[name])
            for name in (
                "node_config",
                "node_state",
                "bindings",
                "endpoints",
                "routes_exact",
                "routes_lpm",
                "nexthops",
                "vteps",
                "too_big_limits",
            )
        }
        self._config = self._tables["node_config"].get(abi.Key32(0))
        self._written: list[tuple[str, ctypes.Structure]] = []
        self._drops = _Counters(node.pins.map("drop_counts"), 1)
        self._events = _Counters(node.pins.map("event_counts"), 1)
        self._slots = _Counters(node.pins.map("slot_counters"), 4)
        self._fds = [bpf.open_pin(node.pins.program(n)) for n in HOOKS]
        self._in = ctypes.create_string_buffer(_ROOM)
        self._out = ctypes.create_string_buffer(_ROOM)
        self._context = ctypes.create_string_buffer(_CONTEXT)
        self._context_out = ctypes.create_string_buffer(_CONTEXT)
        self._attr = ctypes.create_string_buffer(_ATTR.size)
        self._at = [
            ctypes.addressof(buffer)
            for buffer in (self._in, self._out, self._context, self._context_out)
        ]
        self._in_view = memoryview(self._in).cast("B")
        self._out_view = memoryview(self._out).cast("B")
        words = memoryview(self._context).cast("B").cast("I")
        self._words, self._words_out = words, memoryview(self._context_out).cast("B").cast("I")
        self.uplink_mac = bytes.fromhex(node.uplink_mac.replace(":", ""))
        with namespaces.entering(node.netns), IPRoute() as ip:
            _furnish_underlay(ip, node.uplink)
            self.takes_sums = self._takes_sums()

    def close(self) -> None:
        """Give back the descriptors."""
        for table in self._tables.values():
            table.close()
        for counters in (self._drops, self._events, self._slots):
            counters.close()
        for fd in self._fds:
            os.close(fd)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the node's namespace: what a test run's interfaces are looked up in."""
        with namespaces.entering(self._node.netns):
            yield

    def _takes_sums(self) -> bool:
        """Whether this kernel knows CHECKSUM_COMPLETE in a test run."""
        try:
            self.run(1, self.uplink_mac + bytes(48), None, flags=CHECKSUM_COMPLETE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    # -- state

    def load(self, state: Node) -> None:
        """Make the maps say this and nothing else."""
        for name, key in self._written:
            self._tables[name].remove(key)
        self._written = []
        self._load_config(state.config)
        for slot in range(SLOTS):
            known = slot < len(state.bindings)
            self._load_binding(slot, state.bindings[slot] if known else Binding())
        for (vni, address), to in state.endpoints.items():
            key = abi.EndpointKey(vni, _address(address))
            self._put("endpoints", key, abi.EndpointValue(to.generation, to.slot))
        for (vni, address), route in state.exact.items():
            key = abi.HostKey(vni, _address(address))
            self._put("routes_exact", key, abi.RouteValue(route.kind, route.nexthop))
        for (vni, prefix, bits), route in state.prefixes.items():
            family = _ROUTE_IPV6 if len(prefix) == 16 else 0
            before = 32 if family else 32 + 96
            key = abi.RouteKey(before + bits, vni | family, _address(prefix))
            self._put("routes_lpm", key, abi.RouteValue(route.kind, route.nexthop))
        for number, hop in state.nexthops.items():
            value = abi.NexthopValue(_address(hop.vtep), hop.mtu, Bytes6(*hop.mac))
            self._put("nexthops", abi.Key32(number), value)
        self._load_vteps(state.vteps, state.config)

    def _put(self, name: str, key: ctypes.Structure, value: ctypes.Structure) -> None:
        self._tables[name].set(key, value)
        self._written.append((name, key))

    def _load_config(self, config: Config) -> None:
        row = type(self._config).from_buffer_copy(self._config)
        row.vtep = _address(config.vtep)
        row.guest_address6 = _address(config.guest6)
        row.gateway_address6 = _address(config.gateway6)
        row.guest_address = Bytes4(*config.guest)
        row.gateway_address = Bytes4(*config.gateway)
        row.guest_netmask = Bytes4(*config.netmask)
        servers = [*config.dns, bytes(4), bytes(4)][:2]
        row.dns = (Bytes4 * 2)(*(Bytes4(*server) for server in servers))
        row.dns6 = (abi.Address * 2)(*map(_address, config.dns6))
        row.udp_port = (ctypes.c_uint8 * 2)(*config.port.to_bytes(2, "big"))
        row.guest_mac = Bytes6(*config.guest_mac)
        row.gateway_mac = Bytes6(*config.gateway_mac)
        self._tables["node_config"].set(abi.Key32(0), row)

    def _load_binding(self, slot: int, binding: Binding) -> None:
        row = abi.Binding(
            generation=binding.generation,
            vni=binding.vni,
            address=Bytes4(*binding.address),
            mac=Bytes6(*binding.mac),
            native=binding.native,
            kind=binding.kind,
            ifindex=self._node.slots[slot],
            address6=abi.Address.from_buffer_copy(binding.address6),
        )
        self._tables["bindings"].set(abi.Key32(slot), row)

    def _load_vteps(self, vteps: dict[bytes, Vtep], config: Config) -> None:
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 60 * _MINUTES
        latest = 0
        for address, vtep in vteps.items():
            value = abi.VtepValue(mtu=vtep.mtu)
            if vtep.path_mtu:
                value.path_mtu, value.path_mtu_until = vtep.path_mtu, until
                latest = until
            self._put("vteps", _address(address), value)
        row = self._tables["node_state"].get(abi.Key32(0))
        row.path_mtu_until, row.slot_mtu = latest, config.slot_mtu
        row.relay = self._node.uplink if config.relay else 0
        self._tables["node_state"].set(abi.Key32(0), row)

    def path_mtu(self, vtep: bytes) -> int:
        """What the programs have learned of the way to a VTEP; 0 if nothing that still holds."""
        row = self._tables["vteps"].get(_address(vtep))
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return row.path_mtu if row is not None and row.path_mtu_until > now else 0

    def set_limit(self, slot: int, *, used_up: bool) -> None:
        """Whether the slot may be sent another too-big answer now."""
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + _MINUTES if used_up else 0
        self._tables["too_big_limits"].set(abi.Key32(slot), abi.Key64(until))

    # -- frames

    def run(
        self,
        program: int,
        frame: bytes,
        slot: int | None,
        mark: int = 0,
        priority: int = 0,
        flags: int = 0,
    ) -> tuple[int, bytes, int, int]:
        """(verdict, frame, mark, priority) of one test run. program: its place in HOOKS."""
        at_in, at_out, at_context, at_context_out = self._at
        size = len(frame)
        self._in_view[:size] = frame
        words = self._words
        words[2] = mark
        words[8] = priority
        words[10] = self._node.uplink if slot is None else self._node.slots[slot]
        _ATTR.pack_into(
            self._attr,
            0,
            self._fds[program],
            0,
            size,
            _ROOM,
            at_in,
            at_out,
            1,
            0,
            _CONTEXT,
            _CONTEXT,
            at_context,
            at_context_out,
            flags,
            0,
            0,
            0,
        )
        bpf.call(bpf.PROG_TEST_RUN, self._attr)
        _, verdict, _, size = struct.unpack_from("<IiII", self._attr)
        return verdict, bytes(self._out_view[:size]), self._words_out[2], self._words_out[8]

    # -- counters

    def drop_row(self, name: str) -> tuple[int, ...]:
        """(packets, bytes) of one row, as "tx no_route"."""
        return self._drops.row(DROP_ROWS[name])

    def counted(self) -> dict[str, tuple[int, ...]]:
        """Every counter there is."""
        rows = {name: self._drops.row(index) for name, index in DROP_ROWS.items()}
        for name, index in EVENT_ROWS.items():
            rows[f"event {name}"] = self._events.row(index)[:1]
        for slot in range(SLOTS):
            row = self._slots.row(slot)
            for place, way in enumerate(WAYS):
                rows[f"slot {slot} {way}"] = row[place * 2 : place * 2 + 2]
        return rows


def _furnish_underlay(ip: IPRoute, uplink: int) -> None:
    """What `tests.model.state.UNDERLAY` says, beside what every test node has."""
    ip.route("add", dst="203.0.113.51/32", type="blackhole")
    ip.route(
        "add",
        dst="203.0.113.6/32",
        gateway="192.0.2.254",
        oif=uplink,
        metrics={"mtu": 1300, "lock": 1 << 2},
    )
    ip.route("add", dst="2001:db8:51::51/128", type="blackhole")
    ip.route(
        "add",
        dst="2001:db8:6::6/128",
        gateway="2001:db8::fe",
        oif=uplink,
        metrics={"mtu": 1400, "lock": 1 << 2},
    )
