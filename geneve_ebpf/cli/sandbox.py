# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf attach`, `detach`, `list`, `show`, `netns-exec`: sandboxes in their VPCs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import agent, finite, given_or_none
from geneve_ebpf.cli.execute import Words, command_of, execute
from geneve_ebpf.cli.slot import (
    DEFAULT_INTERFACE,
    INTERFACE,
    NETNS,
    Existing,
    Kind,
    given,
    parse_slot,
    place_of,
)
from geneve_ebpf.client import AgentClient
from geneve_ebpf.errors import Code, Exit, GeneveError
from geneve_ebpf.model import AddressMode, parse_address, parse_name

Sandbox = Annotated[str, typer.Argument(metavar="SANDBOX", show_default=False)]

COUNTERS = ("tx_local", "tx_remote", "rx_local", "rx_remote")


def attach(
    sandbox: Sandbox,
    vpc: Annotated[str, typer.Option("--vpc", metavar="VPC", help="The VPC to join.")],
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            "--ip",
            metavar="ADDRESS",
            help="Its address there, one of each family; default: free ones.",
            show_default=False,
        ),
    ] = None,
    slot: Annotated[
        str | None,
        typer.Option(
            "--slot",
            metavar="SLOT",
            callback=given_or_none,
            help="A slot that was reserved; default: any ready one.",
            show_default=False,
        ),
    ] = None,
    kind: Kind = None,
    netns: Annotated[str | None, NETNS] = None,
    interface: Annotated[str | None, INTERFACE] = None,
    existing: Existing = False,
    mode: Annotated[
        AddressMode | None,
        typer.Option(
            "--mode",
            help="clone: every guest has one address, translated; native: its own. Default: clone.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            max=3600,
            callback=finite,
            help="Wait so long for a slot; default: not at all.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Ask the node's programs what becomes of its packets; 8 if they drop one.",
        ),
    ] = False,
    later: Annotated[
        bool,
        typer.Option("--async", help="Do not wait for it; see `operations`."),
    ] = False,
) -> None:
    """Put a sandbox into a VPC. The same again changes nothing."""
    path = f"/v1/sandboxes/{parse_name(sandbox, 'sandbox')}"
    body: dict[str, Any] = {"vpc": parse_name(vpc, "vpc")}
    for text in address or ():
        one = parse_address(text)
        key = "address" if one.version == 4 else "address6"
        if key in body:
            raise GeneveError(
                Code.BAD_REQUEST,
                f"two IPv{one.version} addresses: {body[key]} and {one}",
                hint="a sandbox has one of each family",
                field=key,
            )
        body[key] = str(one)
    if slot is not None:
        body["slot"] = parse_slot(slot)
    if kind is not None:
        body["kind"] = kind.value
    if mode is not None:
        body["mode"] = mode.value
    if verify:
        body["verify"] = True
    headers = {}
    if timeout is not None:
        headers["Request-Timeout"] = f"{timeout:f}"
    if later:
        headers["Prefer"] = "respond-async"
    with (
        agent(timeout=30 + (timeout or 0)) as client,
        _slot_in(client, netns, interface, existing, body),
    ):
        status, answer = client.request("PUT", path, body, headers)
    if status == 202:
        output.emit(answer, f"{sandbox} is being attached: operation {answer['operation']}")
        return
    for warning in answer.get("warnings", ()):
        output.note(f"warning: {output.one_line(warning)}")
    took = f" in {answer['timing_ns']['total'] / 1000:.0f} us" if status == 201 else " already"
    where = f"{output.shown(_addresses(answer))} in vpc {answer['vpc']} on {answer['slot']['id']}"
    told = f"{sandbox} attached{took}: {where}, {place_of(answer['slot'])}"
    seen = answer["verified"]["probes"] if verify else []
    output.emit(
        answer,
        told,
        *(f"{'ok  ' if one['passed'] else 'FAIL'}  {one['program']}: {one['saw']}" for one in seen),
    )
    if verify and not answer["verified"]["passed"]:
        raise typer.Exit(Exit.DEGRADED)


@contextlib.contextmanager
def _slot_in(
    client: AgentClient,
    netns: str | None,
    interface: str | None,
    existing: bool,
    body: dict[str, Any],
) -> Iterator[None]:
    """Have the attach that `body` asks for be in a namespace of the caller's, if he named one.

    The slot is made first; one that is new is given back if the attach fails. Not one of a veth
    that was there, which would go with it.
    """
    if netns is None:
        for name, said in (("interface", interface is not None), ("existing", existing)):
            if said:
                raise GeneveError(
                    Code.BAD_REQUEST,
                    f"--{name} says nothing without --netns",
                    hint="name the namespace that the interface is in",
                    field=name,
                )
        yield
        return
    for other in ("slot", "kind"):
        if other in body:
            raise GeneveError(
                Code.BAD_REQUEST,
                f"--netns makes a slot of its own, so --{other} says nothing",
                hint="give one of the two",
                field=other,
            )
    wanted = given(netns, interface or DEFAULT_INTERFACE, existing)
    status, answer = client.request("POST", "/v1/slots", wanted)
    body["slot"] = answer["slot"]["id"]
    try:
        yield
    except BaseException:
        if status == 201 and not existing:
            with contextlib.suppress(GeneveError):
                client.request("DELETE", f"/v1/slots/{body['slot']}")
        raise


