# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that others made and we are to work in: which ones, and opening them safely.

Nothing here holds on to one: no mount, no descriptor that stays open. A namespace
lives as long as its owner wants, so what is remembered is its path and which one was
there, and it is entered again only if that one is there still.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError

_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000


@dataclass(frozen=True, slots=True)
class Given:
    """A namespace, and what our interface is called in there."""

    path: str
    device: int
    inode: int  # with the device: which namespace it was
    interface: str

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
        """A descriptor of it. Raises FileNotFoundError if it is not at its path any more."""
        try:
            descriptor = open_netns(self.path)
        except GeneveError as error:
            raise FileNotFoundError(errno.ENOENT, error.message) from None
        if not self.is_same(Given.of(self.path, descriptor, self.interface)):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "another namespace is there by now", self.path)
        return descriptor


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at a path. Raises BAD_NETNS if none is there.

    The path is walked once. Nothing is opened before it is known to be a namespace's
    file: opening a device or a FIFO can do something, or wait for ever.
    """
    if not path.startswith("/"):
        raise bad_netns(path, "is no absolute path")
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            # All namespaces' files are on one file system, which holds nothing else.
            if os.fstat(place).st_dev != os.stat("/proc/self/ns/net").st_dev:
                raise bad_netns(path, "is no namespace's file")
            descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as error:
        raise bad_netns(path, f"cannot be opened: {error.strerror}") from None
    except ValueError:  # a zero byte
        raise bad_netns(path, "is no path") from None
    if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) != _CLONE_NEWNET:
        os.close(descriptor)
        raise bad_netns(path, "is a namespace of another type")
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


def bad_netns(path: str, why: str) -> GeneveError:
    """What is said of a path that is not to be had."""
    return GeneveError(
        Code.BAD_NETNS,
        f"{path[:200]!r} {why}",
        hint="the path of a sandbox's network namespace, such as /run/netns/NAME or"
        " /proc/PID/ns/net, as the agent sees it",
        field="netns",
    )


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
