# SPDX-License-Identifier: Apache-2.0
"""A child process ends with the one that started it, however that ends, and before it does.

What outlives its parent would work on while the parent's successor does the
same: two that bring one node up, or one that takes it down under the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
_prctl = ctypes.CDLL(None).prctl
# Thousandths of the memory there is (proc_pid_oom_score_adj(5)): more than a process of ours
# has more than another.
_SOONER, _SOONEST = 300, 1000


def ending_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends the child this signal when the parent ends.

    More exactly, when the thread ends that starts it.
    """
    parent = os.getpid()

    def between_fork_and_exec() -> None:
        _prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before this was asked for
            os._exit(1)

    return between_fork_and_exec


def sooner_killed() -> None:
    """For a `preexec_fn`: where memory runs out, the kernel kills this process before its parent.

    It weighs them by what they hold, so it would often be the parent, who can start another child.
    """
    wish = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        wish.write_text(str(min(_SOONEST, int(wish.read_text()) + _SOONER)))
