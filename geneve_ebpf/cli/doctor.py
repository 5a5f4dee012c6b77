# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf doctor`: can this machine be a node, and what to mend if not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.errors import Exit

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
    from geneve_ebpf.cli.checks import Check, Verdict, examine

    settings = None
    if config is not None:
        from geneve_ebpf.agent.config import load

        settings = load(config).node
    checks: list[Check] = list(examine(settings))
    failed = [check for check in checks if check.verdict is Verdict.FAIL]
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        word = output.colour(check.verdict.value.ljust(4), COLOURS[check.verdict.value])
        lines.append(f"{word}  {check.name.ljust(width)}  {output.one_line(check.detail)}")
        if check.verdict is not Verdict.OK and check.fix:
            lines.append(f"{' ' * (width + 8)}fix: {output.one_line(check.fix)}")
    output.emit(
        output.document(
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
        ),
        *lines,
    )
    if failed:
        raise typer.Exit(Exit.FAILED.value)
