# SPDX-License-Identifier: Apache-2.0
"""What every slot of a node has in common, and what its parts are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geneve_ebpf.model import Guest

GUEST_INTERFACE = "eth0"


def host_interface(index: int) -> str:
    """Name of a slot's host-side interface, in the node's namespace."""
    return f"gnv{index}"


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
