# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf agent`: the daemon."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from geneve_ebpf.cli.command import Command, noun

app = noun("agent", "The daemon that serves a node.")


@app.command("run", cls=Command)
def run_agent(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Configuration (TOML).")],
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots",
            metavar="N",
            min=0,
            help="Slots to keep ready, instead of the file's.",
            show_default=False,
        ),
    ] = None,
    tap_slots: Annotated[
        int | None,
        typer.Option(
            "--tap-slots",
            metavar="N",
            min=0,
            help="Slots with a tap in a namespace, likewise.",
            show_default=False,
        ),
    ] = None,
    host_tap_slots: Annotated[
        int | None,
        typer.Option(
            "--host-tap-slots",
            metavar="N",
            min=0,
            help="Slots that are a tap in the node's namespace, likewise.",
            show_default=False,
        ),
    ] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            "--metrics-listen",
            metavar="ADDRESS:PORT",
            help='Where Prometheus scrapes, instead of the file\'s; "" is nowhere.',
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a node until SIGTERM, which leaves sandboxes attached and packets flowing."""
    from geneve_ebpf.agent.run import run

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # `cli.app.run` had set the default
    run(
        config,
        slots=slots,
        metrics_listen=metrics_listen,
        tap_slots=tap_slots,
        host_tap_slots=host_tap_slots,
    )
