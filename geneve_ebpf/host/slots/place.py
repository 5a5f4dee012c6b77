# SPDX-License-Identifier: Apache-2.0
"""What every slot of a node has in common: where it is made, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geneve_ebpf.model import Guest


@dataclass(frozen=True, slots=True)
class Place:
    """Where slots are made, and as what."""

    directory: Path  # of the namespaces' mounts
    guest: Guest
    mtu: int  # bytes, of eth0
    block: int  # shared tc block of the ingress; the egress's is the next number
    program: int  # id of sandbox_tx, which must be alone on the block
    guard: int  # id of sandbox_guard, likewise on the egress's

    @property
    def run_directory(self) -> Path:
        """The node's."""
        return self.directory.parent

    def netns(self, index: int) -> Path:
        """Where a slot's namespace is mounted."""
        return self.directory / f"slot-{index}"
