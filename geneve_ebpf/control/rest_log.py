# SPDX-License-Identifier: Apache-2.0
"""Remembers over a restart of the agent which addresses rest, and for whom.

A file of lines in the run directory, appended to at each detach: a write to
tmpfs, nothing is synced. Times are of the monotonic clock, which starts anew
with the machine as the run directory does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from geneve_ebpf.control.line_file import LineFile
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
        self._file = LineFile(path, LINES_MAX)

    def open(self, now: float) -> list[Rest]:
        """Open or make the file. Returns what still rests, the earliest end first."""
        rests = {}
        try:
            lines = self._file.path.read_text(errors="replace").splitlines()
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
        """Append one, which a restart forgets where there is no room for it.

        False when it is time for `rewrite`.
        """
        self._file.append([_line(rest)])
        return not self._file.full

    def rewrite(self, rests: Iterable[Rest]) -> None:
        """Replace the file's content, or leave it be where there is no room for a new one."""
        self._file.write_anew([_line(rest) for rest in rests])

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()


def _line(rest: Rest) -> str:
    return f"{rest.vni} {rest.address} {rest.until:.3f} {rest.sandbox}\n"


def _read(line: str) -> Rest | None:
    """A line, unless it is torn: the agent was killed while it wrote the last one."""
    fields = line.split(" ")
    try:
        vni, address, until, sandbox = fields
        return Rest(int(vni), ip_address(address), float(until), sandbox)
    except ValueError:
        return None
