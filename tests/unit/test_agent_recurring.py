# SPDX-License-Identifier: Apache-2.0
"""Work that comes again, though it failed."""

from __future__ import annotations

import asyncio

from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.recurring import every


def test_a_step_that_fails_is_logged_and_the_next_one_comes(tmp_path):
    """Be it at once or while it is waited for; being cancelled still ends it."""
    taken = []

    async def later(number):
        await asyncio.sleep(0)
        raise RuntimeError(f"step {number}")

    def step():
        taken.append(len(taken))
        if taken[-1] == 0:
            raise RuntimeError("step 0")
        return later(1) if taken[-1] == 1 else None

    async def run(log):
        task = asyncio.ensure_future(every(0, step, log))
        async with asyncio.timeout(60):
            while len(taken) < 5:
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with open(tmp_path / "log", "w") as file:
        asyncio.run(run(Log(file.fileno())))

    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.count("event=defect") for line in lines] == [1, 1]
    assert ["step 0" in lines[0], "step 1" in lines[1]] == [True, True]
