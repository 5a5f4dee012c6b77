# SPDX-License-Identifier: Apache-2.0
"""/v1/events: what has happened, a JSON object a line, and what happens from now on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from geneve_ebpf.agent.answers import rfc3339
from geneve_ebpf.agent.api.call import Call, Shared, Table, encode, flag_of, whole_number
from geneve_ebpf.agent.events import Event
from geneve_ebpf.agent.exchange import Answer
from geneve_ebpf.errors import GeneveError

AT_ONCE = 100  # events put into JSON between two looks at the loop


class EventPaths:
    """Answers for events."""

    def __init__(self, shared: Shared) -> None:
        self._events = shared.events

    def table(self) -> Table:
        """The paths."""
        return {"/v1/events": {"GET": (self._get, "since", "follow")}}

    async def _get(self, call: Call) -> Answer:
        since = None
        if "since" in call.query:
            since = whole_number(call.query["since"], "since")
        follow = "follow" in call.query and flag_of(call.query["follow"], "follow")
        self._events.since(since, 0)  # refused here, while there is a status to say it with
        return Answer(200, stream=self._lines(since, follow))

    async def _lines(self, number: int | None, follow: bool) -> AsyncIterator[bytes]:
        """Events as lines. Nothing is kept for a reader: one that is too slow is told so."""
        while True:
            try:
                events = self._events.since(number, AT_ONCE)
            except GeneveError as error:
                yield encode(error.as_json()) + b"\n"
                return
            if events:
                yield b"".join([encode(event_json(one)) + b"\n" for one in events])
                number = events[-1].number
                await asyncio.sleep(0)
            elif follow and not self._events.closed:
                await self._events.news()
            else:
                return


def event_json(event: Event) -> dict[str, object]:
    """An event; what it says beside number, time, kind and who depends on its kind."""
    return {
        "seq": event.number,
        "time": rfc3339(event.time),
        "event": event.kind,
        "trace": event.trace,
        "uid": event.uid,
        "pid": event.pid,
        **event.content.fields(),
    }
