# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for a kernel in a virtual machine, where all code is some 30 times slower.

Bringing a node up starts two processes, which import netlink libraries and LLVM and
compile. With this plugin they are forked from the tests' own process, which has the
libraries already, and what the first of them compiles (with BCC, by the loader's own
code) is loaded again by the others: the same instructions, verified by the kernel and
pinned each time, on maps of the node's own. Nothing else differs.

A test that is skipped there fails the run, unless the kernel lacks what it is about.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geneve_ebpf.abi import MAPS, PROGRAMS
from geneve_ebpf.dataplane import node, node_setup
from geneve_ebpf.loader import bpf, source
from geneve_ebpf.loader import compile as compiler
from geneve_ebpf.loader.pins import Pins
from tests.btf import read_btf

_MAP_CREATE, _PROG_LOAD, _BTF_LOAD = 0, 5, 18
_SCHED_CLS = 3
_MAP_NUMBER = 0x18  # the opcode of a 64-bit load, which also loads maps
_PSEUDO_MAP_FD = 1

# What a kernel may lack: the beginning of the reasons to skip for it.
LACKING = ("this kernel has no TCX",)


_stderr = 2
_scratch: Path


@dataclass(frozen=True, slots=True)
class Compiled:
    """What BCC made of the sources, ready to be loaded again."""

    btf: bytes
    maps: dict[str, bpf.MapInfo]
    programs: dict[str, bytes]  # instructions; a map is named by its number in `maps`


def _kept() -> Path:
    """Where the parent of all forked children finds what one of them compiled."""
    return _scratch / f"{source.layout_hash()}-{source.program_hash()}"


def compile_once(run_directory: Path) -> None:
    """In place of compile_and_pin, in a forked child: compile, or load what was compiled."""
    kept = _kept()
    if kept.exists():
        _load(pickle.loads(kept.read_bytes()), Pins(run_directory))
        return
    start = time.monotonic()
    found = _compile(run_directory)
    draft = kept.with_suffix(f".{os.getpid()}")
    draft.write_bytes(pickle.dumps(found))
    draft.replace(kept)
    seconds = time.monotonic() - start
    print(f"\ncompiled, verified and loaded in {seconds:.1f} s", file=sys.stderr, flush=True)


def _compile(run_directory: Path) -> Compiled:
    """By the loader itself; what it made is noted afterwards."""
    built = compiler._compile(run_directory)
    code = {name: built.dump_func(name.encode()) for name in PROGRAMS}
    pins = Pins(run_directory)
    maps, by_id = {}, {}
    for number, name in enumerate(MAPS):
        fd = bpf.open_pin(pins.map(name))
        maps[name] = bpf.map_info(fd)
        by_id[maps[name].id] = number
        os.close(fd)
    numbers = {}  # by file descriptor, which BCC has put into the instructions
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and os.readlink(entry) == "anon_inode:bpf-map":
            fd = int(entry.name)
            numbers[fd] = by_id[bpf.map_info(fd).id]
    (types,) = {info.btf_id for info in maps.values()}
    return Compiled(
        read_btf(types), maps, {name: _renumber(text, numbers) for name, text in code.items()}
    )


def _renumber(instructions: bytes, numbers: dict[int, int]) -> bytes:
    """The instructions with other numbers where they load a map."""
    changed = bytearray(instructions)
    for at in range(0, len(changed), 8):
        if changed[at] == _MAP_NUMBER and changed[at + 1] >> 4 == _PSEUDO_MAP_FD:
            (number,) = struct.unpack_from("<i", changed, at + 4)
            struct.pack_into("<i", changed, at + 4, numbers[number])
    return bytes(changed)


def _load(found: Compiled, pins: Pins) -> None:
    pins.directory.mkdir(mode=0o700, exist_ok=True)
    types = ctypes.create_string_buffer(found.btf, len(found.btf))
    btf = bpf.call(
        _BTF_LOAD, bpf.create_attr("<QQII", ctypes.addressof(types), 0, len(found.btf), 0)
    )
    numbers = {}
    for number, (name, info) in enumerate(found.maps.items()):
        if pins.map(name).exists():
            numbers[number] = bpf.open_pin(pins.map(name))
            continue
        numbers[number] = bpf.call(
            _MAP_CREATE,
            bpf.create_attr(
                "<7I16s5I",
                *(info.type, info.key_size, info.value_size, info.max_entries, info.flags, 0, 0),
                info.name.encode(),
                *(0, btf, info.btf_key_type, info.btf_value_type, 0),
            ),
        )
        bpf.pin(numbers[number], pins.map(name))
    for name, instructions in found.programs.items():
        if not pins.program(name).exists():
            bpf.pin(_load_program(name, _renumber(instructions, numbers)), pins.program(name))


def _load_program(name: str, instructions: bytes) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    return bpf.call(
        _PROG_LOAD,
        bpf.create_attr(
            "<IIQQIIQII16s64x",
            *(_SCHED_CLS, len(instructions) // 8),
            *(ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0),
            name.encode()[:15],
        ),
    )


def _run_forked(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """subprocess.run for `python -m MODULE ...`, without the start of a Python."""
    # Other sources than ours are asked for: that takes another process.
    if "PYTHONPATH" in os.environ:
        return subprocess.run(words, **options)
    assert words[1] == "-m"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os._exit(_be(words[2:], options["preexec_fn"], writer))
    os.close(writer)
    with os.fdopen(reader, errors="replace") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), said)


def _be(words: Sequence[str], first: Callable[[], None], stdout: int) -> int:
    """Become that module, in a forked child. Its exit status."""
    try:
        first()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(_stderr, 2)
        warnings.simplefilter("ignore")  # pytest's own say "error"
        sys.argv = list(words)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = importlib.import_module(words[0])._main()
        sys.stdout.flush()
        return status
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


class _Skips:
    """The tests that were skipped although this kernel has what they are about."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not reason.startswith(LACKING):
                self.found[report.nodeid] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("skipped where it must run", red=True)
            for test, reason in self.found.items():
                terminalreporter.write_line(f"{test}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    global _stderr, _scratch
    _stderr = os.dup(2)  # before pytest captures it
    _scratch = Path(tempfile.mkdtemp(prefix="gnv-compiled-"))
    config.add_cleanup(lambda: shutil.rmtree(_scratch))
    node.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        run=_run_forked,
        DEVNULL=subprocess.DEVNULL,
        PIPE=subprocess.PIPE,
    )
    node_setup.compile_and_pin = compile_once  # type: ignore[attr-defined]
    config.pluginmanager.register(_Skips())
