# SPDX-License-Identifier: Apache-2.0
"""The queue for slots on the event loop: what becomes of work whose caller goes."""

from __future__ import annotations

import asyncio

import pytest

from geneve_ebpf.agent.admission import Admission
from geneve_ebpf.agent.queue import Queue


def play(scene):
    async def run():
        loop = asyncio.get_running_loop()
        queue = Queue(Admission(loop.time))
        done = []
        turn = queue.enter("blue", loop.time() + 60, lambda: done.append("slot") or done[0])

        async def wait():
            return await turn

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        await scene(queue, task)
        return done, queue.admission.waiting

    return asyncio.run(run())


def test_who_goes_before_its_turn_gets_nothing():
    """And stands in nobody's way."""

    async def scene(queue, task):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        queue.serve(lambda _: 1)

    assert play(scene) == ([], 0)


def test_who_goes_in_the_moment_of_its_turn_has_had_it():
    """What was done is its answer, which a repetition with the same key will get."""

    async def scene(queue, task):
        queue.serve(lambda _: 1)
        task.cancel()
        assert await task == "slot"

    assert play(scene) == (["slot"], 0)
