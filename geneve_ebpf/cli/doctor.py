# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf doctor`: can this machine be a node, and what to mend if not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.errors import Exit

if TYPE_CHECKING:
    from geneve_ebpf.cli.checks import Check

WIDTH = 28  # of a check's name; a longer one stands out
COLOURS = {"ok": 32, "warn": 33, "fail": 31}


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Also the node that this agent configuration describes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check whether this machine can run a node. Changes nothing; exits 1 if it cannot."""
    from geneve_ebpf.cli.checks import Verdict, examine

    node = None
    if config is not None:
        from geneve_ebpf.agent.config import load

        node = load(config)
    checks: list[Check] = []
    for check in examine(node):
        checks.append(check)
        if not output.json_wanted:  # each as it is found: trying the kernel takes seconds
            _show(check)
    failed = sum(check.verdict is Verdict.FAIL for check in checks)
    answer = output.document(
        "doctor",
        ok=not failed,
        checks=[
            {
                "name": check.name,
                "status": check.verdict.value,
                "detail": check.detail,
                "fix": check.fix,
            }
            for check in checks
        ],
    )
    if failed:
        output.emit(answer, f"{failed} of {len(checks)} checks failed: this cannot be a node yet")
        raise typer.Exit(Exit.FAILED.value)
    output.emit(answer, "this machine can run a node")


def _show(check: Check) -> None:
    word = output.colour(check.verdict.value.ljust(4), COLOURS[check.verdict.value])
    print(f"{word}  {check.name.ljust(WIDTH)}  {output.one_line(check.detail)}")
    if check.fix:
        print(f"{' ' * (WIDTH + 8)}fix: {output.one_line(check.fix)}")
    sys.stdout.flush()
