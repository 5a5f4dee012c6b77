# SPDX-License-Identifier: Apache-2.0
"""/v1/slots: what is prepared, and reserving it."""

from __future__ import annotations

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import schema, slot_json
from geneve_ebpf.agent.api.call import Call, Shared, Table, json_answer
from geneve_ebpf.agent.http import Answer


class Slots:
    """Answers for slots."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/slots": {"GET": (self._list_slots,)},
            "/v1/slots:reserve": {"POST": (self._reserve,)},
            "/v1/slots/{name}": {"DELETE": (self._release,)},
        }

    def _list_slots(self, call: Call) -> Answer:
        pool = self._shared.node.pool
        return json_answer(
            200,
            {
                "schema": schema("slots"),
                "slots": [slot_json(pool, place) for place in pool.places()],
                "counts": pool.counts,
            },
        )

    def _reserve(self, call: Call) -> Answer:
        if call.request.body:
            requests.NOTHING(call.request.body)
        place = self._shared.node.reserve()
        return json_answer(
            201,
            {
                "schema": schema("slot"),
                "slot": slot_json(self._shared.node.pool, place),
                "guest": self._shared.guest,
            },
        )

    def _release(self, call: Call) -> Answer:
        place = self._shared.node.release(call.name)
        return json_answer(
            200,
            {
                "schema": schema("slot"),
                "slot": slot_json(self._shared.node.pool, place),
                "guest": self._shared.guest,
            },
        )
