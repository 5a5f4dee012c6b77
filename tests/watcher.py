# SPDX-License-Identifier: Apache-2.0
"""Small programs of "somebody else" for an interface: they count and look, and pass everything on.

Written as instructions, so that they need neither a compiler nor our loader.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from geneve_ebpf.loader import bpf

_MAP_CREATE, _PROG_LOAD, _PROG_GET_FD_BY_ID = 0, 5, 13
_TCX_EGRESS = 47
_BEFORE = 1 << 3  # BPF_F_BEFORE: with nobody named, in front of all
_MARK, _QUEUE_MAPPING, _PROTOCOL, _PRIORITY = 8, 12, 16, 32  # offsets in struct __sk_buff


def tcx_programs(ifindex: int) -> list[str]:
    """Names of the programs on an interface's ingress, in order, of the caller's namespace.

    Debian 12's bpftool does not know TCX.
    """
    ids = (ctypes.c_uint32 * 16)()
    answer = bpf.call_packed(
        bpf.PROG_QUERY, "<IIIIQIIQQQQ", ifindex, bpf.TCX_INGRESS, 0, 0,
        ctypes.addressof(ids), len(ids), 0, 0, 0, 0, 0,
    )  # fmt: skip
    (count,) = struct.unpack_from("<I", answer, 24)
    names = []
    for ident in ids[:count]:
        fd = bpf.call(_PROG_GET_FD_BY_ID, bpf.create_attr("<III", ident, 0, 0))
        try:
            names.append(bpf.program_info(fd).name)
        finally:
            os.close(fd)
    return names


def instruction(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One of a program. to, of: registers."""
    return struct.pack("<BBhi", code, to | of << 4, offset, value)


class Watcher:
    """A sched_cls program that counts IPv4 packets and answers "next". ARP comes when it likes.

    set_mark: gives each packet this mark. collect: ORs mark, priority and queue
    mapping of all packets together in `collected`.
    """

    def __init__(self, *, set_mark: int = 0, collect: bool = False) -> None:
        self._map = bpf.call(_MAP_CREATE, bpf.create_attr("<5I44x", 2, 4, 16, 1, 0))
        code = instruction(0xBF, 6, 1)  # r6 = ctx
        code += instruction(0xB7, 7)  # r7 = 0
        if collect:
            for offset in (_MARK, _QUEUE_MAPPING, _PRIORITY):
                code += instruction(0x61, 2, 6, offset) + instruction(
                    0x4F, 7, 2
                )  # r7 |= ctx[offset]
        if set_mark:
            code += instruction(0xB7, 2, value=set_mark) + instruction(0x63, 6, 2, _MARK)
        code += instruction(0x61, 2, 6, _PROTOCOL) + instruction(
            0x55, 2, offset=10, value=0x0008
        )  # to the end
        code += instruction(0x18, 1, 1, value=self._map) + instruction(0)  # r1 = map
        code += instruction(0x62, 10, offset=-4)  # key 0 on the stack
        code += instruction(0xBF, 2, 10) + instruction(0x07, 2, value=-4)
        code += instruction(0x85, value=1)  # map_lookup_elem
        code += instruction(0x15, 0, offset=3)  # no row: to the end
        code += instruction(0xB7, 1, value=1) + instruction(0xDB, 0, 1)  # row[0] += 1, atomically
        code += instruction(0xDB, 0, 7, 8, 0x40)  # row[1] |= r7
        code += instruction(0xB7, 0, value=-1) + instruction(0x95)  # TC_ACT_UNSPEC, TCX_NEXT
        buffer = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        try:
            self.program = bpf.call(
                _PROG_LOAD,
                bpf.create_attr(
                    "<IIQQIIQ88x", 3, len(code) // 8, ctypes.addressof(buffer),
                    ctypes.addressof(licence), 0, 0, 0,
                ),
            )  # fmt: skip
        except OSError:
            os.close(self._map)
            raise

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.program)
        os.close(self._map)

    def _row(self) -> tuple[int, int]:
        key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(16)
        bpf.call_packed(
            bpf.MAP_LOOKUP_ELEM, "<IIQQQ", self._map, 0, ctypes.addressof(key),
            ctypes.addressof(value), 0,
        )  # fmt: skip
        packets, collected = struct.unpack("<QQ", value.raw)
        return packets, collected

    @property
    def count(self) -> int:
        """Packets seen."""
        return self._row()[0]

    @property
    def collected(self) -> int:
        """All bits that were ever set in what `collect` looks at."""
        return self._row()[1]


@contextmanager
def hang_tcx(
    watcher: Watcher, ifindex: int, *, first: bool = False, egress: bool = False
) -> Iterator[None]:
    """Link the program to an interface of the caller's namespace meanwhile."""
    link = bpf.call(
        bpf.LINK_CREATE,
        bpf.create_attr(
            "<IIII32x",
            watcher.program,
            ifindex,
            _TCX_EGRESS if egress else bpf.TCX_INGRESS,
            _BEFORE if first else 0,
        ),
    )
    try:
        yield
    finally:
        os.close(link)
