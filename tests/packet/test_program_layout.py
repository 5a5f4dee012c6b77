# SPDX-License-Identifier: Apache-2.0
"""How the programs are laid out as instructions: kernels differ in which loops they take."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from geneve_ebpf.abi import PROGRAMS
from geneve_ebpf.loader import bpf
from tests.programs import Node

_CLASS, _JUMPS = 0x07, (0x05, 0x06)  # BPF_JMP, BPF_JMP32
_JUMP, _CALL, _EXIT = 0x00, 0x80, 0x90


def instructions(program: int) -> list[tuple[int, int]]:
    """(code, offset of a jump) of each instruction, as the kernel keeps them after verification."""
    size = struct.unpack_from("<I", bpf.object_info(program, 232), 20)[0]
    code = ctypes.create_string_buffer(size)
    info = ctypes.create_string_buffer(232)
    struct.pack_into("<I", info, 20, size)  # xlated_prog_len, xlated_prog_insns
    struct.pack_into("<Q", info, 32, ctypes.addressof(code))
    bpf.call_packed(bpf.OBJ_GET_INFO_BY_FD, "<IIQ", program, 232, ctypes.addressof(info))
    return [struct.unpack_from("<Bxh", code, at) for at in range(0, size, 8)]


def fall_through_loops(code: list[tuple[int, int]]) -> list[int]:
    """
    Instructions that fall through into one that was reached before on the same path.

    The walk is that of Linux 6.1's check_cfg(): depth first, the next
    instruction before a jump's target. Only a jump may close a loop there.
    """
    found: list[int] = []
    state = [0] * len(code)  # 0 new, 1 on the path, 2 done
    path: list[tuple[int, list[int]]] = []

    def enter(at: int) -> None:
        kind, offset = code[at]
        operation = kind & 0xF0
        ends = [at + 1]
        if kind & _CLASS in _JUMPS:
            if operation == _EXIT:
                ends = []
            elif operation == _JUMP:
                ends = [at + 1 + offset]
            elif operation != _CALL:
                ends = [at + 1 + offset, at + 1]  # taken from the end
        state[at] = 1
        path.append((at, ends))

    enter(0)
    while path:
        at, ends = path[-1]
        if not ends:
            state[at] = 2
            path.pop()
            continue
        target = ends.pop()
        may_loop = code[at][0] & _CLASS in _JUMPS and code[at][0] & 0xF0 != _CALL
        if state[target] == 0:
            enter(target)
        elif state[target] == 1 and not may_loop:
            found.append(at)
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_only_jumps_close_loops(node: Node, name):
    """Linux 6.1 refuses others ("back-edge"), newer ones take them: so it shows here too."""
    program = bpf.open_pin(node.pins.program(name))
    try:
        code = instructions(program)
    finally:
        os.close(program)

    assert len(code) > 5
    assert fall_through_loops(code) == []


def test_the_walk_tells_loops_apart():
    """A loop that is closed by a jump, one that is fallen into from behind, and none."""
    exits, step, jump, branch = (0x95, 0), (0xB7, 0), 0x05, 0x15

    assert fall_through_loops([step, step, exits]) == []
    assert fall_through_loops([step, step, (branch, -2), exits]) == []
    # 0 -> 3 -> 4, back to 1 -> 2, which falls into 3
    assert fall_through_loops([(jump, 2), step, step, step, (branch, -4), exits]) == [2]
