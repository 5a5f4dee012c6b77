# SPDX-License-Identifier: Apache-2.0
"""The addresses of a VPC on this node, of both families: who has which, and which are next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from geneve_ebpf.control.addresses import Addresses, Rows, field_of, none_free
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Address, Network, Route, RouteKind, Vpc


class AddressBook:
    """The addresses of one VNI. It is told of every prefix, route, attach and detach of its VPC."""

    def __init__(self, rest: float, now: Callable[[], float]) -> None:
        """rest: seconds a freed address rests; now: the clock that is measured by."""
        self.v4 = Addresses(IPv4Address, rest, now)
        self.v6 = Addresses(IPv6Address, rest, now)

    # What the VPC is

    def set_vpc(self, vpc: Vpc | None, routes: Iterable[Route] = ()) -> None:
        """Take over prefixes and routes; None is a VPC that is gone."""
        for _ in self.steps_of_setting(vpc, routes):
            pass

    def steps_of_setting(self, vpc: Vpc | None, routes: Iterable[Route]) -> Iterator[None]:
        """As `set_vpc`, in pieces: nothing has changed until the iterator is exhausted."""
        found: dict[int, tuple[Rows, list[int], set[Network]]]
        found = {4: ({}, [], set()), 6: ({}, [], set())}
        for route in routes:
            rows, starts, blocks = found[route.prefix.version]
            start = int(route.prefix.network_address)
            rows.setdefault(route.prefix.prefixlen, {})[start] = route.kind
            starts.append(start)
            if route.kind is RouteKind.LOCAL:
                blocks.add(route.prefix)
            yield
        prefixes = vpc.prefixes if vpc is not None else ()
        for version, part in ((4, self.v4), (6, self.v6)):
            mine = tuple(prefix for prefix in prefixes if prefix.version == version)
            part.set_all(mine, *found[version])
        self._settle()

    def add_route(self, route: Route) -> None:
        """A route was added, or replaced the one of its prefix."""
        self._part(route.prefix).add_route(route)
        self._settle()

    def remove_route(self, prefix: Network) -> None:
        """A route was removed."""
        self._part(prefix).remove_route(prefix)
        self._settle()

    def _settle(self) -> None:
        """With a local block of either family, addresses are given from local blocks only."""
        whole = not self.v4.blocks and not self.v6.blocks
        self.v4.set_whole(whole)
        self.v6.set_whole(whole)

    def _part(self, of: Address | Network) -> Addresses[IPv4Address] | Addresses[IPv6Address]:
        return self.v4 if of.version == 4 else self.v6

    # Which addresses an attach gets

    def choose(self, sandbox: str) -> tuple[IPv4Address | None, IPv6Address | None]:
        """One address of every family that has any on this node. Raises NO_ADDRESS."""
        address = self.v4.choose(sandbox) if self.v4.offers else None
        address6 = self.v6.choose(sandbox) if self.v6.offers else None
        if address is None and address6 is None:
            raise none_free()
        return address, address6

    def take_some(
        self, sandboxes: Iterable[str]
    ) -> list[tuple[IPv4Address | None, IPv6Address | None]]:
        """`choose` and `take` for one after another, until there is none for the next."""
        if not self.v6.offers:
            return [(address, None) for address in self.v4.take_some(sandboxes)]
        if not self.v4.offers:
            return [(None, address) for address in self.v6.take_some(sandboxes)]
        taken: list[tuple[IPv4Address | None, IPv6Address | None]] = []
        for sandbox in sandboxes:
            try:
                address, address6 = self.choose(sandbox)
            except GeneveError:
                break
            if address is not None:
                self.v4.take(sandbox, int(address))
            if address6 is not None:
                self.v6.take(sandbox, int(address6))
            taken.append((address, address6))
        return taken

    def check(self, sandbox: str, address: Address) -> None:
        """Raise unless the sandbox may have this address now.

        Codes: ADDRESS_OUTSIDE_VPC, ADDRESS_RESERVED, ADDRESS_IN_USE,
        ADDRESS_RESTING.
        """
        if not any(address in part for part in (self.v4, self.v6)):
            known = ", ".join(str(prefix) for prefix in (*self.v4.prefixes, *self.v6.prefixes))
            raise GeneveError(
                Code.ADDRESS_OUTSIDE_VPC,
                f"{address} is in no prefix of the VPC",
                hint=f"its prefixes are {known}",
                field=field_of(address),
            )
        self._part(address).check(sandbox, address)

    def elsewhere(self, address: Address) -> RouteKind | None:
        """The kind of the route that leads the address's packets away from this node."""
        kind = self._part(address).kind_over(int(address))
        return None if kind is RouteKind.LOCAL else kind

    def take(self, sandbox: str, address: Address) -> None:
        """Mark an address as the sandbox's, whatever it was: the data plane says so."""
        self._part(address).take(sandbox, int(address))

    def give_back(self, address: Address) -> float:
        """The sandbox is detached; its address rests. Returns until when, on the clock."""
        return self._part(address).give_back(int(address))

    def untake(self, addresses: Iterable[Address]) -> None:
        """Those that were taken just now were nobody's after all: they are as they were before."""
        found: dict[int, set[int]] = {4: set(), 6: set()}
        for one in addresses:
            found[one.version].add(int(one))
        self.v4.untake(found[4])
        self.v6.untake(found[6])

    def rest(self, sandbox: str, address: Address, until: float) -> None:
        """Keep the address from other sandboxes until then."""
        self._part(address).rest(sandbox, int(address), until)

    def resting(self) -> list[tuple[str, Address, float]]:
        """Sandbox, address and end of every rest."""
        return [*self.v4.resting(), *self.v6.resting()]

    def owner(self, address: Address) -> str | None:
        """The sandbox that has the address."""
        return self._part(address).in_use.get(int(address))

    def in_use(self) -> Iterator[tuple[str, Address]]:
        """Sandbox and address, of all that are taken."""
        for number, sandbox in self.v4.in_use.items():
            yield sandbox, IPv4Address(number)
        for number, sandbox in self.v6.in_use.items():
            yield sandbox, IPv6Address(number)

    def sandboxes(self) -> set[str]:
        """Whoever has an address here, or two."""
        return set(chain(self.v4.in_use.values(), self.v6.in_use.values()))

    def advance(self, steps: int | None) -> None:
        """Look ahead for the next free addresses: `Addresses.advance` in each family."""
        self.v4.advance(steps)
        self.v6.advance(steps)
