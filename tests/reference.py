# SPDX-License-Identifier: Apache-2.0
"""The parts of docs/cli.md and docs/metrics.md that are made from the code, and the man page.

`python -m tests.reference` writes them; tests compare.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from geneve_ebpf.errors import Code, Exit
from geneve_ebpf.exporter.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MAN_PAGE = ROOT / "deploy" / "geneve-ebpf.1"
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


ENVIRONMENT = {
    "GENEVE_EBPF_HOST": "unix:///PATH: the agent's socket, where --host does not name one.",
}
FILES = {
    "/etc/geneve-ebpf/agent.toml": "The agent's configuration, where the unit looks for it.",
    "/run/geneve-ebpf/NODE/": "Socket, pinned maps and programs, the slots' namespaces.",
    "/var/lib/geneve-ebpf/NODE/state.db": "Desired state: VPCs, VTEPs, routes (SQLite).",
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


@cache
def commands() -> tuple[tuple[str, str], ...]:
    """Every command in order, as it is typed, and its help."""

    def walk(words: list[str]) -> Iterator[tuple[str, str]]:
        text = help_of(words)
        yield " ".join(["geneve-ebpf", *words]), text.strip()
        for name in commands_in(text):
            yield from walk([*words, name])

    return tuple(walk([]))


def cli_reference() -> str:
    """Every command's help in order, and the exit statuses."""
    parts = ["## Exit status\n\n| status | meaning | error codes |\n|---|---|---|\n"]
    for status in Exit:
        codes = ", ".join(f"`{code.slug}`" for code in Code if code.value.exit is status)
        parts.append(f"| {status.value} | {EXITS[status]} | {codes} |\n")
    parts += [f"\n## `{title}`\n\n```text\n{text}\n```\n" for title, text in commands()]
    return "".join(parts)


def man_page() -> str:
    """geneve-ebpf(1), in man(7)'s macros."""

    def plain(text: str) -> str:
        # A line may not begin with what roff takes for a request, nor hold a bare backslash.
        text = text.replace("\\", "\\e").replace("-", "\\-")
        return "".join(f"\\&{line}\n" for line in text.splitlines())

    parts = [
        '.\\" Made by `python -m tests.reference`.\n.TH GENEVE\\-EBPF 1\n.SH NAME\n',
        "geneve\\-ebpf \\- put sandboxes into tenants\\(aq VPCs over Geneve, with eBPF\n",
        ".SH SYNOPSIS\n.B geneve\\-ebpf\n.RI [ OPTIONS ]\n.I COMMAND\n.RI [ ARGUMENTS ]\n",
        ".SH COMMANDS\n",
    ]
    for title, text in commands():
        parts += [f".SS {plain(title)[2:]}", ".nf\n", plain(text), ".fi\n"]
    parts.append(".SH EXIT STATUS\n")
    for status in Exit:
        codes = ", ".join(code.slug for code in Code if code.value.exit is status)
        parts += [f".TP\n.B {status.value}\n", plain(EXITS[status])]
        parts += [plain(f"({codes})")] if codes else []
    for title, entries in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        parts.append(f".SH {title}\n")
        for name, text in entries.items():
            parts += [f".TP\n.B {plain(name)[2:]}", plain(text)]
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
    MAN_PAGE.write_text(man_page())
