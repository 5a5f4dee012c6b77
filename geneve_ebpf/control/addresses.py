# SPDX-License-Identifier: Apache-2.0
"""Which addresses of a VPC are free on this node, and which one an attach gets.

A freed address rests before another sandbox may have it, because packets to
its last owner may still be on the way: a remote sender knows no generations.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv4Network

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Route, RouteKind, Vpc

ALL_ONES = 0xFFFF_FFFF


class AddressBook:
    """The addresses of one VNI. Addresses are whole numbers inside.

    It is told of every prefix, route, attach and detach of its VPC. Finding
    the lowest free address is a heap of those given back plus a cursor: below
    the cursor nothing is free but what the heap knows.
    """

    def __init__(self, rest: float, now: Callable[[], float]) -> None:
        self.in_use: dict[int, str] = {}  # address -> sandbox
        self._rest = rest
        self._now = now
        self._prefixes: tuple[IPv4Network, ...] = ()
        self._reserved: frozenset[int] = frozenset()
        # Routes by length of their prefix, then by network; and every route's first address.
        self._routes: dict[int, dict[int, RouteKind]] = {}
        self._lengths: list[int] = []  # longest first
        self._starts: list[int] = []  # sorted, one entry per route
        self._locals: set[IPv4Network] = set()
        # Where to look for free addresses: (first, last), sorted; None when not known.
        self._ranges: list[tuple[int, int]] | None = None
        self._cursor = 0
        self._freed: list[int] = []  # heap
        self._resting: dict[int, tuple[str, float]] = {}  # address -> (sandbox, until)
        self._resting_of: dict[str, int] = {}  # sandbox -> address
        self._rest_order: deque[tuple[float, int]] = deque()

    # What the VPC is

    def set_vpc(self, vpc: Vpc | None, routes: Iterable[Route] = ()) -> None:
        """Take over prefixes and routes; None is a VPC that is gone."""
        for _ in self.steps_of_setting(vpc, routes):
            pass

    def steps_of_setting(self, vpc: Vpc | None, routes: Iterable[Route]) -> Iterator[None]:
        """As `set_vpc`, in pieces: nothing has changed until the iterator is exhausted."""
        rows: dict[int, dict[int, RouteKind]] = {}
        starts: list[int] = []
        local: set[IPv4Network] = set()
        for route in routes:
            start = int(route.prefix.network_address)
            rows.setdefault(route.prefix.prefixlen, {})[start] = route.kind
            starts.append(start)
            if route.kind is RouteKind.LOCAL:
                local.add(route.prefix)
            yield
        starts.sort()
        self._prefixes = vpc.prefixes if vpc is not None else ()
        self._reserved = frozenset(
            address for prefix in self._prefixes for address in reserved_addresses(prefix)
        )
        self._routes, self._starts, self._locals = rows, starts, local
        self._lengths = sorted(rows, reverse=True)
        self._look_again()

    def add_route(self, route: Route) -> None:
        """A route was added, or replaced the one of its prefix."""
        start = int(route.prefix.network_address)
        present = self._routes.get(route.prefix.prefixlen, {}).get(start)
        if present is route.kind:
            return
        self._note(route)
        if present is None:
            insort(self._starts, start)
            self._lengths = sorted(self._routes, reverse=True)
            # It only takes addresses away: the cursor need not go back.
            if route.kind is not RouteKind.LOCAL:
                return
        self._locals.discard(route.prefix)
        if route.kind is RouteKind.LOCAL:
            self._locals.add(route.prefix)
        self._look_again()

    def remove_route(self, prefix: IPv4Network) -> None:
        """A route was removed."""
        start = int(prefix.network_address)
        row = self._routes.get(prefix.prefixlen, {})
        if row.pop(start, None) is None:
            return
        if not row:
            del self._routes[prefix.prefixlen]
            self._lengths.remove(prefix.prefixlen)
        del self._starts[bisect_right(self._starts, start) - 1]
        self._locals.discard(prefix)
        self._look_again()

    # Which address an attach gets

    def take(self, sandbox: str, address: IPv4Address) -> None:
        """Mark an address as the sandbox's, whatever it was: the data plane says so."""
        number = int(address)
        self._forget_rest(number)
        self.in_use[number] = sandbox

    def give_back(self, address: IPv4Address) -> float:
        """The sandbox is detached; its address rests. Returns until when, on the clock."""
        number = int(address)
        until = self._now() + self._rest
        self.rest(self.in_use.pop(number), address, until)
        return until

    def rest(self, sandbox: str, address: IPv4Address, until: float) -> None:
        """Keep the address from other sandboxes until then."""
        number = int(address)
        self._resting[number] = (sandbox, until)
        self._resting_of[sandbox] = number
        self._rest_order.append((until, number))

    def resting(self) -> list[tuple[str, IPv4Address, float]]:
        """Sandbox, address and end of every rest."""
        self._expire()
        return [(s, IPv4Address(n), until) for n, (s, until) in self._resting.items()]

    def check(self, sandbox: str, address: IPv4Address) -> None:
        """Raise unless the sandbox may have this address now.

        Codes: ADDRESS_OUTSIDE_VPC, ADDRESS_RESERVED, ADDRESS_IN_USE,
        ADDRESS_RESTING.
        """
        number = int(address)
        if not any(address in prefix for prefix in self._prefixes):
            known = ", ".join(str(prefix) for prefix in self._prefixes)
            raise GeneveError(
                Code.ADDRESS_OUTSIDE_VPC,
                f"{address} is in no prefix of the VPC",
                hint=f"its prefixes are {known}",
                field="address",
            )
        if number in self._reserved:
            raise GeneveError(
                Code.ADDRESS_RESERVED,
                f"{address} is a network, gateway or broadcast address of the VPC",
                hint="choose another address, or leave it out",
                field="address",
            )
        owner = self.in_use.get(number)
        if owner is not None:
            raise GeneveError(
                Code.ADDRESS_IN_USE,
                f"{address} is sandbox {owner}'s",
                hint="choose another address, or leave it out",
                field="address",
            )
        rest = self._resting.get(number)
        if rest is not None and rest[0] != sandbox:
            left = rest[1] - self._now()
            if left > 0:
                raise GeneveError(
                    Code.ADDRESS_RESTING,
                    f"{address} was sandbox {rest[0]}'s a moment ago",
                    hint=f"free in {left:.0f} s; choose another address, or leave it out",
                    field="address",
                )

    def choose(self, sandbox: str) -> IPv4Address:
        """The address this sandbox had a moment ago, else the lowest free one.

        Raises NO_ADDRESS.
        """
        self._expire()
        number = self._resting_of.get(sandbox)
        if number is not None and self._is_free(number, sandbox) and self._is_ours(number):
            return IPv4Address(number)
        while self._freed:
            number = self._freed[0]
            if self._is_free(number, sandbox) and self._is_ours(number):
                return IPv4Address(number)
            heappop(self._freed)
        if self.advance(None):
            return IPv4Address(self._cursor)
        raise GeneveError(
            Code.NO_ADDRESS,
            "every address that the VPC has on this node is in use or rests",
            hint="wait, or give the VPC another prefix or local route",
            field="vpc",
        )

    @property
    def position(self) -> int:
        """Where the cursor is: it only moves up until prefixes or routes change."""
        return self._cursor

    def advance(self, steps: int | None) -> bool:
        """Move the cursor to the next free address, looking at no more than `steps`.

        False if there is none, or not within these steps. Work done here ahead
        of an attach need not be done by it.
        """
        ranges = self._ranges if self._ranges is not None else self._find_ranges()
        position = max(0, bisect_right(ranges, (self._cursor, ALL_ONES)) - 1)
        for first, last in ranges[position:]:
            candidate = max(self._cursor, first)
            while candidate <= last:
                if steps is not None:
                    if not steps:
                        return False
                    steps -= 1
                self._cursor = candidate
                after = self._next_ours(candidate)
                if after is not None:
                    candidate = after
                    continue
                if self._is_free(candidate, ""):
                    return True
                candidate += 1
            self._cursor = max(self._cursor, last + 1)
        return False

    # Inside

    def _note(self, route: Route) -> None:
        row = self._routes.setdefault(route.prefix.prefixlen, {})
        row[int(route.prefix.network_address)] = route.kind
        if route.kind is RouteKind.LOCAL:
            self._locals.add(route.prefix)

    def _look_again(self) -> None:
        self._ranges = None
        self._cursor = 0
        self._freed.clear()

    def _find_ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for network in sorted(self._locals) if self._locals else ():
            first, last = int(network.network_address), int(network.broadcast_address)
            if ranges and first <= ranges[-1][1]:
                continue  # inside the one before: networks nest or are disjoint
            ranges.append((first, last))
        ours = sorted((int(p.network_address), int(p.broadcast_address)) for p in self._prefixes)
        if self._locals:
            # Two networks that meet are one inside the other: the overlap is the smaller.
            ours = sorted(
                (max(a[0], b[0]), min(a[1], b[1]))
                for a in ours
                for b in ranges
                if a[0] <= b[1] and b[0] <= a[1]
            )
        self._ranges = ours
        return ours

    def _match(self, number: int) -> tuple[RouteKind | None, int]:
        """The kind of the longest route over an address, and that route's last address."""
        for length in self._lengths:
            span = ALL_ONES >> length
            kind = self._routes[length].get(number & ~span)
            if kind is not None:
                return kind, number | span
        return None, ALL_ONES

    def _is_ours(self, number: int) -> bool:
        """Does the address live on this node, as far as routes say?"""
        if not any(IPv4Address(number) in prefix for prefix in self._prefixes):
            return False
        kind, _ = self._match(number)
        return kind is RouteKind.LOCAL or (kind is None and not self._locals)

    def _next_ours(self, number: int) -> int | None:
        """None if the address lives here, else the next that may."""
        kind, last = self._match(number)
        if kind is RouteKind.LOCAL or (kind is None and not self._locals):
            return None
        # The answer stays the same up to where this route ends or a longer one begins.
        following = bisect_right(self._starts, number)
        if following < len(self._starts):
            return min(last + 1, self._starts[following])
        return last + 1

    def _is_free(self, number: int, sandbox: str) -> bool:
        if number in self.in_use or number in self._reserved:
            return False
        rest = self._resting.get(number)
        return rest is None or rest[0] == sandbox or rest[1] <= self._now()

    def _forget_rest(self, number: int) -> None:
        rest = self._resting.pop(number, None)
        if rest is not None and self._resting_of.get(rest[0]) == number:
            del self._resting_of[rest[0]]

    def _expire(self) -> None:
        """Addresses that have rested become free."""
        order = self._rest_order
        now = self._now()
        while order and order[0][0] <= now:
            until, number = order.popleft()
            rest = self._resting.get(number)
            if rest is None or rest[1] != until:
                continue  # taken since, or resting anew
            self._forget_rest(number)
            if number < self._cursor:
                heappush(self._freed, number)


def reserved_addresses(prefix: IPv4Network) -> tuple[int, ...]:
    """Network, gateway (the first after it) and broadcast address; none in a /31 or /32."""
    if prefix.prefixlen > 30:
        return ()
    first = int(prefix.network_address)
    return (first, first + 1, int(prefix.broadcast_address))
