# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf events`: what has happened on the node, and what happens."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import agent
from geneve_ebpf.client import error_from_json

HEAD = ("seq", "time", "event", "trace", "uid", "pid")


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with those to come.")
    ] = False,
    since: Annotated[
        int | None,
        typer.Option(
            "--since",
            metavar="SEQ",
            min=0,
            help="Only events after this number; 0, the default: all that are kept.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """What was attached, detached and changed, a line each; with -j a JSON object each."""
    wishes = [f"since={since}"] if since is not None else []
    wishes += ["follow=true"] if follow else []
    path = "/v1/events" + (f"?{'&'.join(wishes)}" if wishes else "")
    with agent(timeout=0 if follow else 30) as client:
        for event in client.lines(path):
            if "error" in event:  # too slow: what came next is gone
                raise error_from_json(event)
            print(json.dumps(event, separators=(",", ":")) if output.json_wanted else _line(event))
            if follow:
                output.flush()


def _line(event: dict[str, Any]) -> str:
    words = [f"{key}={output.shown(value)}" for key, value in event.items() if key not in HEAD]
    return f"{event['time']}  {event['seq']}  {output.one_line(event['event'])}  {' '.join(words)}"
