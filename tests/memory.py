# SPDX-License-Identifier: Apache-2.0
"""A control group whose memory can be made short; the kernel's own, for its processes, counts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

_UNLIMITED = {1: "-1", 2: "max"}
_NAMES = {
    # usage, limit, and the file that counts whom the kernel has killed
    1: ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control"),
    2: ("memory.current", "memory.max", "memory.events"),
}


class MemoryGroup:
    """Made when it is entered, where one can be made: else the test is skipped.

    Its processes must be gone at the end.
    """

    def __init__(self, name: str) -> None:
        parent, self.version = _parent()
        self.path = parent / name
        self._usage, self._limit, self._killed = _NAMES[self.version]

    def __enter__(self) -> MemoryGroup:
        try:
            self.path.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        return self

    def __exit__(self, *_: object) -> None:
        end = time.monotonic() + 10
        while True:
            try:
                self.path.rmdir()
            except OSError:  # somebody is not quite gone
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
            else:
                return

    @property
    def entrance(self) -> Path:
        """Whoever writes its number in there is in the group."""
        return self.path / "cgroup.procs"

    @property
    def usage(self) -> int:
        """Bytes that are charged to it."""
        return int((self.path / self._usage).read_text())

    @property
    def killed(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        lines = (self.path / self._killed).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def limit(self, most: int | None) -> None:
        """From now on it has so many bytes at most; None: as many as there are."""
        text = _UNLIMITED[self.version] if most is None else str(most)
        (self.path / self._limit).write_text(text)

    def refuse(self) -> None:
        """Where there is no memory the kernel refuses what it is asked for, and kills nobody.

        A process that only touches memory of its own waits, then. Version 1 alone has this.
        """
        if self.version != 1:
            pytest.skip("control groups of version 2 always kill where memory runs out")
        (self.path / self._killed).write_text("1")


def _parent() -> tuple[Path, int]:
    """Where a group can be made, and of which version."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, ours = line.split(":", 2)
        if "memory" in controllers.split(","):
            for words in mounts:
                if "memory" in words[-1].split(","):
                    return Path(words[4], ours.strip("/")), 1
    for words in mounts:
        if "cgroup2" in words[words.index("-") :]:
            root = Path(words[4])
            # Only the root may have processes and groups whose memory is counted.
            control = root / "cgroup.subtree_control"
            if control.exists() and "memory" in control.read_text().split():
                return root, 2
    pytest.skip("no control group with memory can be made here")
