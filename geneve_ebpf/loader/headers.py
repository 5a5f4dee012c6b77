# SPDX-License-Identifier: Apache-2.0
"""A stand-in for kernel headers, made of what linux-libc-dev installs.

BCC asks for the running kernel's headers, which sandbox hosts lack; our C
includes nothing but UAPI headers, so a small tree of links will do, handed to
BCC as BCC_KERNEL_SOURCE.
"""

from __future__ import annotations

import platform
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError

_UAPI = Path("/usr/include/linux")
_TYPES = """\
typedef __UINT8_TYPE__ u8, uint8_t;
typedef __UINT16_TYPE__ u16, uint16_t;
typedef __UINT32_TYPE__ u32, uint32_t;
typedef __UINT64_TYPE__ u64, uint64_t;
typedef __INT8_TYPE__ s8, int8_t;
typedef __INT16_TYPE__ s16, int16_t;
typedef __INT32_TYPE__ s32, int32_t;
typedef __INT64_TYPE__ s64, int64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ssize_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef _Bool bool;
#include <uapi/linux/types.h>
"""
WRITTEN = {
    "include/linux/types.h": _TYPES,
    "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/compiler_types.h": "",
    "include/linux/log2.h": "",
    "include/linux/version.h": "#define LINUX_VERSION_CODE 0\n#define KERNEL_VERSION(a,b,c) 0\n",
    "include/asm/page.h": "",
    "include/asm/ptrace.h": "",
    "include/uapi/linux/version.h": "#define LINUX_VERSION_CODE 0\n",
    "include/uapi/linux/ptrace.h": "",
    # BCC brings its own, newer than the distribution's.
    "include/uapi/linux/bpf.h": "",
    # The real one drags the C library in.
    "include/uapi/linux/if.h": "#define IFNAMSIZ 16\n",
    "include/generated/uapi/linux/version.h": "#define LINUX_VERSION_CODE 0\n",
    "include/generated/autoconf.h": "",
}


def make_tree(root: Path) -> Path:
    """Make the tree below `root` (an empty directory) and return it.

    Raises GeneveError KERNEL_UNSUPPORTED without linux-libc-dev.
    """
    machine = platform.machine()
    architecture = {"x86_64": "x86", "aarch64": "arm64"}.get(machine, machine)
    asm = Path(f"/usr/include/{machine}-linux-gnu/asm")
    if not (_UAPI / "ip.h").exists() or not asm.exists():
        raise GeneveError(
            Code.KERNEL_UNSUPPORTED,
            "the kernel's user-space headers are not installed",
            hint="apt-get install linux-libc-dev",
        )
    uapi = root / "include/uapi/linux"
    uapi.mkdir(parents=True)
    for name, text in WRITTEN.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for header in _UAPI.iterdir():
        link = uapi / header.name
        if not link.exists():
            link.symlink_to(header)
    (root / "include/uapi/asm-generic").symlink_to("/usr/include/asm-generic")
    arch = root / f"arch/{architecture}/include/uapi"
    arch.mkdir(parents=True)
    (arch / "asm").symlink_to(asm)
    return root
