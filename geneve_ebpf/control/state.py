# SPDX-License-Identifier: Apache-2.0
"""Desired state of a node: its VPCs, VTEPs and routes, the rules they keep among each other,
and the difference between two such states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from itertools import pairwise

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import (
    Address,
    Guest,
    Network,
    Route,
    RouteKind,
    Vpc,
    Vtep,
    in_order,
    refuse_other_family,
)

# Ranges no sandbox can have an address in. A link-local address has its meaning on one
# link, and an IPv4-mapped one is how the maps hold IPv4.
NOT_UNICAST = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3",
        "::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
    )
)  # fmt: skip
EXAMPLE = {4: "10.0.0.0/16", 6: "fd00:1::/48"}


@dataclass(frozen=True, slots=True)
class Rules:
    """What this node demands of any state, whatever else is in it."""

    guest: Guest
    own_vtep: Address

    def guest_range(self, version: int) -> Network:
        """What the guest has of a family for itself."""
        return self.guest.network if version == 4 else ip_network(self.guest.address6)


class DesiredState:
    """VPCs, VTEPs and routes that belong together.

    `check_*` says whether a value may be added and raises if not; `put_*` and
    `drop_*` change without asking. Nothing here does I/O.
    """

    def __init__(self, rules: Rules, revision: int = 0) -> None:
        self.rules = rules
        self.revision = revision
        self.vpcs: dict[str, Vpc] = {}
        self.vpc_by_vni: dict[int, Vpc] = {}
        self.vteps: dict[Address, Vtep] = {}
        self._routes: dict[str, dict[Network, Route]] = {}
        self._routes_to: dict[Address, int] = {}

    # VPCs

    def check_vpc(self, vpc: Vpc) -> None:
        """Raise unless the VPC may be added, or is there already exactly so.

        Codes: VPC_EXISTS, VNI_TAKEN, BAD_PREFIX, PREFIX_OVERLAPS_GUEST,
        PREFIX_OVERLAP.
        """
        present = self.vpcs.get(vpc.name)
        if present is not None and present != vpc:
            raise GeneveError(
                Code.VPC_EXISTS,
                f"VPC {vpc.name} exists with other settings",
                hint="delete it first, or replace the whole state",
                details=_differences(_vpc_fields(present), _vpc_fields(vpc)),
            )
        self.check_vpc_alone(vpc)
        owner = self.vpc_by_vni.get(vpc.vni)
        if owner is not None and owner.name != vpc.name:
            raise GeneveError(
                Code.VNI_TAKEN,
                f"VNI {vpc.vni} is VPC {owner.name}'s",
                hint="choose another VNI",
                field="vni",
            )

    def check_vpc_alone(self, vpc: Vpc) -> None:
        """The part of `check_vpc` that no other VPC has a say in."""
        if not vpc.prefixes:
            raise GeneveError(
                Code.BAD_PREFIX,
                f"VPC {vpc.name} has no prefix",
                hint="at least one, such as 10.0.0.0/16 or fd00:1::/48",
                field="prefixes",
            )
        for prefix in vpc.prefixes:
            guest = self.rules.guest_range(prefix.version)
            if _overlap(prefix, guest):
                raise GeneveError(
                    Code.PREFIX_OVERLAPS_GUEST,
                    f"{prefix} overlaps the guest's own range {guest}",
                    hint=f"choose another prefix, or another {_guest_key(prefix)} for the node",
                    field="prefixes",
                )
            for other in NOT_UNICAST:
                if _overlap(prefix, other):
                    raise GeneveError(
                        Code.BAD_PREFIX,
                        f"{prefix} overlaps {other}, where no sandbox can have an address",
                        hint=f"a unicast prefix, such as {EXAMPLE[prefix.version]}",
                        field="prefixes",
                    )
        # In order of address, an overlap is always one between neighbours.
        ordered = sorted(vpc.prefixes, key=in_order)
        for one, other in pairwise(ordered):
            if _overlap(one, other):
                raise GeneveError(
                    Code.PREFIX_OVERLAP,
                    f"VPC {vpc.name} has {one} twice"
                    if one == other
                    else f"{one} and {other} of VPC {vpc.name} overlap",
                    hint="each prefix once" if one == other else "keep the wider one",
                    field="prefixes",
                )

    def check_vpc_removable(self, name: str) -> Vpc:
        """The VPC, if no route uses it. Raises VPC_NOT_FOUND, VPC_IN_USE."""
        vpc = self.vpc(name)
        count = len(self._routes.get(name, ()))
        if count:
            raise GeneveError(
                Code.VPC_IN_USE,
                f"VPC {name} has {count} route{'s' if count > 1 else ''}",
                hint="delete its routes first",
            )
        return vpc

    def vpc(self, name: str) -> Vpc:
        """The VPC of that name. Raises VPC_NOT_FOUND."""
        vpc = self.vpcs.get(name)
        if vpc is None:
            raise GeneveError(
                Code.VPC_NOT_FOUND,
                f"no VPC {name}",
                hint="geneve-ebpf vpc list shows those of this node",
                field="vpc",
            )
        return vpc

    def put_vpc(self, vpc: Vpc) -> None:
        """Add the VPC."""
        self.vpcs[vpc.name] = vpc
        self.vpc_by_vni[vpc.vni] = vpc

    def drop_vpc(self, vpc: Vpc) -> None:
        """Forget the VPC, which has no routes."""
        del self.vpcs[vpc.name]
        if self.vpc_by_vni.get(vpc.vni) is vpc:
            del self.vpc_by_vni[vpc.vni]
        self._routes.pop(vpc.name, None)

    # VTEPs

    def check_vtep(self, vtep: Vtep) -> None:
        """Raise BAD_ADDRESS if the VTEP is this node itself, VTEP_FAMILY if not of its family."""
        refuse_other_family(vtep.address, self.rules.own_vtep)
        if vtep.address == self.rules.own_vtep:
            raise GeneveError(
                Code.BAD_ADDRESS,
                f"{vtep.address} is this node's own VTEP",
                hint="VTEPs are the other nodes; a prefix of this one is a local route",
                field="address",
            )

    def check_vtep_removable(self, address: Address) -> Vtep:
        """The VTEP, if no route uses it. Raises VTEP_NOT_FOUND, VTEP_IN_USE."""
        vtep = self.vteps.get(address)
        if vtep is None:
            raise GeneveError(
                Code.VTEP_NOT_FOUND,
                f"no VTEP {address}",
                hint="geneve-ebpf vtep list shows those known to this node",
                field="vtep",
            )
        count = self._routes_to.get(address, 0)
        if count:
            raise GeneveError(
                Code.VTEP_IN_USE,
                f"{count} route{'s lead' if count > 1 else ' leads'} to VTEP {address}",
                hint="delete or replace these routes first",
            )
        return vtep

    def put_vtep(self, vtep: Vtep) -> None:
        """Add the VTEP, or replace the one with its address."""
        self.vteps[vtep.address] = vtep

    def drop_vtep(self, address: Address) -> None:
        """Forget the VTEP."""
        del self.vteps[address]

    # Routes

    def check_route(self, route: Route) -> None:
        """Raise unless the route may be added or may replace the one of its prefix.

        Codes: VPC_NOT_FOUND, VTEP_NOT_FOUND, PREFIX_OVERLAPS_GUEST,
        BAD_REQUEST for fields that its kind does not have.
        """
        self.vpc(route.vpc)
        # A wider prefix may be right, a default route for one; what lies inside the
        # guest's range can only be a mistake, for no packet to it ever leaves.
        guest = self.rules.guest_range(route.prefix.version)
        if _inside(route.prefix, guest):
            raise GeneveError(
                Code.PREFIX_OVERLAPS_GUEST,
                f"{route.prefix} is in the guest's own range {guest}",
                hint=f"choose another prefix, or another {_guest_key(route.prefix)} for the node",
                field="prefix",
            )
        for other in NOT_UNICAST:
            if _inside(route.prefix, other):
                raise GeneveError(
                    Code.BAD_PREFIX,
                    f"{route.prefix} is in {other}, where no sandbox can have an address",
                    hint=f"a unicast prefix, such as {EXAMPLE[route.prefix.version]}",
                    field="prefix",
                )
        if route.kind is RouteKind.REMOTE:
            if route.vtep is None:
                raise GeneveError(
                    Code.BAD_REQUEST,
                    "a remote route needs a VTEP",
                    hint="vtep: the address of the node that has the prefix",
                    field="vtep",
                )
            if route.vtep not in self.vteps:
                raise GeneveError(
                    Code.VTEP_NOT_FOUND,
                    f"no VTEP {route.vtep}",
                    hint="add the VTEP first",
                    field="vtep",
                )
            return
        for name, value in (("vtep", route.vtep), ("mac", route.mac)):
            if value is not None:
                raise GeneveError(
                    Code.BAD_REQUEST,
                    f"a {route.kind.value} route has no {name}",
                    hint=f"leave {name} out, or make the route remote",
                    field=name,
                )

    def route(self, vpc: str, prefix: Network) -> Route | None:
        """The route of exactly this prefix."""
        return self._routes.get(vpc, {}).get(prefix)

    def routes(self, vpc: str | None = None) -> Iterator[Route]:
        """All routes, or those of one VPC, in no order."""
        if vpc is not None:
            yield from self._routes.get(vpc, {}).values()
            return
        for routes in self._routes.values():
            yield from routes.values()

    def match(self, vpc: str, address: Address) -> Route | None:
        """The longest route over an address: what the data plane would choose."""
        routes = self._routes.get(vpc, {})
        for length in range(address.max_prefixlen, -1, -1):
            route = routes.get(ip_network((address, length), strict=False))
            if route is not None:
                return route
        return None

    def put_route(self, route: Route) -> None:
        """Add the route, or replace the one of its prefix."""
        routes = self._routes.setdefault(route.vpc, {})
        self._count(routes.get(route.prefix), -1)
        routes[route.prefix] = route
        self._count(route, 1)

    def drop_route(self, route: Route) -> None:
        """Forget the route."""
        self._count(self._routes[route.vpc].pop(route.prefix), -1)

    def _count(self, route: Route | None, by: int) -> None:
        if route is not None and route.vtep is not None:
            self._routes_to[route.vtep] = self._routes_to.get(route.vtep, 0) + by


@dataclass(slots=True)
class Difference:
    """What leads from one state to another, in values of the latter but for `removed`."""

    vpcs_added: list[Vpc] = field(default_factory=list)
    vpcs_changed: list[Vpc] = field(default_factory=list)
    vpcs_removed: list[Vpc] = field(default_factory=list)
    vteps_added: list[Vtep] = field(default_factory=list)
    vteps_changed: list[Vtep] = field(default_factory=list)
    vteps_removed: list[Vtep] = field(default_factory=list)
    routes_added: list[Route] = field(default_factory=list)
    routes_changed: list[Route] = field(default_factory=list)
    routes_removed: list[Route] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    def size(self) -> int:
        """How many things differ."""
        return sum(len(getattr(self, name)) for name in self.__slots__)

    def counts(self) -> dict[str, dict[str, int]]:
        """{"vpcs": {"added": n, "removed": n, "changed": n}, "vteps": …, "routes": …}."""
        return {
            noun: {
                verb: len(getattr(self, f"{noun}_{verb}"))
                for verb in ("added", "removed", "changed")
            }
            for noun in ("vpcs", "vteps", "routes")
        }


def steps_of_difference(
    before: DesiredState, after: DesiredState, difference: Difference
) -> Iterator[None]:
    """Fill `difference` with what leads from `before` to `after`; yields between pieces.

    Neither state may change until the iterator is exhausted.
    """
    for vpc in after.vpcs.values():
        present = before.vpcs.get(vpc.name)
        if present is None:
            difference.vpcs_added.append(vpc)
        elif present != vpc:
            difference.vpcs_changed.append(vpc)
        yield
    difference.vpcs_removed = [v for name, v in before.vpcs.items() if name not in after.vpcs]
    for vtep in after.vteps.values():
        known = before.vteps.get(vtep.address)
        if known is None:
            difference.vteps_added.append(vtep)
        elif known != vtep:
            difference.vteps_changed.append(vtep)
        yield
    difference.vteps_removed = [v for name, v in before.vteps.items() if name not in after.vteps]
    for route in after.routes():
        there = before.route(route.vpc, route.prefix)
        if there is None:
            difference.routes_added.append(route)
        elif there != route:
            difference.routes_changed.append(route)
        yield
    for route in before.routes():
        if after.route(route.vpc, route.prefix) is None:
            difference.routes_removed.append(route)
        yield


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _inside(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.subnet_of(other)
    return not isinstance(other, IPv4Network) and one.subnet_of(other)


def _guest_key(prefix: Network) -> str:
    return f"[guest] {'network' if prefix.version == 4 else 'address6'}"


def _vpc_fields(vpc: Vpc) -> dict[str, object]:
    return {"vni": vpc.vni, "prefixes": [str(prefix) for prefix in vpc.prefixes]}


def _differences(have: dict[str, object], want: dict[str, object]) -> dict[str, object]:
    return {
        name: {"have": have[name], "want": want[name]} for name in have if have[name] != want[name]
    }
