# SPDX-License-Identifier: Apache-2.0
"""The agent's children: what is said of one that dies again and again."""

from __future__ import annotations

import asyncio
import os

from geneve_ebpf.agent.children import Child
from geneve_ebpf.agent.log import Log


def test_why_a_child_died_is_said_until_it_has_lived_for_as_long_as_it_was_away():
    """So also between two deaths: what it is for does not get done there."""
    deaths = 0

    def died():
        nonlocal deaths
        deaths += 1

    async def scene():
        cpus = os.sched_getaffinity(0)
        child = Child("odd", ["-S", "-c", "input()"], Log(), cpus=cpus, on_death=died)
        child._backoff = 0.5
        child.start()
        assert child.problem == ""
        async with asyncio.timeout(60):
            while deaths < 2:
                await asyncio.sleep(0.005)
                assert deaths == 0 or child.problem == "odd ended with status 1"
            child._arguments[-1] = "import time; time.sleep(60)"
            while child.problem:
                await asyncio.sleep(0.005)
        assert child.alive
        await child.stop()

    asyncio.run(scene())
