# SPDX-License-Identifier: Apache-2.0
"""Does it bite? Bugs planted in the C, one at a time, and the frames it takes to find each.

Each is a replacement in a copy of the sources, which compiles and passes the
verifier: what a slip of the hand or of the mind would leave.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_MOST = 2_000_000  # frames


@dataclass(frozen=True, slots=True)
class Bug:
    """`old` stands in `file` exactly once and becomes `new`."""

    what: str
    file: str
    old: str
    new: str


BUGS: tuple[Bug, ...] = ()


def plant(bug: Bug, tree: Path) -> None:
    """Change the copy. Raises ValueError if the code has moved on."""
    path = tree / bug.file
    text = path.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.file} has {text.count(bug.old)} times: {bug.old}")
    path.write_text(text.replace(bug.old, bug.new))


def hunt(bug: Bug, seed: int) -> tuple[int, str]:
    """(frames until it was found, what the fuzzer said); 0 frames: it was not."""
    with tempfile.TemporaryDirectory(prefix="gnv-planted-") as name:
        tree = Path(name)
        for part in ("bpf", "geneve_ebpf", "tests"):
            shutil.copytree(_ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        plant(bug, tree)
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--frames", str(_MOST), "--seed", str(seed)],
            cwd=tree,
            capture_output=True,
            text=True,
            check=False,
        )
    count = re.search(r"^([\d,]+) frames in .* ([1-9]\d*) mismatches", ran.stdout, re.MULTILINE)
    if not count:
        return 0, (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-1]
    said = ran.stdout[count.end() :].strip().splitlines()[0]
    return int(count[1].replace(",", "")), re.sub(r"[0-9a-f]{40,}", "…", said)


def main(seed: int) -> int:
    """Hunt each; 0 if all were found."""
    missed = 0
    for bug in BUGS:
        frames, said = hunt(bug, seed)
        missed += not frames
        found = f"after {frames:,} frames" if frames else "NOT FOUND"
        print(f"{bug.what}\n    {found}: {said}", flush=True)
    print(f"{len(BUGS) - missed} of {len(BUGS)} found")
    return 1 if missed else 0
