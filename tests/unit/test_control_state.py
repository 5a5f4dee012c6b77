# SPDX-License-Identifier: Apache-2.0
"""The rules that VPCs, VTEPs and routes keep among each other, and differences of states."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneve_ebpf.control.state import DesiredState, Difference, Rules, steps_of_difference
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Guest, MacAddress, Route, RouteKind, Vpc, Vtep

RULES = Rules(Guest(), IPv4Address("192.0.2.1"))
FAR = IPv4Address("192.0.2.2")


def vpc(name="blue", vni=100, *prefixes):
    return Vpc(name, vni, tuple(ip_network(p) for p in prefixes or ("10.0.0.0/16",)))


def remote(prefix, name="blue", vtep=FAR, mac=None):
    return Route(name, ip_network(prefix), RouteKind.REMOTE, vtep, mac)


@pytest.fixture
def state():
    state = DesiredState(RULES)
    state.put_vpc(vpc())
    state.put_vtep(Vtep(FAR))
    return state


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (vpc("blue", 101), Code.VPC_EXISTS),
        (vpc("blue", 100, "10.0.0.0/17"), Code.VPC_EXISTS),
        (vpc("red", 100), Code.VNI_TAKEN),
        (vpc("red", 101, "10.0.0.0/8", "10.1.0.0/16"), Code.PREFIX_OVERLAP),
        (vpc("red", 101, "10.1.0.0/16", "192.168.0.0/24", "10.1.2.0/24"), Code.PREFIX_OVERLAP),
        (vpc("red", 101, "169.254.0.0/16"), Code.PREFIX_OVERLAPS_GUEST),
        (vpc("red", 101, "169.254.77.0/31"), Code.PREFIX_OVERLAPS_GUEST),
        (vpc("red", 101, "0.0.0.0/0"), Code.PREFIX_OVERLAPS_GUEST),
        (vpc("red", 101, "224.1.0.0/16"), Code.BAD_PREFIX),
        (vpc("red", 101, "126.0.0.0/7"), Code.BAD_PREFIX),
        (Vpc("red", 101, ()), Code.BAD_PREFIX),
        (vpc("red", 101, "fd00::/16", "10.0.0.0/8", "fd00:1::/48"), Code.PREFIX_OVERLAP),
        (vpc("red", 101, "fd67:6e76:77::/48"), Code.PREFIX_OVERLAPS_GUEST),
        (vpc("red", 101, "::/0"), Code.PREFIX_OVERLAPS_GUEST),
        (vpc("red", 101, "::/96"), Code.BAD_PREFIX),
        (vpc("red", 101, "::/80"), Code.BAD_PREFIX),
        (vpc("red", 101, "::1/128"), Code.BAD_PREFIX),
        (vpc("red", 101, "fe80::/64"), Code.BAD_PREFIX),
        (vpc("red", 101, "fe00::/7"), Code.BAD_PREFIX),
        (vpc("red", 101, "ff05::/16"), Code.BAD_PREFIX),
    ],
)
def test_a_vpc_that_breaks_a_rule_is_refused(state, wanted, code):
    with pytest.raises(GeneveError) as refused:
        state.check_vpc(wanted)

    assert refused.value.code is code
    assert refused.value.hint


def test_a_prefix_that_stands_twice_is_named(state):
    with pytest.raises(GeneveError) as refused:
        state.check_vpc(vpc("red", 101, "10.1.0.0/16", "10.2.0.0/16", "10.1.0.0/16"))

    assert refused.value.message == "VPC red has 10.1.0.0/16 twice"


def test_vpcs_may_overlap_each_other(state):
    """Tenants choose their ranges without knowing of each other."""
    state.check_vpc(vpc("red", 101, "10.0.0.0/16"))
    state.check_vpc(vpc())


def test_a_vpc_that_differs_says_where(state):
    with pytest.raises(GeneveError) as refused:
        state.check_vpc(vpc("blue", 7))

    assert refused.value.details == {"vni": {"have": 100, "want": 7}}


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (remote("10.0.1.0/24", "red"), Code.VPC_NOT_FOUND),
        (remote("10.0.1.0/24", vtep=IPv4Address("192.0.2.3")), Code.VTEP_NOT_FOUND),
        (remote("10.0.1.0/24", vtep=None), Code.BAD_REQUEST),
        (remote("169.254.77.2/32"), Code.PREFIX_OVERLAPS_GUEST),
        (remote("169.254.77.0/30"), Code.PREFIX_OVERLAPS_GUEST),
        (remote("fd67:6e76:77::2/128"), Code.PREFIX_OVERLAPS_GUEST),
        (remote("0.0.0.0/8"), Code.BAD_PREFIX),
        (remote("127.0.0.1/32"), Code.BAD_PREFIX),
        (remote("224.0.0.0/4"), Code.BAD_PREFIX),
        (remote("255.255.255.255/32"), Code.BAD_PREFIX),
        (remote("fe80::1/128"), Code.BAD_PREFIX),
        (remote("ff00::/8"), Code.BAD_PREFIX),
        (Route("blue", IPv4Network("10.0.1.0/24"), RouteKind.LOCAL, FAR), Code.BAD_REQUEST),
        (
            Route(
                "blue",
                IPv4Network("10.0.1.0/24"),
                RouteKind.BLACKHOLE,
                None,
                MacAddress(b"\2\0\0\0\0\1"),
            ),
            Code.BAD_REQUEST,
        ),
    ],
)
def test_a_route_that_breaks_a_rule_is_refused(state, route, code):
    with pytest.raises(GeneveError) as refused:
        state.check_route(route)

    assert refused.value.code is code


@pytest.mark.parametrize(
    "prefix",
    [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "169.254.0.0/16",
        "169.254.77.4/30",
        "::/0",
        "fd67:6e76:77::/64",
    ],
)
def test_a_route_may_be_wider_than_what_no_sandbox_can_have(state, prefix):
    """A default route contains it, and is right; so are its two halves."""
    state.check_route(remote(prefix))


def test_the_nodes_own_vtep_is_no_vtep(state):
    with pytest.raises(GeneveError) as refused:
        state.check_vtep(Vtep(RULES.own_vtep))

    assert refused.value.code is Code.BAD_ADDRESS


def test_prefixes_of_both_families_are_one_vpcs(state):
    """Any number, in any order; they are kept as they were given."""
    wanted = vpc("red", 101, "fd00:2::/48", "10.0.0.0/16", "2001:db8::/32", "192.168.0.0/24")

    state.check_vpc(wanted)


@pytest.mark.parametrize(
    ("own", "other"), [("192.0.2.1", "2001:db8::2"), ("2001:db8::1", "192.0.2.2")]
)
def test_a_vtep_of_the_other_family_is_refused(own, other):
    """Our packets to it would need an address that this node does not have."""
    state = DesiredState(Rules(Guest(), ip_address(own)))

    with pytest.raises(GeneveError) as refused:
        state.check_vtep(Vtep(ip_address(other)))

    assert refused.value.code is Code.VTEP_FAMILY
    assert own in refused.value.message
    assert refused.value.hint


def test_what_routes_use_stays(state):
    """VPC and VTEP of a route are removable when the last route is gone, however it changed."""
    state.put_vtep(Vtep(IPv4Address("192.0.2.3")))
    route = remote("10.0.1.0/24")
    state.put_route(route)
    state.put_route(remote("10.0.1.0/24", vtep=IPv4Address("192.0.2.3")))

    state.check_vtep_removable(FAR)
    with pytest.raises(GeneveError) as vtep_in_use:
        state.check_vtep_removable(IPv4Address("192.0.2.3"))
    with pytest.raises(GeneveError) as vpc_in_use:
        state.check_vpc_removable("blue")
    state.drop_route(state.route("blue", route.prefix))
    state.check_vtep_removable(IPv4Address("192.0.2.3"))
    state.check_vpc_removable("blue")

    assert vtep_in_use.value.code is Code.VTEP_IN_USE
    assert vpc_in_use.value.code is Code.VPC_IN_USE


def test_the_longest_route_is_found(state):
    for prefix in ("0.0.0.0/0", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.7/32"):
        state.put_route(remote(prefix))
    assert state.match("blue", ip_address("fd00::1")) is None
    for prefix in ("::/0", "fd00:1::/48", "fd00:1::7/128"):
        state.put_route(remote(prefix))

    def found(address):
        return str(state.match("blue", ip_address(address)).prefix)

    assert found("10.0.1.7") == "10.0.1.7/32"
    assert found("10.0.1.8") == "10.0.1.0/24"
    assert found("10.0.2.8") == "10.0.0.0/16"
    assert found("8.8.8.8") == "0.0.0.0/0"
    assert found("fd00:1::7") == "fd00:1::7/128"
    assert found("fd00:1::8") == "fd00:1::/48"
    assert found("fd00:2::8") == "::/0"


names = st.sampled_from(["blue", "red", "green"])
states = st.builds(
    lambda vnis, mtus, routes: (vnis, mtus, routes),
    st.dictionaries(names, st.integers(1, 3)),
    st.dictionaries(st.integers(2, 4), st.sampled_from([0, 1500])),
    st.dictionaries(st.tuples(names, st.integers(0, 3)), st.integers(2, 4)),
)


def built(raw):
    vnis, mtus, routes = raw
    state = DesiredState(RULES)
    for name, vni in vnis.items():
        state.put_vpc(vpc(name, vni))
    for last, mtu in mtus.items():
        state.put_vtep(Vtep(IPv4Address(f"192.0.2.{last}"), mtu))
    for (name, third), last in routes.items():
        state.put_route(remote(f"10.0.{third}.0/24", name, IPv4Address(f"192.0.2.{last}")))
    return state


def contents(state):
    return state.vpcs, state.vteps, {(r.vpc, r.prefix): r for r in state.routes()}


@given(states, states)
def test_a_difference_leads_from_one_state_to_the_other(one, other):
    """Removing and adding what it says gives the second state, and none is listed in vain."""
    before, after = built(one), built(other)
    difference = Difference()
    for _ in steps_of_difference(before, after, difference):
        pass

    vpcs, vteps, routes = (dict(part) for part in contents(before))
    for gone in difference.vpcs_removed:
        del vpcs[gone.name]
    for gone in difference.vteps_removed:
        del vteps[gone.address]
    for gone in difference.routes_removed:
        del routes[gone.vpc, gone.prefix]
    for new in difference.vpcs_added + difference.vpcs_changed:
        assert vpcs.get(new.name) != new
        vpcs[new.name] = new
    for new in difference.vteps_added + difference.vteps_changed:
        assert vteps.get(new.address) != new
        vteps[new.address] = new
    for new in difference.routes_added + difference.routes_changed:
        assert routes.get((new.vpc, new.prefix)) != new
        routes[new.vpc, new.prefix] = new

    assert (vpcs, vteps, routes) == contents(after)
    assert bool(difference) == (contents(before) != contents(after))
