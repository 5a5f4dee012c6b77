# SPDX-License-Identifier: Apache-2.0
"""Which addresses of one family are free on this node in a VPC, and which one an attach gets.

A freed address rests before another sandbox may have it, because packets to
its last owner may still be on the way: a remote sender knows no generations.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, TypeVar

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Address, Network, Route, RouteKind

A = TypeVar("A", IPv4Address, IPv6Address)
Rows = dict[int, dict[int, RouteKind]]  # length of the prefix -> network -> kind
# Addresses that have rested which one attach takes note of: when thousands were detached
# together, nobody has to wait until all of them are noted.
EXPIRED_AT_ONCE = 16


class Addresses(Generic[A]):
    """The addresses of one family in a VNI; whole numbers inside.

    Finding the lowest free address is a heap of those given back plus a cursor:
    below the cursor nothing is free but what the heap knows, and those that have
    rested and are not noted yet. However many addresses a prefix has, only those in
    use are passed one by one.
    """

    def __init__(self, make: Callable[[int], A], rest: float, now: Callable[[], float]) -> None:
        self.in_use: dict[int, str] = {}  # address -> sandbox
        self.prefixes: tuple[Network, ...] = ()
        self.blocks: set[Network] = set()  # of the local routes
        self.offers = False  # does it have addresses to choose from, as far as routes say?
        self._make: Callable[[int], A] = make
        self._bits: int = make(0).max_prefixlen
        self._all_ones = (1 << self._bits) - 1
        self._rest = rest
        self._now = now
        self._reserved: frozenset[int] = frozenset()
        self._whole = True  # what no route leads elsewhere is ours
        # Routes by length of their prefix, then by network; and every route's first address.
        self._routes: Rows = {}
        self._lengths: list[int] = []  # longest first
        self._starts: list[int] = []  # sorted, one entry per route
        # Where to look for free addresses: (first, last), sorted; None when not known.
        self._ranges: list[tuple[int, int]] | None = None
        self._cursor = 0
        self._clear_to = -1  # from the cursor up to here prefixes and routes forbid nothing
        self._ours = range(0)  # likewise, wherever the last look at one address was
        self._freed: list[int] = []  # heap
        self._resting: dict[int, tuple[str, float]] = {}  # address -> (sandbox, until)
        self._resting_of: dict[str, int] = {}  # sandbox -> address
        self._rest_order: deque[tuple[float, int]] = deque()

    # What the VPC is

    def set_all(
        self,
        prefixes: tuple[Network, ...],
        rows: Rows,
        starts: list[int],
        blocks: set[Network],
    ) -> None:
        """Take over prefixes and routes, all at once; `starts` need not be sorted."""
        starts.sort()
        self.prefixes = prefixes
        self._reserved = frozenset(
            address for prefix in prefixes for address in reserved_addresses(prefix)
        )
        self._routes, self._starts, self.blocks = rows, starts, blocks
        self._lengths = sorted(rows, reverse=True)
        self._look_again()

    def set_whole(self, whole: bool) -> None:
        """Whether what no route leads elsewhere is ours; otherwise only local blocks are."""
        self.offers = bool(self.prefixes) and (whole or bool(self.blocks))
        if whole != self._whole:
            self._whole = whole
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
        self.blocks.discard(route.prefix)
        if route.kind is RouteKind.LOCAL:
            self.blocks.add(route.prefix)
        self._look_again()

    def remove_route(self, prefix: Network) -> None:
        """A route was removed."""
        start = int(prefix.network_address)
        row = self._routes.get(prefix.prefixlen, {})
        if row.pop(start, None) is None:
            return
        if not row:
            del self._routes[prefix.prefixlen]
            self._lengths.remove(prefix.prefixlen)
        del self._starts[bisect_right(self._starts, start) - 1]
        self.blocks.discard(prefix)
        self._look_again()

    # Which address an attach gets

    def take(self, sandbox: str, number: int) -> None:
        """See `AddressBook.take`."""
        self._forget_rest(number)
        self.in_use[number] = sandbox
        if number == self._cursor:
            self._cursor += 1  # or the next attach would have to find it taken

    def give_back(self, number: int) -> float:
        """See `AddressBook.give_back`."""
        until = self._now() + self._rest
        self.rest(self.in_use.pop(number), number, until)
        return until

    def untake(self, numbers: set[int]) -> None:
        """See `AddressBook.untake`."""
        self._expire(len(self._rest_order))
        # One that had rested was its last owner's to take, and rests on for him.
        ends = {number: until for until, number in self._rest_order if number in numbers}
        for number in numbers:
            sandbox = self.in_use.pop(number)
            if number in ends:
                self._resting[number] = (sandbox, ends[number])
                self._resting_of.setdefault(sandbox, number)
            elif number < self._cursor:
                heappush(self._freed, number)

    def rest(self, sandbox: str, number: int, until: float) -> None:
        """See `AddressBook.rest`."""
        self._resting[number] = (sandbox, until)
        self._resting_of[sandbox] = number
        self._rest_order.append((until, number))

    def resting(self) -> list[tuple[str, Address, float]]:
        """See `AddressBook.resting`."""
        self._expire(len(self._rest_order))
        return [(s, self._make(n), until) for n, (s, until) in self._resting.items()]

    def __contains__(self, address: Address) -> bool:
        """Is the address in a prefix of the VPC?"""
        return any(address in prefix for prefix in self.prefixes)

    def check(self, sandbox: str, address: Address) -> None:
        """See `AddressBook.check`; the address is in a prefix."""
        number = int(address)
        if number in self._reserved:
            raise GeneveError(
                Code.ADDRESS_RESERVED,
                f"{address} is {_RESERVED[address.version]} of the VPC",
                hint="choose another address, or leave it out",
                field=field_of(address),
            )
        owner = self.in_use.get(number)
        if owner is not None:
            raise GeneveError(
                Code.ADDRESS_IN_USE,
                f"{address} is sandbox {owner}'s",
                hint="choose another address, or leave it out",
                field=field_of(address),
            )
        rest = self._resting.get(number)
        if rest is not None and rest[0] != sandbox:
            left = rest[1] - self._now()
            if left > 0:
                raise GeneveError(
                    Code.ADDRESS_RESTING,
                    f"{address} was sandbox {rest[0]}'s a moment ago",
                    hint=f"free in {left:.0f} s; choose another address, or leave it out",
                    field=field_of(address),
                    details={"retry_after_s": round(left, 3)},
                )

    def choose(self, sandbox: str) -> A:
        """The address this sandbox had a moment ago, else the lowest free one.

        Raises NO_ADDRESS.
        """
        return self._make(self._choose(sandbox))

    def _choose(self, sandbox: str) -> int:
        self._expire(EXPIRED_AT_ONCE)
        number = self._resting_of.get(sandbox)
        if number is not None and self._is_free(number, sandbox) and self._is_ours(number):
            return number
        number = self._lowest_freed(sandbox)
        if number is not None:
            return number
        if self.advance(None):
            return self._cursor
        self._expire(len(self._rest_order))
        number = self._lowest_freed(sandbox)
        if number is None:
            raise none_free()
        return number

    def _lowest_freed(self, sandbox: str) -> int | None:
        while self._freed:
            number = self._freed[0]
            if self._is_free(number, sandbox) and self._is_ours(number):
                return number
            heappop(self._freed)
        return None

    def take_some(self, sandboxes: Iterable[str]) -> list[A]:
        """See `AddressBook.take_some`."""
        self._expire(EXPIRED_AT_ONCE)
        in_use, reserved, resting = self.in_use, self._reserved, self._resting
        taken: list[A] = []
        for sandbox in sandboxes:
            number = self._cursor
            if (
                number > self._clear_to
                or self._freed
                or sandbox in self._resting_of
                or number in in_use
                or number in reserved
                or number in resting
            ):
                try:
                    number = self._choose(sandbox)
                except GeneveError:
                    break
                self.take(sandbox, number)
            else:
                in_use[number] = sandbox
                self._cursor = number + 1
            taken.append(self._make(number))
        return taken

    @property
    def position(self) -> int:
        """Where the cursor is: it only moves up until prefixes or routes change."""
        return self._cursor

    def advance(self, steps: int | None) -> bool:
        """Move the cursor to the next free address, looking at no more than `steps`.

        False if there is none, or not within these steps. Work done here ahead
        of an attach need not be done by it.
        """
        if self._cursor <= self._clear_to:
            for candidate in range(self._cursor, self._clear_to + 1):
                if steps is not None:
                    if not steps:
                        return False
                    steps -= 1
                self._cursor = candidate
                if self._is_free(candidate, ""):
                    return True
            self._cursor = self._clear_to + 1
        ranges = self._ranges if self._ranges is not None else self._find_ranges()
        position = max(0, bisect_right(ranges, (self._cursor, self._all_ones)) - 1)
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
                self._clear_to = self._ours_to(candidate, last)
                if self._is_free(candidate, ""):
                    return True
                candidate += 1
            self._cursor = max(self._cursor, last + 1)
        return False

    # Inside

    def _note(self, route: Route) -> None:
        self._clear_to, self._ours = -1, range(0)
        row = self._routes.setdefault(route.prefix.prefixlen, {})
        row[int(route.prefix.network_address)] = route.kind
        if route.kind is RouteKind.LOCAL:
            self.blocks.add(route.prefix)

    def _look_again(self) -> None:
        self._ranges = None
        self._cursor, self._clear_to, self._ours = 0, -1, range(0)
        self._freed.clear()

    def _find_ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        # Of two that begin together the wider one first.
        for first, last in sorted(map(_span, self.blocks), key=lambda span: (span[0], -span[1])):
            if ranges and first <= ranges[-1][1]:
                continue  # inside the one before: networks nest or are disjoint
            ranges.append((first, last))
        ours = sorted(map(_span, self.prefixes))
        if self.blocks:
            # Two networks that meet are one inside the other: the overlap is the smaller.
            ours = sorted(
                (max(a[0], b[0]), min(a[1], b[1]))
                for a in ours
                for b in ranges
                if a[0] <= b[1] and b[0] <= a[1]
            )
        self._ranges = ours
        return ours

    def _match(self, number: int) -> tuple[RouteKind | None, int, int]:
        """The kind of the longest route over an address, that route's first and last address."""
        for length in self._lengths:
            span = self._all_ones >> length
            kind = self._routes[length].get(number & ~span)
            if kind is not None:
                return kind, number & ~span, number | span
        return None, 0, self._all_ones

    def kind_over(self, number: int) -> RouteKind | None:
        """The kind of the longest route over an address."""
        return self._match(number)[0]

    def _is_ours(self, number: int) -> bool:
        """May the address be chosen on this node, as far as prefixes and routes say?"""
        if number in self._ours:
            return True
        address = self._make(number)
        for prefix in self.prefixes:
            if address in prefix:
                if self._next_ours(number) is not None:
                    return False
                # Freed addresses come in their order: the next ones are likely to be here.
                last = int(prefix.broadcast_address)
                self._ours = range(number, self._ours_to(number, last) + 1)
                return True
        return False

    def _next_ours(self, number: int) -> int | None:
        """None if the address may be chosen here, else the next that may."""
        kind, first, last = self._match(number)
        if kind is RouteKind.LOCAL:
            # A guest's own network software may not like these of its block.
            return number + 1 if number in _ends(first, last, self._bits) else None
        if kind is None and self._whole:
            return None
        # The answer stays the same up to where this route ends or a longer one begins.
        following = bisect_right(self._starts, number)
        if following < len(self._starts):
            return min(last + 1, self._starts[following])
        return last + 1

    def _ours_to(self, number: int, last: int) -> int:
        """How far up to `last` the addresses may be chosen here, from one on that may."""
        kind, first, end = self._match(number)
        if kind is RouteKind.LOCAL and end in _ends(first, end, self._bits):
            end -= 1
        following = bisect_right(self._starts, number)
        if following < len(self._starts):
            end = min(end, self._starts[following] - 1)
        return min(end, last)

    def _is_free(self, number: int, sandbox: str) -> bool:
        if number in self.in_use or number in self._reserved:
            return False
        rest = self._resting.get(number)
        return rest is None or rest[0] == sandbox or rest[1] <= self._now()

    def _forget_rest(self, number: int) -> None:
        if not self._resting:
            return
        rest = self._resting.pop(number, None)
        if rest is not None and self._resting_of.get(rest[0]) == number:
            del self._resting_of[rest[0]]

    def _expire(self, most: int) -> None:
        """Addresses that have rested become free, so many at the most."""
        order = self._rest_order
        now = self._now()
        while most and order and order[0][0] <= now:
            most -= 1
            until, number = order.popleft()
            rest = self._resting.get(number)
            if rest is None or rest[1] != until:
                continue  # taken since, or resting anew
            self._forget_rest(number)
            if number < self._cursor:
                heappush(self._freed, number)


