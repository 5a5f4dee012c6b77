# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf apply` and `export`: all VPCs, VTEPs and routes at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import agent
from geneve_ebpf.errors import Code, GeneveError

KINDS = ("vpcs", "vteps", "routes")
ADVICE = "JSON as `geneve-ebpf export` prints it, or the same as TOML"


def apply(
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="JSON or TOML; - is stdin.")
    ],
    revision: Annotated[
        int | None,
        typer.Option(
            "--revision",
            metavar="N",
            min=0,
            help="Only if the node's state still has this revision.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing: say what would be changed.")
    ] = False,
) -> None:
    """Set all VPCs, VTEPs and routes from a file, all or none.

    What the file does not name is removed. The revision inside an exported
    file is not looked at, so that a file fits every node; see --revision.
    """
    state = read(file)
    body: dict[str, Any] = {kind: state[kind] for kind in KINDS}
    if revision is not None:
        body["revision"] = revision
    with agent(timeout=300) as client:
        path = "/v1/state?dry_run=true" if dry_run else "/v1/state"
        _, answer = client.request("PUT", path, body)
    changes = answer["changes"]
    rows = [
        (kind, changes[kind]["added"], changes[kind]["changed"], changes[kind]["removed"])
        for kind in KINDS
    ]
    output.emit(
        answer,
        *output.table(("STATE", "ADDED", "CHANGED", "REMOVED"), rows),
        *(_named(answer) if dry_run else [f"revision {answer['revision']}"]),
    )


def _named(answer: dict[str, Any]) -> list[str]:
    """What a dry run has found, a line each."""
    lines = []
    for kind in KINDS:
        for how, sign in (("added", "+"), ("changed", "~"), ("removed", "-")):
            names = answer["names"][kind][how]
            lines += [f"{sign} {kind[:-1]} {name}" for name in names]
            more = answer["changes"][kind][how] - len(names)
            lines += [f"{sign} {more} more {kind}"] if more else []
    return [*lines, f"nothing was changed: revision {answer['revision']}"]


def export() -> None:
    """Print the node's VPCs, VTEPs and routes as JSON, for `apply`."""
    with agent(timeout=300) as client:
        _, answer = client.request("GET", "/v1/state")
    output.emit(answer, json.dumps(answer, indent=2))


def read(file: str) -> dict[str, Any]:
    """A state file's content, its missing parts empty. Raises BAD_REQUEST.

    The name's ending says the format; without one we know, JSON is tried first.
    """
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = content.decode()
    except OSError as error:
        raise _bad(f"cannot read {name}: {error.strerror}", "") from None
    except ValueError:  # also a zero byte in the name
        raise _bad(f"{name} is not UTF-8 text", ADVICE) from None
    state = _decoded(text, name, Path(file).suffix)
    if not isinstance(state, dict):
        raise _bad(f"{name} holds no table of vpcs, vteps and routes", ADVICE)
    known = {*KINDS, "schema", "revision"}
    for key in state:
        if key not in known:
            raise _bad(f"{name}: no such part: {output.one_line(key)}", f"parts: {' '.join(KINDS)}")
    for kind in KINDS:
        if not isinstance(state.setdefault(kind, []), list):
            raise _bad(f"{name}: {kind} is not a list", ADVICE)
    if not any(kind in text for kind in KINDS):
        # An empty or unrelated file would delete everything: make the user say so.
        raise _bad(
            f"{name} names no vpcs, vteps or routes",
            'to remove all of them, say so: {"vpcs": [], "vteps": [], "routes": []}',
        )
    return state


def _decoded(text: str, name: str, suffix: str) -> Any:
    import tomllib

    as_toml = suffix == ".toml"
    if not as_toml:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            if suffix == ".json" or text.lstrip()[:1] in ("{", ""):
                raise _bad(f"{name} is not JSON: {error}", ADVICE) from None
    try:
        state = tomllib.loads(text)
        json.dumps(state)
    except (ValueError, RecursionError) as error:
        formats = "TOML" if as_toml else "JSON or TOML"
        raise _bad(f"{name} is not {formats}: {error}", ADVICE) from None
    except TypeError:
        raise _bad(f"{name} holds a date or a time, which nothing in a state is", ADVICE) from None
    return state


def _bad(message: str, hint: str) -> GeneveError:
    return GeneveError(Code.BAD_REQUEST, message, hint=hint, field="file")
