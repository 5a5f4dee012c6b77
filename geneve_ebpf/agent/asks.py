# SPDX-License-Identifier: Apache-2.0
"""What the slot process is asked about one slot, and whoever waits for its answer.

A slot process that dies has perhaps done it and not said so: the next one is asked
again, so whatever is asked must be safe to repeat.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from geneve_ebpf.agent.channel import Channel
from geneve_ebpf.agent.descriptor import Descriptor
from geneve_ebpf.errors import Code, GeneveError

PATIENCE = 10.0  # seconds until a slot process that says nothing is taken for one that cannot


class Answered(NamedTuple):
    """What came of a question."""

    error: GeneveError | None
    descriptor: Descriptor | None = None
    content: dict[str, Any] | None = None


class Asked(NamedTuple):
    """A question that is not answered yet."""

    more: dict[str, Any]  # what it says beside its name and the slot
    answer: asyncio.Future[Answered]


class Asks:
    """The questions that are open, by name and slot: one of each at a time."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Asked] = {}
        self._channel: Channel | None = None

    def connect(self, channel: Channel) -> None:
        """There is a slot process again: ask it what the one before has not answered."""
        self._channel = channel
        for (name, index), asked in self._open.items():
            channel.order(name, [index], **asked.more)

    def disconnect(self) -> None:
        """There is none for the moment."""
        self._channel = None

    async def ask(self, name: str, index: int, **more: Any) -> Answered:
        """Have something done about a slot, and wait until it is. Raises the GeneveError
        that says why it is not; NO_SLOT if no answer comes.

        Asked already, the answer to that is waited for.
        """
        return await answer_of(self.begin(name, index, **more), index)

    def is_open(self, name: str, index: int) -> bool:
        """Is that asked, and not answered yet?"""
        return (name, index) in self._open

    def begin(self, name: str, index: int, **more: Any) -> asyncio.Future[Answered]:
        """As `ask`, without waiting."""
        asked = self._open.get((name, index))
        if asked is None:
            asked = Asked(more, asyncio.get_running_loop().create_future())
            self._open[name, index] = asked
            if self._channel is not None:
                self._channel.order(name, [index], **more)
        return asked.answer

    def answered(self, name: str, index: int, answered: Answered) -> None:
        """The slot process has said what became of it."""
        asked = self._open.pop((name, index), None)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(answered)

    def gone(self, index: int) -> None:
        """There is no such slot any more: nobody waits for word of it."""
        # Or the next one of this index would wait for it, and order nothing.
        for name, other in [key for key in self._open if key[1] == index]:
            error = GeneveError(Code.NO_SLOT, f"slot-{index} is gone", hint="try again")
            self.answered(name, other, Answered(error))


async def answer_of(asked: asyncio.Future[Answered], index: int) -> Answered:
    """Wait for an answer about a slot, and raise the error that it may be; see `Asks.ask`."""
    try:
        answered = await asyncio.wait_for(asyncio.shield(asked), PATIENCE)
    except TimeoutError:
        raise GeneveError(
            Code.NO_SLOT,
            f"slot-{index}: the slot process does not answer",
            hint="geneve-ebpf node status and the agent's log may say why; try again",
        ) from None
    if answered.error is not None:
        raise answered.error
    return answered
