# SPDX-License-Identifier: Apache-2.0
"""A request and its answer, as they are between HTTP and what answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec

from geneve_ebpf.agent.descriptor import Descriptor
from geneve_ebpf.errors import GeneveError


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by the kernel's word."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


class Answer(NamedTuple):
    """A status and its body, which is JSON or nothing.

    head: further header lines. logged: what it changed is in the log already.
    stream: lines of JSON that come one by one, instead of a body. final: the same
    request would get it again. descriptor: goes out with the first byte (SCM_RIGHTS);
    whoever sends the answer closes it. Only what was waited for may have one, or a stream.
    then: what is done when it is out, before anything else is; only what is answered at
    once may have that.
    """

    status: int
    body: bytes = b""
    head: bytes = b""
    logged: bool = False
    stream: AsyncIterator[bytes] | None = None
    final: bool = True
    descriptor: Descriptor | None = None
    then: Callable[[], object] | None = None


class Patient:
    """Something to wait for that may be cancelled when nobody waits for it any more."""

    def __init__(self, work: Awaitable[Answer]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._work.__await__()


# Header fields that requests keep; their names are not told apart by case.
TRACEPARENT = b"traceparent"
IDEMPOTENCY_KEY = b"idempotency-key"
PREFER = b"prefer"
REQUEST_TIMEOUT = b"request-timeout"
KEPT = frozenset((TRACEPARENT, IDEMPOTENCY_KEY, PREFER, REQUEST_TIMEOUT))
KEPT_LENGTHS = frozenset(map(len, KEPT))
NO_FIELDS: dict[bytes, str] = {}


class Request(NamedTuple):
    """One request, whole.

    received: perf_counter_ns when its first bytes came in. trace: its trace id,
    32 hexadecimal digits. fields: header fields that mean something to the API.
    """

    method: str
    target: str
    body: bytes
    peer: Peer
    received: int
    trace: str = ""
    fields: dict[bytes, str] = NO_FIELDS


class Handler(Protocol):
    """What answers requests: at once, or by something to wait for. Must not raise."""

    def handle(self, request: Request) -> Answer | Awaitable[Answer]: ...

    def body_limit(self, target: bytes) -> int: ...


def error_answer(error: GeneveError, head: bytes = b"") -> Answer:
    """A GeneveError as an answer."""
    meaning = error.code.value
    final = not meaning.retryable and meaning.status < 500
    return Answer(meaning.status, msgspec.json.encode(error.as_json()), head, final=final)
