# SPDX-License-Identifier: Apache-2.0
"""/v1/slots: what is prepared, and reserving it."""

from __future__ import annotations

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
from geneve_ebpf.agent.http import Answer, Patient, Request
from geneve_ebpf.agent.slot_pool import Place
from geneve_ebpf.model import SlotKind


class Slots:
    """Answers for slots. failure: the answer to a reservation that waited and failed."""

    def __init__(self, shared: Shared, failure: Failure) -> None:
        self._shared = shared
        self._failure = failure

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/slots": {"GET": (self._list_slots,)},
            "/v1/slots:reserve": {"POST": (self._reserve,)},
            "/v1/slots/{name}": {"DELETE": (self._release,)},
        }

    async def _list_slots(self, call: Call) -> Answer:
        pool = self._shared.node.pool
        texts = (
            encode(slot_json(pool, place)).decode()
            for place in pool.places()
            if place in pool  # not destroyed while the ones before it were written
        )
        body = list_body(schema("slots"), "slots", await encoded(texts))
        return Answer(200, b'%b,"counts":%b}' % (body[:-1], encode(pool.counts)))

    def _reserve(self, call: Call) -> Answer | Patient:
        kind = requests.RESERVE(call.request.body).kind if call.request.body else None
        seconds = timeout_of(call.request)
        if seconds is None:
            return self._reserve_now(call.request, kind)
        # Those whose tenant is not known yet share turns like one more VPC.
        work = partial(self._reserve_now, call.request, kind)
        return self._shared.with_a_slot(call.request, "", seconds, kind, work, self._failure)

    def _reserve_now(self, request: Request, kind: SlotKind | None, called: bool = False) -> Answer:
        place = self._shared.node.reserve(kind, called=called)
        return self._told(201, request, "reserve", place)

    def _release(self, call: Call) -> Answer:
        place = self._shared.node.release(call.name)
        return self._told(200, call.request, "release", place)

    def _told(self, status: int, request: Request, kind: str, place: Place) -> Answer:
        what: Json = {"slot": f"slot-{place.index}", "status": status}
        self._shared.happened(request, kind, what)
        body: Json = {
            "schema": schema("slot"),
            "slot": slot_json(self._shared.node.pool, place),
            "guest": self._shared.guest,
        }
        return json_answer(status, body, told=True)
