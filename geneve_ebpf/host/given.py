# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that others made and we are to work in: which ones, and opening them safely.

Nothing here holds on to one: no mount, no descriptor that stays open. A namespace
lives as long as its owner wants, so what is remembered is its path and which one was
there, and it is entered again only if that one is there still.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from geneve_ebpf.errors import GeneveError
from geneve_ebpf.host.walks import Walk, bad_netns

# Seconds that the way to one may take that was walked before. Meanwhile no slot is made.
_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Given:
    """A namespace, and what our interface is called in there."""

    path: str
    device: int
    inode: int  # with the device: which namespace it was
    interface: str
    # Of a veth that was there already: what its end in the node's namespace was called, and its
    # index.
    outside: str = ""
    outside_index: int = 0

    @classmethod
    def of(cls, path: str, descriptor: int, interface: str) -> Given:
        """The namespace that was opened at a path."""
        found = os.fstat(descriptor)
        return cls(path, found.st_dev, found.st_ino, interface)

    def is_same(self, other: Given) -> bool:
        """Whether both mean one interface, by whatever path."""
        mine = (self.device, self.inode, self.interface)
        return mine == (other.device, other.inode, other.interface)

    def open(self) -> int:
        """A descriptor of it. Raises FileNotFoundError if it is not at its path any more,
        TimeoutError if nothing answers on the way there."""
        try:
            descriptor = Walk(self.path, _PATIENCE).namespace()
        except GeneveError as error:
            raise FileNotFoundError(errno.ENOENT, error.message) from None
        if not self.is_same(Given.of(self.path, descriptor, self.interface)):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "another namespace is there by now", self.path)
        return descriptor


def refuse_those(given: Given, others: list[Path]) -> None:
    """Raise BAD_NETNS if the namespace is one of those at `others`, which are not to be had."""
    for path in others:
        # Process 1's may not be looked at by whoever lacks one of its capabilities.
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if (found.st_dev, found.st_ino) == (given.device, given.inode):
                raise bad_netns(given.path, OWN)


OWN = "is the machine's, a node's or a slot's own namespace"


class Records:
    """The namespaces that slots were made in, a file each below a node's run directory."""

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory / "given"

    def __iter__(self) -> Iterator[tuple[int, Given]]:
        names = os.listdir(self._directory) if self._directory.exists() else []
        for name in names:
            if name.startswith("slot-") and name[5:].isdigit():
                found = self.get(int(name[5:]))
                if found is not None:
                    yield int(name[5:]), found

    def get(self, index: int) -> Given | None:
        """Where a slot was made; None if in a namespace of its own."""
        try:
            return Given(**json.loads(self._path(index).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def add(self, index: int, given: Given) -> None:
        """Note where a slot is about to be made. All of it is there, or nothing."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        draft = self._directory / f"new-{index}"
        draft.write_text(json.dumps(asdict(given)))
        draft.replace(self._path(index))

    def remove(self, index: int) -> None:
        """That slot is gone. No error if there was none."""
        self._path(index).unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._directory / f"slot-{index}"
