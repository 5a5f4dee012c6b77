# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf node`: the node this agent serves."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, finite, noun
from geneve_ebpf.client import AgentClient
from geneve_ebpf.errors import Code, GeneveError

app = noun("node", "The node this agent serves.")

_SAY_EVERY = 3.0  # seconds between words about who is waited for
STATES = ("ready", "reserved", "attached", "retiring", "making")


@app.command(cls=Command)
def status(
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            callback=finite,
            help="Wait so long for the node to be ready.",
            show_default=False,
        ),
    ] = 0,
) -> None:
    """What the node is and how it does. Exits 8 while it is not ready."""
    unready, answer = _status(wait)
    slots = answer["slots"]
    facts = [
        ("node", f"{answer['node']}{', cordoned' if answer['cordoned'] else ''}"),
        ("ready", "yes" if unready is None else f"no: {unready.message}"),
        ("vtep", f"{answer['vtep']} port {answer['udp_port']} over {','.join(answer['uplinks'])}"),
        *([("down", ", ".join(answer["uplinks_down"]))] if answer["uplinks_down"] else []),
        ("mtu", f"{answer['mtu']} in the sandboxes"),
        ("merging", _merging(answer["merging"])),
        *([("relay", f"none: {answer['no_relay']}")] if answer["no_relay"] else []),
        (
            "slots",
            ", ".join(f"{slots[state]} {state}" for state in STATES if slots.get(state))
            + f" (keeps {slots['target']} ready)",
        ),
        *([("waiting", f"{answer['waiting']} requests, for a slot")] if answer["waiting"] else []),
        *_operations(answer["operations"]),
        *([("lost", _lost(answer["lost"]))] if answer["lost"] else []),
        ("revision", answer["revision"]),
        ("last_event", answer["last_event"]),
        ("program", f"{answer['program'][:12]} layout {answer['layout'][:12]}, {answer['boot']}"),
        ("up", output.duration(answer["uptime_s"])),
    ]
    output.emit(answer, *output.fields(facts))
    if unready is not None:
        raise unready


def _merging(found: dict[str, Any]) -> str:
    """Where segments are merged before the program sees them, and why not elsewhere."""
    where = ",".join(found["uplinks"])
    if not where and not found["reasons"]:  # the slot process, which finds out, has just started
        return "not known yet"
    parts = [f"on {where}, by an idle {found['device']} device" if where else "no"]
    return "; ".join([*parts, *found["reasons"]])


@app.command(cls=Command)
def cordon() -> None:
    """Send new sandboxes away. Those that are there stay, also over a restart."""
    with agent() as client:
        _, answer = client.request("POST", "/v1/node:cordon", {})
    output.emit(answer, f"node is cordoned: {_left(answer)}")


@app.command(cls=Command)
def uncordon() -> None:
    """Take new sandboxes in again."""
    with agent() as client:
        _, answer = client.request("POST", "/v1/node:uncordon", {})
    output.emit(answer, "node takes sandboxes")


@app.command(cls=Command)
def drain(
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            callback=finite,
            help="How long they may take.",
        ),
    ] = 300,
) -> None:
    """Cordon the node and wait until nobody is left on it.

    Whoever placed the sandboxes has to detach them, and to release what is reserved. Exits 4
    if some are left after all; the node stays cordoned.
    """
    deadline = time.monotonic() + timeout
    said = time.monotonic()
    with agent() as client:
        while True:
            _, answer = client.request("POST", "/v1/node:cordon", {})
            if not answer["sandboxes"] and not answer["reserved"]:
                break
            if time.monotonic() >= deadline:
                raise GeneveError(
                    Code.NODE_IN_USE,
                    f"after {timeout:g} s {_left(answer)}",
                    hint="geneve-ebpf slot list names them: detach them, `slot release` them;"
                    " the node stays cordoned",
                )
            if os.isatty(2) and time.monotonic() - said >= _SAY_EVERY:
                said = time.monotonic()
                output.note(_left(answer))
            time.sleep(0.2)
    output.emit(answer, "node is drained")


def _left(answer: dict[str, Any]) -> str:
    return f"{answer['sandboxes']} attached and {answer['reserved']} reserved are left"


@app.command(cls=Command)
def down(
    force: Annotated[
        bool, typer.Option("--force", help="Also while sandboxes are attached or slots reserved.")
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


def _operations(counts: dict[str, int]) -> list[tuple[str, object]]:
    """Those that somebody has to wait for or to look at."""
    text = ", ".join(f"{counts[state]} {state}" for state in ("pending", "failed") if counts[state])
    return [("operations", text)] if text else []


def _lost(sandboxes: list[str]) -> str:
    """Who went without being detached: with the machine, the node or a namespace."""
    more = f" and {len(sandboxes) - 5} more" if len(sandboxes) > 5 else ""
    return f"{len(sandboxes)} sandboxes, not detached: {', '.join(sandboxes[:5])}{more}"


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
