# SPDX-License-Identifier: Apache-2.0
"""What geneve-ebpf, or a test of it, holds on this machine at the moment.

Tests compare it before and after. Set GENEVE_EBPF_TESTS_SHARE=1 when something else
on the machine uses geneve-ebpf, or BPF, at the same time: then only what carries the
run's own prefix counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from geneve_ebpf.loader import bpf
from tests.nodes import PREFIX, eventually

SHARED = bool(os.environ.get("GENEVE_EBPF_TESTS_SHARE"))
_MARKS = ("gnv", "geneve-ebpf", "geneve_ebpf")
_NEXT_BTF = 23
_NEXT_ID = {"BPF program": 11, "BPF map": 12, "BTF object": _NEXT_BTF, "BPF link": 31}


def _bpf_ids(command: int) -> Iterator[int]:
    ident = 0
    with contextlib.suppress(OSError):  # ENOENT behind the last
        while True:
            ident = int.from_bytes(bpf.call_packed(command, "<III", ident, 0, 0)[4:8], "little")
            if command != _NEXT_BTF or not _is_a_module(ident):
                yield ident


def _is_a_module(ident: int) -> bool:
    """Whether these are the types of a kernel module: of one that came with a test, as a rule."""
    fd = bpf.call(bpf.BTF_GET_FD_BY_ID, bpf.create_attr("<I", ident))
    try:
        return bpf.object_info(fd, 32)[28:32] != bytes(4)  # kernel_btf
    finally:
        os.close(fd)


def _processes(own: bool) -> Iterator[str]:
    """Our descendants that still run, and whoever else runs this package."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            # Orphans of ours become our children: see `adopting_orphans`.
            package = any(word.startswith(b"geneve_ebpf") for word in words)
            if words[0] and (parent == os.getpid() or (package and not own)):
                yield f"process {entry.name}: {b' '.join(words).decode(errors='replace')}"


def traces(own: bool) -> set[str]:
    """What is there of this process (its prefix, its children), or of anybody's like it."""

    def ours(text: str) -> bool:
        return PREFIX in text if own else any(mark in text for mark in _MARKS)

    found = set(_processes(own))
    for root in ("/run/netns", "/run", "/var/lib", "/run/geneve-ebpf", "/var/lib/geneve-ebpf"):
        with contextlib.suppress(FileNotFoundError):
            found |= {f"path {root}/{name}" for name in os.listdir(root) if ours(name)}
    found |= {
        f"mount {line.split()[1]}"
        for line in Path("/proc/mounts").read_text().splitlines()
        if ours(line)
    }
    found |= {f"interface {name}" for name in os.listdir("/sys/class/net") if ours(name)}
    found |= {
        f"socket {line.split()[-1]}"
        for line in Path("/proc/net/unix").read_text().splitlines()
        if ours(line)
    }
    if not own:
        for kind, command in _NEXT_ID.items():
            found |= {f"{kind} {ident}" for ident in _bpf_ids(command)}
    return found


def left_since(before: set[str], own: bool) -> set[str]:
    """What is there that was not before. The kernel frees some things late: it may wait."""
    left: set[str] = set()

    def clean() -> bool:
        nonlocal left
        left = traces(own) - before
        return not left

    eventually(clean, 20)
    return left
