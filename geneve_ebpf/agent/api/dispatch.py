# SPDX-License-Identifier: Apache-2.0
"""Which path and method is answered by what, and what is said when that fails.

docs/api.md and docs/openapi.yaml describe the API; tests hold the three together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from geneve_ebpf.agent.api.call import Call, Shared, Table, Work, decoded, no_body, query_of
from geneve_ebpf.agent.api.node import NodePaths
from geneve_ebpf.agent.api.routes import Routes
from geneve_ebpf.agent.api.sandboxes import Sandboxes
from geneve_ebpf.agent.api.slots import Slots
from geneve_ebpf.agent.api.state import State
from geneve_ebpf.agent.api.vpcs import Vpcs
from geneve_ebpf.agent.http import Answer, Request, error_answer
from geneve_ebpf.errors import Code, GeneveError

BODY_MAX = 1 << 20
STATE_BODY_MAX = 64 << 20


class Api:
    """Answers requests."""

    def __init__(self, shared: Shared) -> None:
        self._log = shared.log
        self._sandboxes = Sandboxes(shared, self._failure)
        # Every path: method -> (work, then the query keys it takes).
        self.table: Table = self._sandboxes.table()
        for part in (Slots, Vpcs, Routes, State, NodePaths):
            self.table |= part(shared).table()
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
        return self._wait(request, answer)

    async def _wait(self, request: Request, work: Awaitable[Answer]) -> Answer:
        try:
            answer = await work
        except BaseException as error:
            return self._failure(request, error)
        self._log_change(request, answer.status)
        return answer

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
                uid=peer.uid, pid=peer.pid,
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
        elif error.code in (Code.BUSY, Code.NO_SLOT):
            head = b"Retry-After: 1\r\n"
        return error_answer(error, head)

    def _log_change(self, request: Request, status: int, error: GeneveError | None = None) -> None:
        if request.method in ("GET", "HEAD"):
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
            **why,
        )
