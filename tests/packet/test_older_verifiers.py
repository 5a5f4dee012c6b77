# SPDX-License-Identifier: Apache-2.0
"""What older kernels' verifiers ask of a program and this kernel's does not."""

from __future__ import annotations

import ctypes
import struct

import pytest

from geneve_ebpf.abi import PROGRAMS
from geneve_ebpf.loader import bpf
from tests.programs import Node

JUMP_CLASSES, ALWAYS, CALL, EXIT = (5, 6), 0x00, 0x80, 0x90


def instructions_of(node: Node, name: str) -> bytes:
    """What the kernel runs of a program, eight bytes each: struct bpf_insn."""
    fd = bpf.open_pin(node.pins.program(name))
    size = struct.unpack_from("<I", bpf.object_info(fd, 232), 20)[0]  # xlated_prog_len
    code = ctypes.create_string_buffer(size)
    info = ctypes.create_string_buffer(232)
    struct.pack_into("<I", info, 20, size)
    struct.pack_into("<Q", info, 32, ctypes.addressof(code))  # xlated_prog_insns
    attr = bpf.create_attr("<IIQ112x", fd, len(info), ctypes.addressof(info))
    bpf.call(bpf.OBJ_GET_INFO_BY_FD, attr)
    return code.raw


def ways_on(code: bytes) -> list[list[tuple[int, bool]]]:
    """Of each instruction those that may come next, and whether it is by a jump's doing."""
    ways: list[list[tuple[int, bool]]] = [[] for _ in range(len(code) // 8)]
    for at in range(len(ways)):
        operation, _, offset = struct.unpack_from("<BBh", code, at * 8)
        kind = operation & 0xF0
        if operation & 7 not in JUMP_CLASSES or kind == CALL:
            ways[at] = [(at + 1, False)]
        elif kind == ALWAYS:
            ways[at] = [(at + 1 + offset, True)]
        elif kind != EXIT:
            ways[at] = [(at + 1, True), (at + 1 + offset, True)]
    return ways


def falls_back(code: bytes) -> list[int]:
    """Where a loop's end falls into its head, in the order in which the kernel looks."""
    ways = ways_on(code)
    open_, done = {0}, set()
    found, stack = [], [(0, 0)]
    while stack:
        at, turn = stack.pop()
        if turn == len(ways[at]):
            open_.remove(at)
            done.add(at)
            continue
        stack.append((at, turn + 1))
        to, by_jump = ways[at][turn]
        if to in open_ and not by_jump:
            found.append(at)
        elif to not in open_ | done:
            open_.add(to)
            stack.append((to, 0))
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_loops_go_back_by_jumps(node: Node, name):
    """Linux 6.1 takes loops, but refuses one that is laid out the other way ("back-edge")."""
    assert falls_back(instructions_of(node, name)) == []


def test_a_loop_that_falls_into_its_head_is_found():
    """r0 = 0; goto +1; r0 += 1; if r0 == 9 goto +2; goto -3 ... with the body before the head."""
    head_last = bytes.fromhex(
        "b700000000000000"  # 0: r0 = 0
        "0500010000000000"  # 1: goto 3
        "0700000001000000"  # 2: r0 += 1, and on into 3
        "5500feff09000000"  # 3: if r0 != 9 goto 2
        "9500000000000000"
    )
    head_first = bytes.fromhex(
        "b700000000000000"  # 0: r0 = 0
        "0700000001000000"  # 1: r0 += 1
        "5500feff09000000"  # 2: if r0 != 9 goto 1
        "9500000000000000"
    )

    assert falls_back(head_last) == [2]
    assert falls_back(head_first) == []
