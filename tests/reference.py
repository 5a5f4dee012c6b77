# SPDX-License-Identifier: Apache-2.0
"""The parts of docs/cli.md and docs/metrics.md that are made from the code.

`python -m tests.reference` writes them; a test compares.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from geneve_ebpf.errors import Code, Exit
from geneve_ebpf.exporter.metrics import METRICS

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN = "<!-- made by `python -m tests.reference`: begin -->\n"
END = "<!-- end -->\n"

EXITS = {
    Exit.OK: "done",
    Exit.FAILED: "failed: the machine, the kernel, or a defect of ours",
    Exit.USAGE: "the command or its values are wrong; nothing was done",
    Exit.NOT_FOUND: "what was named is not there",
    Exit.CONFLICT: "it is there and differs, or is in use",
    Exit.UNREACHABLE: "no agent answers on the socket",
    Exit.BUSY: "not now or not here: no slot, no address, too many requests",
    Exit.NOT_PERMITTED: "root is needed",
    Exit.DEGRADED: "the node works, but not with all its parts",
}


def help_of(words: list[str]) -> str:
    """What `geneve-ebpf WORDS --help` prints, 90 columns wide."""
    done = subprocess.run(
        [sys.executable, "-m", "geneve_ebpf", *words, "--help"],
        env={**os.environ, "COLUMNS": "90", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def commands_in(text: str) -> list[str]:
    """The names below `Commands:` in a help text."""
    _, found, listed = text.partition("\nCommands:\n")
    return re.findall(r"^  (\S+)", listed, re.MULTILINE) if found else []


def cli_reference() -> str:
    """Every command's help in order, and the exit statuses."""
    rows = []
    for status in Exit:
        codes = ", ".join(f"`{code.slug}`" for code in Code if code.value.exit is status)
        rows.append(f"| {status.value} | {EXITS[status]} | {codes} |\n")
    parts = ["## Exit status\n\n| status | meaning | error codes |\n|---|---|---|\n", *rows]

    def add(words: list[str]) -> None:
        text = help_of(words)
        title = " ".join(["geneve-ebpf", *words])
        parts.append(f"\n## `{title}`\n\n```text\n{text.strip()}\n```\n")
        for name in commands_in(text):
            add([*words, name])

    add([])
    return "".join(parts)


def metrics_reference() -> str:
    """One row a metric."""
    rows = ["| metric | type | labels | meaning |\n|---|---|---|---|\n"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |\n")
    return "".join(rows)


PAGES = {"cli.md": cli_reference, "metrics.md": metrics_reference}


def filled(page: str) -> str:
    """A page with its made part made anew."""
    text = (DOCS / page).read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{PAGES[page]()}\n{END}{after}"


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(filled(name))
