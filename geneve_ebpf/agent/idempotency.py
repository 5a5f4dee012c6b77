# SPDX-License-Identifier: Apache-2.0
"""Idempotency-Key: a request that is sent twice is done once, and answered alike.

As draft-ietf-httpapi-idempotency-key-header has it. Kept in memory only: a
restart of the agent forgets the keys, and the attach and detach calls are safe
to repeat without one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from geneve_ebpf.errors import Code, GeneveError

T = TypeVar("T")

KEYS_MAX = 10_000
BYTES_MAX = 16 << 20  # of all answers together
TTL = 600.0  # seconds from the answer on
KEY_LENGTH_MAX = 128


@dataclass(slots=True)
class Entry(Generic[T]):
    """What is known of one key."""

    request: Hashable
    answer: T | None = None
    size: int = 0
    until: float = 0.0  # forgotten then; only once there is an answer


class Keys(Generic[T]):
    """The keys of late, and what was answered."""

    def __init__(
        self, now: Callable[[], float], keys_max: int = KEYS_MAX, bytes_max: int = BYTES_MAX
    ) -> None:
        self._now = now
        self._keys_max = keys_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._open: dict[Hashable, Entry[T]] = {}  # not answered yet
        self._answered: OrderedDict[Hashable, Entry[T]] = OrderedDict()  # the oldest first

    def begin(self, key: Hashable, request: Hashable) -> T | None:
        """The answer that the request had before; None says: do it, then `end` or `give_up`.

        Raises KEY_REUSED if it was another request, KEY_IN_USE if that is not
        answered yet, BUSY if too many are under way.
        """
        self._forget()
        entry = self._open.get(key) or self._answered.get(key)
        if entry is None:
            if len(self._open) >= self._keys_max:
                raise GeneveError(
                    Code.BUSY, "too many requests with an Idempotency-Key", hint="ask again later"
                )
            self._open[key] = Entry(request)
            return None
        if entry.request != request:
            raise GeneveError(
                Code.KEY_REUSED,
                "this Idempotency-Key was used for another request",
                hint="a new request needs a new key",
                field="Idempotency-Key",
            )
        if entry.answer is None:
            raise GeneveError(
                Code.KEY_IN_USE,
                "the first request with this Idempotency-Key is still being done",
                hint="ask again in a moment",
                field="Idempotency-Key",
            )
        return entry.answer

    def end(self, key: Hashable, answer: T, size: int) -> None:
        """Keep the answer, `size` bytes, for whoever repeats the request."""
        entry = self._open.pop(key)
        entry.answer, entry.size, entry.until = answer, size, self._now() + TTL
        self._answered[key] = entry
        self._bytes += size
        self._forget()

    def give_up(self, key: Hashable) -> None:
        """Nothing was done, so that a repetition is to be done anew."""
        del self._open[key]

    def _forget(self) -> None:
        now, answered = self._now(), self._answered
        while answered:
            key, entry = next(iter(answered.items()))
            if (
                entry.until > now
                and len(answered) <= self._keys_max
                and self._bytes <= self._bytes_max
            ):
                return
            del answered[key]
            self._bytes -= entry.size


def read_key(text: str) -> str:
    """The key in a header's value, with or without the quotes of RFC 8941. Raises BAD_REQUEST."""
    key = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if 0 < len(key) <= KEY_LENGTH_MAX and key.isascii() and key.isprintable():
        return key
    raise GeneveError(
        Code.BAD_REQUEST,
        f"the Idempotency-Key is not 1 to {KEY_LENGTH_MAX} printable ASCII characters",
        hint="a UUID, for instance",
        field="Idempotency-Key",
    )
