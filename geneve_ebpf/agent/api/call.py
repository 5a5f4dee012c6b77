# SPDX-License-Identifier: Apache-2.0
"""A request taken apart, and the ways in which it is answered: what all paths share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from geneve_ebpf.agent.answers import Json, guest_json
from geneve_ebpf.agent.http import Answer, Request
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.agent.service import Node
from geneve_ebpf.errors import Code, GeneveError

Work = Callable[["Call"], "Answer | Awaitable[Answer]"]
# Path -> method -> what answers it, then the query keys that it takes.
Table = dict[str, dict[str, tuple[Any, ...]]]
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
        problems: Callable[[], list[str]],
        take_down: Callable[[bool], Awaitable[Json]],
    ) -> None:
        self.node = node
        self.facts = facts
        self.log = log
        self.problems = problems
        self.take_down = take_down
        self.set_mtu(facts.mtu)

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


def json_answer(status: int, body: Json) -> Answer:
    return Answer(status, encode(body))


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
