# SPDX-License-Identifier: Apache-2.0
"""Compile the programs as they are now, for every start that the tests make.

The loader finds them by itself (`geneve_ebpf.loader.kept`). In a virtual machine,
where compiling takes minutes, they are those which the machine outside has kept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from geneve_ebpf.loader.compile import load_and_pin
from geneve_ebpf.loader.pins import Pins

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "kept"


def keep_programs() -> None:
    """Have them in KEPT, in a process of its own; who comes meanwhile waits."""
    KEPT.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(KEPT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [sys.executable, "-m", "tests.compiled"],
            check=True,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "CACHE_DIRECTORY": str(KEPT)},
        )
    finally:
        os.close(lock)


def _main() -> None:
    root = Path(tempfile.mkdtemp(prefix="gnv-compile-", dir="/run"))
    pins = Pins(root / "node")
    try:
        pins.mount()
        _, remark = load_and_pin(root / "node")
        if remark:
            print(remark, file=sys.stderr)
    finally:
        pins.unmount()
        shutil.rmtree(root)


if __name__ == "__main__":
    _main()
