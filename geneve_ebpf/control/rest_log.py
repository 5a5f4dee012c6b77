# SPDX-License-Identifier: Apache-2.0
"""Remembers over a restart of the agent which addresses rest, and for whom.

A file of lines in the run directory, appended to at each detach: a write to
tmpfs, nothing is synced. Times are of the monotonic clock, which starts anew
with the machine as the run directory does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from geneve_ebpf.model import Address

# So many lines are appended before the file is written anew without the past.
LINES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Rest:
    """A freed address that only `sandbox` may have until then."""

    vni: int
    address: Address
    until: float  # seconds, monotonic clock
    sandbox: str


class RestLog:
    """The file, open for appending."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._lines = 0  # appended since it was written anew

    def open(self, now: float) -> list[Rest]:
        """Open or make the file. Returns what still rests, the earliest end first."""
        rests = {}
        try:
            lines = self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            rest = _read(line)
            if rest is not None:
                rests[rest.vni, rest.address] = rest
        alive = sorted(
            (rest for rest in rests.values() if rest.until > now), key=lambda rest: rest.until
        )
        self.rewrite(alive)
        return alive

    def add(self, rest: Rest) -> bool:
        """Append one. False when it is time for `rewrite`."""
        try:
            os.write(self._descriptor, _line(rest))
        except OSError:
            # No room on tmpfs. Memory has it; only a restart would not know.
            return True
        self._lines += 1
        return self._lines < LINES_MAX

    def rewrite(self, rests: Iterable[Rest]) -> None:
        """Replace the file's content, or leave it be where there is no room for a new one."""
        content = [_line(rest) for rest in rests]
        new = self._path.with_suffix(".new")
        try:
            descriptor = os.open(
                new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            os.write(descriptor, b"".join(content))
            new.rename(self._path)
        except OSError:
            self._lines = 0  # try again after as many
            return
        self.close()
        self._descriptor = descriptor
        # Not what it holds: where more than LINES_MAX rest, each line would be the last.
        self._lines = 0

    def close(self) -> None:
        """Close the file, which stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _line(rest: Rest) -> bytes:
    return f"{rest.vni} {rest.address} {rest.until:.3f} {rest.sandbox}\n".encode()


def _read(line: str) -> Rest | None:
    """A line, unless it is torn: the agent was killed while it wrote the last one."""
    fields = line.split(" ")
    try:
        vni, address, until, sandbox = fields
        return Rest(int(vni), ip_address(address), float(until), sandbox)
    except ValueError:
        return None
