# SPDX-License-Identifier: Apache-2.0
"""The wheel of this checkout, as a user would build it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(directory: Path) -> Path:
    """Build it from a copy below `directory`, because building leaves files behind; its path."""
    copy = directory / "checkout"
    for name in ("geneve_ebpf", "bpf", "LICENSES"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    make = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run(
        [sys.executable, "-c", make], cwd=copy, check=True, capture_output=True, text=True
    )
    (path,) = (copy / "out").glob("*.whl")
    return path
