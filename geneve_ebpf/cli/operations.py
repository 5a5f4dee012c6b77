# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf operations`: asynchronous attaches, and those that failed in the end."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, finite, noun
from geneve_ebpf.errors import Code, GeneveError

app = noun("operations", "Attaches that nobody waited for, and what became of them.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[OPERATION]...", show_default=False)]
Failed = Annotated[bool, typer.Option("--failed", help="All that have failed.")]


@app.command("list", cls=Command)
def list_(
    failed: Annotated[bool, typer.Option("--failed", help="Only those that have failed.")] = False,
) -> None:
    """Operations that are pending, were done of late, or have failed."""
    with agent() as client:
        path = "/v1/operations?state=failed" if failed else "/v1/operations"
        _, answer = client.request("GET", path)
    rows = [
        (
            one["operation"],
            one["state"],
            one["sandbox"],
            one["vpc"],
            one["attempts"],
            output.age(one["history"][0]["time"]),
            f"{one['error']['code']}: {one['error']['message']}" if one["error"] else "",
        )
        for one in answer["operations"]
    ]
    header = ("OPERATION", "STATE", "SANDBOX", "VPC", "ATTEMPTS", "AGE", "ERROR")
    output.emit(answer, *output.table(header, rows))


@app.command(cls=Command)
def show(
    operation: Annotated[str, typer.Argument(metavar="OPERATION", show_default=False)],
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            callback=finite,
            help="Wait so long for its end.",
            show_default=False,
        ),
    ] = 0,
) -> None:
    """One operation and all that happened to it."""
    path = f"/v1/operations/{quote(operation, safe='')}"
    if wait:
        path += f"?wait={wait:g}"
    with agent(timeout=30 + wait) as client:
        _, answer = client.request("GET", path)
    facts = [
        (name, answer[name])
        for name in ("operation", "state", "sandbox", "vpc", "attempts", "trace")
    ]
    rows = [(step["time"], step["what"], step["message"]) for step in answer["history"]]
    lines = [*output.fields(facts), "", *output.table(("TIME", "WHAT", "MESSAGE"), rows)]
    output.emit(answer, *lines)


@app.command(cls=Command)
def retry(operations: Ids = None, failed: Failed = False) -> None:
    """Begin operations that have failed anew."""
    _change("retry", "tried again", operations, failed)


@app.command(cls=Command)
def drop(operations: Ids = None, failed: Failed = False) -> None:
    """Forget operations that have failed."""
    _change("drop", "dropped", operations, failed)


def _change(verb: str, done: str, operations: list[str] | None, failed: bool) -> None:
    if not operations and not failed:
        raise GeneveError(Code.BAD_REQUEST, "no operation is named", hint="name them, or --failed")
    body: dict[str, Any] = {"failed": True} if failed else {}
    if operations:
        body["operations"] = operations
    with agent() as client:
        _, answer = client.request("POST", f"/v1/operations:{verb}", body)
    output.emit(answer, *(f"{one} {done}" for one in answer["operations"]))
