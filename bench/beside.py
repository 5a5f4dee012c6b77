# SPDX-License-Identifier: Apache-2.0
"""Something done again and again beside a bench, in a process of its own.

In a thread it would wait for, and hold up, the interpreter of who is measured.
"""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.testbed import BenchError, end_with_parent
from geneve_ebpf.host.namespaces import entering

Act = Callable[[], object]


@contextmanager
def beside(
    prepare: Callable[[], Act], every: float, netns: Path, cpu: int | None = None
) -> Iterator[list[float]]:
    """
    At once, and then every `every` seconds, do what `prepare`, called in the process and in
    `netns`, returns.

    The microseconds that each took are in the list when the block is left. Raises
    BenchError then, if one failed.
    """
    taken: list[float] = []
    stopped, stop = os.pipe()
    results, result = os.pipe()
    child = os.fork()
    if not child:
        os.close(stop)
        os.close(results)
        _go_on(prepare, every, netns, cpu, stopped, result)
    os.close(stopped)
    os.close(result)
    try:
        yield taken
    finally:
        os.close(stop)
        with open(results, "rb") as source:
            found = array("d", source.read())
        status = os.waitpid(child, 0)[1]
    if status:
        raise BenchError("what was to run beside the bench failed")
    taken += found


def _go_on(
    prepare: Callable[[], Act],
    every: float,
    netns: Path,
    cpu: int | None,
    stopped: int,
    result: int,
) -> None:
    """The life of the process; never returns. The other end of `stopped` ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    status = 1
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        with entering(netns):
            act = prepare()
            taken = array("d")
            due, over = time.monotonic(), False
            while not over:
                began = time.perf_counter_ns()
                act()
                taken.append((time.perf_counter_ns() - began) / 1000)
                due = max(due + every, time.monotonic())
                wait = max(0.0, due - time.monotonic())
                over = bool(select.select([stopped], [], [], wait)[0])
        with open(result, "wb") as out:
            out.write(taken.tobytes())
        status = 0
    except BaseException:
        traceback.print_exc(limit=3)
    finally:
        os._exit(status)
