# SPDX-License-Identifier: Apache-2.0
"""A slot's index is not used again while a program may still be at work for the old slot.

A slow program, which is an RCU section as ours are, begins after a slot's interface has vanished
and before the slot process looks for it. To its end it must find the old slot under the index.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geneve_ebpf.abi import Binding
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.host import namespaces, slots
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.pins import Pins
from lab.network import Lab, Node, inside, run
from tests.api import Agent, children
from tests.command import new_lab
from tests.nodes import eventually
from tests.watcher import instruction

SLOTS, CYCLES = 2, 5
# Some milliseconds, near what a verifier walks through; and that again and again, for longer
# than it takes the slot process to wake up and look.
ROUNDS, CALLS = 120_000, 30
_ARRAY, _PROG_ARRAY = 2, 3
_LOOKUP, _KTIME, _TAIL_CALL = 1, 5, 12
_CB = 48  # offset in struct __sk_buff of what is left alone between calls


class Reader:
    """The program: it says that it has begun, takes its time, and looks at the slot."""

    def __init__(self, node: Node, slot: int) -> None:
        self._found = -1
        self._bindings = bpf.open_pin(Pins(directory(node)).map("bindings"))
        self._begun = bpf.call(bpf.MAP_CREATE, bpf.create_attr("<5I44x", _ARRAY, 4, 8, 1, 0))
        self._again = bpf.call(bpf.MAP_CREATE, bpf.create_attr("<5I44x", _PROG_ARRAY, 4, 4, 1, 0))
        code = self._code(slot)
        text = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        self._program = bpf.call(
            bpf.PROG_LOAD,
            bpf.create_attr(
                "<IIQQIIQ88x", bpf.SCHED_CLS, len(code) // 8, ctypes.addressof(text),
                ctypes.addressof(licence), 0, 0, 0,
            ),
        )  # fmt: skip
        bpf.set_program(self._again, 0, self._program)
        self._thread = threading.Thread(target=self._run)

    def _code(self, slot: int) -> bytes:
        look = _row(self._bindings, slot)
        look += instruction(0x15, 0, offset=1)  # no row: 0
        look += instruction(0x61, 0, 0, Binding.ifindex.offset)
        call = instruction(0xBF, 1, 6)
        call += instruction(0x18, 2, 1, value=self._again) + instruction(0)
        call += instruction(0xB7, 3) + instruction(0x85, value=_TAIL_CALL)
        slow = instruction(0x7A, 0, value=1)  # begun
        slow += instruction(0xB7, 8, value=ROUNDS)
        slow += instruction(0x85, value=_KTIME)
        slow += instruction(0x07, 8, value=-1) + instruction(0x55, 8, offset=-3)
        # How often the program has called itself so far.
        slow += instruction(0x61, 9, 6, _CB)
        slow += instruction(0x07, 9, value=1) + instruction(0x63, 6, 9, _CB)
        slow += instruction(0x25, 9, offset=len(call) // 8, value=CALLS)
        rest = slow + call + look
        code = instruction(0xBF, 6, 1) + _row(self._begun, 0)
        return code + instruction(0x15, 0, offset=len(rest) // 8) + rest + instruction(0x95)

    def begin(self) -> None:
        """Have the program run; returns when it does."""
        self._thread.start()
        assert eventually(self._has_begun)

    def end(self) -> int:
        """What the program has found at its end: the index of the slot's interface."""
        self._thread.join()
        for descriptor in (self._program, self._again, self._begun, self._bindings):
            os.close(descriptor)
        return self._found

    def _has_begun(self) -> bool:
        key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(8)
        bpf.call_packed(
            bpf.MAP_LOOKUP_ELEM, "<IIQQQ", self._begun, 0, ctypes.addressof(key),
            ctypes.addressof(value), 0,
        )  # fmt: skip
        return any(value.raw)

    def _run(self) -> None:
        # The slot process has the last CPU, and no program is interrupted for it.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        frame = ctypes.create_string_buffer(64)
        answer = bpf.call_packed(
            bpf.PROG_TEST_RUN, "<IIIIQQII", self._program, 0, len(frame), 0,
            ctypes.addressof(frame), 0, 1, 0,
        )  # fmt: skip
        (self._found,) = struct.unpack_from("<I", answer, 4)


def _row(table: int, index: int) -> bytes:
    """Instructions: r0 = where a row of an array is."""
    code = instruction(0x18, 1, 1, value=table) + instruction(0)
    code += instruction(0x62, 10, offset=-4, value=index)
    code += instruction(0xBF, 2, 10) + instruction(0x07, 2, value=-4)
    return code + instruction(0x85, value=_LOOKUP)


def directory(node: Node) -> Path:
    """Its run directory."""
    return Path(node.directory, "run", node.name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab("grace") as made:
        made.up(1, SLOTS, metrics=False)
        yield made


@contextmanager
def lingering(netns: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a namespace."""
    inode = netns.stat().st_ino
    with subprocess.Popen(inside(netns, "sleep", "600")) as somebody:
        try:
            there = Path(f"/proc/{somebody.pid}/ns/net")
            assert eventually(lambda: there.stat().st_ino == inode)
            yield somebody
        finally:
            somebody.kill()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_index_waits_until_nobody_looks_at_its_slot_any_more(lab: Lab) -> None:
    """Its last reader finds the old slot, though that is long gone; and then it is used again."""
    (node,) = lab.nodes
    agent = Agent(node.socket)
    (maker,) = children(lab.agents[node.name], "geneve_ebpf.agent.slot_process")
    plane = DataPlane.open(directory(node), writable=False)
    agent.must("PUT", "/v1/vpcs/blue", {"vni": 42, "prefixes": ["10.0.0.0/16"]})
    known, found = [], []
    for _ in range(CYCLES):
        assert eventually(lambda: agent.must("GET", "/v1/node")["slots"]["ready"] == SLOTS, 30)
        slot = agent.must("PUT", "/v1/sandboxes/one", {"vpc": "blue"})["slot"]
        index = int(slot["id"].removeprefix("slot-"))
        known.append(plane.slot(index).ifindex)
        # In the end the slot process has let go of the namespace, and looks every now and
        # then whether that is gone; somebody who lingers in there keeps it for the moment.
        with lingering(Path(slot["netns"])) as somebody:
            agent.must("DELETE", "/v1/sandboxes/one")
            assert eventually(lambda slot=slot: not Path(slot["netns"]).exists())
            with stopped(maker), namespaces.entering(node.netns):
                somebody.kill()
                assert eventually(lambda index=index: slots.gone(index))
                run("ip", "link", "show", "lo")  # the kernel is done with it by then
                reader = Reader(node, index)
                reader.begin()
            found.append(reader.end())
        assert eventually(lambda index=index: plane.slot(index).ifindex not in known, 30)
    plane.close()
    agent.close()

    assert found == known
