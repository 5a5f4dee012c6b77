# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf drops`: which packets did not get through, and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import agent, finite
from geneve_ebpf.client import AgentClient

Key = tuple[str, str]
HEADER = ("REASON", "DIRECTION", "CLASS", "PACKETS", "BYTES", "WHAT IT MEANS")


def drops(
    show_all: Annotated[
        bool, typer.Option("--all", help="Also reasons that never occurred.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print what is added, until interrupted.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            metavar="SECONDS",
            min=0.1,
            max=86400,
            callback=finite,
            help="Between two looks.",
        ),
    ] = 1.0,
) -> None:
    """Packets that were dropped, counted once each under one reason."""
    with agent() as client:
        if watch:
            _watch(client, interval)
        _, answer = client.request("GET", "/v1/drops")
    lines = output.table(HEADER, _rows(answer["drops"], show_all))
    events = [
        (item["event"], item["packets"], item["text"])
        for item in answer["events"]
        if item["packets"] or show_all
    ]
    if events:
        lines += ["", *output.table(("NOT DROPPED", "PACKETS", "WHAT IT MEANS"), events)]
    output.emit(answer, *lines)


def _rows(items: Iterable[dict[str, Any]], show_all: bool) -> list[tuple[object, ...]]:
    return [
        (
            item["reason"],
            item["direction"],
            item["class"],
            item["packets"],
            item["bytes"],
            item["text"],
        )
        for item in items
        if item["packets"] or show_all
    ]


def _watch(client: AgentClient, interval: float) -> None:
    """Print a line per reason and interval in which it grew. Never returns."""
    before = _totals(client)
    while True:
        time.sleep(interval)
        now = _totals(client)
        for key, item in now.items():
            old = before.get(key, {"packets": 0, "bytes": 0})
            packets, size = item["packets"] - old["packets"], item["bytes"] - old["bytes"]
            if packets <= 0:
                continue
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            output.emit(
                output.document("drop", **{**item, "packets": packets, "bytes": size}, at=at),
                f"{time.strftime('%H:%M:%S')}  {item['direction']}  +{packets} packets  "
                f"+{size} bytes  {item['reason']}: {item['text']}",
            )
        before = now


def _totals(client: AgentClient) -> dict[Key, dict[str, Any]]:
    _, answer = client.request("GET", "/v1/drops")
    return {(item["reason"], item["direction"]): item for item in answer["drops"]}
