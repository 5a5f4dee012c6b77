# SPDX-License-Identifier: Apache-2.0
"""The bench's programs in C, compiled at its start where there is a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench.testbed import BenchError

HERE = Path(__file__).parent


def compiled(source: str, scratch: Path, *more: Path) -> Path | None:
    """The program of bench/`source` and `more` files; None where nothing compiles C.

    Raises BenchError if it does not compile.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    program = scratch / Path(source).stem
    done = subprocess.run(
        [compiler, "-O2", "-o", program, HERE / source, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{source} does not compile: {done.stderr.strip()}")
    return program


def nanoseconds(program: Path, *words: object) -> list[float]:
    """What a program printed, one number a line, in microseconds. Raises BenchError."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip() or f"status {done.returncode}"
        raise BenchError(f"{program.name} ended: {why}")
    return [int(line) / 1e3 for line in done.stdout.split()]
