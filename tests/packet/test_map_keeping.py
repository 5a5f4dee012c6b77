# SPDX-License-Identifier: Apache-2.0
"""The maps' keeping: next hops past their limit, what is left of a VPC and of a sandbox, and
how they hold both families."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest

from geneve_ebpf.abi import EndpointKey, EndpointValue, Key32, constant
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader.maps import Table
from geneve_ebpf.model import MacAddress, Route, RouteKind, Vtep
from tests.packets import UDP, from_guest
from tests.programs import loaded

pytestmark = pytest.mark.kernel

VNI = 77
PEER = IPv4Address("192.0.2.77")


def route(number: int) -> Route:
    """A route to a host of its own, with an inner MAC of its own: a next hop of its own."""
    prefix = IPv4Network((int(IPv4Address("10.0.0.0")) + number, 32))
    return Route("", prefix, RouteKind.REMOTE, PEER, MacAddress(b"\x02\0" + number.to_bytes(4)))


def test_next_hops_of_routes_that_are_gone_make_room():
    """A full table is swept of what no route names; only one that is in use is MAP_FULL."""
    room = constant("MAX_NEXTHOPS")
    with loaded(1) as node:
        node.plane.add_vtep(Vtep(PEER))
        node.plane.set_routes((VNI, route(n)) for n in range(room))
        with pytest.raises(GeneveError) as refusal:
            node.plane.set_routes([(VNI, route(room))])
        assert refusal.value.code is Code.MAP_FULL

        node.plane.remove_routes((VNI, route(n).prefix) for n in range(room - 1))
        node.plane.set_routes((VNI, route(room + n)) for n in range(100))

        last = node.plane.lookup(VNI, route(room - 1).prefix.network_address)
        new = node.plane.lookup(VNI, route(room + 99).prefix.network_address)
        assert (last.mac, new.mac) == (route(room - 1).mac, route(room + 99).mac)


def test_a_vni_that_is_used_again_starts_from_zero():
    """A VPC's counters outlive its sandboxes, and end with the VPC."""
    with loaded(1) as node:
        node.attach(0, "web", VNI, "10.0.0.1")
        node.sends(from_guest(UDP(sport=1, dport=2), dst="10.0.0.1"))  # to itself
        assert node.plane.vpc_totals()[VNI].tx_local.packets == 1

        node.plane.detach(0)
        node.plane.forget_vpc(VNI)
        assert VNI not in node.plane.vpc_totals()
        node.plane.remove_slot(0)
        assert VNI not in node.plane.vpc_totals()


def test_a_detached_sandbox_is_known_until_its_slot_is_gone():
    """So that an agent that was killed in between still lets its address rest."""
    with loaded(1) as node:
        node.attach(0, "web", VNI, "10.0.0.1")
        assert list(node.plane.departed()) == []

        node.plane.detach(0)
        ((name, endpoint),) = node.plane.departed()
        assert (name, endpoint.vni, str(endpoint.address)) == ("web", VNI, "10.0.0.1")

        node.plane.remove_slot(0)
        assert list(node.plane.departed()) == []


def held(node):
    """What the endpoints map holds: VNI and address."""
    table = Table(node.pins.map("endpoints"), EndpointKey, EndpointValue)
    try:
        return sorted((key.vni, str(key.address.unmapped())) for key, _ in table.items())
    finally:
        table.close()


def addresses(endpoint):
    return tuple(map(str, endpoint.addresses))


@pytest.mark.parametrize(
    "wanted", [("10.0.0.1",), ("fd00::1",), ("10.0.0.1", "fd00::1")], ids=["4", "6", "both"]
)
def test_an_endpoint_has_a_row_for_every_address_and_none_when_it_is_gone(wanted):
    """The maps alone say who has which address, while it is attached and afterwards."""
    with loaded(1) as node:
        node.attach(0, "web", VNI, *wanted)
        (attached,) = node.plane.attachments()
        assert addresses(attached.endpoint) == wanted
        assert held(node) == sorted((VNI, text) for text in wanted)

        node.plane.detach(0)
        assert held(node) == []
        ((_, endpoint),) = node.plane.departed()
        assert addresses(endpoint) == wanted


