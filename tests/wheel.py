# SPDX-License-Identifier: Apache-2.0
"""The wheel of this checkout, as a user would build it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy(directory: Path) -> Path:
    """What of the checkout goes into a wheel, below `directory`: building leaves files behind."""
    checkout = directory / "checkout"
    for name in ("geneve_ebpf", "bpf", "LICENSES", "deploy"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    return checkout


def build(directory: Path) -> Path:
    """Build it below `directory`; its path."""
    checkout = copy(directory)
    make = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run(
        [sys.executable, "-c", make], cwd=checkout, check=True, capture_output=True, text=True
    )
    (path,) = (checkout / "out").glob("*.whl")
    return path
