# SPDX-License-Identifier: Apache-2.0
"""Compiled programs, kept in a file, so that the next start needs no compiler.

    $CACHE_DIRECTORY, or /var/cache/geneve-ebpf
        programs-<hash>     of one state of the sources: types, maps, instructions

A file is used if nobody but root can have written it, its contents have the digest
it begins with, and the compiler and headers that made it are still the same. What is
not used is compiled anew and replaced; the kernel verifies the programs in any case.
Line numbers are not kept: of a program from a file, bpftool shows no sources.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from geneve_ebpf.abi import JUMP_TABLE, MAPS, PROGRAMS
from geneve_ebpf.loader import bpf, headers, source
from geneve_ebpf.loader.pins import Pins

_MAGIC = b"geneve-ebpf programs 1\n"
_DIGEST = hashlib.sha256().digest_size
_BIGGEST = 16 << 20  # bytes of a file; 300 KB are usual
_FILES = 8  # of other versions, and the newest
_MAPS = (*MAPS, JUMP_TABLE)
_LOAD = 0x18  # opcode of a 64-bit load, which also names maps
_MAP_FD = 1  # in its source register, then
_COMPILER = re.compile(r"/lib(bcc|bpf|clang|LLVM)[^/]*\.so[^/]*$")
_INCLUDED = re.compile(r"^#include <uapi/(\S+)>", re.MULTILINE)


class Refused(Exception):
    """Why a file is not used, for the log."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What BCC made of the sources, ready to be loaded again."""

    made_with: dict[str, tuple[int, int]]  # compiler, headers: size, mtime in ns
    btf: bytes
    maps: dict[str, bpf.MapInfo]
    programs: dict[str, bytes]  # instructions; a map is named by its number in `maps`


def directory() -> Path:
    """Where files are kept. systemd names a place for it (`CacheDirectory=`)."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    return Path(given or "/var/cache/geneve-ebpf")


def file_name() -> str:
    """The file for the sources as they are now."""
    parts = (source.program_text(), repr(headers.WRITTEN), platform.machine())
    return f"programs-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def load(run_directory: Path) -> bool:
    """Load and pin what is missing, maps and then programs, from the file if there is one.

    False if there is none, or none by this compiler. Raises Refused if there is one
    that is not to be trusted, or that this kernel does not take.
    """
    try:
        kept = msgspec.msgpack.decode(_contents(), type=_Kept)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except msgspec.DecodeError as error:
        raise Refused(f"it does not hold what it should: {error}") from None
    except OSError as error:
        raise Refused(error.strerror) from None
    if kept.maps.keys() != set(_MAPS) or kept.programs.keys() != set(PROGRAMS):
        raise Refused("it holds other maps or programs")
    if any(_identity(path) != made for path, made in kept.made_with.items()):
        return False
    try:
        _load(kept, Pins(run_directory))
    except OSError as error:
        raise Refused(f"the kernel does not take it: {error.strerror}") from None
    return True


def keep(built: Any, run_directory: Path) -> None:
    """Write what BCC has compiled and pinned in this process. Raises OSError, Refused."""
    contents = msgspec.msgpack.encode(_Kept(_made_with(), *_compiled(built, Pins(run_directory))))
    directory().mkdir(mode=0o700, exist_ok=True)
    name = file_name()
    draft = f"{name}.{os.getpid()}"
    with _opened(directory()) as where:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(draft, flags, 0o600, dir_fd=where), "wb") as file:
                file.write(_MAGIC + hashlib.sha256(contents).digest() + contents)
            os.rename(draft, name, src_dir_fd=where, dst_dir_fd=where)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=where)
            raise
        _forget_old(where)


def _forget_old(where: int) -> None:
    """Files of other sources, but for the newest few; drafts of those who were killed."""
    with os.scandir(where) as found:
        files = [one for one in found if one.name.startswith("programs-")]
    age = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # another node's start forgets too
            age[file.name] = file.stat(follow_symlinks=False).st_mtime_ns
    for name in sorted(age, key=lambda name: -age[name])[_FILES:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=where)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _require_roots(os.fstat(fd), f"the directory {path}")
        yield fd
    finally:
        os.close(fd)


def _require_roots(found: os.stat_result, what: str) -> None:
    if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"somebody other than root can write {what}")


def _contents() -> bytes:
    with _opened(directory()) as where:
        # O_NONBLOCK: whatever else has this name is not waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(file_name(), flags, dir_fd=where), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise Refused("it is not a file with one name")
            _require_roots(found, "it")
            text = file.read(_BIGGEST)
    head = len(_MAGIC) + _DIGEST
    contents = text[head:]
    if text[:head] != _MAGIC + hashlib.sha256(contents).digest():
        raise Refused("it is damaged")
    return contents


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _made_with() -> dict[str, tuple[int, int]]:
    """The compiler's libraries, as they are mapped here, and the headers that we include."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if _COMPILER.search(line)}
    included = {f"/usr/include/{name}" for name in _INCLUDED.findall(source.program_text())}
    return {path: _identity(path) for path in sorted(mapped | included)}


def _compiled(built: Any, pins: Pins) -> tuple[bytes, dict[str, bpf.MapInfo], dict[str, bytes]]:
    """Types, maps and instructions of what was compiled, loaded and pinned in this process."""
    code = {name: built.dump_func(name.encode()) for name in PROGRAMS}
    maps, by_id = {}, {}
    for number, name in enumerate(_MAPS):
        fd = bpf.open_pin(pins.map(name))
        maps[name] = bpf.map_info(fd)
        by_id[maps[name].id] = number
        os.close(fd)
    numbers = {}  # by file descriptor, which BCC has put into the instructions
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and os.readlink(entry) == "anon_inode:bpf-map":
            fd = int(entry.name)
            numbers[fd] = by_id[bpf.map_info(fd).id]
    types, *others = {info.btf_id for info in maps.values()} - {0}  # a table of programs has none
    if others:
        raise Refused("some maps are of an earlier compilation, as the node was up")
    renumbered = {name: _renumbered(text, numbers) for name, text in code.items()}
    return bpf.read_btf(types), maps, renumbered


def _renumbered(instructions: bytes, numbers: dict[int, int]) -> bytes:
    """The instructions with other numbers where they load a map."""
    changed = bytearray(instructions)
    for at in range(0, len(changed), 8):
        if changed[at] == _LOAD and changed[at + 1] >> 4 == _MAP_FD:
            (number,) = struct.unpack_from("<i", changed, at + 4)
            struct.pack_into("<i", changed, at + 4, numbers[number])
    return bytes(changed)


def _load(kept: _Kept, pins: Pins) -> None:
    pins.make_directory()
    with contextlib.ExitStack() as stack:

        def closing(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        types = closing(bpf.load_btf(kept.btf))
        numbers = {}
        for number, (name, info) in enumerate(kept.maps.items()):
            pinned = pins.map(name).exists()
            numbers[number] = closing(
                bpf.open_pin(pins.map(name)) if pinned else bpf.create_map(info, types)
            )
            if not pinned:
                bpf.pin(numbers[number], pins.map(name))
        pins.pin_programs(
            {
                name: closing(bpf.load_program(_renumbered(instructions, numbers), name))
                for name, instructions in kept.programs.items()
            }
        )
