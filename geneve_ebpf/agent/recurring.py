# SPDX-License-Identifier: Apache-2.0
"""Work that comes again and again for as long as the agent runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from geneve_ebpf.agent.log import Log


async def every(seconds: float, step: Callable[[], Awaitable[None] | None], log: Log) -> None:
    """Take a step every so often, for ever. One that fails is logged, and the next one comes."""
    while True:
        await asyncio.sleep(seconds)
        try:
            taken = step()
            if taken is not None:
                await taken
        except Exception as error:
            log.defect("defect", error)
