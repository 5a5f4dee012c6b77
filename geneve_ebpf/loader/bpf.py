# SPDX-License-Identifier: Apache-2.0
"""bpf(2): the few commands we use, on file descriptors and bytes.

No BCC here, so a process that only works with pinned maps stays small. Every
function raises `OSError` as the kernel answers.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import time
from dataclasses import dataclass
from pathlib import Path

MAP_CREATE = 0
MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
PROG_LOAD = 5
OBJ_PIN = 6
OBJ_GET = 7
PROG_TEST_RUN = 10
OBJ_GET_INFO_BY_FD = 15
PROG_QUERY = 16
BTF_LOAD = 18
BTF_GET_FD_BY_ID = 19
MAP_LOOKUP_BATCH = 24
MAP_UPDATE_BATCH = 26
LINK_CREATE = 28
LINK_UPDATE = 29
LINK_DETACH = 34

TCX_INGRESS, TCX_EGRESS = 46, 47

SCHED_CLS = 3  # programs on tc hooks

# For `test_run`: the frame comes with the NIC's sum over all of it, and the kernel
# (6.11 and later; EINVAL before) fails the run with EBADMSG if that sum is stale afterwards.
TEST_CHECKSUM_COMPLETE = 1 << 2

_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
_syscall.restype = ctypes.c_long
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine(), 324)
_MEMBARRIER_GLOBAL = 1


def call(command: int, attr: ctypes.Array[ctypes.c_char], size: int = 0) -> int:
    """bpf(command, attr): the result, or OSError. `size` hands over only that much of attr."""
    result: int = _syscall(_SYSCALL, command, ctypes.addressof(attr), size or len(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def create_attr(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    """An attr of packed values, for `call`."""
    return ctypes.create_string_buffer(struct.pack(layout, *values))


def call_packed(command: int, layout: str, *values: int) -> bytes:
    """bpf(2) with an attr of packed values; returns the attr as the kernel left it."""
    attr = ctypes.create_string_buffer(struct.pack(layout, *values))
    call(command, attr)
    return attr.raw


def open_pin(path: Path) -> int:
    """A new file descriptor (close-on-exec) for the pinned object."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = ctypes.create_string_buffer(struct.pack("<QII", ctypes.addressof(name), 0, 0))
    return call(OBJ_GET, attr)


