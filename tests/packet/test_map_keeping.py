# SPDX-License-Identifier: Apache-2.0
"""The maps' keeping: next hops past their limit, what is left of a VPC and of a sandbox."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from geneve_ebpf.abi import constant
from geneve_ebpf.errors import Code, GeneveError
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
