# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf vtep`: the other nodes' tunnel end points."""

from __future__ import annotations

from typing import Annotated

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import Command, agent, noun
from geneve_ebpf.model import parse_address, parse_mtu

app = noun("vtep", "Other nodes. Geneve is accepted from these only.")

Address = Annotated[str, typer.Argument(metavar="ADDRESS", show_default=False)]


@app.command(cls=Command)
def add(
    address: Address,
    mtu: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="Of an outer packet; 0: as the kernel's route. Default: as it is, else 0.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Add a VTEP, or change its MTU."""
    one = str(parse_address(address))
    with agent() as client:
        if mtu is None:  # what an operator has set stays
            _, known = client.request("GET", "/v1/vteps")
            mtu = {vtep["address"]: vtep["mtu"] for vtep in known["vteps"]}.get(one, 0)
        status, answer = client.request("PUT", f"/v1/vteps/{one}", {"mtu": parse_mtu(mtu)})
    output.emit(answer, f"vtep {address} {'added' if status == 201 else 'is as asked'}")


@app.command("list", cls=Command)
def list_() -> None:
    """All VTEPs this node knows."""
    with agent() as client:
        _, answer = client.request("GET", "/v1/vteps")
    rows = [
        (vtep["address"], vtep["mtu"] or "route's", _learned(vtep["path_mtu"]))
        for vtep in answer["vteps"]
    ]
    output.emit(answer, *output.table(("ADDRESS", "MTU", "PATH MTU"), rows))


def _learned(path_mtu: dict[str, int] | None) -> str:
    return f"{path_mtu['mtu']} for {path_mtu['expires_in']} s" if path_mtu else "-"


@app.command(cls=Command)
def delete(address: Address) -> None:
    """Forget a VTEP. Refused while routes lead to it."""
    with agent() as client:
        _, answer = client.request("DELETE", f"/v1/vteps/{parse_address(address)}")
    output.emit(answer, f"vtep {address} deleted")
