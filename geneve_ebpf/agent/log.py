# SPDX-License-Identifier: Apache-2.0
"""The agent's log: one line a record, key=value, on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

# What stands in a line as it is; anything else becomes a JSON string.
PLAIN = re.compile(r"[!#-&(-<>-\[\]-~]+")  # printable ASCII without " ' = \ and space


Plain = str | tuple[Any, ...]
AT_ONCE = 8  # records of changes that are put into words together, some 4 us each


class Log:
    """Writes records to a file descriptor.

    `change` is for the hot path: it keeps the record until the event loop has
    sent the answers that are ready, and few are then written at a time. Until
    `deferred_by` has been called every record is written at once.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._waiting: deque[tuple[float, str, Plain, dict[str, object]]] = deque()
        self.say: Callable[[tuple[Any, ...]], str] = str  # puts a tuple of `change` into words
        self._second = 0
        self._stamp = ""
        self._later: Callable[[Callable[[], object]], object] | None = None
        self._last_line = ""  # what stays below the records, on a terminal

    def deferred_by(self, later: Callable[[Callable[[], object]], object]) -> None:
        """Have `change` records written by `later(function)`; as often as that returns True."""
        self._later = later

    def info(self, event: str, **fields: object) -> None:
        """Something the operator may want to know."""
        self._record("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something the operator should look at."""
        self._record("warning", event, fields)

    def defect(self, event: str, error: BaseException, **fields: object) -> None:
        """An exception that is our fault: the record, then its traceback as one field."""
        fields["error"] = "".join(traceback.format_exception(error))
        self._record("error", event, fields)

    def change(self, event: str, plain: Plain = "", **fields: object) -> None:
        """A request that changed something, or tried to.

        plain: key=value text that holds nothing to quote, or a tuple that `say`
        makes such a text of when the record is written.
        """
        if not self._waiting and self._later is not None:
            self._later(self._write_some)
        self._waiting.append((time.time(), event, plain, fields))
        if self._later is None:
            self.flush()

    def changes(self, event: str, plains: list[tuple[Any, ...]]) -> None:
        """As `change`, many of them at once."""
        if not self._waiting and self._later is not None:
            self._later(self._write_some)
        now = time.time()
        self._waiting.extend([(now, event, plain, {}) for plain in plains])
        if self._later is None:
            self.flush()

    def flush(self) -> None:
        """Write all records that `change` has kept."""
        while self._write_some():
            pass

    def _write_some(self) -> bool:
        """Write the oldest ones that are kept; whether there are more."""
        waiting = self._waiting
        some = [waiting.popleft() for _ in range(min(AT_ONCE, len(waiting)))]
        if some:
            self._write("".join([self._line("info", *record) for record in some]))
        return bool(waiting)

    def stay(self, text: str) -> None:
        """Keep a line at the terminal's end, below what is logged; "" takes it away."""
        self._last_line = text
        self._write("")

    def _record(self, level: str, event: str, fields: dict[str, object]) -> None:
        self._write(self._line(level, time.time(), event, "", fields))

    def _line(
        self,
        level: str,
        now: float,
        event: str,
        plain: Plain,
        fields: dict[str, object],
    ) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        head = f"time={self._stamp}.{int((now - second) * 1000):03d}Z level={level} event={event}"
        if plain:
            head = f"{head} {plain if isinstance(plain, str) else self.say(plain)}"
        if not fields:
            return f"{head}\n"
        return f"{head} {' '.join([f'{key}={quoted(str(v))}' for key, v in fields.items()])}\n"

    def _write(self, text: str) -> None:
        if self._last_line or not text:
            text = f"\r\x1b[K{text}{self._last_line}"  # over what stands there
        # Whoever read the log may be gone; a node does not stop working for that.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))


def quoted(text: str) -> str:
    """The text itself where a reader can tell its end, else a JSON string."""
    return text if PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=True)
