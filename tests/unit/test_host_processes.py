# SPDX-License-Identifier: Apache-2.0
"""Children that end with the process that started them, and before it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from geneve_ebpf.host.processes import sooner_killed

PARENT = """
import subprocess, sys, time
from geneve_ebpf.host.processes import ending_with_parent
child = subprocess.Popen(["sleep", "60"], preexec_fn=ending_with_parent())
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_a_parent_that_is_killed():
    """SIGKILL runs no handler of the parent's: it is the kernel that tells the child."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=root
    ) as parent:
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([child], [], [], 0)[0]

            parent.send_signal(signal.SIGKILL)

            assert select.select([child], [], [], 20)[0]
        finally:
            os.close(child)


def test_where_memory_runs_out_a_child_goes_first():
    """And its own children before it; there is an end to that, which the kernel sets."""
    wish = Path("/proc/self/oom_score_adj")
    show = ["cat", str(wish)]
    own = int(wish.read_text())

    def sooner_by_many():
        for _ in range(10):
            sooner_killed()

    child = int(subprocess.check_output(show, preexec_fn=sooner_killed))
    last = int(subprocess.check_output(show, preexec_fn=sooner_by_many))

    assert own < child < last == 1000
    assert int(wish.read_text()) == own
