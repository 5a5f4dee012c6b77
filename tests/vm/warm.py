# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for a kernel in a virtual machine, where all code is some 30 times slower.

Bringing a node up starts two processes, which import netlink libraries and LLVM and
compile. With this plugin they are forked from the tests' own process, which has the
libraries already, and load what was compiled once: the same instructions, made by the
loader's own code with BCC, verified by the kernel and pinned each time, on maps of the
node's own. Nothing else differs; agents, which are processes of their own, compile.

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


_COMPILED = "GENEVE_EBPF_TESTS_COMPILED"  # names the file

_stderr = 2
_compiled: Compiled


@dataclass(frozen=True, slots=True)
class Compiled:
    """What BCC made of the sources, ready to be loaded again."""

    made_from: str
    btf: bytes
    maps: dict[str, bpf.MapInfo]
    programs: dict[str, bytes]  # instructions; a map is named by its number in `maps`


def compile_into(kept: Path) -> None:
    """Compile with BCC, load and pin here, and keep what was compiled in a file."""
    root = Path(tempfile.mkdtemp(prefix="gnv-compile-", dir="/run"))
    pins = Pins(root / "node")
    try:
        pins.mount()
        kept.write_bytes(pickle.dumps(_compile(root / "node")))
    finally:
        pins.unmount()
        shutil.rmtree(root)


def load_compiled(run_directory: Path) -> None:
    """In place of compile_and_pin, in a forked child."""
    assert _compiled.made_from == _sources()
    _load(_compiled, Pins(run_directory))


def _sources() -> str:
    return f"{source.layout_hash()} {source.program_hash()}"


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
        _sources(),
        read_btf(types),
        maps,
        {name: _renumber(text, numbers) for name, text in code.items()},
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


class _Watch:
    """Failures are shown as they happen, for the end is far; a skip is one of them."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            text = f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}\n"
            os.write(_stderr, text.encode())
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
    global _stderr, _compiled
    _stderr = os.dup(2)  # before pytest captures it
    _compiled = pickle.loads(Path(os.environ[_COMPILED]).read_bytes())
    node.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        run=_run_forked,
        DEVNULL=subprocess.DEVNULL,
        PIPE=subprocess.PIPE,
    )
    node_setup.compile_and_pin = load_compiled  # type: ignore[attr-defined]
    config.pluginmanager.register(_Watch())
