# SPDX-License-Identifier: Apache-2.0
"""Where a node's BPF objects are pinned: a bpffs of its own, one directory per layout.

    <run directory>/bpf/                       bpffs
        <layout hash>/<map>                    maps
        <layout hash>/<program>-<hash>         programs
        <layout hash>/uplink-<interface>       TCX links

The maps outlive the agent and are the record of what is attached.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from urllib.parse import unquote

from geneve_ebpf.abi import MAPS, PROGRAMS
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader import source

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

    def map(self, name: str) -> Path:
        """Path of a map."""
        return self.directory / name

    def program(self, name: str) -> Path:
        """Path of a program made from the sources as they are now."""
        return self.directory / f"{name}-{source.program_hash()}"

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

    def have_programs(self) -> bool:
        """Whether both programs are pinned, as the sources are now."""
        return self.have_maps() and all(self.program(name).exists() for name in PROGRAMS)

    def drop_old_programs(self) -> None:
        """Unpin programs that newer sources replaced; hooks keep what they run."""
        keep = {self.program(name) for name in PROGRAMS}
        for name in PROGRAMS:
            for path in self.directory.glob(f"{name}-*"):
                if path not in keep:
                    path.unlink()
