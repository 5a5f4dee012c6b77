# SPDX-License-Identifier: Apache-2.0
"""Trace ids: the caller's, from W3C Trace Context, or one of our own."""

from __future__ import annotations

import itertools
import os
import re

# version-traceid-parentid-flags; a later version may have more behind it.
_TRACEPARENT = re.compile(
    r"(?:(?!ff|00)[0-9a-f]{2}(?=-.{52}(?:-|$))|00(?=-.{52}$))"
    r"-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}.*"
)


class Traces:
    """Gives each request its trace id, 32 hexadecimal digits.

    Ours are 8 bytes of chance, the same while the agent runs, and a count: as
    good as unique, and much cheaper than 16 bytes of chance each.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._count = itertools.count(1)

    def next(self) -> str:
        """An id that nobody else has."""
        return f"{self._prefix}{next(self._count):016x}"

    def of(self, traceparent: str) -> str:
        """The id in a traceparent header; a new one if there is none or it is malformed."""
        match = _TRACEPARENT.fullmatch(traceparent)
        return self.next() if match is None else match[1]
