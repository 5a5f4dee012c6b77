# SPDX-License-Identifier: Apache-2.0
"""Attaches that were asked for asynchronously: how they went, and which failed in the end.

Nothing that failed is forgotten before somebody has dropped it or tried it
again: when there is no room for more, no more are taken on. Kept in memory: a
restart of the agent forgets them all, done or not. Knows of no event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from geneve_ebpf.errors import Code, GeneveError

OPERATIONS_MAX = 10_000  # pending and failed ones
DONE_MAX = 10_000
DONE_KEPT = 600.0  # seconds
STEPS_MAX = 32  # of one history: the first and the latest

# What may be different in a moment on this very node. A slot is waited for, not tried for.
WORTH_A_RETRY = frozenset((Code.BUSY, Code.ADDRESS_RESTING, Code.NO_ADDRESS))
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 5.0  # seconds
# Retries are a tenth of what is asked for, beyond a few: they must not feed a storm.
BUDGET_MAX = 100.0
BUDGET_EACH = 0.1


class State(str, Enum):
    """Where an operation is, as the API says it."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to an operation. time: seconds since the epoch."""

    time: float
    what: str  # accepted, waits, tried, again, done, failed, retried
    message: str = ""


@dataclass(eq=False, slots=True)
class Operation:
    """One attach. `body` is the request's; `result` what a PUT would have answered."""

    id: str
    sandbox: str
    vpc: str
    body: object
    trace: str
    uid: int
    pid: int
    timeout: float  # seconds that one run of it may take
    kind: str  # of slot that it waits for
    deadline: float = 0.0
    state: State = State.PENDING
    attempts: int = 0
    history: list[Step] = field(default_factory=list)
    result: bytes = b""
    error: GeneveError | None = None
    ended: float = 0.0


class Operations:
    """All of them."""

    def __init__(
        self,
        now: Callable[[], float],
        wall: Callable[[], float],
        chance: Callable[[], float],
        *,
        prefix: str,
        most: int = OPERATIONS_MAX,
        done_most: int = DONE_MAX,
    ) -> None:
        """now: the clock of deadlines; wall: that of histories; chance: from 0 to 1.

        prefix: what the ids of this agent's operations begin with.
        """
        self._now = now
        self._wall = wall
        self._chance = chance
        self._prefix = prefix
        self._most = most
        self._done_most = done_most
        self._count = 0
        self._budget = BUDGET_MAX / 10
        self._operations: dict[str, Operation] = {}
        self._done: OrderedDict[str, None] = OrderedDict()  # ids, the earliest end first
        self.counts = dict.fromkeys(State, 0)

    def submit(
        self,
        sandbox: str,
        vpc: str,
        body: object,
        *,
        timeout: float,
        kind: str = "",
        trace: str = "",
        uid: int = -1,
        pid: int = 0,
    ) -> Operation:
        """Take one on. Raises BUSY if there is no room, which failed ones take too."""
        self._forget()
        if self.counts[State.PENDING] + self.counts[State.FAILED] >= self._most:
            failed = self.counts[State.FAILED]
            raise GeneveError(
                Code.BUSY,
                f"{self._most} operations are pending or failed ({failed})",
                hint="look at the failed ones: geneve-ebpf operations list --failed, then"
                " retry or drop them"
                if failed
                else "ask again later",
            )
        self._count += 1
        operation = Operation(
            f"{self._prefix}-{self._count}", sandbox, vpc, body, trace, uid, pid, timeout, kind
        )
        operation.deadline = self._now() + timeout
        self._operations[operation.id] = operation
        self.counts[State.PENDING] += 1
        self._budget = min(BUDGET_MAX, self._budget + BUDGET_EACH)
        self.note(operation, "accepted")
        return operation

    def get(self, identity: str) -> Operation:
        """The operation of that id. Raises OPERATION_NOT_FOUND."""
        self._forget()
        operation = self._operations.get(identity)
        if operation is None:
            raise GeneveError(
                Code.OPERATION_NOT_FOUND,
                f"no operation {identity[:80]}",
                hint="done ones are kept for a while only, and none over a restart of the agent",
                field="operation",
            )
        return operation

    def all(self, state: State | None = None) -> list[Operation]:
        """Those in that state, or all; the oldest first."""
        self._forget()
        return [one for one in self._operations.values() if state in (None, one.state)]

    def note(self, operation: Operation, what: str, message: str = "") -> None:
        """Add to an operation's history."""
        history = operation.history
        if len(history) >= STEPS_MAX:
            del history[STEPS_MAX // 2]
        history.append(Step(self._wall(), what, message))

    def succeeded(self, operation: Operation, result: bytes) -> None:
        """The sandbox is attached."""
        operation.attempts += 1
        operation.result = result
        operation.error = None
        self._end(operation, State.DONE)
        self._done[operation.id] = None
        self.note(operation, "done")
        self._forget()

    def failed(self, operation: Operation, error: GeneveError) -> float | None:
        """An attempt failed. Seconds until the next one, or None: it has failed for good."""
        operation.attempts += 1
        operation.error = error
        text = f"{error.code.slug}: {error.message}"
        wait = self._wait(operation, error)
        why = ""
        if error.code not in WORTH_A_RETRY:
            why = text
        elif self._now() + wait >= operation.deadline:
            why = f"{text}; no time is left"
        elif self._budget < 1:
            why = f"{text}; too many retries go on"
        if why:
            self._end(operation, State.FAILED)
            self.note(operation, "failed", why)
            return None
        self._budget -= 1
        self.note(operation, "again", f"in {wait:.2f} s, after {text}")
        return wait

    def retry(self, operation: Operation) -> None:
        """Begin a failed one anew. Raises OPERATION_STATE if it has not failed."""
        self.require_failed(operation)
        self.counts[State.FAILED] -= 1
        self.counts[State.PENDING] += 1
        operation.state = State.PENDING
        operation.error = None
        operation.attempts = 0
        operation.deadline = self._now() + operation.timeout
        self.note(operation, "retried")

    def drop(self, operation: Operation) -> None:
        """Forget a failed one. Raises OPERATION_STATE if it has not failed."""
        self.require_failed(operation)
        self.counts[State.FAILED] -= 1
        del self._operations[operation.id]

    def has_failed(self, operation: Operation) -> bool:
        """Whether it is still there, and failed."""
        known = self._operations.get(operation.id) is operation
        return known and operation.state is State.FAILED

    def require_failed(self, operation: Operation) -> None:
        """Raise OPERATION_STATE if it has not failed: the others need neither."""
        if operation.state is not State.FAILED:
            raise GeneveError(
                Code.OPERATION_STATE,
                f"operation {operation.id} is {operation.state.value}",
                hint="only a failed one can be tried again or dropped",
                field="operation",
            )

    def _wait(self, operation: Operation, error: GeneveError) -> float:
        """Full jitter, and not before the error says that it can help."""
        most = min(BACKOFF_MAX, BACKOFF_FIRST * float(1 << min(operation.attempts - 1, 10)))
        least = error.details.get("retry_after_s", 0.0)
        assert isinstance(least, (int, float))
        return least + most * self._chance()

    def _end(self, operation: Operation, state: State) -> None:
        self.counts[State.PENDING] -= 1
        self.counts[state] += 1
        operation.state = state
        operation.ended = self._now()

    def _forget(self) -> None:
        oldest = self._now() - DONE_KEPT
        while self._done:
            identity = next(iter(self._done))
            if len(self._done) <= self._done_most and self._operations[identity].ended > oldest:
                return
            del self._done[identity]
            del self._operations[identity]
            self.counts[State.DONE] -= 1
