# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf route`: where a VPC's prefixes are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, noun
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import RouteKind, parse_address, parse_mac, parse_name, parse_prefix

app = noun("route", "Where a VPC's prefixes are: behind a VTEP, here, or nowhere.")

Prefix = Annotated[str, typer.Argument(metavar="PREFIX", show_default=False)]
InVpc = Annotated[str, typer.Option("--vpc", metavar="VPC", help="The VPC it belongs to.")]
Via = Annotated[
    str, typer.Option("--via", metavar="VTEP", help="Behind this VTEP.", show_default=False)
]
Mac = Annotated[
    str,
    typer.Option(
        "--mac",
        metavar="MAC",
        help="Inner destination MAC, for a peer of another make; default: the gateway's.",
        show_default=False,
    ),
]
Local = Annotated[bool, typer.Option("--local", help="On this node.")]
Blackhole = Annotated[bool, typer.Option("--blackhole", help="Drop what goes there.")]


@app.command(cls=Command)
def add(
    prefix: Prefix,
    vpc: InVpc,
    via: Via = "",
    mac: Mac = "",
    local: Local = False,
    blackhole: Blackhole = False,
) -> None:
    """Add a route: --via VTEP, --local or --blackhole. Refused if the prefix has another one."""
    body = _body(vpc, prefix, via, mac, local, blackhole)
    with agent() as client:
        status, answer = client.request("POST", "/v1/routes", body)
    _warn(answer)
    output.emit(answer, f"route {prefix} {'added' if status == 201 else 'exists already'}")


@app.command(cls=Command)
def replace(
    prefix: Prefix,
    vpc: InVpc,
    via: Via = "",
    mac: Mac = "",
    local: Local = False,
    blackhole: Blackhole = False,
) -> None:
    """Add a route, or change the one that the prefix has."""
    body = _body(vpc, prefix, via, mac, local, blackhole)
    with agent() as client:
        _, answer = client.request("PUT", "/v1/routes", body)
    _warn(answer)
    output.emit(answer, f"route {prefix} set")


@app.command(cls=Command)
def delete(prefix: Prefix, vpc: InVpc) -> None:
    """Remove the route of a prefix."""
    query = f"vpc={parse_name(vpc, 'vpc')}&prefix={parse_prefix(prefix)}"
    with agent() as client:
        _, answer = client.request("DELETE", f"/v1/routes?{query}")
    output.emit(answer, f"route {prefix} deleted")


@app.command("list", cls=Command)
def list_(
    vpc: Annotated[
        str, typer.Option("--vpc", metavar="VPC", help="Of one VPC only.", show_default=False)
    ] = "",
) -> None:
    """Routes, of all VPCs or of one."""
    query = f"?vpc={parse_name(vpc, 'vpc')}" if vpc else ""
    with agent() as client:
        _, answer = client.request("GET", f"/v1/routes{query}")
    header = ("VPC", "PREFIX", "KIND", "VTEP", "MAC")
    rows = [
        (route["vpc"], route["prefix"], route["kind"], route.get("vtep"), route.get("mac"))
        for route in answer["routes"]
    ]
    output.emit(answer, *output.table(header, rows))


@app.command(cls=Command)
def get(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", show_default=False)], vpc: InVpc
) -> None:
    """Where an address leads: to a sandbox of this node, else by the longest prefix over it."""
    query = f"vpc={parse_name(vpc, 'vpc')}&address={parse_address(address)}"
    with agent() as client:
        _, answer = client.request("GET", f"/v1/routes?{query}")
    if "sandbox" in answer:  # found before any route, and there need not be one
        output.emit(answer, f"{address} is sandbox {answer['sandbox']} on this node")
    else:
        output.emit(answer, f"{address} {described(answer['route'])}")


def described(route: dict[str, Any]) -> str:
    """A route in one line, much as `ip route` puts it."""
    text = f"in {route['prefix']} {route['kind']}"
    if route.get("vtep"):
        text += f" via {route['vtep']}"
    if route.get("mac"):
        text += f" mac {route['mac']}"
    return text


def _body(
    vpc: str, prefix: str, via: str, mac: str, local: bool, blackhole: bool
) -> dict[str, object]:
    """The request for one route. Raises BAD_REQUEST unless exactly one way is named."""
    if bool(via) + local + blackhole != 1:
        raise GeneveError(
            Code.BAD_REQUEST,
            "a route leads one way",
            hint="give one of --via VTEP, --local, --blackhole",
        )
    if mac and not via:
        raise GeneveError(
            Code.BAD_REQUEST, "--mac goes with --via only", hint="leave it out", field="mac"
        )
    body: dict[str, object] = {
        "vpc": parse_name(vpc, "vpc"),
        "prefix": str(parse_prefix(prefix)),
        "kind": (
            RouteKind.REMOTE if via else RouteKind.LOCAL if local else RouteKind.BLACKHOLE
        ).value,
    }
    if via:
        body["vtep"] = str(parse_address(via, "vtep"))
    if mac:
        body["mac"] = str(parse_mac(mac))
    return body


def _warn(answer: dict[str, Any]) -> None:
    for warning in answer.get("warnings", ()):
        output.note(f"warning: {output.one_line(warning)}")
