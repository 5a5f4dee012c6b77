# SPDX-License-Identifier: Apache-2.0
"""What attaching asks of the kernel: maps and the caller's socket; no netlink, file or child."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.network import Lab
from tests.api import Agent, children
from tests.nodes import PREFIX, RUN_ROOT, eventually
from tests.patience import PATIENCE

SLOTS, BATCHES, SINGLY = 1000, 9, 100
# What remains when an attach is map writes: the loop, its clock, the caller's connection,
# the maps; the log of changes, which goes to stderr.
ALLOWED = {
    *("epoll_wait", "epoll_pwait", "epoll_pwait2", "epoll_ctl"),
    *("read", "write", "recvfrom", "sendto", "recvmsg", "sendmsg", "writev"),
    *("accept4", "getsockopt", "getsockname", "shutdown", "close", "fcntl", "ioctl"),
    *("bpf", "futex", "clock_gettime", "clock_nanosleep", "getpid", "gettid", "sched_yield"),
    *("restart_syscall", "madvise", "brk", "mmap", "munmap", "mremap", "timerfd_settime"),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(RUN_ROOT / "lab", f"{PREFIX}-calls", patience=180 * PATIENCE) as made:
        made.up(1, SLOTS, metrics=False)
        made.connect("blue", 42, ("10.0.0.0/16", {"node1": "10.0.0.0/17"}))
        yield made
    with contextlib.suppress(OSError):
        RUN_ROOT.rmdir()


def test_a_thousand_attaches_are_maps_and_the_socket(lab: Lab, tmp_path: Path) -> None:
    """
    Of the agent and whatever it starts, in clone mode. The process that makes slots
    ahead is held meanwhile: so all slots have been made before, and what is seen is
    all that attaching takes.
    """
    (node,) = lab.nodes
    agent, trace = lab.agents[node.name], tmp_path / "calls"
    caller = Agent(node.socket)
    ready = lambda: caller.must("GET", "/v1/node")["slots"]["ready"]  # noqa: E731
    assert eventually(lambda: ready() >= SLOTS, 180)
    (maker,) = children(agent, "geneve_ebpf.agent.slot_process")
    os.kill(maker, signal.SIGSTOP)
    try:
        words = ("strace", "-f", "-qq", "-yy", "-s", "0", "-o", trace, "-p", agent)
        with subprocess.Popen(list(map(str, words))) as tracer:
            status = Path(f"/proc/{agent}/status")
            assert eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), 30)
            attached = 0
            for batch in range(BATCHES):
                items = [{"sandbox": f"b{batch}-{n}", "vpc": "blue"} for n in range(100)]
                answer = caller.must("POST", "/v1/sandboxes:batch", {"attach": items})
                attached += sum(one["status"] == 201 for one in answer["results"])
            for number in range(SINGLY):
                status_code, _ = caller.ask("PUT", f"/v1/sandboxes/s{number}", {"vpc": "blue"})
                attached += status_code == 201
            tracer.send_signal(signal.SIGINT)
            tracer.wait(60 * PATIENCE)
    finally:
        os.kill(maker, signal.SIGCONT)
        caller.close()

    text = trace.read_text()
    calls = re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE)
    assert attached == BATCHES * 100 + SINGLY
    assert calls.count("bpf") >= SINGLY + BATCHES  # those of a batch share theirs
    assert set(calls) - ALLOWED == set()
    assert "NETLINK" not in text
