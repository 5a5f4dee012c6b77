# SPDX-License-Identifier: Apache-2.0
"""A wall clock that jumps, for processes that a test starts: no other process notices.

(A time namespace has its own monotonic clock, and everybody's wall clock.)
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

DAY = 86_400


class WallClock:
    """What processes that are started after this see, and their children."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        library = directory / "wall_clock.so"
        source = Path(__file__).with_suffix(".c")
        flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
        subprocess.run(["cc", *flags, "-o", library, source], check=True)
        self._wrong_by = directory / "wrong_by"
        self._wrong_by.write_bytes(bytes(8))
        monkeypatch.setenv("GENEVE_EBPF_TESTS_CLOCK", str(self._wrong_by))
        monkeypatch.setenv("LD_PRELOAD", str(library))

    def jump(self, seconds: int) -> None:
        """Forwards, or backwards, from where it is."""
        descriptor = os.open(self._wrong_by, os.O_RDWR)  # the file that they have mapped
        try:
            (before,) = struct.unpack("=q", os.pread(descriptor, 8, 0))
            os.pwrite(descriptor, struct.pack("=q", before + seconds), 0)
        finally:
            os.close(descriptor)
