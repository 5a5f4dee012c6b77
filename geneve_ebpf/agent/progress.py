# SPDX-License-Identifier: Apache-2.0
"""A bar on the terminal while the first slots are made."""

from __future__ import annotations

import asyncio
import time

from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.slot_pool import SlotPool

WIDTH = 30  # characters of the bar
EVERY = 0.1  # seconds


def line(ready: int, target: int, rate: float, seconds_left: float | None) -> str:
    """What stands on the terminal: the bar, slots ready of those wanted, slots a second."""
    full = WIDTH * ready // target if target else WIDTH
    left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
    return f"slots [{'#' * full}{'.' * (WIDTH - full)}] {ready}/{target}, {rate:.0f}/s{left}"


async def show(pool: SlotPool, log: Log) -> None:
    """Keep the bar on the log's last line until the pool was full once."""
    began = time.monotonic()
    first = pool.counts["ready"]
    try:
        while (ready := pool.counts["ready"]) < pool.target:
            passed = time.monotonic() - began
            rate = (ready - first) / passed if passed > 0 else 0.0
            log.stay(line(ready, pool.target, rate, (pool.target - ready) / rate if rate else None))
            await asyncio.sleep(EVERY)
    finally:
        log.stay("")
    if pool.target > first:
        log.info("filled", slots=pool.target, seconds=f"{time.monotonic() - began:.1f}")