def test_an_attach_that_gets_one_of_two_addresses_gets_neither():
    """Whichever is somebody else's, the other one stays free and the slot ready."""
    with loaded(2) as node:
        node.attach(0, "web", VNI, "10.0.0.1", "fd00::1")
        for wanted, field in (
            (("10.0.0.2", "fd00::1"), "address6"),
            (("10.0.0.1", "fd00::2"), "address"),
        ):
            with pytest.raises(GeneveError) as refusal:
                node.attach(1, "late", VNI, *wanted)
            assert (refusal.value.code, refusal.value.field) == (Code.ADDRESS_IN_USE, field)
            assert held(node) == [(VNI, "10.0.0.1"), (VNI, "fd00::1")]

        node.attach(1, "late", VNI, "10.0.0.2", "fd00::2")
        assert len(held(node)) == 4


def test_an_attach_cut_short_holds_no_address_after_the_next_start():
    """Killed with both addresses taken and the binding not published."""
    with loaded(1) as node:
        node.attach(0, "web", VNI, "10.0.0.1", "fd00::1")
        node.plane._words[0] = 0

        assert node.plane.repair() == 2
        assert held(node) == []


def test_routes_of_both_families_read_as_they_were_set():
    """A default route of each, and whole addresses, through one VTEP."""
    prefixes = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.7/32", "::/0", "fd00::/48", "fd00::7/128"]
    with loaded(1) as node:
        node.plane.add_vtep(Vtep(PEER))
        wanted = {(VNI, Route("", ip_network(text), RouteKind.REMOTE, PEER)) for text in prefixes}
        node.plane.set_routes(wanted)
        assert set(node.plane.routes()) == wanted

        node.plane.remove_routes((VNI, ip_network(text)) for text in prefixes)
        assert list(node.plane.routes()) == []


def test_a_default_route_is_one_familys():
    """::/0 covers ::ffff:0:0/96, which is how the maps write IPv4, and is no way for IPv4."""
    with loaded(1) as node:
        node.attach(0, "web", VNI, "10.0.0.1", "fd00::1")
        node.route(VNI, "::/0", RouteKind.BLACKHOLE)
        assert node.plane.lookup(VNI, ip_address("10.0.0.1")) is None
        assert node.plane.lookup(VNI, ip_address("fd00::1")).kind is RouteKind.BLACKHOLE
        for target, reason in (("10.9.0.1", "no_route"), ("fd00:9::1", "blackhole")):
            before = node.counted()
            node.sends(from_guest(UDP(sport=1, dport=2), dst=target))
            assert node.counted()[f"tx {reason}"][0] == before[f"tx {reason}"][0] + 1

        node.route(VNI, "0.0.0.0/0", RouteKind.LOCAL)
        assert node.plane.lookup(VNI, ip_address("10.0.0.1")).kind is RouteKind.LOCAL
        assert node.plane.lookup(VNI, ip_address("fd00::1")).kind is RouteKind.BLACKHOLE


def test_a_vtep_of_the_other_family_is_refused():
    """The underlay has the family of the node's own VTEP."""
    with loaded(1) as node, pytest.raises(GeneveError) as refusal:
        node.plane.add_vtep(Vtep(ip_address("2001:db8::2")))

    assert refusal.value.code is Code.VTEP_FAMILY
    assert refusal.value.hint


def test_maps_that_cannot_all_be_opened_are_closed_again():
    """Whoever tries again and again, as the exporter does, does not run out of descriptors."""

    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("bpf-map")
        return len(os.listdir("/proc/self/fd")), mapped

    with loaded(1) as node:
        before = held()
        for name in ("node_state", "vteps", "bindings", "vpc_counters", "event_counts"):
            pinned = node.pins.map(name)
            away = pinned.with_name("away")
            pinned.rename(away)
            try:
                with pytest.raises(FileNotFoundError):
                    DataPlane(node.pins, writable=False)
            finally:
                away.rename(pinned)
            assert held() == before
        DataPlane(node.pins, writable=False).close()
        assert held() == before


def test_a_map_of_another_shape_is_refused_and_closed():
    """Its descriptor, too."""
    with loaded(1) as node:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(GeneveError) as refusal:
            Table(node.pins.map("vteps"), Key32, Key32)
        assert refusal.value.code is Code.LAYOUT_MISMATCH
        assert len(os.listdir("/proc/self/fd")) == before
