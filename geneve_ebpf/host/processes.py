# SPDX-License-Identifier: Apache-2.0
"""A child process that ends with the one that started it, however that ends.

What outlives its parent would work on while the parent's successor does the
same: two that bring one node up, or one that takes it down under the other.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # prctl(2)
_prctl = ctypes.CDLL(None).prctl


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
