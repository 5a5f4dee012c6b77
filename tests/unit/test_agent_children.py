# SPDX-License-Identifier: Apache-2.0
"""The agent's children: one that dies again and again, and one that cannot be started."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from geneve_ebpf.agent.children import Child
from geneve_ebpf.agent.log import Log

# It ends with its channel.
WORDS = ["-c", "import socket; socket.socket(fileno=3).recv(1)"]


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


def descriptors() -> set[int]:
    """Those that are open."""
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in listed if Path(f"/proc/self/fd/{fd}").exists()}  # not the list's own


def processes() -> set[str]:
    """Children of this process that were not waited for."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@contextlib.contextmanager
def room_for(number: int) -> Iterator[None]:
    """This process can open so many more descriptors meanwhile."""
    taken = descriptors()
    free = (fd for fd in itertools.count() if fd not in taken)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = next(itertools.islice(free, number, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Started(Child):
    """A child with a channel; what became of it."""

    def __init__(self) -> None:
        self.channels: list[socket.socket] = []
        cpus = os.sched_getaffinity(0)
        super().__init__("child", WORDS, Log(), cpus=cpus, on_start=self.channels.append)

    async def runs_and_ends(self) -> None:
        """It is tried again by itself, runs, and stops when it is told to."""
        while not self.alive or self.problem:
            await asyncio.sleep(0.01)
        await self.stop()
        for one in self.channels:
            one.close()


@pytest.mark.parametrize("room", range(5))
def test_without_descriptors_a_child_is_tried_again(room: int) -> None:
    """However far the start gets: it needs two for the channel, and Popen three."""

    async def main() -> None:
        child = Started()
        before = descriptors(), processes()
        with room_for(room):
            child.start()
        assert "could not be started: [Errno 24]" in child.problem
        assert (descriptors(), processes()) == before
        assert not child.alive
        await child.runs_and_ends()
        assert (descriptors(), processes()) == before

    asyncio.run(main())


def test_a_child_that_cannot_be_watched_is_not_left_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last descriptors went to somebody else between its start and its pidfd."""
    spawn = Child._spawn

    async def main() -> None:
        child = Started()
        before = descriptors(), processes()
        with contextlib.ExitStack() as stack:

            def spawn_late(self, channel):
                process = spawn(self, channel)
                stack.enter_context(room_for(0))
                return process

            with monkeypatch.context() as patch:
                patch.setattr(Child, "_spawn", spawn_late)
                child.start()
        assert "could not be started: [Errno 24]" in child.problem
        assert (descriptors(), processes()) == before
        await child.runs_and_ends()
        assert (descriptors(), processes()) == before

    asyncio.run(main())
