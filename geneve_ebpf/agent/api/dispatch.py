# SPDX-License-Identifier: Apache-2.0
"""Which path and method is answered by what, and what is said when that fails.

docs/api.md and docs/openapi.yaml describe the API; tests hold the three together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Hashable
from hashlib import blake2b

from geneve_ebpf.agent.admission import retry_after
from geneve_ebpf.agent.api.batch import BatchPaths
from geneve_ebpf.agent.api.call import Call, Shared, Table, Work, decoded, no_body, query_of
from geneve_ebpf.agent.api.events import EventPaths
from geneve_ebpf.agent.api.node import NodePaths
from geneve_ebpf.agent.api.operations import OperationPaths
from geneve_ebpf.agent.api.routes import RoutePaths
from geneve_ebpf.agent.api.sandboxes import SandboxPaths
from geneve_ebpf.agent.api.slots import SlotPaths
from geneve_ebpf.agent.api.state import StatePaths
from geneve_ebpf.agent.api.vpcs import VpcPaths
from geneve_ebpf.agent.exchange import IDEMPOTENCY_KEY, Answer, Patient, Request, error_answer
from geneve_ebpf.agent.idempotency import Keys, read_key
from geneve_ebpf.errors import Code, GeneveError

READING = ("GET", "HEAD")
BODY_MAX = 1 << 20
STATE_BODY_MAX = 64 << 20


class Api:
    """Answers requests."""

    def __init__(self, shared: Shared) -> None:
        self._log = shared.log
        self._keys: Keys[Answer] = Keys(time.monotonic)
        self._sandboxes = SandboxPaths(shared, self._failure)
        # Every path: method -> (work, then the query keys it takes).
        self.table: Table = self._sandboxes.table()
        self.table |= BatchPaths(shared, self._sandboxes, self._failure).table()
        self.table |= SlotPaths(shared, self._failure).table()
        for part in (VpcPaths, RoutePaths, StatePaths, EventPaths, NodePaths):
            self.table |= part(shared).table()
        self.table |= OperationPaths(shared, self._sandboxes.start).table()
        # (collection, has a name) -> method -> (work, query keys)
        self._paths: dict[tuple[str, bool], dict[str, tuple[Work, frozenset[str]]]] = {}
        for path, methods in self.table.items():
            collection, named = path.removesuffix("/{name}"), path.endswith("/{name}")
            self._paths[collection, named] = {
                method: (work, frozenset(keys)) for method, (work, *keys) in methods.items()
            }

    def body_limit(self, target: bytes) -> int:
        """Bytes that a request's body may have."""
        return STATE_BODY_MAX if target.startswith(b"/v1/state") else BODY_MAX

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer a request; never raises."""
        if request.fields and IDEMPOTENCY_KEY in request.fields and request.method not in READING:
            return self._once(request)
        # The hot path first, in as few steps as possible.
        target = request.target
        if (
            request.method == "PUT"
            and target.startswith("/v1/sandboxes/")
            and "%" not in target
            and "?" not in target
            and "/" not in target[14:]
        ):
            return self._sandboxes.attach(request, target[14:])
        try:
            answer = self._dispatch(request)
        except BaseException as error:
            return self._failure(request, error)
        if isinstance(answer, Answer):
            if not answer.logged:
                self._log_change(request, answer.status)
            return answer
        waiting = self._wait(request, answer)
        return Patient(waiting) if isinstance(answer, Patient) else waiting

    async def _wait(self, request: Request, work: Awaitable[Answer]) -> Answer:
        try:
            answer = await work
        except BaseException as error:
            return self._failure(request, error)
        if not answer.logged:
            self._log_change(request, answer.status)
        return answer

    # Idempotency-Key

    def _once(self, request: Request) -> Answer | Awaitable[Answer]:
        """Do a request that may come again, or answer as it was answered before."""
        if len(request.body) > BODY_MAX:
            return self._once_digested(request)
        return self._once_as(request, _digest(request.body))

    async def _once_digested(self, request: Request) -> Answer:
        # Beside the loop: a whole state takes a tenth of a second and more.
        try:
            body = await asyncio.to_thread(_digest, request.body)
        except BaseException as error:
            return self._failure(request, error)
        answer = self._once_as(request, body)
        return answer if isinstance(answer, Answer) else await answer

    def _once_as(self, request: Request, body: bytes) -> Answer | Awaitable[Answer]:
        """body: the digest of it."""
        try:
            text = read_key(request.fields[IDEMPOTENCY_KEY])
            key = (request.peer.uid, text)
            before = self._keys.begin(key, (request.method, request.target, body))
        except GeneveError as error:
            return self._failure(request, error)
        if before is not None:
            return before._replace(head=before.head + b"Idempotency-Replayed: true\r\n")
        fields = {key: value for key, value in request.fields.items() if key != IDEMPOTENCY_KEY}
        answer = self.handle(request._replace(fields=fields))
        if isinstance(answer, Answer):
            self._settle(key, answer)
            return answer
        waiting = self._settled(key, answer)
        return Patient(waiting) if isinstance(answer, Patient) else waiting

    async def _settled(self, key: Hashable, work: Awaitable[Answer]) -> Answer:
        try:
            answer = await work
        except BaseException:
            self._keys.give_up(key)
            raise
        self._settle(key, answer)
        return answer

    def _settle(self, key: Hashable, answer: Answer) -> None:
        """Keep an answer, unless the same request may fare better another time."""
        if answer.final:
            # What follows an answer does so once.
            kept = answer._replace(then=None)
            self._keys.end(key, kept, len(answer.body) + len(answer.head))
        else:
            self._keys.give_up(key)

    # Paths

    def _dispatch(self, request: Request) -> Answer | Awaitable[Answer]:
        path, _, query = request.target.partition("?")
        collection, name = path, ""
        methods = self._paths.get((path, False))
        if methods is None:
            collection, _, last = path.rpartition("/")
            methods = self._paths.get((collection, True))
            if methods is None or not last:
                raise GeneveError(
                    Code.PATH_UNKNOWN, f"no such path: {path[:100]}", hint="docs/api.md lists them"
                )
            name = decoded(last)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            allowed = sorted(methods) + (["HEAD"] if "GET" in methods else [])
            raise GeneveError(
                Code.METHOD_NOT_ALLOWED,
                f"{path[:100]} does not take {method}",
                hint=f"it takes {', '.join(allowed)}",
                details={"allow": allowed},
            )
        work, keys = methods[method]
        call = Call(request, name, query_of(query, keys))
        if method in ("GET", "DELETE"):
            no_body(request.body)
        return work(call)

    def _failure(self, request: Request, error: BaseException) -> Answer:
        """The answer to a request that raised; a defect is logged whole."""
        peer = request.peer
        if not isinstance(error, GeneveError):
            if isinstance(error, asyncio.CancelledError):
                raise error
            self._log.defect(
                "defect", error, method=request.method, target=request.target[:200],
                uid=peer.uid, pid=peer.pid, trace=request.trace,
            )  # fmt: skip
            error = GeneveError(
                Code.INTERNAL, "the agent has a defect", hint="its log has the traceback"
            )
        self._log_change(request, error.code.value.status, error)
        head = b""
        if error.code is Code.METHOD_NOT_ALLOWED:
            allowed = error.details["allow"]
            assert isinstance(allowed, list)
            head = f"Allow: {', '.join(allowed)}\r\n".encode()
        elif error.code in (Code.BUSY, Code.NO_SLOT) or "retry_after_s" in error.details:
            seconds = error.details.get("retry_after_s", 1)
            assert isinstance(seconds, (int, float))
            head = f"Retry-After: {retry_after(seconds)}\r\n".encode()
        return error_answer(error, head)

    def _log_change(self, request: Request, status: int, error: GeneveError | None = None) -> None:
        if request.method in READING:
            return
        peer = request.peer
        why = {} if error is None else {"code": error.code.slug, "message": error.message}
        self._log.change(
            "change",
            method=request.method,
            target=request.target[:200],
            status=status,
            uid=peer.uid,
            pid=peer.pid,
            trace=request.trace,
            **why,
        )


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()