_RESERVED = {
    4: "a network, gateway or broadcast address",
    6: "the subnet-router anycast address (RFC 4291 section 2.6.1) of a prefix",
}


def reserved_addresses(prefix: Network) -> tuple[int, ...]:
    """Those that no sandbox may have; none in the two longest lengths of a family.

    IPv4: network, gateway (the first after it) and broadcast address. IPv6: the
    first, which is every router's; the gateway is a link-local one.
    """
    first, last = _span(prefix)
    ends = _ends(first, last, prefix.max_prefixlen)
    return (*ends, first + 1) if len(ends) > 1 else ends


def _span(network: Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)


def _ends(first: int, last: int, bits: int) -> tuple[int, ...]:
    """Which ends of a block are no host's: both in IPv4, the first in IPv6."""
    if last - first < 3:  # RFC 3021, RFC 6164
        return ()
    return (first, last) if bits == 32 else (first,)


def field_of(address: Address) -> str:
    """What a request calls an address of that family."""
    return "address" if address.version == 4 else "address6"


def none_free() -> GeneveError:
    """What is said where there is no address to choose."""
    return GeneveError(
        Code.NO_ADDRESS,
        "every address that the VPC has on this node is in use or rests",
        hint="wait, or give the VPC another prefix or local route",
        field="vpc",
    )
