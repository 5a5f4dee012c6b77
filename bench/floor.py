# SPDX-License-Identifier: Apache-2.0
"""The floor under every request through a Unix socket: an echo that does no work."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from bench.compiled import compiled, nanoseconds
from bench.testbed import pinned

REQUEST, ANSWER = 160, 640  # as in floor.c


class Floor:
    """An echo over a Unix socket: in C where there is a compiler, else in Python."""

    def __init__(self, scratch: Path) -> None:
        self.program = compiled("floor.c", scratch)

    @property
    def row(self) -> str:
        """The row's name, which says so when it is not C."""
        return "socket.floor" if self.program else "socket.floor_python"

    def measure(self, samples: int, server_cpu: int, client_cpu: int) -> list[float]:
        """Round trips in microseconds."""
        if not self.program:
            return measure_in_python(samples, server_cpu, client_cpu)
        return nanoseconds(self.program, server_cpu, client_cpu, samples)


def measure_in_python(samples: int, server_cpu: int, client_cpu: int) -> list[float]:
    """The same echo without a compiler."""
    near, far = socket.socketpair()
    child = os.fork()
    if not child:
        try:
            near.close()
            os.sched_setaffinity(0, {server_cpu})
            while far.recv(REQUEST, socket.MSG_WAITALL):
                far.sendall(bytes(ANSWER))
        finally:
            os._exit(0)
    far.close()
    taken = []
    try:
        with near, pinned(client_cpu):
            for _ in range(samples):
                start = time.perf_counter_ns()
                near.sendall(bytes(REQUEST))
                near.recv(ANSWER, socket.MSG_WAITALL)
                taken.append((time.perf_counter_ns() - start) / 1e3)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return taken
