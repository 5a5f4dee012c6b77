# SPDX-License-Identifier: Apache-2.0
"""/v1/slots and /v1/taps: what is prepared, reserving it, and opening it for a machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import Json, schema, slot_json
from geneve_ebpf.agent.api.call import (
    Call,
    Failure,
    Shared,
    Table,
    encode,
    encoded,
    json_answer,
    list_body,
    timeout_of,
)
from geneve_ebpf.agent.exchange import Answer, Patient, Request
from geneve_ebpf.agent.places import Phase, Place
from geneve_ebpf.host import taps
from geneve_ebpf.model import SlotKind


class SlotPaths:
    """Answers for slots. failure: the answer to a reservation that waited and failed."""

    def __init__(self, shared: Shared, failure: Failure) -> None:
        self._shared = shared
        self._failure = failure

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/slots": {"GET": (self._list_slots,), "POST": (self._add,)},
            "/v1/slots:reserve": {"POST": (self._reserve,)},
            "/v1/slots/{name}": {"DELETE": (self._release,)},
            "/v1/taps/{name}": {"POST": (self._open_tap,)},
        }

    async def _list_slots(self, call: Call) -> Answer:
        pool = self._shared.node.pool
        attachment_on = self._shared.node.dataplane.attachment
        texts = (
            encode(slot_json(pool, place, attachment_on(place.index))).decode()
            for place in pool.places()
            if place in pool  # not destroyed while the ones before it were written
        )
        body = list_body(schema("slots"), "slots", await encoded(texts))
        return Answer(200, b'%b,"counts":%b}' % (body[:-1], encode(pool.counts)))

    async def _add(self, call: Call) -> Answer:
        body = requests.ADD_SLOT(call.request.body)
        told = partial(self._told, 201, call.request, "slot-added")
        place, new = await self._shared.node.reservations.add(
            body.netns, body.interface, body.existing, told
        )
        return json_answer(201 if new else 200, self._body(place), told=new)

    def _reserve(self, call: Call) -> Answer | Awaitable[Answer]:
        body = requests.RESERVE(call.request.body) if call.request.body else requests.Reserve()
        if body.owner is not None:
            self._shared.node.reservations.check_owner(body.kind)
            return self._reserve_owned(call.request, body.kind, body.owner)
        return self._reserve_in_turn(call.request, body.kind, lambda place: None)

    def _reserve_in_turn(
        self, request: Request, kind: SlotKind | None, taken: Callable[[Place], None]
    ) -> Answer | Patient:
        """taken: called with the slot before the answer is there."""
        work = partial(self._reserve_now, request, kind, taken)
        seconds = timeout_of(request)
        if seconds is None:
            return work()
        # Those whose tenant is not known yet share turns like one more VPC.
        return self._shared.with_a_slot(request, "", seconds, kind, work, self._failure)

    def _reserve_now(
        self,
        request: Request,
        kind: SlotKind | None,
        taken: Callable[[Place], None],
        called: bool = False,
    ) -> Answer:
        place = self._shared.node.reservations.reserve(kind, called=called)
        taken(place)
        return self._told(201, request, "reserve", place)

    def _reserve_owned(
        self, request: Request, kind: SlotKind | None, owner: int
    ) -> Awaitable[Answer]:
        """Answered when the tap is that user's, which is the slot process's matter."""
        places: list[Place] = []
        answer = self._reserve_in_turn(request, kind, places.append)
        if isinstance(answer, Answer):
            return self._owned(request, places, owner, answer)
        return Patient(self._owned_in_turn(request, places, owner, answer))

    async def _owned_in_turn(
        self, request: Request, places: list[Place], owner: int, turn: Patient
    ) -> Answer:
        # Whose caller goes while it waits for a slot gets none; once it has one, that one
        # is finished or given back, whoever waits for it.
        owning = self._owned(request, places, owner, await turn)
        return await asyncio.shield(asyncio.ensure_future(owning))

    async def _owned(
        self, request: Request, places: list[Place], owner: int, answer: Answer
    ) -> Answer:
        if not places:
            return answer  # no slot came: it says so
        (place,) = places
        try:
            await self._shared.node.reservations.own(place, owner)
        except BaseException as error:
            if place in self._shared.node.pool and place.phase is Phase.RESERVED:
                self._give_back(request, f"slot-{place.index}")
            answer = self._failure(request, error)
        return answer._replace(logged=True)

    def _release(self, call: Call) -> Answer:
        return self._give_back(call.request, call.name)

    def _give_back(self, request: Request, slot_id: str) -> Answer:
        place = self._shared.node.reservations.release(slot_id)
        return self._told(200, request, "release", place)

    async def _open_tap(self, call: Call) -> Answer:
        if call.request.body:
            requests.NOTHING(call.request.body)
        place, descriptor = await self._shared.node.reservations.open_tap(call.name)
        body: Json = {
            "schema": schema("tap"),
            "slot": f"slot-{place.index}",
            "tap": place.tap,
            "vnet_header": taps.VNET_HEADER,
        }
        # The descriptor goes once: there is no answering the same again.
        return json_answer(200, body)._replace(descriptor=descriptor, final=False)

    def _told(self, status: int, request: Request, kind: str, place: Place) -> Answer:
        what: Json = {"slot": f"slot-{place.index}", "status": status}
        self._shared.happened(request, kind, what)
        return json_answer(status, self._body(place), told=True)

    def _body(self, place: Place) -> Json:
        guest = self._shared.guest
        if place.given is not None:
            guest = guest | {"interface": place.given.interface}
        return {
            "schema": schema("slot"),
            "slot": slot_json(self._shared.node.pool, place, self._shared.node.attached_to(place)),
            "guest": guest,
        }
