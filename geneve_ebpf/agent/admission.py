# SPDX-License-Identifier: Apache-2.0
"""Who waits for a slot, whose turn it is, and when it is worth asking again.

Two bounds, on one VPC's share and on all, and turns that go round the VPCs: a
tenant's storm delays nobody but itself. Knows of no event loop; `queue` does.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from geneve_ebpf.errors import Code, GeneveError

# docs/decisions/0009 says where these come from.
WAITING_MAX = 1024
WAITING_PER_VPC = 256
RETRY_AFTER_MAX = 60  # seconds


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the queue, until it is called, is too late, or is given back."""

    group: str  # who shares turns and a bound: a VPC's name
    deadline: float
    what: str  # is waited for: a kind of slot
    waiting: bool = True


class Admission:
    """The queue."""

    def __init__(
        self, now: Callable[[], float], in_all: int = WAITING_MAX, per_group: int = WAITING_PER_VPC
    ) -> None:
        """now: the clock of deadlines, in seconds."""
        self.waiting = 0
        self.waiting_for: Counter[str] = Counter()  # by what it is
        self.refused = 0  # for want of room, ever
        self.expired = 0  # ever
        self.drain = Rate(now)
        self._now = now
        self._in_all = in_all
        self._per_group = per_group
        # In the order of turns; a group without tickets is not there.
        self._groups: OrderedDict[str, OrderedDict[Ticket, None]] = OrderedDict()

    def enter(self, group: str, deadline: float, what: str = "") -> Ticket:
        """Wait until that time on the clock. Raises DEADLINE_EXCEEDED; BUSY if there is no room."""
        if deadline <= self._now():
            self.expired += 1
            raise too_late()
        tickets = self._groups.get(group, ())
        full = f"{self._in_all} requests" if self.waiting >= self._in_all else ""
        if not full and len(tickets) >= self._per_group:
            full = f"{self._per_group} requests of this VPC"
        if full:
            self.refused += 1
            raise GeneveError(
                Code.BUSY,
                f"{full} wait for a slot already",
                hint="ask again after the time in Retry-After, or place it elsewhere",
                details={"retry_after_s": self.drain.seconds_for(len(tickets) or 1)},
            )
        ticket = Ticket(group, deadline, what)
        self._groups.setdefault(group, OrderedDict())[ticket] = None
        self.waiting += 1
        self.waiting_for[what] += 1
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Wait no more. Nothing happens if it does not wait any more."""
        if ticket.waiting:
            self._remove(ticket)
            if ticket.deadline <= self._now():
                self.expired += 1

    def call(self, ready: Callable[[str], object] = lambda _: True) -> Ticket | None:
        """Take the next one whose turn it is and for whom there is something ready.

        The others keep their turns; those that are too late are passed over.
        """
        able = {what for what, count in self.waiting_for.items() if count and ready(what)}
        if not able:
            return None
        now = self._now()
        for group, tickets in list(self._groups.items()):
            for ticket in list(tickets):
                if ticket.what not in able:
                    continue
                self._remove(ticket)
                if ticket.deadline <= now:
                    self.expired += 1
                    continue
                if group in self._groups:
                    self._groups.move_to_end(group)
                self.drain.note(more=self.waiting > 0)
                return ticket
        return None

    def _remove(self, ticket: Ticket) -> None:
        ticket.waiting = False
        tickets = self._groups[ticket.group]
        del tickets[ticket]
        if not tickets:
            del self._groups[ticket.group]
        self.waiting -= 1
        self.waiting_for[ticket.what] -= 1


class Rate:
    """How long one of a row of things takes, by those that came while more were due."""

    WEIGHT = 0.2  # of the newest

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._gap: float | None = None
        self._last = 0.0
        self._more = False

    def note(self, *, more: bool, count: int = 1) -> None:
        """Some came together; `more` says whether another is due now."""
        now = self._now()
        if self._more:
            gap = (now - self._last) / max(1, count)
            self._gap = gap if self._gap is None else self._gap + self.WEIGHT * (gap - self._gap)
        self._last, self._more = now, more

    def seconds_for(self, count: int) -> float:
        """How long so many will take; a second where nothing is known. A row that has
        stopped is as slow as it has been silent.
        """
        if self._gap is None:
            return 1.0
        gap = max(self._gap, self._now() - self._last) if self._more else self._gap
        return round(min(gap * count, RETRY_AFTER_MAX), 3)


def retry_after(seconds: float) -> int:
    """The value of a Retry-After header: whole seconds, at least one."""
    return max(1, min(RETRY_AFTER_MAX, math.ceil(seconds)))


def too_late() -> GeneveError:
    """What is said to a request whose deadline has passed."""
    return GeneveError(
        Code.DEADLINE_EXCEEDED,
        "the request's deadline has passed, and nothing was changed",
        hint="ask again with a longer Request-Timeout, or place it elsewhere",
    )
