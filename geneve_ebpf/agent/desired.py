# SPDX-License-Identifier: Apache-2.0
"""Changes of desired state: checked, written to the store and the maps, all or nothing.

One change at a time. A large one is done in short pieces, so that attaches go
on meanwhile; they see the state before it until it is whole. A change that
fails is undone in the maps and rolled back in the store; one that a crash cut
short is undone by the next start, which makes the maps what the store says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.pace import Pace, without_collection
from geneve_ebpf.control.address_book import AddressBook
from geneve_ebpf.control.addresses import Addresses
from geneve_ebpf.control.state import DesiredState, Difference, steps_of_difference
from geneve_ebpf.control.store import Store
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Address, Network, Route, Vpc, Vtep

WAITING_MAX = 64  # changes that may wait for their turn
CHUNK = 32  # routes written to the maps between two looks at the clock
LARGE = 1000  # changes that are committed in another thread, and followed by a checkpoint
CHECKPOINT_EVERY = 500  # small changes between two checkpoints
Key = tuple[int, Network]  # VNI and prefix: what the maps know a route by


class Outcome(Enum):
    """What a change that was wanted came to."""

    ADDED = "added"
    CHANGED = "changed"
    SAME = "same"


class Desired:
    """The desired state of the node, and its way into the maps."""

    def __init__(
        self, dataplane: DataPlane, store: Store, state: DesiredState, rest: float,
        now: Callable[[], float], log: Log,
    ) -> None:  # fmt: skip
        """rest: seconds a freed address rests; now: the clock that is measured by."""
        self.state = state
        # VPCs that a change under way adds, alters or takes away: no attach meanwhile.
        self.closing: frozenset[str] = frozenset()
        # Found in the maps though the store is new: kept until a whole state is set.
        self.unclaimed_routes: dict[Key, Route] = {}
        self.unclaimed_vteps: dict[Address, Vtep] = {}
        self._dataplane = dataplane
        self._store = store
        self._rest = rest
        self._now = now
        self._log = log
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._since_checkpoint = 0
        self._books: dict[int, AddressBook] = {}
        self._background: set[asyncio.Task[None]] = set()

    # Reading

    def book(self, vni: int) -> AddressBook:
        """The addresses of a VNI, whether it has a VPC or not."""
        book = self._books.get(vni)
        if book is None:
            book = self._books[vni] = AddressBook(self._rest, self._now)
            vpc = self.state.vpc_by_vni.get(vni)
            if vpc is not None:
                book.set_vpc(vpc, self.state.routes(vpc.name))
        return book

    def books(self) -> Iterator[tuple[int, AddressBook]]:
        """Every VNI that has had an attach, and its addresses."""
        yield from self._books.items()

    # At the start

    def program(self) -> None:
        """Make the maps hold what the store says, touching only what differs.

        With a new store and an old data plane, the maps are all that is known:
        nothing is removed from them.
        """
        for vni in self.state.vpc_by_vni:
            self.book(vni).advance(LARGE)  # so that no attach has to set one up
        wanted_vteps = self.state.vteps
        present_vteps = {vtep.address: vtep for vtep in self._dataplane.vteps()}
        wanted = {
            (self.state.vpcs[route.vpc].vni, route.prefix): route for route in self.state.routes()
        }
        present = dict(_keyed(self._dataplane.routes()))
        extra_vteps = {a: v for a, v in present_vteps.items() if a not in wanted_vteps}
        extra = {key: route for key, route in present.items() if key not in wanted}
        for vtep in wanted_vteps.values():
            if present_vteps.get(vtep.address) != vtep:
                self._dataplane.add_vtep(vtep)
        self._dataplane.set_routes(
            (key[0], route)
            for key, route in wanted.items()
            if key not in present or not _same_hop(present[key], route)
        )
        if self._store.fresh:
            self.unclaimed_routes, self.unclaimed_vteps = extra, extra_vteps
            return
        self._dataplane.remove_routes(extra)
        for address in extra_vteps:
            self._dataplane.remove_vtep(address)

    # One change

    async def create_vpc(self, vpc: Vpc) -> bool:
        """Add a VPC. False if it is there already, exactly so."""
        async with self._turn():
            self.state.check_vpc(vpc)
            if vpc.name in self.state.vpcs:
                return False
            await self._carry_out(Difference(vpcs_added=[vpc]))
            return True

    async def delete_vpc(self, name: str) -> Vpc:
        """Remove a VPC that nothing uses."""
        async with self._turn():
            vpc = self.state.check_vpc_removable(name)
            self._refuse_in_use(vpc)
            await self._carry_out(Difference(vpcs_removed=[vpc]))
            return vpc

    async def put_vtep(self, vtep: Vtep) -> Outcome:
        """Add a VTEP or change its MTU."""
        async with self._turn():
            self.state.check_vtep(vtep)
            present = self.state.vteps.get(vtep.address)
            if present is None:
                await self._carry_out(Difference(vteps_added=[vtep]))
                return Outcome.ADDED
            if present != vtep:
                await self._carry_out(Difference(vteps_changed=[vtep]))
                return Outcome.CHANGED
            return Outcome.SAME

    async def delete_vtep(self, address: Address) -> Vtep:
        """Remove a VTEP that no route uses."""
        async with self._turn():
            vtep = self.state.check_vtep_removable(address)
            await self._carry_out(Difference(vteps_removed=[vtep]))
            return vtep

    async def put_route(self, route: Route, *, replace: bool) -> Outcome:
        """Add a route, or replace the one of its prefix if `replace`."""
        async with self._turn():
            self.state.check_route(route)
            present = self.state.route(route.vpc, route.prefix)
            if present is None:
                await self._carry_out(Difference(routes_added=[route]))
                return Outcome.ADDED
            if present != route:
                if not replace:
                    raise GeneveError(
                        Code.ROUTE_EXISTS,
                        f"VPC {route.vpc} has another route to {route.prefix}",
                        hint="geneve-ebpf route replace puts this one in its place",
                        field="prefix",
                        details=_route_differences(present, route),
                    )
                await self._carry_out(Difference(routes_changed=[route]))
                return Outcome.CHANGED
            return Outcome.SAME

    async def delete_route(self, vpc: str, prefix: Network) -> Route:
        """Remove a route."""
        async with self._turn():
            self.state.vpc(vpc)
            route = self.state.route(vpc, prefix)
            if route is None:
                raise GeneveError(
                    Code.ROUTE_NOT_FOUND,
                    f"VPC {vpc} has no route to exactly {prefix}",
                    hint=f"geneve-ebpf route list --vpc {vpc}",
                    field="prefix",
                )
            await self._carry_out(Difference(routes_removed=[route]))
            return route

    # All at once

    async def replace(
        self,
        after: DesiredState,
        revision: int | None,
        adding: Callable[[], Iterator[None]],
        *,
        dry_run: bool = False,
    ) -> Difference:
        """Make `after` the state, once `adding()` has filled it.

        revision: what the caller believes the present one to be; None does not
        care. dry_run: only look what would change. Returns what changed. On any error
        nothing has.
        """
        async with self._turn():
            if revision is not None and revision != self.state.revision:
                raise GeneveError(
                    Code.GENERATION_MISMATCH,
                    f"the revision is {self.state.revision}, not {revision}",
                    hint="somebody else changed the state: read it again",
                    field="revision",
                    details={"revision": {"have": self.state.revision, "want": revision}},
                )
            with without_collection():
                pace = Pace()
                await pace.through(adding())
                difference = Difference()
                await pace.through(steps_of_difference(self.state, after, difference))
                for vpc in difference.vpcs_removed:
                    self._refuse_in_use(vpc)
                for vpc in difference.vpcs_changed:
                    self._refuse_change_in_use(self.state.vpcs[vpc.name], vpc)
                changes = difference or self.unclaimed_routes or self.unclaimed_vteps
                if changes and not dry_run:
                    await self._carry_out(difference, after)
            return difference

    # Inside

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= WAITING_MAX:
            raise GeneveError(
                Code.BUSY,
                f"{WAITING_MAX} changes of the desired state wait already",
                hint="send them in one PUT /v1/state, or later",
            )
        self._waiting += 1
        try:
            async with self._lock:
                yield
        finally:
            self._waiting -= 1

    def _refuse_in_use(self, vpc: Vpc) -> None:
        book = self._books.get(vpc.vni)
        sandboxes = book.sandboxes() if book is not None else None
        if sandboxes:
            raise GeneveError(
                Code.VPC_IN_USE,
                f"{len(sandboxes)} sandbox(es) are attached to VPC {vpc.name}",
                hint=f"detach {min(sandboxes)} first",
            )

    def _refuse_change_in_use(self, before: Vpc, after: Vpc) -> None:
        if before.vni != after.vni:
            self._refuse_in_use(before)
            return
        book = self._books.get(before.vni)
        for sandbox, address in book.in_use() if book is not None else ():
            if not any(address in prefix for prefix in after.prefixes):
                raise GeneveError(
                    Code.VPC_IN_USE,
                    f"sandbox {sandbox} has {address}, which would be outside VPC {after.name}",
                    hint=f"keep the prefix, or detach {sandbox} first",
                )

    async def _carry_out(self, difference: Difference, after: DesiredState | None = None) -> None:
        """Store, maps, memory; `after` is the whole new state where there is one."""
        pace = Pace()
        large = (
            len(difference.routes_added)
            + len(difference.routes_changed)
            + len(difference.routes_removed)
            > LARGE
        )
        revision = self.state.revision + 1
        self.closing = frozenset(
            vpc.name
            for vpcs in (difference.vpcs_added, difference.vpcs_removed, difference.vpcs_changed)
            for vpc in vpcs
        )
        try:
            await self._write(difference, after, revision, pace, large)
            await self._remember(difference, after, revision, pace)
        finally:
            self.closing = frozenset()
        self._since_checkpoint += 1
        if large or self._since_checkpoint >= CHECKPOINT_EVERY:
            self._since_checkpoint = 0
            self._in_background(self._checkpoint())

    async def _write(
        self,
        difference: Difference,
        after: DesiredState | None,
        revision: int,
        pace: Pace,
        large: bool,
    ) -> None:
        """Write store and maps, or neither."""
        undo = Undo(self._dataplane, self._present)
        try:
            self._store.begin()
            await pace.through(self._store.steps_of_writing(difference, revision))
            await pace.through(self._steps_of_programming(difference, after, undo))
            if large:
                # All of it is C without the interpreter's lock.
                await asyncio.to_thread(self._store.commit)
            else:
                self._store.commit()
        except BaseException:
            try:
                undo.run()
            finally:
                self._store.rollback()
            raise

    def _steps_of_programming(
        self, difference: Difference, after: DesiredState | None, undo: Undo
    ) -> Iterator[None]:
        """Write the maps: senders first, then routes, so that no route leads nowhere."""
        vnis = {name: vpc.vni for name, vpc in self.state.vpcs.items()}
        vnis_after = dict(vnis)
        for vpc in (*difference.vpcs_added, *difference.vpcs_changed):
            vnis_after[vpc.name] = vpc.vni
        to_set: list[tuple[int, Route]] = []
        for routes in (difference.routes_added, difference.routes_changed):
            for route in routes:
                to_set.append((vnis_after[route.vpc], route))
                yield
        to_remove: list[Key] = []
        for route in difference.routes_removed:
            to_remove.append((vnis[route.vpc], route.prefix))
            yield
        if after is not None:
            moved = [v.name for v in difference.vpcs_changed if vnis[v.name] != v.vni]
            for name in moved:
                for route in after.routes(name):
                    to_set.append((vnis_after[name], route))
                    yield
                for route in self.state.routes(name):
                    to_remove.append((vnis[name], route.prefix))
                    yield
            to_remove += self.unclaimed_routes
            if to_remove and (difference.vpcs_added or moved or self.unclaimed_routes):
                # A VNI may have passed from one VPC to another, with the same prefixes;
                # and nothing says that a new VPC has none of what nobody claimed.
                kept: set[Key] = set()
                for vpc in after.vpcs.values():
                    for route in after.routes(vpc.name):
                        kept.add((vpc.vni, route.prefix))
                        yield
                to_remove = [key for key in to_remove if key not in kept]
                yield
        for vtep in (*difference.vteps_added, *difference.vteps_changed):
            undo.vteps.append((vtep.address, self._known_vtep(vtep.address)))
            self._dataplane.add_vtep(vtep)
            yield
        for start in range(0, len(to_set), CHUNK):
            chunk = to_set[start : start + CHUNK]
            undo.routes += [(vni, route.prefix) for vni, route in chunk]
            self._dataplane.set_routes(chunk)
            yield
        for start in range(0, len(to_remove), CHUNK):
            keys = to_remove[start : start + CHUNK]
            undo.routes += keys
            self._dataplane.remove_routes(keys)
            yield
        gone = [vtep.address for vtep in difference.vteps_removed]
        if after is not None:
            gone += [address for address in self.unclaimed_vteps if address not in after.vteps]
        for address in gone:
            undo.vteps.append((address, self._known_vtep(address)))
            self._dataplane.remove_vtep(address)
            yield

    def _present(self, key: Key) -> Route | None:
        """The route that the maps hold for a key, before the change under way."""
        vpc = self.state.vpc_by_vni.get(key[0])
        route = None if vpc is None else self.state.route(vpc.name, key[1])
        return self.unclaimed_routes.get(key) if route is None else route

    def _known_vtep(self, address: Address) -> Vtep | None:
        return self.state.vteps.get(address) or self.unclaimed_vteps.get(address)

    async def _remember(
        self,
        difference: Difference,
        after: DesiredState | None,
        revision: int,
        pace: Pace,
    ) -> None:
        """The change is made: let the state in memory and the address books say so."""
        before, state = self.state, self.state
        vnis = {
            before.vpcs[vpc.name].vni
            for vpc in (*difference.vpcs_removed, *difference.vpcs_changed)
            if vpc.name in before.vpcs
        }
        if after is not None:
            after.revision = revision
            self.state = state = after
            self.unclaimed_routes, self.unclaimed_vteps = {}, {}
        else:
            state.revision = revision
            _amend(state, difference)
        for vni in vnis - state.vpc_by_vni.keys():
            self._dataplane.forget_vpc(vni)
        touched: dict[int, int] = {}  # VNI -> routes that changed
        for vpc in (*difference.vpcs_removed, *difference.vpcs_added, *difference.vpcs_changed):
            touched[vpc.vni] = touched[before.vpcs.get(vpc.name, vpc).vni] = LARGE
        changed = (*difference.routes_added, *difference.routes_changed)
        for route in (*changed, *difference.routes_removed):
            owner = state.vpcs.get(route.vpc)
            if owner is not None:
                touched[owner.vni] = touched.get(owner.vni, 0) + 1
        whole = [vni for vni, count in touched.items() if count >= CHUNK]
        for vni in whole:
            vpc_now = state.vpc_by_vni.get(vni)
            book = self._books.get(vni)
            if book is None:
                book = self._books[vni] = AddressBook(self._rest, self._now)
            routes = state.routes(vpc_now.name) if vpc_now is not None else ()
            await pace.through(book.steps_of_setting(vpc_now, routes))
            self._in_background(self._advance(book.v4))
            self._in_background(self._advance(book.v6))
        for route in changed:
            book = self._book_of(state, route, whole)
            if book is not None:
                book.add_route(route)
        for route in difference.routes_removed:
            book = self._book_of(state, route, whole)
            if book is not None:
                book.remove_route(route.prefix)

    def _book_of(self, state: DesiredState, route: Route, done: list[int]) -> AddressBook | None:
        vpc = state.vpcs.get(route.vpc)
        return None if vpc is None or vpc.vni in done else self._books.get(vpc.vni)

    async def _advance(self, addresses: Addresses[IPv4Address] | Addresses[IPv6Address]) -> None:
        """Find the next free address ahead of the attach that wants it."""
        for _ in range(100_000):
            before = addresses.position
            if addresses.advance(50) or addresses.position == before:
                return
            await asyncio.sleep(0)

    async def _checkpoint(self) -> None:
        try:
            await asyncio.to_thread(self._store.checkpoint)
        except GeneveError as error:
            self._log.warning("checkpoint", error=error.message)

    def _in_background(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class Undo:
    """What a change has done to the maps, so that it can be taken back."""

    def __init__(self, dataplane: DataPlane, present: Callable[[Key], Route | None]) -> None:
        self.routes: list[Key] = []
        self.vteps: list[tuple[Address, Vtep | None]] = []
        self._dataplane = dataplane
        self._present = present

    def run(self) -> None:
        """Put the maps back, VTEPs around the routes that need them."""
        for _, vtep in self.vteps:
            if vtep is not None:
                self._dataplane.add_vtep(vtep)
        added = []
        for key in self.routes:
            route = self._present(key)
            if route is None:
                added.append(key)
        # Removed first: they may be what filled the map.
        self._dataplane.remove_routes(added)
        self._dataplane.set_routes(
            (key[0], route) for key in self.routes if (route := self._present(key)) is not None
        )
        for address, vtep in self.vteps:
            if vtep is None:
                self._dataplane.remove_vtep(address)


def _amend(state: DesiredState, difference: Difference) -> None:
    """Apply a difference to a state in memory."""
    for route in difference.routes_removed:
        state.drop_route(route)
    for vtep in difference.vteps_removed:
        state.drop_vtep(vtep.address)
    for vpc in difference.vpcs_removed:
        state.drop_vpc(vpc)
    for vpc in (*difference.vpcs_added, *difference.vpcs_changed):
        state.put_vpc(vpc)
    for vtep in (*difference.vteps_added, *difference.vteps_changed):
        state.put_vtep(vtep)
    for route in (*difference.routes_added, *difference.routes_changed):
        state.put_route(route)


def _keyed(routes: Iterator[tuple[int, Route]]) -> Iterator[tuple[Key, Route]]:
    for vni, route in routes:
        yield (vni, route.prefix), route


def _same_hop(one: Route, other: Route) -> bool:
    """Do two routes lead to the same place? The maps do not know a route's VPC by name."""
    return (one.kind, one.vtep, one.mac) == (other.kind, other.vtep, other.mac)


def _route_differences(have: Route, want: Route) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name in ("kind", "vtep", "mac"):
        one, other = getattr(have, name), getattr(want, name)
        if one != other:
            fields[name] = {
                "have": None if one is None else getattr(one, "value", str(one)),
                "want": None if other is None else getattr(other, "value", str(other)),
            }
    return fields
