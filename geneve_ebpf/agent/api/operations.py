# SPDX-License-Identifier: Apache-2.0
"""/v1/operations: attaches that were asked for asynchronously."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import Json, rfc3339, schema
from geneve_ebpf.agent.api.call import (
    Call,
    Shared,
    Table,
    encode,
    encoded,
    json_answer,
    seconds_of,
)
from geneve_ebpf.agent.exchange import Answer, Patient
from geneve_ebpf.agent.operations import Operation, State
from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.errors import Code, GeneveError

WAIT_MAX = 3600.0  # seconds


class OperationPaths:
    """Answers for operations. start: has one carried out."""

    def __init__(self, shared: Shared, start: Callable[[Operation], None]) -> None:
        self._shared = shared
        self._start = start

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/operations": {"GET": (self._list, "state")},
            "/v1/operations/{name}": {"GET": (self._show, "wait")},
            "/v1/operations:retry": {"POST": (self._retry,)},
            "/v1/operations:drop": {"POST": (self._drop,)},
        }

    async def _list(self, call: Call) -> Answer:
        state = None
        if "state" in call.query:
            try:
                state = State(call.query["state"])
            except ValueError:
                raise GeneveError(
                    Code.BAD_REQUEST,
                    f"no such state: {call.query['state'][:40]!r}",
                    hint=f"one of {', '.join(one.value for one in State)}",
                    field="state",
                ) from None
        operations = self._shared.later.operations
        counts = {one.value: count for one, count in operations.counts.items()}
        head = encode({"schema": schema("operations"), "counts": counts})
        texts = (encode(operation_json(one)).decode() for one in operations.all(state))
        return Answer(200, b'%b,"operations":[%b]}' % (head[:-1], b",".join(await encoded(texts))))

    def _show(self, call: Call) -> Answer | Patient:
        operation = self._shared.later.operations.get(call.name)
        wait = 0.0
        if "wait" in call.query:
            wait = seconds_of(call.query["wait"], "wait", WAIT_MAX)
        if wait and operation.state is State.PENDING:
            return Patient(self._wait(operation, wait))
        return _answer(operation)

    async def _wait(self, operation: Operation, seconds: float) -> Answer:
        await self._shared.later.ended(operation, seconds)
        return _answer(operation)

    async def _retry(self, call: Call) -> Answer:
        def retry(one: Operation) -> None:
            self._shared.later.operations.retry(one)
            self._start(one)

        return await self._change(call, "retried", retry)

    async def _drop(self, call: Call) -> Answer:
        return await self._change(call, "dropped", self._shared.later.operations.drop)

    async def _change(self, call: Call, what: str, change: Callable[[Operation], object]) -> Answer:
        """Change what the body names, in short pieces of work, and say what was changed."""
        pace = Pace()
        names = []
        for one in self._chosen(call):
            if self._shared.later.operations.has_failed(one):  # else another call was faster
                change(one)
                names.append(one.id)
            await pace.breathe()
        if names:
            self._shared.happened(
                call.request, f"operations-{what}", {"operations": names, "status": 200}
            )
        return json_answer(
            200, {"schema": schema("operations-changed"), "operations": names}, told=bool(names)
        )

    def _chosen(self, call: Call) -> list[Operation]:
        """What the body names: all of it failed, or nothing is done."""
        body = requests.OPERATIONS(call.request.body)
        operations = self._shared.later.operations
        if body.failed == bool(body.operations):
            raise GeneveError(
                Code.BAD_REQUEST,
                "name operations, or all that have failed",
                hint='{"operations": ["ID"]} or {"failed": true}',
                field="operations",
            )
        if body.failed:
            return operations.all(State.FAILED)
        chosen = list(dict.fromkeys(map(operations.get, body.operations)))
        for one in chosen:
            operations.require_failed(one)
        return chosen


def operation_json(operation: Operation) -> Json:
    """An operation with its history."""
    error = operation.error
    return {
        "operation": operation.id,
        "state": operation.state.value,
        "sandbox": operation.sandbox,
        "vpc": operation.vpc,
        "trace": operation.trace,
        "attempts": operation.attempts,
        "history": [
            {"time": rfc3339(step.time), "what": step.what, "message": step.message}
            for step in operation.history
        ],
        "result": msgspec.Raw(operation.result) if operation.result else None,
        "error": None if error is None else error.as_json()["error"],
    }


def accepted(operation: Operation) -> Answer:
    """202, and where to ask how it goes."""
    head = f"Location: /v1/operations/{operation.id}\r\nPreference-Applied: respond-async\r\n"
    return Answer(202, _body(operation), head.encode())


def _answer(operation: Operation) -> Answer:
    return Answer(200, _body(operation))


def _body(operation: Operation) -> bytes:
    return encode({"schema": schema("operation")} | operation_json(operation))
