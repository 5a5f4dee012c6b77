# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf config`: the agent's configuration file, without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, noun
from geneve_ebpf.errors import Exit

app = noun("config", "The agent's configuration file.")


@app.command("check", cls=Command)
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The agent's configuration (TOML).")],
) -> None:
    """Read a configuration and say all that is wrong with it. Starts and changes nothing."""
    from geneve_ebpf.agent import config_check

    config, problems = config_check.check(file)
    if config is not None:
        node = config.node
        targets = node.targets.items()
        kept = ", ".join(f"{number} {kind.value} slots" for kind, number in targets if number)
        output.emit(
            output.document("config-check", ok=True, problems=[]),
            f"{file}: well: node {node.name}, VTEP {node.vtep} by {', '.join(node.uplinks)},"
            f" {kept or 'no slots'}",
        )
        return
    if output.json_wanted:
        found = [problem.as_json()["error"] for problem in problems]
        output.emit(output.document("config-check", ok=False, problems=found))
    else:
        for problem in problems:
            output.complain(problem)
    raise typer.Exit(Exit.USAGE.value)
