# SPDX-License-Identifier: Apache-2.0
"""Two records of one bench, or two directories of them, row by row: what changed, and what is
noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.harness import SCHEMA, number
from bench.testbed import BenchError


def read(path: Path) -> dict[str, Any]:
    """A record. Raises BenchError if the file is none."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or found["schema"] != SCHEMA:
            raise ValueError(f"not of schema {SCHEMA}")
        return found
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{path} is no record of a bench: {error}") from None


def verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Whether the rounds of the two rows lie apart: else the difference is noise."""
    one, other = before["round_p50"], after["round_p50"]
    if max(one) < min(other) or max(other) < min(one):
        return f"{after['p50'] / before['p50'] - 1:+.0%}" if before["p50"] else "differs"
    return "noise"


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """For people: a line per row that both have."""
    one = {row["name"]: row for row in before["results"]}
    other = {row["name"]: row for row in after["results"]}
    shared = [name for name in one if name in other and one[name]["unit"] == other[name]["unit"]]
    width = max([len(name) for name in shared] + [12])
    lines = [f"{'':{width}}  {'unit':11}{'before':>10}{'after':>10}  change of the median"]
    lines += [
        f"{name:{width}}  {one[name]['unit']:11}{number(one[name]['p50']):>10}"
        f"{number(other[name]['p50']):>10}  {verdict(one[name], other[name])}"
        for name in shared
    ]
    for title, only in (
        ("before", one.keys() - other.keys()),
        ("after", other.keys() - one.keys()),
    ):
        if only:
            lines.append(f"only {title}: {', '.join(sorted(only))}")
    return "\n".join(lines)


def main(first: Path, second: Path) -> None:
    """Print the comparison. Raises BenchError."""
    if not first.is_dir() and not second.is_dir():
        records(first, second)
        return
    if not first.is_dir() or not second.is_dir():
        raise BenchError(f"one of {first} and {second} is a directory, the other is not")
    names = [{path.name for path in one.glob("*.json")} for one in (first, second)]
    shared = sorted(names[0] & names[1])
    if not shared:
        raise BenchError(f"{first} and {second} have no record of the same bench")
    for name in shared:
        print(f"## {name.removesuffix('.json')}\n")
        records(first / name, second / name)
        print()
    for directory, only in ((first, names[0] - names[1]), (second, names[1] - names[0])):
        if only:
            print(f"only in {directory}: {', '.join(sorted(only))}")


def records(first: Path, second: Path) -> None:
    """Two files. Raises BenchError."""
    before, after = read(first), read(second)
    if before["bench"] != after["bench"]:
        raise BenchError(f"{first} is of {before['bench']}, {second} of {after['bench']}")
    for title, record in (("before", before), ("after", after)):
        about = record["machine"]
        print(f"{title}: {about['commit']}, {about['taken_at']}, {about['cpu']}, {about['kernel']}")
    if any(before["machine"][key] != after["machine"][key] for key in ("cpu", "cores", "kernel")):
        print("Two different machines: a difference may be theirs.")
    print("\n" + table(before, after))
