# SPDX-License-Identifier: Apache-2.0
"""Remembers over a reboot who was attached, so that it can be said who was lost.

The maps are the record of what is attached, and end with the kernel. This is a
file of lines in the state directory, appended to behind the answers and never
synced: after a power cut the last ones may be missing. Its first line names the
boot that the others are of, its second the last generation given before them.
Who was lost before is in there until somebody has seen to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from geneve_ebpf.control.line_file import LineFile
from geneve_ebpf.model import Attachment, ipv4_text

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# So many lines are appended before the file is written anew without the past.
LINES_MAX = 50_000
# The latest of those that were lost; a name that nobody ever uses again would stay for ever.
LOST_MAX = 16_384


class Lost(NamedTuple):
    """A sandbox that was attached."""

    sandbox: str
    vni: int
    addresses: tuple[str, ...]
    slot: int
    generation: int


class Record(NamedTuple):
    """What the file says."""

    same_boot: bool
    attached: list[Lost]  # in that boot
    lost: list[Lost]  # before it


class AttachedLog:
    """The file, open for appending."""

    def __init__(self, path: Path, boot_id: Path = BOOT_ID) -> None:
        self._file = LineFile(path, LINES_MAX)
        self._boot = boot_id.read_text().strip()
        # A name was detached; who was lost was detached before.
        self._unwritten: list[Attachment | Lost | str] = []
        self.generation = 0  # the highest that `read` found

    @property
    def full(self) -> bool:
        """Is it time for `rewrite`?"""
        return self._file.full

    def read(self) -> Record:
        """Whether the file is of this boot, who was attached by its word, and who was lost."""
        try:
            boot, *lines = self._file.path.read_text(errors="replace").splitlines()
        except (OSError, ValueError):
            return Record(True, [], [])
        attached: dict[str, Lost] = {}
        lost: dict[str, Lost] = {}
        for line in lines:
            match line.split(" "):
                case ["^", generation]:
                    with contextlib.suppress(ValueError):
                        self.generation = max(self.generation, int(generation))
                case ["+" | "?" as sign, sandbox, *fields] if len(fields) == 4:
                    one = _read(sandbox, *fields)
                    if one is not None:
                        lost.pop(sandbox, None)
                        (attached if sign == "+" else lost)[sandbox] = one
                        self.generation = max(self.generation, one.generation)
                case ["-", sandbox]:
                    attached.pop(sandbox, None)
                    lost.pop(sandbox, None)
        return Record(boot == self._boot, list(attached.values()), list(lost.values()))

    def attached(self, *some: Attachment) -> bool:
        """Note attaches, to be written by `flush`. True if that has to be arranged for."""
        return self._note(some)

    def detached(self, sandbox: str) -> bool:
        """Note a detach, or that somebody who was lost is seen to; as `attached`."""
        return self._note((sandbox,))

    def lost(self, one: Lost) -> bool:
        """Note that somebody who was attached is lost; as `attached`."""
        return self._note((one,))

    def flush(self, most: int | None = None) -> bool:
        """Write what was noted first, so many lines or all of it; whether there is more.

        What a full disk has no room for is made good by `rewrite`.
        """
        self._file.append([_line_of(note) for note in self._unwritten[:most]])
        del self._unwritten[:most]
        return bool(self._unwritten)

    def rewrite(
        self, attachments: Iterable[Attachment], lost: Sequence[Lost], generation: int
    ) -> None:
        """Replace the file's content, or leave it be where there is no room for a new one.

        generation: the last one given, be it to somebody who is detached.
        """
        lines = [f"{self._boot}\n", f"^ {generation}\n"]
        lines += [_line("?", one) for one in lost[-LOST_MAX:]]
        lines += [_line("+", known(one)) for one in attachments]
        self._unwritten.clear()
        self._file.write_anew(lines)

    def forget(self, generation: int) -> None:
        """The node was taken down: of all that was, its last generation alone is kept.

        What `read` found counts too, for one whose maps could not be read.
        """
        known = max(generation, self.generation)
        if known:
            self.rewrite([], [], known)

    def close(self) -> None:
        """Write what was noted and close the file, which stays."""
        if self._unwritten:
            self.flush()
        self._file.close()

    def _note(self, some: tuple[Attachment | Lost | str, ...]) -> bool:
        first = not self._unwritten
        self._unwritten += some
        return first


def _line_of(note: Attachment | Lost | str) -> str:
    if isinstance(note, str):
        return f"- {note}\n"
    return _line("?", note) if isinstance(note, Lost) else _line("+", known(note))


def known(one: Attachment) -> Lost:
    vni, address, _, address6 = one.endpoint
    texts = () if address is None else (ipv4_text(address),)
    if address6 is not None:
        texts = (*texts, str(address6))
    return Lost(one.sandbox, vni, texts, one.slot, one.generation)


def _line(sign: str, one: Lost) -> str:
    addresses = ",".join(one.addresses)
    return f"{sign} {one.sandbox} {one.vni} {addresses} {one.slot} {one.generation}\n"


def _read(sandbox: str, vni: str, addresses: str, slot: str, generation: str) -> Lost | None:
    """A line's fields, unless one of them is torn."""
    try:
        return Lost(sandbox, int(vni), tuple(addresses.split(",")), int(slot), int(generation))
    except ValueError:
        return None
