# SPDX-License-Identifier: Apache-2.0
"""The agent's log: one line a record, key=value, on standard error."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable

PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+:/@,<>[](){}%*#?&~!$^;|"
)
Fields = dict[str, object]


class Log:
    """Writes records to a file descriptor.

    `change` is for the hot path: it keeps the record and formats it when the
    event loop has sent the answers that are ready. Until `deferred_by` has
    been called every record is written at once.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._waiting: list[tuple[float, str, Fields]] = []
        self._later: Callable[[Callable[[], object]], object] | None = None

    def deferred_by(self, later: Callable[[Callable[[], object]], object]) -> None:
        """Have `change` records written by `later(function)`, such as a loop's call_soon."""
        self._later = later

    def info(self, event: str, **fields: object) -> None:
        """Something the operator may want to know."""
        self._write([(time.time(), f"level=info event={event}", fields)])

    def warning(self, event: str, **fields: object) -> None:
        """Something the operator should look at."""
        self._write([(time.time(), f"level=warning event={event}", fields)])

    def defect(self, event: str, error: BaseException, **fields: object) -> None:
        """An exception that is our fault: the record, then its traceback as one field."""
        fields["error"] = "".join(traceback.format_exception(error))
        self._write([(time.time(), f"level=error event={event}", fields)])

    def change(self, event: str, fields: Fields) -> None:
        """A request that changed something, or tried to."""
        if not self._waiting and self._later is not None:
            self._later(self.flush)
        self._waiting.append((time.time(), f"level=info event={event}", fields))
        if self._later is None:
            self.flush()

    def flush(self) -> None:
        """Write the records that `change` has kept."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._write(waiting)

    def _write(self, records: list[tuple[float, str, Fields]]) -> None:
        text = "".join(line(*record) for record in records)
        try:
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
        except OSError:
            # Whoever read the log is gone; a node does not stop working for that.
            return


def line(at: float, head: str, fields: Fields) -> str:
    """One record as text, with its line end. Values with a space or quote are JSON strings."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    parts = [f"time={stamp}.{int(at % 1 * 1000):03d}Z {head}"]
    for key, value in fields.items():
        text = str(value)
        if not text or not PLAIN.issuperset(text):
            text = json.dumps(text, ensure_ascii=True)
        parts.append(f"{key}={text}")
    return " ".join(parts) + "\n"
