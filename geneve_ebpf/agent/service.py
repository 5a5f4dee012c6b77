# SPDX-License-Identifier: Apache-2.0
"""What the agent does with sandboxes. Knows nothing of HTTP.

Everything here runs in one thread, and none of it waits: two requests for one
name cannot meet half-way. The maps are the record of what is attached; memory
holds an index of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import NamedTuple

from geneve_ebpf.agent.activity import Activity
from geneve_ebpf.agent.admission import Admission
from geneve_ebpf.agent.desired import Desired
from geneve_ebpf.agent.intake import Intake
from geneve_ebpf.agent.latency import Recorder
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.places import Phase, Place
from geneve_ebpf.agent.refusals import other_kind, refuse_other
from geneve_ebpf.agent.reservations import Reservations, parse_slot
from geneve_ebpf.agent.slot_pool import SlotPool
from geneve_ebpf.control.attached_log import AttachedLog, Lost, known
from geneve_ebpf.control.rest_log import Rest, RestLog
from geneve_ebpf.dataplane import Counters, DataPlane, Probe, Prober, not_probed
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import (
    NAME,
    AddressMode,
    Attachment,
    Endpoint,
    MacAddress,
    NodeSettings,
    SlotKind,
    endpoint_mac,
    parse_ipv4,
    parse_ipv6,
    parse_name,
)

FAULTS_SAID = 5  # of slots, in one sentence
NOTED_AT_ONCE = 16  # lines of the file of who is attached, some 2 us each
GENERATIONS = 1 << 20  # for each second of the clock: below 2^53, as JSON's readers need, till 2242


class Timing(NamedTuple):
    """Where an attach's time went, in nanoseconds.

    wait: from reading the request to starting on it; validate: checks and the
    choice of address and slot; write: the maps; total: all of it, but for what is left to
    `Node.settle`.
    """

    wait: int
    validate: int
    write: int
    total: int


class Node:
    """The sandboxes of one node."""

    def __init__(
        self,
        settings: NodeSettings,
        dataplane: DataPlane,
        desired: Desired,
        pool: SlotPool,
        rests: RestLog,
        recorder: Recorder,
        log: Log,
        admission: Admission,
        attached_log: AttachedLog,
        later: Callable[[Callable[[], object]], object],
    ) -> None:
        """later: has something done when the answers that are ready have been sent, and again
        while it returns True."""
        self.settings = settings
        self.dataplane = dataplane
        self.desired = desired
        self.pool = pool
        self._rests = rests
        self._recorder = recorder
        self._log = log
        self._admission = admission
        self._attached_log = attached_log
        self._later = later
        self.activity = Activity(dataplane.counters, time.time)
        # Were attached and went without being detached, and nobody has seen to them since.
        self.lost: list[Lost] = []
        self._attachments: dict[str, Attachment] = {}
        # Those that have yet to settle, by generation: how long they have taken, and when that was.
        self._settling: dict[int, tuple[int, Timing]] = {}
        self._prober: Prober | None = None  # made when it is first asked for
        self.intake = Intake(settings.state_directory)
        self.reservations = Reservations(dataplane, pool, self.intake, admission)

    def adopt(self) -> None:
        """Take over what the maps hold: called once, at the start."""
        cut_short = self.dataplane.repair()
        self._attachments = {one.sandbox: one for one in self.dataplane.attachments()}
        self.pool.adopt({one.slot for one in self._attachments.values()})
        now = time.monotonic()
        latest = now + self.settings.address_rest
        for rest in self._rests.open(now):
            # Later is of another setting, or of a clock that has begun anew since.
            until = min(rest.until, latest)
            self.desired.book(rest.vni).rest(rest.sandbox, rest.address, until)
        # Detached just before the last agent was killed: not in its file yet.
        for sandbox, endpoint in self.dataplane.departed():
            for address in endpoint.addresses:
                self.desired.book(endpoint.vni).rest(sandbox, address, latest)
        for one in self._attachments.values():
            for address in one.endpoint.addresses:
                self.desired.book(one.endpoint.vni).take(one.sandbox, address)
            if self._has_to_settle(one):  # the last agent may not have seen to it
                self.pool.asks.begin("number", one.slot, addresses=_texts(one))
        slots = len(self.pool.places())
        if slots:
            self._log.info(
                "adopted", sandboxes=len(self._attachments), slots=slots, cut_short=cut_short
            )
        same_boot, before, lost = self._attached_log.read()
        self.dataplane.count_on_from(first_generation(time.time(), self._attached_log.generation))
        # Within one boot the maps last, and the file may lag behind them.
        if not same_boot or not slots:
            lost += before
        self.lost = [one for one in lost if one.sandbox not in self._attachments]
        # Before slots are made, which say that the maps are not new.
        self._rewrite_attached()
        self.intake.adopt()

    # Sandboxes

    def attach(
        self,
        name: str,
        vpc_name: str,
        address_text: str | None,
        address6_text: str | None,
        slot_id: str | None,
        received: int,
        kind: SlotKind | None = None,
        mode: AddressMode | None = None,
        *,
        called: bool = False,
    ) -> tuple[Attachment, Timing | None]:
        """Attach a sandbox: checks, then map writes, nothing else.

        With neither address given it gets one of every family that has any on
        this node, else what is given alone. received: perf_counter_ns when the
        request came in. kind: of slot, if none is named. mode: None is clone; a
        namespace is native when `settle` has returned. called: it has waited for a
        slot and has its turn now; else those that wait go first. The timing is None if
        the sandbox was attached so already; else it is the caller's to `record`. Raises
        GeneveError with the code that says why not; then nothing has changed.
        """
        began = checked = time.perf_counter_ns()
        try:
            parse_name(name, "sandbox")
            vpc = self.desired.state.vpcs.get(vpc_name)
            if vpc is None:
                parse_name(vpc_name, "vpc")
                vpc = self.desired.state.vpc(vpc_name)
            present = self._attachments.get(name)
            if present is not None:
                its_vpc = self.vpc_name(present.endpoint.vni)
                its_kind = self.pool.place(present.slot).kind
                asked = (address_text, address6_text, slot_id, mode, its_kind, kind)
                refuse_other(present, its_vpc, vpc, *asked)
                return present, None
            # A cordoned node takes what was reserved before.
            if self.intake.refuses is not None and not (
                self.intake.cordoned and self.reservations.is_reserved(slot_id)
            ):
                raise self.intake.refuses()
            if vpc_name in self.desired.closing:
                raise GeneveError(
                    Code.BUSY, f"VPC {vpc_name} is being changed", hint="try again", field="vpc"
                )
            book = self.desired.book(vpc.vni)
            address: IPv4Address | None = None
            address6: IPv6Address | None = None
            if address_text is None and address6_text is None:
                address, address6 = book.choose(name)
            if address_text is not None:
                address = parse_ipv4(address_text)
                book.check(name, address)
            if address6_text is not None:
                address6 = parse_ipv6(address6_text)
                book.check(name, address6)
            if slot_id is None:
                if self._admission.waiting and not called:
                    self.reservations.let_others_first(kind)
                place = self.pool.lowest_ready(kind)
            else:
                place = self.pool.place(parse_slot(slot_id))
                if kind is not None and place.kind is not kind:
                    raise other_kind(place, kind)
            endpoint = Endpoint(vpc.vni, address, _mac_of(address, address6), address6)
            checked = time.perf_counter_ns()
            attachment = self.dataplane.attach(
                place.index, name, endpoint, mode or AddressMode.CLONE
            )
        except BaseException:
            ended = time.perf_counter_ns()
            validated = (checked if checked > began else ended) - began
            self._recorder.record(
                began - received, validated, ended - began - validated, ended - received, ok=False
            )
            raise
        written = time.perf_counter_ns()
        self._attachments[name] = attachment
        if self.lost:
            self._seen_to(name)
        if self._attached_log.attached(attachment):
            self._later(self._write_attached)
        if address is not None:
            book.v4.take(name, int(address))
        if address6 is not None:
            book.v6.take(name, int(address6))
        self.pool.move(place, Phase.ATTACHED)
        timing = Timing(
            began - received, checked - began, written - checked, time.perf_counter_ns() - received
        )
        return attachment, timing

    def record(self, attachment: Attachment, timing: Timing) -> None:
        """An attach has taken so long, unless it has yet to `settle`."""
        if self._has_to_settle(attachment):
            self._settling[attachment.generation] = time.perf_counter_ns(), timing
        else:
            self._recorder.record(*timing, ok=True)

    def _record_settled(self, generation: int, began: int, *, ok: bool) -> int:
        """One that was to settle has, or cannot; how long that took, in nanoseconds."""
        now = time.perf_counter_ns()
        since, timing = self._settling.pop(generation, (0, None))
        if timing is not None:
            total = timing.total + now - since
            self._recorder.record(*timing._replace(total=total), now - began, ok=ok)
        return now - began

    def attach_row(
        self, names: Sequence[str], vpc_name: str, kind: SlotKind | None
    ) -> tuple[list[Attachment], list[Place], Timing]:
        """Attach the first of these sandboxes together, which costs each far less than alone.

        As `attach` does with nothing but a VPC and a kind of slot. It stops before the first
        one that anything stands in the way of, which may be the very first: `attach` says
        what that is. With their slots; the timing is each one's share.
        """
        began = time.perf_counter_ns()
        vpc = self.desired.state.vpcs.get(vpc_name)
        if (
            vpc is None
            or self.intake.refuses is not None
            or vpc_name in self.desired.closing
            or self._admission.waiting
        ):
            return [], [], Timing(0, 0, 0, 0)
        fresh: dict[str, None] = {}
        for name in names:
            if name in self._attachments or name in fresh or not NAME.fullmatch(name):
                break
            fresh[name] = None
        places = self.pool.take_ready(kind, len(fresh))
        book = self.desired.book(vpc.vni)
        addresses = book.take_some(islice(fresh, len(places)))
        self.pool.put_back(places[len(addresses) :])
        wanted = [
            (place.index, name, Endpoint(vpc.vni, address, _mac_of(address, address6), address6))
            for place, name, (address, address6) in zip(places, fresh, addresses, strict=False)
        ]
        checked = time.perf_counter_ns()
        try:
            attachments = self.dataplane.attach_many(wanted) if wanted else []
        except BaseException as error:
            self.pool.put_back(places[: len(wanted)])
            book.untake(one for _, _, endpoint in wanted for one in endpoint.addresses)
            if isinstance(error, GeneveError):
                return [], [], Timing(0, 0, 0, 0)
            raise
        written = time.perf_counter_ns()
        count = len(attachments)
        if not count:
            return [], [], Timing(0, 0, 0, 0)
        self._attachments.update(zip(fresh, attachments, strict=False))
        if self.lost:
            for name in islice(fresh, count):
                self._seen_to(name)
        if self._attached_log.attached(*attachments):
            self._later(self._write_attached)
        del places[count:]
        self.pool.attached(kind, places)
        timing = Timing(
            0,
            (checked - began) // count,
            (written - checked) // count,
            (time.perf_counter_ns() - began) // count,
        )
        self._recorder.record(0, timing.validate, timing.write, timing.total, ok=True, count=count)
        return attachments, places, timing

    async def settle(self, name: str, detach: Callable[[str, int], object]) -> int | None:
        """Return when a sandbox has its own addresses on eth0, if it is to have them: after how
        many nanoseconds.

        In clone mode, and of a machine that asks by DHCP, None at once. If its namespace
        cannot be given them, NO_SLOT is raised, after `detach` was called with its name
        and generation.
        """
        attachment = self._attachments.get(name)
        if attachment is None or not self._has_to_settle(attachment):
            return None
        began = time.perf_counter_ns()
        try:
            await self.pool.asks.ask("number", attachment.slot, addresses=_texts(attachment))
        except GeneveError as error:
            self._record_settled(attachment.generation, began, ok=False)
            if attachment in self:
                detach(name, attachment.generation)
            raise GeneveError(
                Code.NO_SLOT,
                f"slot-{attachment.slot} could not be given its addresses: {error.message}",
                hint="try again: it will be another slot",
            ) from None
        return self._record_settled(attachment.generation, began, ok=True)

    def _has_to_settle(self, attachment: Attachment) -> bool:
        return (
            attachment.mode is AddressMode.NATIVE
            and self.pool.place(attachment.slot).kind is SlotKind.NAMESPACE
        )

    def detach(self, name: str, generation: int | None) -> tuple[Attachment, Counters] | None:
        """Detach a sandbox; its final counters, or None if it is not attached.

        The slot is destroyed in the background, the address rests. Raises
        GENERATION_MISMATCH if the sandbox is not of that generation any more.
        """
        parse_name(name, "sandbox")
        attachment = self._attachments.get(name)
        if attachment is None:
            if self._seen_to(name) and self._attached_log.detached(name):
                self._later(self._write_attached)
            return None
        if generation is not None and generation != attachment.generation:
            raise GeneveError(
                Code.GENERATION_MISMATCH,
                f"sandbox {name} has generation {attachment.generation}, not {generation}",
                hint="it was attached again since; leave the generation out to detach it anyway",
                field="generation",
                details={"generation": {"have": attachment.generation, "want": generation}},
            )
        counters = self.dataplane.detach(attachment.slot)
        del self._attachments[name]
        self._settling.pop(attachment.generation, None)
        if self._attached_log.detached(name):
            self._later(self._write_attached)
        endpoint = attachment.endpoint
        book = self.desired.book(endpoint.vni)
        room = True
        for address in endpoint.addresses:
            room &= self._rests.add(Rest(endpoint.vni, address, book.give_back(address), name))
        self.pool.destroy(self.pool.place(attachment.slot))
        if not room:
            self._rests.rewrite(
                Rest(vni, address, until, sandbox)
                for vni, book in self.desired.books()
                for sandbox, address, until in book.resting()
            )
        return attachment, counters

    def attached_to(self, place: Place) -> Attachment | None:
        """Who is attached to a slot."""
        there = self.dataplane.attachment(place.index)
        return None if there is None else self._attachments.get(there.sandbox)

    def lose(self, place: Place) -> Lost | None:
        """A slot's interface went, and whoever was attached is cut off: detach, and remember."""
        attachment = self.attached_to(place)
        if attachment is None:
            return None
        self.detach(attachment.sandbox, attachment.generation)
        lost = known(attachment)
        self.lost.append(lost)
        if self._attached_log.lost(lost):
            self._later(self._write_attached)
        return lost

    def probe(self, attachment: Attachment) -> list[Probe]:
        """What the node's programs make of packets for the sandbox: see `Prober`.

        If they cannot be asked, that is what is said of its addresses; so it is if others
        have changed the slot's interface, as its packets do not come by the programs then.
        """
        fault = self.pool.place(attachment.slot).fault
        if fault:
            return not_probed(attachment, fault)
        try:
            if self._prober is None:
                self._prober = Prober(self.dataplane, self.settings.run_directory)
            return self._prober.probe(attachment, self.pool.place(attachment.slot).ifindex)
        except (GeneveError, OSError) as error:
            return not_probed(attachment, str(error))

    def attachment(self, name: str) -> Attachment:
        """The sandbox of that name. Raises SANDBOX_NOT_FOUND."""
        parse_name(name, "sandbox")
        attachment = self._attachments.get(name)
        if attachment is None:
            raise GeneveError(
                Code.SANDBOX_NOT_FOUND,
                f"no sandbox {name} is attached",
                hint="geneve-ebpf list shows those of this node",
                field="sandbox",
            )
        return attachment

    def attachments(self) -> list[Attachment]:
        """All attached sandboxes, by name."""
        return [one for _, one in sorted(self._attachments.items())]

    def __contains__(self, attachment: object) -> bool:
        """Is this very attachment still there?"""
        return (
            isinstance(attachment, Attachment)
            and self._attachments.get(attachment.sandbox) is attachment
        )

    def _seen_to(self, name: str) -> bool:
        """Somebody has attached it again, or given it up; whether it was lost."""
        before = len(self.lost)
        self.lost = [one for one in self.lost if one.sandbox != name]
        return len(self.lost) < before

    def _write_attached(self) -> bool:
        """Write of who is attached what has not been; whether there is more."""
        if self._attached_log.flush(NOTED_AT_ONCE):
            return True
        if self._attached_log.full:
            self._rewrite_attached()
        return False

    def _rewrite_attached(self) -> None:
        self._attached_log.rewrite(
            self._attachments.values(), self.lost, self.dataplane.generation
        )

    def count(self) -> int:
        """How many sandboxes are attached."""
        return len(self._attachments)

    def vpc_name(self, vni: int) -> str:
        """Name of the VPC with that VNI; "" if none has it, because the store was lost."""
        vpc = self.desired.state.vpc_by_vni.get(vni)
        return "" if vpc is None else vpc.name

    def forget(self) -> None:
        """The node was taken down: nobody is attached and nobody lost."""
        self._attached_log.forget(self.dataplane.generation)

    # The node

    def degraded(self) -> Iterator[str]:
        """Why the node is not whole, one sentence each."""
        yield from self.pool.uplinks.problems
        faults = self.pool.faults
        if faults:
            more = f"; and {len(faults) - FAULTS_SAID} more" if len(faults) > FAULTS_SAID else ""
            yield "; ".join(faults[:FAULTS_SAID]) + more
        if self.pool.problem:
            yield self.pool.problem
        elif self.pool.shortage:
            yield self.pool.shortage
        if self.pool.silence:
            yield self.pool.silence
        lost = {
            one.endpoint.vni
            for one in self._attachments.values()
            if one.endpoint.vni not in self.desired.state.vpc_by_vni
        }
        if lost:
            yield (
                f"sandboxes are attached to VNI {', '.join(map(str, sorted(lost)[:5]))},"
                " which no VPC of the desired state has"
            )
        if self.desired.unclaimed_routes or self.desired.unclaimed_vteps:
            yield "the desired state was lost: routes in use are in no VPC until it is applied anew"


def _texts(attachment: Attachment) -> list[str]:
    return [str(address) for address in attachment.endpoint.addresses]


def first_generation(now: float, known: int) -> int:
    """What a node's new maps begin to count at, so that no generation is given twice.

    now: seconds since the epoch; no node attaches GENERATIONS times a second, so all that was
    given before is below. known: the highest on file, which may lag, for a clock that went back.
    """
    return max(int(now) * GENERATIONS, known + GENERATIONS if known else 0)


def _mac_of(address: IPv4Address | None, address6: IPv6Address | None) -> MacAddress:
    if address is not None:
        return endpoint_mac(address)
    if address6 is not None:
        return endpoint_mac(address6)
    raise ValueError("an endpoint has an address")
