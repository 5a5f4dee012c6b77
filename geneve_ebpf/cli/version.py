# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf version`: ours, and the agent's if one answers."""

from __future__ import annotations

import platform
from typing import Any

from geneve_ebpf import __version__
from geneve_ebpf.cli import output
from geneve_ebpf.cli.command import agent
from geneve_ebpf.errors import GeneveError


def version() -> None:
    """The version of this command, and of the agent if one answers."""
    client = {"version": __version__, "python": platform.python_version()}
    server: dict[str, Any] | None = None
    try:
        with agent(timeout=2) as connection:
            _, answer = connection.request("GET", "/v1/version")
        server = {key: value for key, value in answer.items() if key != "schema"}
        text = str(answer.get("version", "unknown"))
    except GeneveError as error:
        text = f"none ({error.code.slug})"
    output.emit(
        output.document("version", client=client, agent=server),
        *output.fields([("client", __version__), ("agent", text)]),
    )
