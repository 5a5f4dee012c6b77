# SPDX-License-Identifier: Apache-2.0
"""Work that waits for a slot: it is done in the very moment in which it has its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from geneve_ebpf.agent.admission import Admission, Ticket, too_late
from geneve_ebpf.errors import Code, GeneveError

T = TypeVar("T")


class Queue:
    """`Admission` on the event loop, whose clock its deadlines are of."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._waiters: dict[Ticket, Waiter[Any]] = {}
        self._refusal: Callable[[], GeneveError] | None = None

    def enter(
        self, group: str, deadline: float, work: Callable[[], T], what: str = ""
    ) -> Waiter[T]:
        """Queue up at once for something of that kind; await the result for that of `work`.

        Raises as `Admission.enter` does, and what is awaited as `work` does, or
        DEADLINE_EXCEEDED. Cancelling it leaves the queue.
        """
        if self._refusal is not None:
            raise self._refusal()
        waiter = Waiter(self, self.admission.enter(group, deadline, what), work)
        self._waiters[waiter.ticket] = waiter
        return waiter

    def serve(self, ready: Callable[[str], int]) -> None:
        """Slots are ready, so many of each kind: give them to those whose turn it is."""
        while self.admission.waiting:
            ticket = self.admission.call(ready)
            if ticket is None:
                return
            self._waiters[ticket].turn()

    def refuse(self, error: Callable[[], GeneveError] | None) -> None:
        """Nobody gets a slot any more: say so to all who wait, and who come. None: they do."""
        self._refusal = error
        if error is not None:
            for waiter in list(self._waiters.values()):
                waiter.fail(error())

    def leave(self, ticket: Ticket) -> None:
        """For a waiter that is through."""
        self.admission.leave(ticket)
        self._waiters.pop(ticket, None)


def worth_waiting(error: GeneveError) -> bool:
    """Whether a slot may be ready later: none ever is of a kind that the node does not keep."""
    return error.code is Code.NO_SLOT and not error.field


class Waiter(Generic[T]):
    """One that waits."""

    def __init__(self, queue: Queue, ticket: Ticket, work: Callable[[], T]) -> None:
        loop = asyncio.get_running_loop()
        self.ticket = ticket
        self._queue = queue
        self._work = work
        self._result: asyncio.Future[T] = loop.create_future()
        self._result.add_done_callback(self._through)
        self._timer = loop.call_at(ticket.deadline, lambda: self.fail(too_late()))

    def __await__(self) -> Generator[Any, None, T]:
        try:
            return (yield from self._result.__await__())
        except asyncio.CancelledError:
            if self._result.cancelled() or not self._result.done():
                raise
            # It had its turn in the very moment: what was done is not nothing.
            return self._result.result()

    def turn(self) -> None:
        """Do the work now."""
        if self._result.done():
            return
        try:
            self._result.set_result(self._work())
        except Exception as error:
            self._result.set_exception(error)

    def fail(self, error: GeneveError) -> None:
        """End without having done it."""
        if not self._result.done():
            self._result.set_exception(error)

    def _through(self, _: object) -> None:
        self._timer.cancel()
        self._queue.leave(self.ticket)
