# SPDX-License-Identifier: Apache-2.0
"""The C sources as one text, and the two hashes that name what is pinned.

BCC rewrites map calls (`map.lookup(&key)`) in the main file only, so our own
headers are pasted in; #line keeps its messages pointing at the real places.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from geneve_ebpf.abi import PROGRAMS, bpf_directory

_LOCAL_INCLUDE = re.compile(r'^#include "([^"]+)"\s*$', re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def program_text() -> str:
    """Every program and every header of ours, each header once."""
    root = bpf_directory()
    seen: set[Path] = set()
    return "\n".join(_flatten(root / f"{name}.bpf.c", root, seen) for name in PROGRAMS)


def _flatten(path: Path, root: Path, seen: set[Path]) -> str:
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "{path.relative_to(root)}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = _LOCAL_INCLUDE.match(line)
        if not match:
            lines.append(line)
            continue
        # As the compiler does: beside the including file first, then the root.
        beside = path.parent / match[1]
        lines.append(_flatten(beside if beside.exists() else root / match[1], root, seen))
        lines.append(f'#line {number + 1} "{path.relative_to(root)}"')
    return "\n".join(lines)


def layout_hash() -> str:
    """Names the maps' shapes: 12 hex digits. Comments and spacing do not count."""
    root = bpf_directory()
    structs, maps = ((root / name).read_text() for name in ("geneve_abi.h", "lib/maps.h"))
    # What a drop or event is called changes no layout; how many there are does.
    structs = re.sub(r'"[^"]*"', '""', _COMMENT.sub(" ", structs))
    return _digest(" ".join(f"{structs} {_COMMENT.sub(' ', maps)}".split()))


def program_hash() -> str:
    """Names the programs: 12 hex digits. Comments and spacing do not count."""
    text = re.sub(r"^#line .*$", "", program_text(), flags=re.MULTILINE)
    return _digest(" ".join(_COMMENT.sub(" ", text).split()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
