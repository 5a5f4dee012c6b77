# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf vpc`: tenants' networks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, noun
from geneve_ebpf.model import parse_name, parse_prefix, parse_vni

app = noun("vpc", "Tenants' networks: a name, a VNI, prefixes.")

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@app.command(cls=Command)
def create(
    name: Name,
    vni: Annotated[int, typer.Option("--vni", metavar="N", help="1 to 16777215.")],
    prefix: Annotated[
        list[str],
        typer.Option(
            "--prefix", metavar="PREFIX", help="Such as 10.0.0.0/16 or fd00:1::/48; repeat."
        ),
    ],
) -> None:
    """Make a VPC known to this node. The same again changes nothing."""
    path = f"/v1/vpcs/{parse_name(name)}"
    body = {"vni": parse_vni(vni), "prefixes": [str(parse_prefix(text)) for text in prefix]}
    with agent() as client:
        status, answer = client.request("PUT", path, body)
    output.emit(answer, f"vpc {name} {'created' if status == 201 else 'exists already'}")


@app.command("list", cls=Command)
def list_() -> None:
    """All VPCs of this node, and how many sandboxes are attached to each."""
    with agent() as client:
        _, answer = client.request("GET", "/v1/vpcs")
    rows = [(vpc["name"], vpc["vni"], vpc["sandboxes"], vpc["prefixes"]) for vpc in answer["vpcs"]]
    output.emit(answer, *output.table(("NAME", "VNI", "SANDBOXES", "PREFIXES"), rows))


@app.command(cls=Command)
def show(name: Name) -> None:
    """One VPC."""
    with agent() as client:
        _, answer = client.request("GET", f"/v1/vpcs/{parse_name(name)}")
    output.emit(answer, *output.fields(facts(answer.get("vpc", answer))))


@app.command(cls=Command)
def delete(name: Name) -> None:
    """Forget a VPC. Refused while sandboxes or routes use it."""
    with agent() as client:
        _, answer = client.request("DELETE", f"/v1/vpcs/{parse_name(name)}")
    output.emit(answer, f"vpc {name} deleted")


def facts(answer: dict[str, Any]) -> list[tuple[str, object]]:
    """Every plain value of an answer but its schema, for `output.fields`."""
    return [(key, value) for key, value in answer.items() if key != "schema"]
