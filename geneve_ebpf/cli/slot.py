# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf slot`: prepared places for sandboxes."""

from __future__ import annotations

import os
import re
from enum import Enum
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, given_or_none, noun
from geneve_ebpf.cli.execute import Words, command_of, execute
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import SlotKind

app = noun("slot", "Prepared places for sandboxes. Reserve one before the VPC is known.")


Kind = Annotated[
    SlotKind | None,
    typer.Option("--kind", help="Kind of slot; default: the first that the node keeps ready."),
]


@app.command(cls=Command)
def reserve(
    kind: Kind = None,
    owner: Annotated[
        str,
        typer.Option(
            "--owner",
            metavar="UID",
            help="The user, or uid, who may open the tap; default: the node's tap_owner.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Take a ready slot: prints its id, its network namespace and the tap to open."""
    body: dict[str, Any] = {}
    if kind is not None:
        body["kind"] = kind.value
    if owner:
        body["owner"] = _uid(owner)
    with agent() as client:
        _, answer = client.request("POST", "/v1/slots:reserve", body)
    slot = answer["slot"]
    output.emit(answer, "  ".join(filter(None, (slot["id"], slot["netns"], slot["tap"]))))


NETNS = typer.Option(
    "--netns",
    metavar="PATH",
    callback=given_or_none,
    help="A network namespace of your own: the slot is made in there.",
    show_default=False,
)
DEFAULT_INTERFACE = "eth0"
INTERFACE = typer.Option(
    "--interface",
    metavar="NAME",
    callback=given_or_none,
    help=f"The interface in there; default: {DEFAULT_INTERFACE}.",
    show_default=False,
)
Existing = Annotated[
    bool,
    typer.Option(
        "--existing",
        help="It is there: an end of a veth, the other one with the node. It goes with the slot.",
    ),
]


@app.command(cls=Command)
def add(
    netns: Annotated[str, NETNS],
    interface: Annotated[str, INTERFACE] = DEFAULT_INTERFACE,
    existing: Existing = False,
) -> None:
    """Make a slot in a namespace of your own: prints its id, and where it is.

    Reserved, to be attached or released. The same again gives the same slot.
    """
    with agent() as client:
        _, answer = client.request("POST", "/v1/slots", given(netns, interface, existing))
    slot = answer["slot"]
    output.emit(answer, f"{slot['id']}  {output.one_line(slot['netns'])}  {interface}")


def given(netns: str, interface: str, existing: bool) -> dict[str, Any]:
    """What asks for a slot in a namespace; its path may be relative to where we are."""
    body: dict[str, Any] = {"netns": os.path.abspath(netns), "interface": interface}
    return body | {"existing": True} if existing else body


def _uid(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 11:
        return int(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise GeneveError(
            Code.BAD_REQUEST,
            f"no user {text[:40]!r}",
            hint="a uid, or a user's name",
            field="owner",
        ) from None


def place_of(slot: dict[str, Any]) -> str:
    """Where a sandbox is, or its machine's tap, in words."""
    if slot["tap"] is None:
        return f"netns {slot['netns']}"
    return f"tap {slot['tap']} in " + (slot["netns"] or "the node's namespace")


class State(str, Enum):
    """Where a listed slot is in its life."""

    READY = "ready"
    RESERVED = "reserved"
    ATTACHED = "attached"
    RETIRING = "retiring"


@app.command("list", cls=Command)
def list_(
    state: Annotated[
        State | None,
        typer.Option("--state", help="Only those in this state.", show_default=False),
    ] = None,
    kind: Annotated[
        SlotKind | None,
        typer.Option("--kind", help="Only those of this kind.", show_default=False),
    ] = None,
) -> None:
    """All slots, what state each is in, and whose it is for how long."""
    with agent() as client:
        _, answer = client.request("GET", "/v1/slots")
    answer["slots"] = [
        slot
        for slot in answer["slots"]
        if state in (None, slot["state"]) and kind in (None, slot["kind"])
    ]
    rows = [
        (
            *(slot[key] for key in ("id", "kind", "state", "sandbox")),
            None if slot["attached_at"] is None else output.age(slot["attached_at"]),
            *(slot[key] for key in ("host_interface", "tap", "netns")),
        )
        for slot in answer["slots"]
    ]
    header = ("SLOT", "KIND", "STATE", "SANDBOX", "AGE", "INTERFACE", "TAP", "NETNS")
    output.emit(answer, *output.table(header, rows))


@app.command(cls=Command)
def release(
    slot: Annotated[str, typer.Argument(metavar="SLOT", show_default=False)],
) -> None:
    """Give back a reserved slot; a fresh one is made in its place."""
    with agent() as client:
        _, answer = client.request("DELETE", f"/v1/slots/{parse_slot(slot)}")
    output.emit(answer, f"{slot} released")


@app.command("exec", cls=Command, context_settings={"allow_interspersed_args": False})
def exec_(
    slot: Annotated[str, typer.Argument(metavar="SLOT", show_default=False)],
    command: Words,
    fd: Annotated[
        int, typer.Option("--fd", metavar="N", min=3, max=1023, help="The descriptor's number.")
    ] = 3,
) -> None:
    """Run a command with a slot's tap open, as descriptor 3.

    Such as a VMM that may not open it, by fd=3. The slot must be reserved or attached. The
    command's exit status becomes ours; 127 if there is no such command.
    """
    words = command_of(command, "slot exec SLOT")
    with agent() as client:
        tap = client.open_tap(parse_slot(slot))
    if tap == fd:
        os.set_inheritable(fd, True)
    else:
        os.dup2(tap, fd)
    execute(words)


def parse_slot(text: str) -> str:
    """A slot's id, slot-N. Raises BAD_NAME."""
    if re.fullmatch(r"slot-(0|[1-9][0-9]{0,5})", text):
        return text
    raise GeneveError(
        Code.BAD_NAME, f"{text!r} is not a slot's id", hint="such as slot-3", field="slot"
    )
