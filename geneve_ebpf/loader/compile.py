# SPDX-License-Identifier: Apache-2.0
"""Have the programs loaded and pinned: as they were kept, or compiled with BCC by a child.

    python -m geneve_ebpf.loader.compile RUN_DIRECTORY

LLVM leaves 117 MB in the process that used it, hence the child, which ends. On
success it prints nothing, or why the next start will have to compile again; on
failure the last line of stdout is the error as JSON and the status is 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from geneve_ebpf.abi import JUMP_TABLE, PROGRAMS
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host.processes import ending_with_parent
from geneve_ebpf.loader import headers, kept, source
from geneve_ebpf.loader.pins import Pins

_LOG_LINES = 25  # of a verifier log: the failing instruction is at its end


def load_and_pin(run_directory: Path) -> tuple[str, str]:
    """Pin what is missing, as `compile_and_pin` does, without a compiler if that was kept.

    Returns "kept" or "compiled", and what an operator should know of the kept file,
    if anything. Raises as `compile_and_pin`.
    """
    remark = ""
    try:
        if kept.load(run_directory):
            return "kept", ""
    except kept.Refused as why:
        remark = f"{kept.directory() / kept.file_name()} is not used: {why}"
    return "compiled", compile_and_pin(run_directory) or remark


def compile_and_pin(run_directory: Path) -> str:
    """Have a child compile the programs, keep them and pin what is missing: maps, then programs.

    Maps that are pinned are used as they are. Returns why the programs were not
    kept, "" if they were. Raises GeneveError: LOAD_FAILED with the end of the
    compiler's or verifier's words, KERNEL_UNSUPPORTED.
    """
    child = subprocess.run(
        [sys.executable, "-m", "geneve_ebpf.loader.compile", str(run_directory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=ending_with_parent(),
    )
    if child.returncode == 0:
        return child.stdout.strip()
    try:
        error = json.loads(child.stdout.splitlines()[-1])
        raise GeneveError(Code[error["code"]], error["message"], hint=error["hint"])
    except (IndexError, ValueError, KeyError):
        raise GeneveError(
            Code.LOAD_FAILED,
            "the programs did not compile or load\n" + relevant(child.stderr),
            hint="geneve-ebpf doctor says what the kernel lacks",
        ) from None


def relevant(log: str) -> str:
    """The part of a compiler's or verifier's log that matters: its end, without statistics
    nor the trace of our own calls that follows it.
    """
    lines = [line for line in log.splitlines() if line.strip()]
    trace = "Traceback (most recent call last):"
    if trace in lines[1:]:
        lines = lines[: lines.index(trace)]
    if any(line.startswith("processed ") for line in lines):
        # Verifier: what follows "processed" is BCC's own exception.
        last = max(i for i, line in enumerate(lines) if line.startswith("processed "))
        lines = lines[:last]
    return "\n".join(lines[-_LOG_LINES:])


def _compile(run_directory: Path) -> Any:
    """Compile, load, pin. Returns BCC's object, which holds the instructions."""
    try:
        import bcc
    except ImportError:
        bcc = None
    if not hasattr(bcc, "BPF"):
        raise GeneveError(
            Code.KERNEL_UNSUPPORTED,
            "the module `bcc` is missing or is not the BPF Compiler Collection",
            hint="apt-get install python3-bpfcc, and use the system Python"
            " (a venv needs --system-site-packages); never `pip install bcc`",
        )
    pins = Pins(run_directory)
    pins.make_directory()
    # In the node's own directory, where the next start finds what a killed one left.
    tree = run_directory / "headers"
    shutil.rmtree(tree, ignore_errors=True)
    try:
        os.environ["BCC_KERNEL_SOURCE"] = str(headers.make_tree(tree))
        flags = [
            f'-DPIN_DIR="{pins.directory}"',
            f'-DJUMPS_PIN="{pins.map(JUMP_TABLE)}"',
            "-Wno-macro-redefined",
        ]
        built = bcc.BPF(text=source.program_text(), cflags=flags)
        pins.pin_programs(
            {name: built.load_func(name, bcc.BPF.SCHED_CLS).fd for name in PROGRAMS}
        )
        return built
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _main() -> int:
    run_directory = Path(sys.argv[1])
    try:
        built = _compile(run_directory)
    except GeneveError as error:
        print(json.dumps({"code": error.code.name, "message": str(error), "hint": error.hint}))
        return 1
    try:
        kept.keep(built, run_directory)
    except (OSError, kept.Refused) as why:
        print(f"programs are not kept in {kept.directory()}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
