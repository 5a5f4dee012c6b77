# SPDX-License-Identifier: Apache-2.0
"""A request taken apart, and the ways in which it is answered: what all paths share."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from geneve_ebpf.agent.admission import too_late
from geneve_ebpf.agent.answers import Json, guest_json
from geneve_ebpf.agent.events import Content, Events, Said
from geneve_ebpf.agent.exchange import PREFER, REQUEST_TIMEOUT, Answer, Patient, Request
from geneve_ebpf.agent.later import Later
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.agent.queue import Queue, Waiter, worth_waiting
from geneve_ebpf.agent.service import Node
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import SlotKind

Work = Callable[["Call"], "Answer | Awaitable[Answer]"]
# Path -> method -> what answers it, then the query keys that it takes.
Table = dict[str, dict[str, tuple[Any, ...]]]
Failure = Callable[[Request, BaseException], Answer]
TIMEOUT_MAX = 3600.0  # seconds
encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What does not change while an agent runs."""

    boot: str  # "compiled", "kept" or "adopted"
    layout: str
    program: str
    mtu: int  # of a slot's eth0 at the start, bytes
    started: float  # monotonic clock, seconds


@dataclass(slots=True)
class Call:
    """A request, taken apart."""

    request: Request
    name: str  # the last part of the path, decoded; "" for a collection
    query: dict[str, str]


class Shared:
    """What the parts of the API have in common.

    problems: why the node is not whole. take_down: what POST /v1/node:down does to it.
    """

    def __init__(
        self,
        node: Node,
        facts: NodeFacts,
        log: Log,
        events: Events,
        later: Later,
        queue: Queue,
        problems: Callable[[], list[str]],
        take_down: Callable[[bool], Awaitable[Json]],
    ) -> None:
        self.node = node
        self.facts = facts
        self.log = log
        self.problems = problems
        self.take_down = take_down
        self.events = events
        self.later = later
        self.queue = queue
        self.set_mtu(facts.mtu)

    def happened(self, request: Request, kind: str, content: Content | Json) -> None:
        """A request has changed something: tell it in the log and to who follows events."""
        self.events.add(
            kind,
            Said(content) if isinstance(content, dict) else content,
            trace=request.trace,
            uid=request.peer.uid,
            pid=request.peer.pid,
        )

    def with_a_slot(
        self,
        request: Request,
        group: str,
        seconds: float,
        kind: SlotKind | None,
        work: Callable[..., Answer],
        failure: Failure,
    ) -> Answer | Patient:
        """Do work that needs a slot, now or when it has its turn for one.

        seconds: how long after the request came in that may be. work is called
        with called=True in the latter case. failure makes an error's answer.
        """
        passed = (time.perf_counter_ns() - request.received) / 1e9
        deadline = asyncio.get_running_loop().time() + seconds - passed
        if passed >= seconds:
            self.queue.admission.expired += 1
            raise too_late()
        try:
            return work()
        except GeneveError as error:
            if not worth_waiting(error):
                raise
        what = self.node.pool.kind_or_default(kind).value
        turn = self.queue.enter(group, deadline, lambda: work(called=True), what)
        return Patient(self._wait(request, turn, failure))

    async def _wait(self, request: Request, turn: Waiter[Answer], failure: Failure) -> Answer:
        try:
            answer = await turn
        except BaseException as error:
            answer = failure(request, error)
        return answer._replace(logged=True)

    def set_mtu(self, mtu: int) -> None:
        """The slots' MTU from now on, in bytes: an uplink's has changed."""
        self.mtu = mtu
        self.guest = guest_json(self.node.settings.guest, mtu)
        self.guest_text = encode(self.guest).decode()


def no_body(body: bytes) -> None:
    if body:
        raise GeneveError(
            Code.BAD_REQUEST, "this request takes no body", hint="send it without one"
        )


def decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict") if "%" in part else part
    except UnicodeDecodeError:
        raise GeneveError(
            Code.BAD_NAME,
            f"{part!r} is not UTF-8",
            hint="percent-encode UTF-8",
            field="name",
        ) from None


def query_of(text: str, keys: frozenset[str]) -> dict[str, str]:
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=16
        )
    except ValueError:
        raise GeneveError(
            Code.BAD_REQUEST, "the query is not key=value&…", hint="docs/api.md"
        ) from None
    query = dict(pairs)
    for key in query:
        if key not in keys:
            takes = ", ".join(sorted(keys)) or "none"
            raise GeneveError(
                Code.BAD_REQUEST,
                f"no such query parameter: {key[:100]}",
                hint=f"this path takes {takes}",
                field=key[:100],
            )
    if len(pairs) != len(query):
        raise GeneveError(
            Code.BAD_REQUEST, "a query parameter is given twice", hint="give each once"
        )
    return query


def whole_number(text: str, field: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    raise GeneveError(
        Code.BAD_REQUEST, f"{field} is {text[:40]!r}", hint="a whole number", field=field
    )


def json_answer(status: int, body: Json, *, told: bool = False) -> Answer:
    """told: what it changed has been an event, so that the log has it."""
    return Answer(status, encode(body), logged=told)


def list_body(schema_name: str, key: str, items: list[bytes]) -> bytes:
    return b'{"schema":"%b","%b":[%b]}' % (
        schema_name.encode(),
        key.encode(),
        b",".join(items),
    )


async def encoded(texts: Iterator[str]) -> list[bytes]:
    """Texts as bytes, made in short pieces of work."""
    pace = Pace()
    items = []
    for text in texts:
        items.append(text.encode())
        await pace.breathe()
    return items


async def listed(schema_name: str, key: str, texts: Iterator[str]) -> Answer:
    return Answer(200, list_body(schema_name, key, await encoded(texts)))


def timeout_of(request: Request) -> float | None:
    """Seconds in which it must be done, from when it came in. Raises BAD_REQUEST."""
    text = request.fields.get(REQUEST_TIMEOUT)
    return None if text is None else seconds_of(text, "Request-Timeout", TIMEOUT_MAX)


def prefers_async(request: Request) -> bool:
    """Whether 202 and an operation are wanted, as RFC 7240 writes it."""
    wishes = request.fields.get(PREFER, "").split(",")
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)


def seconds_of(text: str, field: str, most: float) -> float:
    """A duration in seconds, up to `most`. Raises BAD_REQUEST."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII) and float(text) <= most:
        return float(text)
    raise GeneveError(
        Code.BAD_REQUEST,
        f"{field} is {text[:40]!r}",
        hint=f"seconds, such as 2.5, {most:.0f} at most",
        field=field,
    )


def flag_of(text: str, field: str) -> bool:
    """A query's true or false. Raises BAD_REQUEST."""
    if text in ("true", "false"):
        return text == "true"
    raise GeneveError(
        Code.BAD_REQUEST, f"{field} is {text[:40]!r}", hint="true or false", field=field
    )
