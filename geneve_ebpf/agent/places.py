# SPDX-License-Identifier: Apache-2.0
"""One slot as the agent knows it: what it is called, and where it is in its life."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from geneve_ebpf.host.given import Given
from geneve_ebpf.model import TAP, SlotKind, host_interface


class Phase(str, Enum):
    """Where a slot is in its life, as the API says it."""

    MAKING = "making"
    READY = "ready"
    RESERVED = "reserved"
    ATTACHED = "attached"
    RETIRING = "retiring"

    # Enum's own is written in Python, and slots are counted by phase on the hot path.
    __hash__ = str.__hash__


@dataclass(slots=True)
class Place:
    """One slot that exists or is being made."""

    index: int
    ifindex: int  # of the host-side interface; 0 until it is made
    phase: Phase
    kind: SlotKind
    given: Given | None = None  # the namespace it is in, if others made that
    fault: str = ""  # what others have done to its interface, while it is somebody's
    text: str = ""  # as JSON, once it is made: attaching does not wait for it

    def put_into_words(self, directory: str) -> None:
        """Make the text. directory: of the namespaces, as JSON without its last quote."""
        netns = "null" if self.kind is SlotKind.HOST_TAP else f'{directory}/slot-{self.index}"'
        if self.given is not None:
            netns = msgspec.json.encode(self.given.path).decode()
        tap = "null" if self.tap is None else f'"{self.tap}"'
        self.text = (
            f'{{"id":"slot-{self.index}","kind":"{self.kind.value}","netns":{netns},"tap":{tap},'
            f'"host_interface":"{self.host_interface}","host_ifindex":{self.ifindex}}}'
        )

    @property
    def handed_out(self) -> bool:
        """Is it somebody's, reserved or attached?"""
        return self.phase in (Phase.RESERVED, Phase.ATTACHED)

    @property
    def host_interface(self) -> str:
        """Name of the host-side interface, in the node's namespace."""
        return host_interface(self.index)

    @property
    def tap(self) -> str | None:
        """Name of the tap that a virtual machine opens; None if there is none."""
        if self.kind is SlotKind.NAMESPACE:
            return None
        return TAP if self.kind is SlotKind.TAP else self.host_interface