def detach(
    sandbox: Sandbox,
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation",
            metavar="N",
            min=1,
            help="Only if it is still this attachment.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Take a sandbox out of its VPC. Its slot is destroyed and a fresh one made."""
    path = f"/v1/sandboxes/{parse_name(sandbox, 'sandbox')}"
    if generation is not None:
        path += f"?generation={generation}"
    with agent() as client:
        status, answer = client.request("DELETE", path)
    if status == 204:
        output.note(f"note: {sandbox} is not attached")
        output.emit(output.document("detached", sandbox=sandbox, generation=None, counters=None))
        return
    counters = answer["counters"]
    sent = counters["tx_local"]["packets"] + counters["tx_remote"]["packets"]
    received = counters["rx_local"]["packets"] + counters["rx_remote"]["packets"]
    output.emit(answer, f"{sandbox} detached: sent {sent} packets, received {received}")


def list_() -> None:
    """All attached sandboxes of this node."""
    with agent() as client:
        _, answer = client.request("GET", "/v1/sandboxes")
    rows = [
        (
            item["sandbox"],
            item["vpc"],
            item["address"],
            item["address6"],
            item["slot"]["id"],
            item["slot"]["kind"],
            item["slot"]["host_interface"],
            item["generation"],
            output.age(item["attached_at"]),
            output.age(item["last_activity"]),
        )
        for item in answer["sandboxes"]
    ]
    header = (
        "SANDBOX", "VPC", "ADDRESS", "ADDRESS6", "SLOT", "KIND", "INTERFACE", "GENERATION",
        "AGE", "IDLE",
    )  # fmt: skip
    output.emit(answer, *output.table(header, rows))


def show(sandbox: Sandbox) -> None:
    """One attached sandbox, with what it sent and received."""
    answer = _get(sandbox)
    slot, guest = answer["slot"], answer["guest"]
    facts = [
        ("sandbox", answer["sandbox"]),
        ("state", answer["state"]),
        ("vpc", f"{answer['vpc']} (VNI {answer['vni']})"),
        ("address", _addresses(answer)),
        ("mac", answer["mac"]),
        ("slot", f"{slot['id']} ({slot['kind']})"),
        ("netns", slot["netns"]),
        ("tap", slot["tap"]),
        ("host interface", f"{slot['host_interface']} (ifindex {slot['host_ifindex']})"),
        (
            "guest",
            f"{output.shown(_addresses(guest))} on {guest['interface']}, MTU {guest['mtu']}"
            f" ({answer['mode']})",
        ),
        ("gateway", f"{guest['gateway']},{guest['gateway6']} {guest['gateway_mac']}"),
        ("generation", answer["generation"]),
        ("attached", f"{answer['attached_at']} ({output.age(answer['attached_at'])} ago)"),
        ("last activity", answer["last_activity"]),
    ]
    counters = answer["counters"]
    rows = [
        (name.replace("_", " "), counters[name]["packets"], counters[name]["bytes"])
        for name in COUNTERS
    ]
    lines = [*output.fields(facts), "", *output.table(("TRAFFIC", "PACKETS", "BYTES"), rows)]
    output.emit(answer, *lines)


def netns_exec(
    sandbox: Sandbox,
    command: Words,
) -> None:
    """Run a command inside a sandbox's network.

    Its exit status becomes ours; 127 if there is no such command. Only the network namespace is
    entered: files, processes and users stay yours.
    """
    words = command_of(command, "netns-exec SANDBOX")
    path = _get(sandbox)["slot"]["netns"]
    if path is None:
        raise GeneveError(
            Code.BAD_REQUEST,
            f"{sandbox} is a machine behind a tap of the node: there is no namespace to enter",
            hint=f"geneve-ebpf show {sandbox}",
            field="sandbox",
        )
    from geneve_ebpf.host import namespaces

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.enter(descriptor)
    except PermissionError:
        raise GeneveError(
            Code.NOT_PERMITTED, f"may not enter {path}", hint="run it as root: sudo"
        ) from None
    except OSError as error:
        raise GeneveError(
            Code.SLOT_NOT_FOUND,
            f"cannot enter {path}: {error.strerror}",
            hint="was the sandbox detached just now?",
        ) from None
    execute(words)


def _addresses(item: dict[str, Any]) -> list[str]:
    """Those that it has, IPv4 first."""
    return [text for text in (item["address"], item["address6"]) if text is not None]


def _get(sandbox: str) -> dict[str, Any]:
    with agent() as client:
        _, answer = client.request("GET", f"/v1/sandboxes/{parse_name(sandbox, 'sandbox')}")
    return answer
