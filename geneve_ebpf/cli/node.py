# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf node`: the node this agent serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, noun
from geneve_ebpf.client import AgentClient
from geneve_ebpf.errors import Code, GeneveError

app = noun("node", "The node this agent serves.")

STATES = ("ready", "reserved", "attached", "retiring", "making")


@app.command(cls=Command)
def status(
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            help="Wait so long for the node to be ready.",
            show_default=False,
        ),
    ] = 0,
) -> None:
    """What the node is and how it does. Exits 8 while it is not ready."""
    unready, answer = _status(wait)
    slots = answer["slots"]
    facts = [
        ("node", answer["node"]),
        ("ready", "yes" if unready is None else f"no: {unready.message}"),
        ("vtep", f"{answer['vtep']} port {answer['udp_port']} over {','.join(answer['uplinks'])}"),
        ("mtu", f"{answer['mtu']} in the sandboxes"),
        ("merging", _merging(answer["merging"])),
        (
            "slots",
            ", ".join(f"{slots[state]} {state}" for state in STATES if slots.get(state))
            + f" (keeps {slots['target']} ready)",
        ),
        ("revision", answer["revision"]),
        ("program", f"{answer['program'][:12]} layout {answer['layout'][:12]}, {answer['boot']}"),
        ("up", output.duration(answer["uptime_s"])),
    ]
    output.emit(answer, *output.fields(facts))
    if unready is not None:
        raise unready


def _merging(found: dict[str, Any]) -> str:
    """Where segments are merged before the program sees them, and why not elsewhere."""
    where = ",".join(found["uplinks"])
    parts = [f"on {where}, by an idle {found['device']} device" if where else "no"]
    return "; ".join([*parts, *found["reasons"]])


@app.command(cls=Command)
def down(
    force: Annotated[
        bool, typer.Option("--force", help="Also while sandboxes are attached.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The node of this configuration, whose agent does not run.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Remove everything that was made on this node, and end its agent."""
    if config is not None:
        answer = _down_without_agent(config, force)
    else:
        with agent(timeout=120) as client:
            _, answer = client.request("POST", "/v1/node:down", {"force": force})
    output.emit(answer, "node is down")


def _down_without_agent(config: Path, force: bool) -> dict[str, Any]:
    from geneve_ebpf.agent.config import load
    from geneve_ebpf.agent.run import down

    settings = load(config).node
    sandboxes, slots = down(settings, force=force)
    return {
        "schema": "geneve-ebpf/down/1",
        "node": settings.name,
        "sandboxes": sandboxes,
        "slots": slots,
    }


def _status(wait: float) -> tuple[GeneveError | None, dict[str, Any]]:
    """Why the node is not ready, and its facts; asks again until `wait` seconds are over."""
    deadline = time.monotonic() + wait
    while True:
        try:
            with agent() as client:
                unready = _unready(client)
                _, answer = client.request("GET", "/v1/node")
            if unready is None or time.monotonic() >= deadline:
                return unready, answer
        except GeneveError as error:
            if error.code is not Code.AGENT_UNREACHABLE or time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def _unready(client: AgentClient) -> GeneveError | None:
    try:
        client.request("GET", "/readyz")
    except GeneveError as error:
        if error.code is not Code.DEGRADED:
            raise
        return error
    return None