def pin(fd: int, path: Path) -> None:
    """Pin an object; the path must not exist yet (EEXIST)."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = ctypes.create_string_buffer(struct.pack("<QII", ctypes.addressof(name), fd, 0))
    call(OBJ_PIN, attr)


def set_program(table: int, place: int, program: int) -> None:
    """Have jumps by this place of a table of programs lead to that program."""
    key, value = ctypes.c_uint32(place), ctypes.c_uint32(program)
    call_packed(
        MAP_UPDATE_ELEM, "<IIQQQ", table, 0, ctypes.addressof(key), ctypes.addressof(value), 0
    )


def quiesce() -> None:
    """Return when every program run that had begun before has ended.

    MEMBARRIER_CMD_GLOBAL is synchronize_rcu (kernel/sched/membarrier.c); where
    it is switched off (nohz_full) a wait far longer than any program run must do.
    """
    if _syscall(_MEMBARRIER, _MEMBARRIER_GLOBAL, 0, 0) < 0:
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info, the part we compare. Sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    btf_id: int
    btf_key_type: int
    btf_value_type: int


def create_map(info: MapInfo, btf: int = 0) -> int:
    """A new map like that, a file descriptor. btf: an object with the types of key and value."""
    values = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    types = (btf, info.btf_key_type, info.btf_value_type) if btf else (0, 0, 0)
    return call(
        MAP_CREATE, create_attr("<7I16s5I", *values, 0, 0, info.name.encode(), 0, *types, 0)
    )


def load_btf(types: bytes) -> int:
    """Load type information; a file descriptor."""
    data = ctypes.create_string_buffer(types, len(types))
    return call(BTF_LOAD, create_attr("<QQII", ctypes.addressof(data), 0, len(types), 0))


def read_btf(ident: int) -> bytes:
    """One BTF object as it was loaded."""
    fd = call(BTF_GET_FD_BY_ID, create_attr("<I", ident))
    try:
        # struct bpf_btf_info: pointer to the data, its size; the kernel fills in.
        info = ctypes.create_string_buffer(struct.pack("<QIIQII", 0, 0, 0, 0, 0, 0), 32)
        call_packed(OBJ_GET_INFO_BY_FD, "<IIQ", fd, 32, ctypes.addressof(info))
        (size,) = struct.unpack_from("<I", info, 8)
        data = ctypes.create_string_buffer(size)
        struct.pack_into("<QI", info, 0, ctypes.addressof(data), size)
        call_packed(OBJ_GET_INFO_BY_FD, "<IIQ", fd, 32, ctypes.addressof(info))
        return data.raw
    finally:
        os.close(fd)


def load_program(instructions: bytes, name: str = "", kind: int = SCHED_CLS) -> int:
    """Have a program verified; a file descriptor. The verifier's words are not asked for."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    addresses = (ctypes.addressof(code), ctypes.addressof(licence))
    attr = create_attr(
        "<IIQQIIQII16s64x",
        *(kind, len(instructions) // 8, *addresses, 0, 0, 0, 0, 0, name.encode()[:15]),
    )
    return call(PROG_LOAD, attr)


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """struct bpf_prog_info, the part we show."""

    id: int
    tag: str
    name: str
    verified_instructions: int
    run_time_ns: int  # only counts while kernel.bpf_stats_enabled=1
    run_count: int


def object_info(fd: int, size: int) -> bytes:
    """The first `size` bytes of BPF_OBJ_GET_INFO_BY_FD, whatever object it is."""
    buffer = ctypes.create_string_buffer(size)
    call_packed(OBJ_GET_INFO_BY_FD, "<IIQ", fd, size, ctypes.addressof(buffer))
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    raw = object_info(fd, 80)
    kind, ident, key, value, entries, flags = struct.unpack_from("<6I", raw)
    name = raw[24:40].split(b"\0", 1)[0].decode()
    btf_id, btf_key, btf_value = struct.unpack_from("<3I", raw, 64)
    return MapInfo(kind, ident, key, value, entries, flags, name, btf_id, btf_key, btf_value)


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says of a program."""
    raw = object_info(fd, 232)
    _, ident = struct.unpack_from("<2I", raw)
    name = raw[64:80].split(b"\0", 1)[0].decode()
    run_time, run_count = struct.unpack_from("<2Q", raw, 192)
    (verified,) = struct.unpack_from("<I", raw, 216)
    return ProgramInfo(ident, raw[8:16].hex(), name, verified, run_time, run_count)


@dataclass(frozen=True, slots=True)
class TestRun:
    """One run of a program on one frame: its verdict and what it made of the frame."""

    verdict: int
    frame: bytes
    mark: int
    priority: int


def test_run(
    program: int,
    frame: bytes,
    *,
    ifindex: int = 0,
    mark: int = 0,
    priority: int = 0,
    gso_size: int = 0,
    flags: int = 0,
) -> TestRun:
    """BPF_PROG_TEST_RUN, once. EINVAL: the kernel takes no such frame (IPv4 under 34 bytes,
    IPv6 under 54, anything over 3,700).

    `ifindex` is of the thread's network namespace; frames for another MAC than
    that interface's are PACKET_OTHERHOST. A gso_size makes no real GSO frame
    (its type stays 0), and a VLAN tag cannot be had: those need real frames.
    """
    source = ctypes.create_string_buffer(frame, len(frame))
    room = ctypes.create_string_buffer(len(frame) + 512)
    # struct __sk_buff: mark is word 2, priority 8, ifindex 10, gso_size 44
    context = ctypes.create_string_buffer(192)
    struct.pack_into("<I", context, 8, mark)
    struct.pack_into("<I", context, 32, priority)
    struct.pack_into("<I", context, 40, ifindex)
    struct.pack_into("<I", context, 176, gso_size)
    attr = ctypes.create_string_buffer(
        struct.pack(
            "<IIIIQQIIIIQQIIII",
            program,
            0,
            len(frame),
            len(room),
            ctypes.addressof(source),
            ctypes.addressof(room),
            1,
            0,
            len(context),
            len(context),
            ctypes.addressof(context),
            ctypes.addressof(context),
            flags,
            0,
            0,
            0,
        )
    )
    call(PROG_TEST_RUN, attr)
    verdict, _, size = struct.unpack_from("<iII", attr.raw, 4)
    (mark,) = struct.unpack_from("<I", context, 8)
    (priority,) = struct.unpack_from("<I", context, 32)
    return TestRun(verdict, room.raw[:size], mark, priority)
