# SPDX-License-Identifier: Apache-2.0
"""How many slots may be under way: many while nobody attaches, else few and at a bounded rate."""

from __future__ import annotations

import asyncio

BATCH = 32  # slots that the slot process makes, or destroys, together
# While attaches come in: so many together, a few milliseconds of the kernel's time, and
# not within QUIET of the last attach, but in a row of attaches no order is put off for longer
# than PUT_OFF.
BATCH_SMALL = 4
QUIET, PUT_OFF = 0.003, 0.05  # seconds
CALM = 1.0  # seconds without an attach or detach, after which none is expected


class Portions:
    """Says how large the next order may be. All by the running loop's clock."""

    def __init__(self, rate: float) -> None:
        """rate: slots a second while attaches come in."""
        self._rate = rate
        self._last_use = float("-inf")
        self._row_began = self._last_order = self._allowed_at = 0.0
        self._allowance = 0.0  # slots that may be ordered while attaches come in

    def used(self) -> None:
        """Somebody attached, detached or reserved just now."""
        now = asyncio.get_running_loop().time()
        if now - self._last_use > QUIET:
            self._row_began = now
        self._last_use = now

    def ordered(self, slots: int) -> None:
        """So many were ordered just now."""
        self._last_order = asyncio.get_running_loop().time()
        self._allowance -= slots

    def room(self, low: bool) -> tuple[int, float]:
        """How many slots may be under way; if none, seconds until it is worth asking again.

        low: few are left, and attaches have to bear with it.
        """
        now = asyncio.get_running_loop().time()
        if low or now - self._last_use >= CALM:
            return 2 * BATCH, 0.0  # one batch beside the one that is being made: nobody waits
        earned = (now - self._allowed_at) * self._rate
        self._allowed_at = now
        self._allowance = min(float(BATCH_SMALL), max(0.0, self._allowance) + earned)
        quiet_in = self._last_use + QUIET - now
        if quiet_in > 0 and now - max(self._row_began, self._last_order) < PUT_OFF:
            return 0, quiet_in
        if self._allowance < 1:
            return 0, (1 - self._allowance) / self._rate
        return int(self._allowance), 0.0
