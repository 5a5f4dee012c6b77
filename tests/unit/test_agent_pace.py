# SPDX-License-Identifier: Apache-2.0
"""Long work lets others have their turn."""

from __future__ import annotations

import asyncio

from geneve_ebpf.agent.pace import behind_answers


def test_what_follows_answers_is_done_in_steps_and_others_go_between_them():
    done = []

    def step():
        done.append("step")
        asyncio.get_running_loop().call_soon(done.append, "other")
        return done.count("step") < 3

    async def run():
        later = behind_answers(0.001)
        later(step)
        assert done == []
        while done.count("other") < 3:
            await asyncio.sleep(0.001)

    asyncio.run(run())

    assert done == ["step", "other"] * 3
