# SPDX-License-Identifier: Apache-2.0
"""Where packets go: the VTEPs and routes of one node, in its pinned maps."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from geneve_ebpf.abi import (
    Address,
    HostKey,
    Key32,
    NexthopValue,
    NodeState,
    RouteKey,
    RouteValue,
    VtepValue,
    constant,
    mapped,
    unmapped,
)
from geneve_ebpf.dataplane.config import read_config
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader.maps import SharedArray, Table
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import Address as AnyAddress
from geneve_ebpf.model import (
    MacAddress,
    Network,
    PathMtu,
    Route,
    RouteKind,
    Vtep,
    refuse_other_family,
)

_KINDS = {RouteKind.REMOTE: 1, RouteKind.LOCAL: 2, RouteKind.BLACKHOLE: 3}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}
# Bits of a route's key before a prefix: the VNI, and ::ffff:0:0/96 before IPv4.
_BEFORE = {4: 32 + 96, 6: 32}
_ROUTE_IPV6 = constant("ROUTE_IPV6")


class Routes:
    """The maps that say where to, and the next hops they share; a part of `DataPlane`."""

    def __init__(self, pins: Pins, *, writable: bool) -> None:
        with ExitStack() as opened:
            self._open(pins, writable, opened)
            self._opened = opened.pop_all()

    def _open(self, pins: Pins, writable: bool, opened: ExitStack) -> None:
        """Open maps; what is in `opened` is closed with this object, or if the next one fails."""
        self._state = opened.enter_context(
            closing(SharedArray(pins.map("node_state"), NodeState, writable=writable))
        )
        self._exact: Table[HostKey, RouteValue] = opened.enter_context(
            closing(Table(pins.map("routes_exact"), HostKey, RouteValue))
        )
        self._lpm: Table[RouteKey, RouteValue] = opened.enter_context(
            closing(Table(pins.map("routes_lpm"), RouteKey, RouteValue))
        )
        self._nexthops: Table[Key32, NexthopValue] = opened.enter_context(
            closing(Table(pins.map("nexthops"), Key32, NexthopValue))
        )
        self._vteps: Table[Address, VtepValue] = opened.enter_context(
            closing(Table(pins.map("vteps"), Address, VtepValue))
        )
        config = read_config(pins)
        self._gateway_mac, self._own_vtep = config.gateway_mac, config.vtep
        # (vtep, mtu, mac) -> id, of the next hops in the map
        self._nexthop_ids: dict[tuple[bytes, int, bytes], int] | None = None

    def close(self) -> None:
        """Give back descriptors and mappings; what is pinned goes on forwarding."""
        self._opened.close()

    def add_vtep(self, vtep: Vtep) -> None:
        """Accept Geneve from this sender; a known one gets the new MTU, its routes too.

        Raises VTEP_FAMILY unless it is of the family of the node's own VTEP.
        """
        refuse_other_family(vtep.address, self._own_vtep)
        octets = mapped(vtep.address)
        self._vteps.set(Address.of(vtep.address), VtepValue(vtep.mtu))
        ids = self._ids()
        for old, number in list(ids.items()):
            if old[0] == octets and old[1] != vtep.mtu:
                new = (octets, vtep.mtu, old[2])
                self._nexthops.set(Key32(number), _nexthop(new))
                del ids[old]
                ids.setdefault(new, number)

    def remove_vtep(self, address: AnyAddress) -> None:
        """Accept no more from it. Routes through it must be gone already."""
        self._vteps.remove(Address.of(address))
        ids = self._ids()
        for key, number in list(ids.items()):
            if key[0] == mapped(address):
                self._nexthops.remove(Key32(number))
                del ids[key]

    def vteps(self) -> Iterator[Vtep]:
        """Every known VTEP."""
        for key, value in self._vteps.items():
            yield Vtep(key.unmapped(), value.mtu)

    def path_mtus(self) -> dict[AnyAddress, PathMtu]:
        """What hops on the way to VTEPs have said that they carry, as long as it holds."""
        # What bpf_ktime_get_ns() counts.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if self._state.copy(0).path_mtu_until <= now:  # the latest of all
            return {}
        return {
            key.unmapped(): PathMtu(value.path_mtu, (value.path_mtu_until - now) / 1e9)
            for key, value in self._vteps.items()
            if value.path_mtu_until > now
        }

    def set_routes(self, routes: Iterable[tuple[int, Route]]) -> None:
        """Insert or replace (VNI, route) pairs; each swaps whole.

        On MAP_FULL those before it are set. A REMOTE route takes its MTU from
        its VTEP, which must be known.
        """
        exact: list[tuple[HostKey, RouteValue]] = []
        lpm: list[tuple[RouteKey, RouteValue]] = []
        pending: set[int] = set()  # next hops that no route in the maps names yet
        for vni, route in routes:
            nexthop = self._nexthop_of(route, pending) if route.kind is RouteKind.REMOTE else 0
            pending.add(nexthop)
            value = RouteValue(_KINDS[route.kind], nexthop)
            if route.prefix.prefixlen == route.prefix.max_prefixlen:
                address = Address.of(route.prefix.network_address)
                exact.append((HostKey(vni, address), value))
            else:
                lpm.append((_trie_key(vni, route.prefix), value))
        self._exact.set_many(exact)
        self._lpm.set_many(lpm)

    def remove_routes(self, routes: Iterable[tuple[int, Network]]) -> None:
        """Delete (VNI, prefix) pairs; those that are not there do not matter."""
        for vni, prefix in routes:
            if prefix.prefixlen == prefix.max_prefixlen:
                self._exact.remove(HostKey(vni, Address.of(prefix.network_address)))
            else:
                self._lpm.remove(_trie_key(vni, prefix))

    def routes(self) -> Iterator[tuple[int, Route]]:
        """Every (VNI, route) that the maps hold; the routes name no VPC."""
        hops = {number: key for key, number in self._ids().items()}
        for host, value in self._exact.items():
            yield host.vni, self._route(_alone(host.address.unmapped()), value, hops)
        for key, value in self._lpm.items():
            octets = bytes(key.address.word)
            prefix: Network
            if key.vni & _ROUTE_IPV6:
                prefix = IPv6Network((octets, key.prefix_length - _BEFORE[6]))
            else:
                prefix = IPv4Network((octets[12:], key.prefix_length - _BEFORE[4]))
            yield key.vni & ~_ROUTE_IPV6, self._route(prefix, value, hops)

    def lookup(self, vni: int, address: AnyAddress) -> Route | None:
        """The route the program would choose; its prefix is the address alone for a trie's
        answer too, as the kernel does not say which entry matched.
        """
        value = self._exact.get(HostKey(vni, Address.of(address))) or self._lpm.get(
            _trie_key(vni, _alone(address))
        )
        if value is None:
            return None
        hops = {number: key for key, number in self._ids().items()}
        return self._route(_alone(address), value, hops)

    def _route(
        self, prefix: Network, value: RouteValue, hops: dict[int, tuple[bytes, int, bytes]]
    ) -> Route:
        kind = _KIND_OF[value.kind]
        if kind is not RouteKind.REMOTE or value.nexthop not in hops:
            return Route("", prefix, kind)
        vtep, _, mac = hops[value.nexthop]
        gateway = mac == self._gateway_mac
        return Route(
            "",
            prefix,
            kind,
            unmapped(vtep),
            None if gateway else MacAddress(mac),
        )

    def _ids(self) -> dict[tuple[bytes, int, bytes], int]:
        if self._nexthop_ids is None:
            self._nexthop_ids = {
                (bytes(hop.vtep.word), hop.mtu, bytes(hop.mac)): key.value
                for key, hop in self._nexthops.items()
            }
        return self._nexthop_ids

    def _nexthop_of(self, route: Route, pending: set[int]) -> int:
        if route.vtep is None:
            raise ValueError("a remote route needs a VTEP")
        octets = mapped(route.vtep)
        known = self._vteps.get(Address.of(route.vtep))
        if known is None:
            raise GeneveError(
                Code.VTEP_NOT_FOUND,
                f"{route.vtep} is no known VTEP",
                hint=f"geneve-ebpf vtep add {route.vtep}",
                field="vtep",
            )
        mac = self._gateway_mac if route.mac is None else route.mac.octets
        ids = self._ids()
        key = (octets, known.mtu, mac)
        if key not in ids:
            state = self._state.row(0)
            number = state.next_nexthop + 1
            try:
                self._nexthops.set(Key32(number), _nexthop(key))
            except GeneveError:
                self._drop_unused_nexthops(pending)
                self._nexthops.set(Key32(number), _nexthop(key))
            state.next_nexthop = number
            ids[key] = number
        return ids[key]

    def _drop_unused_nexthops(self, pending: set[int]) -> None:
        """Forget next hops that no route names any more; only done when there is no room."""
        used = pending | {value.nexthop for _, value in self._exact.items()}
        used |= {value.nexthop for _, value in self._lpm.items()}
        ids = self._ids()
        for key, number in list(ids.items()):
            if number not in used:
                self._nexthops.remove(Key32(number))
                del ids[key]


def _alone(address: AnyAddress) -> Network:
    """The prefix that is this address alone."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _trie_key(vni: int, prefix: Network) -> RouteKey:
    length = _BEFORE[prefix.version] + prefix.prefixlen
    family = _ROUTE_IPV6 if prefix.version == 6 else 0
    return RouteKey(length, vni | family, Address.of(prefix.network_address))


def _nexthop(key: tuple[bytes, int, bytes]) -> NexthopValue:
    vtep, mtu, mac = key
    return NexthopValue(Address.from_buffer_copy(vtep), mtu, (ctypes.c_uint8 * 6)(*mac))
