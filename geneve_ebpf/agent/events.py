# SPDX-License-Identifier: Apache-2.0
"""What has happened on the node: a bounded, numbered history that can be read and followed.

Every change is one event and one line of the log, with the same words. Numbers
go on from the clock when an agent starts, so a number of an earlier agent is
older than all that this one has, and its reader is told so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

from geneve_ebpf.agent.log import Log, quoted
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Attachment, Endpoint, ipv4_text

KEPT = 10_000  # events; about 500 bytes each


class Content(Protocol):
    """What an event says: as members of JSON, and as text for the log."""

    def fields(self) -> Mapping[str, object]: ...

    def text(self) -> str: ...


class Said(NamedTuple):
    """A content that is put together already."""

    values: Mapping[str, object]

    def fields(self) -> Mapping[str, object]:
        """For JSON."""
        return self.values

    def text(self) -> str:
        """For the log."""
        return " ".join([f"{key}={_word(value)}" for key, value in self.values.items()])


class Attached(NamedTuple):
    """An attach, put into words when somebody reads it: attaching does not wait for that."""

    attachment: Attachment
    vpc: str
    status: int
    ns: int  # how long it took

    def fields(self) -> Mapping[str, object]:
        """For JSON."""
        one = self.attachment
        return {
            "sandbox": one.sandbox,
            "vpc": self.vpc,
            "vni": one.endpoint.vni,
            "address": [str(address) for address in one.endpoint.addresses],
            "slot": f"slot-{one.slot}",
            "generation": one.generation,
            "status": self.status,
            "ns": self.ns,
        }

    def text(self) -> str:
        """For the log. Names and addresses have been checked: there is nothing to quote."""
        one = self.attachment
        return (
            f"sandbox={one.sandbox} vpc={self.vpc} vni={one.endpoint.vni}"
            f" address={_spoken(one.endpoint)} slot=slot-{one.slot}"
            f" generation={one.generation} status={self.status} ns={self.ns}"
        )


class Event(NamedTuple):
    """One thing that happened. uid and pid: who asked for it; -1 and 0 for the agent itself."""

    number: int
    time: float  # seconds since the epoch
    kind: str
    trace: str
    uid: int
    pid: int
    content: Content


class Events:
    """The history. All methods belong to the event loop's thread."""

    def __init__(self, log: Log, now: Callable[[], float], *, first: int, kept: int = KEPT) -> None:
        """now: seconds since the epoch. first: the number of the first event."""
        log.say = _log_text
        self._log = log
        self._now = now
        self._kept: deque[tuple[Any, ...]] = deque(maxlen=kept)  # fields of Event
        self._next = first
        self._news: asyncio.Event | None = None
        self.closed = False

    @property
    def last(self) -> int:
        """Number of the newest event; of the one before the first if there is none."""
        return self._next - 1

    def add(
        self, kind: str, content: Content, trace: str = "", uid: int = -1, pid: int = 0
    ) -> None:
        """Something happened: keep it, log it, tell who follows."""
        number = self._next
        self._next = number + 1
        # Attaching waits for this: what can be made by who reads it is made there.
        event = (number, self._now(), kind, trace, uid, pid, content)
        self._kept.append(event)
        self._log.change(kind, event)
        if self._news is not None:
            self._news.set()

    def add_many(
        self, kind: str, contents: Iterable[Content], trace: str, uid: int, pid: int
    ) -> None:
        """As `add`, of many that happened together."""
        now = self._now()
        events = [
            (number, now, kind, trace, uid, pid, content)
            for number, content in enumerate(contents, self._next)
        ]
        self._next += len(events)
        self._kept.extend(events)
        self._log.changes(kind, events)
        if self._news is not None:
            self._news.set()

    def since(self, number: int | None, limit: int) -> list[Event]:
        """Events after that number, `limit` at most; None and 0 are from the oldest on.

        Raises EVENTS_GONE if there were some that are not kept any more, or if
        the number is none that was given out.
        """
        kept = self._kept
        oldest = self._next - len(kept)
        start = number + 1 if number else oldest
        if not oldest <= start <= self._next:
            raise GeneveError(
                Code.EVENTS_GONE,
                f"events after {number} are not kept: the oldest is {oldest}"
                if start < oldest
                else f"there is no event {number} yet: the last is {self.last}",
                hint="list what you follow anew, then go on from last_event of: geneve-ebpf node"
                " status",
                field="since",
                details={"oldest": oldest, "last": self.last},
            )
        return list(map(Event._make, islice(kept, start - oldest, start - oldest + limit)))

    async def news(self) -> None:
        """Wait for an event that is not there yet, or for the end."""
        if self.closed:
            return
        if self._news is None or self._news.is_set():
            self._news = asyncio.Event()
        await self._news.wait()

    def close(self) -> None:
        """No more: everybody who follows comes to the end."""
        self.closed = True
        if self._news is not None:
            self._news.set()


def _log_text(event: tuple[Any, ...]) -> str:
    """An event as the log has it, without time and kind."""
    _, _, _, trace, uid, pid, content = event
    text: str = content.text()
    return f"{text} uid={uid} pid={pid} trace={trace}" if trace else text


def _spoken(endpoint: Endpoint) -> str:
    """Its addresses, as they stand in the log."""
    if endpoint.address is None:
        return str(endpoint.address6)
    spoken = ipv4_text(endpoint.address)
    return spoken if endpoint.address6 is None else f"{spoken},{endpoint.address6}"


def _word(value: object) -> str:
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return quoted(str(value))
