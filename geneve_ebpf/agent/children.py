# SPDX-License-Identifier: Apache-2.0
"""The agent's child processes: started, watched, started again when they die.

A child dies with the agent, however that ends: the kernel sends it SIGTERM. Where memory
runs out it is a child that dies first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection

from geneve_ebpf.agent.log import Log
from geneve_ebpf.host.processes import ending_with_parent, sooner_killed

CHANNEL = 3  # the descriptor at which a child finds its socket
BACKOFF_FIRST, BACKOFF_MAX = 0.2, 10.0  # seconds until a dead child is started again
STEADY = 30.0  # a child that lived so long starts with the first backoff again


class Child:
    """One process of ours. All methods belong to the event loop's thread."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        log: Log,
        *,
        cpus: Collection[int],
        on_start: Callable[[socket.socket], None] | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        """arguments: what follows the Python interpreter. cpus: where it may run, which
        the agent's own placement has no part in.

        on_start gets our end of a stream socket that the child has as descriptor
        3; without it the child has none. on_death is called each time it dies
        unasked.
        """
        self.name = name
        self.alive = False
        # Why it is not running, or has not run for long: one that dies again and again is not well
        # in between.
        self.problem = ""
        self._arguments = [sys.executable, *arguments]
        self._log = log
        self._cpus = cpus
        self._on_start = on_start
        self._on_death = on_death
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._ended: asyncio.Event | None = None
        self._backoff = BACKOFF_FIRST
        self._waited = 0.0  # before it was started, the last time
        self._started_at = 0.0
        self._again: asyncio.TimerHandle | None = None
        self._well: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the process."""
        loop = asyncio.get_running_loop()
        self._again = None
        ours = theirs = process = None
        try:
            if self._on_start is not None:
                ours, theirs = socket.socketpair()
            process = self._spawn(theirs)
            self._pidfd = os.pidfd_open(process.pid)
        except (OSError, subprocess.SubprocessError) as error:
            if ours is not None:
                ours.close()
            if process is not None:  # nobody would see it die
                process.kill()
                process.wait()
            self._log.warning("child-not-started", child=self.name, error=error)
            self._wait_and_retry(f"{self.name} could not be started: {error}")
            return
        finally:
            if theirs is not None:
                theirs.close()
        self._process = process
        self._started_at = loop.time()
        self._ended = asyncio.Event()
        loop.add_reader(self._pidfd, self._died)
        self.alive = True
        self._well = loop.call_later(self._waited, self._is_well)
        self._log.info("child-started", child=self.name, child_pid=self._process.pid)
        if self._on_start is not None and ours is not None:
            ours.setblocking(False)
            self._on_start(ours)

    def _spawn(self, channel: socket.socket | None) -> subprocess.Popen[bytes]:
        number = -1 if channel is None else channel.fileno()
        end_with_us = ending_with_parent(signal.SIGTERM)
        cpus = self._cpus

        def between_fork_and_exec() -> None:
            end_with_us()
            sooner_killed()
            os.sched_setaffinity(0, cpus)
            if number >= 0:
                os.dup2(number, CHANNEL, inheritable=True)

        # Descriptors of ours are all close-on-exec, so nothing else is passed on;
        # close_fds would close the channel as well.
        return subprocess.Popen(
            self._arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=between_fork_and_exec,
        )

    async def stop(self, seconds: float = 5.0) -> None:
        """End the process and wait for that; SIGKILL after the given time."""
        for timer in (self._again, self._well):
            if timer is not None:
                timer.cancel()
        self._again = self._well = None
        if self._process is None or self._ended is None or not self.alive:
            return
        self._on_death = lambda: None
        self._backoff = -1.0
        self._process.terminate()
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            self._process.kill()
            await self._ended.wait()

    def _died(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._process is not None and self._ended is not None
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        self.alive = False
        self._ended.set()
        if self._backoff < 0:
            self._log.info("child-stopped", child=self.name, status=status)
            return
        if loop.time() - self._started_at > STEADY:
            self._backoff = BACKOFF_FIRST
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._log.warning(
            "child-died", child=self.name, status=status, again_in=f"{self._backoff:.1f}s"
        )
        self._wait_and_retry(f"{self.name} {how}")
        self._on_death()

    def _is_well(self) -> None:
        self.problem = ""

    def _wait_and_retry(self, problem: str) -> None:
        self.problem, self._waited = problem, self._backoff
        if self._well is not None:
            self._well.cancel()
        self._again = asyncio.get_running_loop().call_later(self._backoff, self.start)
        self._backoff = min(BACKOFF_MAX, self._backoff * 2)
