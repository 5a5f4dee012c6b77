# SPDX-License-Identifier: Apache-2.0
"""Carries asynchronous attaches out: `operations` on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from geneve_ebpf.agent.events import Events, Said
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.operations import Operation, Operations, State
from geneve_ebpf.agent.queue import Queue, worth_waiting
from geneve_ebpf.errors import Code, GeneveError

Attempt = Callable[[Operation, bool], bytes]


class Later:
    """Runs operations until they are done or have failed for good."""

    def __init__(self, operations: Operations, queue: Queue, events: Events, log: Log) -> None:
        self.operations = operations
        self._queue = queue
        self._events = events
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, operation: Operation, attempt: Attempt) -> None:
        """Carry a pending operation out. attempt: attach, and return the answer; its second
        argument says that the operation's turn in the queue for slots has come.
        """
        task = asyncio.ensure_future(self._run(operation, attempt))
        self._tasks[operation.id] = task
        task.add_done_callback(lambda ended: self._forget(operation.id, ended))

    async def ended(self, operation: Operation, seconds: float) -> None:
        """Wait until the operation is pending no more, but no longer than that."""
        task = self._tasks.get(operation.id)
        if task is not None and operation.state is State.PENDING:
            await asyncio.wait([task], timeout=seconds)

    async def stop(self) -> None:
        """End what is under way: nobody will ask for it any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _forget(self, identity: str, ended: asyncio.Task[None]) -> None:
        # One that failed may have been begun anew before the loop came to this.
        if self._tasks.get(identity) is ended:
            del self._tasks[identity]

    async def _run(self, operation: Operation, attempt: Attempt) -> None:
        while True:
            try:
                result = await self._attach(operation, attempt)
            except GeneveError as error:
                wait = self.operations.failed(operation, error)
                if wait is None:
                    self._tell_failure(operation, error)
                    return
                await asyncio.sleep(wait)
            else:
                self.operations.succeeded(operation, result)
                return

    async def _attach(self, operation: Operation, attempt: Attempt) -> bytes:
        """One attempt, which may wait for a slot. Raises GeneveError, whatever happens."""
        try:
            try:
                return attempt(operation, False)
            except GeneveError as error:
                if not worth_waiting(error):
                    raise
            turn = self._queue.enter(
                operation.vpc,
                operation.deadline,
                partial(attempt, operation, True),
                operation.kind,
            )
            self.operations.note(operation, "waits", "no slot is ready")
            return await turn
        except GeneveError:
            raise
        except Exception as error:
            self._log.defect("defect", error, operation=operation.id, trace=operation.trace)
            raise GeneveError(
                Code.INTERNAL, "the agent has a defect", hint="its log has the traceback"
            ) from None

    def _tell_failure(self, operation: Operation, error: GeneveError) -> None:
        self._events.add(
            "operation-failed",
            Said(
                {
                    "operation": operation.id,
                    "sandbox": operation.sandbox,
                    "vpc": operation.vpc,
                    "attempts": operation.attempts,
                    "code": error.code.slug,
                    "message": error.message,
                }
            ),
            trace=operation.trace,
            uid=operation.uid,
            pid=operation.pid,
        )
