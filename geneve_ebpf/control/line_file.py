# SPDX-License-Identifier: Apache-2.0
"""A file of lines that is appended to, and now and then written anew without the past.

Nothing of it raises: where a disk is full the file lacks some lines, until there is
room to write it anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

# Where there was no room: it is time to write it anew after so many more lines.
AGAIN_AFTER = 100


class LineFile:
    """The file, open for appending since it was first written anew."""

    def __init__(self, path: Path, lines_max: int) -> None:
        """lines_max: so many lines are appended before it is time to write it anew."""
        self.path = path
        self._lines_max = self._due = lines_max
        self._appended = 0  # since it was written anew
        self._descriptor = -1

    @property
    def full(self) -> bool:
        """Is it time to write it anew?"""
        return self._appended >= self._due

    def append(self, lines: Sequence[str]) -> None:
        """Add lines, each with its end. Of what has no room the last one may be torn."""
        content = "".join(lines).encode()
        self._appended += len(lines)
        try:
            whole = os.write(self._descriptor, content) == len(content)
        except OSError:  # or it was never opened
            whole = False
        if not whole:
            self._due = min(self._due, self._appended + AGAIN_AFTER)

    def write_anew(self, lines: Sequence[str]) -> None:
        """Replace the content, or leave it be where there is no room for a new one."""
        content = "".join(lines).encode()
        self._appended, self._due = 0, AGAIN_AFTER
        new = self.path.with_suffix(".new")
        with contextlib.suppress(OSError):
            descriptor = os.open(
                new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                if os.write(descriptor, content) < len(content):  # where the room ended
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                new.rename(self.path)
            except OSError:
                os.close(descriptor)
                new.unlink(missing_ok=True)  # or it would take what room there is
                raise
            self.close()
            self._descriptor = descriptor
            self._due = self._lines_max

    def close(self) -> None:
        """Close the file, which stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
