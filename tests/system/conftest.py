# SPDX-License-Identifier: Apache-2.0
"""Every module of system tests leaves the machine as it found it, and a check says so.

The check runs after the module's own cleaning, whether its tests passed or not. Set
GENEVE_EBPF_TESTS_SHARE=1 when something else on the machine uses geneve-ebpf at the
same time: then only what carries this run's own prefix counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from geneve_ebpf.loader import bpf
from tests.nodes import PREFIX, eventually

_MARKS = ("gnv", "geneve-ebpf", "geneve_ebpf")
_SHARED = bool(os.environ.get("GENEVE_EBPF_TESTS_SHARE"))
_NEXT_ID = {"BPF program": 11, "BPF map": 12, "BTF object": 23, "BPF link": 31}
_PR_SET_CHILD_SUBREAPER = 36


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root nothing here can run; say so once for each test."""
    if os.geteuid():
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs root"))


def _ours(text: str) -> bool:
    return PREFIX in text if _SHARED else any(mark in text for mark in _MARKS)


def _bpf_ids(command: int) -> Iterator[int]:
    ident = 0
    with contextlib.suppress(OSError):  # ENOENT behind the last
        while True:
            ident = int.from_bytes(bpf.call_packed(command, "<III", ident, 0, 0)[4:8], "little")
            yield ident


def _processes() -> Iterator[str]:
    """Our descendants that still run, and whoever else runs this package."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            # Orphans of ours become our children: see `adopting_orphans`.
            package = any(word.startswith(b"geneve_ebpf") for word in words)
            if words[0] and (parent == os.getpid() or (package and not _SHARED)):
                yield f"process {entry.name}: {b' '.join(words).decode(errors='replace')}"


def traces() -> set[str]:
    """Everything of ours, or that could be, that this machine holds at the moment."""
    found = set(_processes())
    for root in ("/run/netns", "/run", "/var/lib", "/run/geneve-ebpf", "/var/lib/geneve-ebpf"):
        with contextlib.suppress(FileNotFoundError):
            found |= {f"path {root}/{name}" for name in os.listdir(root) if _ours(name)}
    found |= {
        f"mount {line.split()[1]}"
        for line in Path("/proc/mounts").read_text().splitlines()
        if _ours(line)
    }
    found |= {f"interface {name}" for name in os.listdir("/sys/class/net") if _ours(name)}
    found |= {
        f"socket {line.split()[-1]}"
        for line in Path("/proc/net/unix").read_text().splitlines()
        if _ours(line)
    }
    if not _SHARED:
        for kind, command in _NEXT_ID.items():
            found |= {f"{kind} {ident}" for ident in _bpf_ids(command)}
    return found


@pytest.fixture(scope="session", autouse=True)
def adopting_orphans(kept_programs: None) -> None:
    """What a killed agent leaves behind becomes a child of this process, so it can be seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(adopting_orphans: None) -> Iterator[None]:
    """Fails after the module if it left a trace. The kernel frees some things late: it may wait."""
    before = traces()
    yield
    left: set[str] = set()

    def clean() -> bool:
        nonlocal left
        left = traces() - before
        return not left

    assert eventually(clean, 20), f"left behind (see this file's docstring): {sorted(left)}"
