# SPDX-License-Identifier: Apache-2.0
"""Every source file names its licence, and the licence's text is here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".c", ".h", ".sh", ".toml"}
NOT_OURS = {".git", ".venv", ".vagrant", "build", "dist"}
SPDX = re.compile(r"SPDX-License-Identifier: (.+?)(?: \*/)?$", re.MULTILINE)


def source_files() -> Iterator[Path]:
    """Files a person writes: by suffix, or by a "#!" where there is none."""
    for directory, subdirectories, names in os.walk(ROOT):
        subdirectories[:] = [
            name
            for name in subdirectories
            if name not in NOT_OURS and not name.endswith(("_cache", ".egg-info", "__pycache__"))
        ]
        for name in names:
            path = Path(directory, name)
            is_script = not path.suffix and path.read_bytes()[:2] == b"#!"
            if path.suffix in SUFFIXES or name == "Vagrantfile" or is_script:
                yield path


def expected_licence(path: Path) -> str:
    """The kernel takes GPL programs only, so what is loaded into it is dual."""
    if path.is_relative_to(ROOT / "bpf"):
        return "GPL-2.0-only OR BSD-2-Clause"
    return "Apache-2.0"


def named_licence(text: str) -> str | None:
    """The licence in the first three lines of a file."""
    found = SPDX.search("\n".join(text.splitlines()[:3]))
    return found[1] if found else None


def test_every_source_file_names_its_licence():
    """Apache-2.0, and the kernel's choice of two for bpf/."""
    wrong = {
        path.relative_to(ROOT).as_posix(): named_licence(path.read_text())
        for path in source_files()
        if named_licence(path.read_text()) != expected_licence(path)
    }

    assert wrong == {}


def test_the_search_for_source_files_finds_each_kind():
    """A check of nothing would pass too."""
    found = {path.relative_to(ROOT).as_posix() for path in source_files()}

    assert {"geneve_ebpf/model.py", "script/bootstrap", "pyproject.toml", "Vagrantfile"} <= found
    assert any(name.startswith("bpf/") for name in found)


def test_the_text_of_every_licence_is_here():
    """By the name that SPDX gives it; the main one where everybody looks."""
    opening = {
        "LICENSE": "Apache License",
        "LICENSES/GPL-2.0-only.txt": "GNU GENERAL PUBLIC LICENSE",
        "LICENSES/BSD-2-Clause.txt": "Redistribution and use in source and binary forms",
    }

    assert {name: text in (ROOT / name).read_text() for name, text in opening.items()} == {
        name: True for name in opening
    }
