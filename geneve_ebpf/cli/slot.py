# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf slot`: prepared places for sandboxes."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, noun
from geneve_ebpf.errors import Code, GeneveError

app = noun("slot", "Prepared places for sandboxes. Reserve one before the VPC is known.")


@app.command(cls=Command)
def reserve() -> None:
    """Take a ready slot: prints its id and its network namespace."""
    with agent() as client:
        _, answer = client.request("POST", "/v1/slots:reserve", {})
    slot = answer["slot"]
    output.emit(answer, f"{slot['id']}  {slot['netns']}")


@app.command("list", cls=Command)
def list_() -> None:
    """All slots and what state each is in."""
    with agent() as client:
        _, answer = client.request("GET", "/v1/slots")
    rows = [
        (slot["id"], slot["state"], slot["host_interface"], slot["netns"])
        for slot in answer["slots"]
    ]
    output.emit(answer, *output.table(("SLOT", "STATE", "INTERFACE", "NETNS"), rows))


@app.command(cls=Command)
def release(
    slot: Annotated[str, typer.Argument(metavar="SLOT", show_default=False)],
) -> None:
    """Give back a reserved slot; a fresh one is made in its place."""
    with agent() as client:
        _, answer = client.request("DELETE", f"/v1/slots/{parse_slot(slot)}")
    output.emit(answer, f"{slot} released")


def parse_slot(text: str) -> str:
    """A slot's id, slot-N. Raises BAD_NAME."""
    if re.fullmatch(r"slot-(0|[1-9][0-9]{0,5})", text):
        return text
    raise GeneveError(
        Code.BAD_NAME, f"{text!r} is not a slot's id", hint="such as slot-3", field="slot"
    )
