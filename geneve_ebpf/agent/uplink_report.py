# SPDX-License-Identifier: Apache-2.0
"""What the slot process has last said of the uplinks, which it watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geneve_ebpf.agent.log import Log


class UplinkReport:
    """Kept for whoever asks; each change is logged."""

    def __init__(self, mtu: int, log: Log) -> None:
        """mtu: the slots' at the start, in bytes."""
        # A sentence for each uplink that takes no part; one if none carries anything.
        self.problems: list[str] = []
        self.down: list[str] = []  # a sentence for each that carries nothing for the moment
        # Where segments are merged, as dataplane.merging.Merged has it.
        self.merging: dict[str, Any] = {"device": "", "uplinks": [], "reasons": []}
        self.no_relay = ""  # why TCP is not merged anew for host taps; "" if it is
        self.on_mtu: Callable[[int], None] = lambda _: None  # called with the slots' MTU
        # Called with what carries nothing now, when that is something else than before.
        self.on_down: Callable[[list[str]], None] = lambda _: None
        self._mtu = mtu
        self._log = log

    def seen(
        self,
        mtu: int,
        problems: list[str],
        down: list[str],
        merging: dict[str, Any],
        no_relay: str,
    ) -> None:
        """Something may have changed."""
        known = (self._mtu, self.problems, self.merging, self.no_relay)
        if (mtu, problems, merging, no_relay) != known:
            say = self._log.warning if problems or no_relay else self._log.info
            say(
                "uplinks",
                slot_mtu=mtu,
                merging=",".join(merging["uplinks"]) or "none",
                problems="; ".join([*problems, *([no_relay] if no_relay else [])]) or "none",
            )
        before, self.down = self.down, down
        self._mtu, self.problems, self.merging = mtu, problems, merging
        self.no_relay = no_relay
        self.on_mtu(mtu)
        if down != before:
            self.on_down(down)
