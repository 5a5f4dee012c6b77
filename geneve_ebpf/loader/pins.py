# SPDX-License-Identifier: Apache-2.0
"""Where a node's BPF objects are pinned: a bpffs of its own, one directory per layout.

    <run directory>/bpf/                       bpffs
        <layout hash>/<map>                    maps
        <layout hash>/<program>-<hash>         programs
        <layout hash>/jumps-<hash>             what those of this hash jump to
        <layout hash>/uplink-<interface>       TCX links

The maps outlive the agent and are the record of what is attached.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from geneve_ebpf.abi import JUMP_TABLE, JUMPS, MAPS, PROGRAMS
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader import bpf, source

_BPF_FS_MAGIC = 0xCAFE4A11
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def is_bpffs(path: Path) -> bool:
    """Whether `path` lies on a BPF file system."""
    buffer = ctypes.create_string_buffer(120)  # struct statfs starts with f_type
    if _libc.statfs(os.fsencode(path), buffer) < 0:
        return False
    return bool(struct.unpack_from("<q", buffer.raw)[0] == _BPF_FS_MAGIC)


class Pins:
    """The pins of one node."""

    def __init__(self, run_directory: Path) -> None:
        self.root = run_directory / "bpf"
        self.directory = self.root / source.layout_hash()

    def mount(self) -> None:
        """Mount the bpffs if it is not; needs the machine's mount namespace."""
        self.root.mkdir(parents=True, exist_ok=True)
        if is_bpffs(self.root):
            return
        if _libc.mount(b"geneve-ebpf", os.fsencode(self.root), b"bpf", 0, b"mode=0700") < 0:
            number = ctypes.get_errno()
            raise GeneveError(
                Code.NODE_SETUP,
                f"no bpffs on {self.root}: {os.strerror(number)}",
                hint="needs root (CAP_SYS_ADMIN) and a kernel with CONFIG_BPF_SYSCALL",
            )

    def unmount(self) -> None:
        """Let go of everything that is pinned."""
        if self.root.exists():
            while is_bpffs(self.root) and _libc.umount2(os.fsencode(self.root), _MNT_DETACH) == 0:
                pass
            self.root.rmdir()

    def refuse_other_layouts(self) -> None:
        """Raise LAYOUT_MISMATCH if maps of another layout are pinned here.

        They belong to another version and may hold live sandboxes.
        """
        for other in self.root.iterdir() if is_bpffs(self.root) else ():
            if other != self.directory and (other / "bindings").exists():
                raise GeneveError(
                    Code.LAYOUT_MISMATCH,
                    f"the node has maps of layout {other.name}, this version's is "
                    f"{self.directory.name}",
                    hint="detach its sandboxes and take it down first: geneve-ebpf node down",
                )

    @cached_property
    def _programs(self) -> str:
        # Reads and hashes every source: some 10 ms, and asked for many times at a start.
        return source.program_hash()

    def map(self, name: str) -> Path:
        """Path of a map; of JUMP_TABLE, the one that the programs as they are now jump by."""
        return self.program(name) if name == JUMP_TABLE else self.directory / name

    def program(self, name: str) -> Path:
        """Path of a program made from the sources as they are now."""
        return self.directory / f"{name}-{self._programs}"

    def uplink(self, interface: str) -> Path:
        """Path of the TCX link on an uplink."""
        # A bpffs refuses a dot, which a VLAN's interface has (eth0.100). No interface's
        # name holds a %.
        return self.directory / f"uplink-{interface.replace('.', '%2E')}"

    def uplinks(self) -> set[str]:
        """Interfaces that a TCX link is pinned for."""
        pinned = self.directory.glob("uplink-*")
        return {unquote(path.name.removeprefix("uplink-")) for path in pinned}

    def have_maps(self) -> bool:
        """Whether every map is pinned."""
        return all(self.map(name).exists() for name in MAPS)

    def make_directory(self) -> None:
        """Make room for maps and programs.

        Programs whose jumps lead nowhere, since their table is gone, are unpinned.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if not self.map(JUMP_TABLE).exists():
            for name in PROGRAMS:
                self.program(name).unlink(missing_ok=True)

    def pin_programs(self, programs: dict[str, int]) -> None:
        """Fill the table of jumps, then pin what is not pinned yet: name -> file descriptor.

        In this order: once all are pinned, none has a jump that leads nowhere.
        """
        table = bpf.open_pin(self.map(JUMP_TABLE))
        try:
            for place, name in enumerate(JUMPS):
                bpf.set_program(table, place, programs[name])
        finally:
            os.close(table)
        for name, program in programs.items():
            if not self.program(name).exists():
                bpf.pin(program, self.program(name))

    def have_programs(self) -> bool:
        """Whether every program is pinned, as the sources are now, and so the jumps are filled."""
        return (
            self.have_maps()
            and self.map(JUMP_TABLE).exists()
            and all(self.program(name).exists() for name in PROGRAMS)
        )

    def drop_old_programs(self) -> None:
        """Unpin programs that newer sources replaced on every hook.

        Their jumps lead nowhere from then on, so no run of them may be left.
        """
        names = (*PROGRAMS, JUMP_TABLE)
        old = {path for name in names for path in self.directory.glob(f"{name}-*")}
        old -= {self.program(name) for name in names}
        if old:
            bpf.quiesce()
        for path in old:
            path.unlink()
