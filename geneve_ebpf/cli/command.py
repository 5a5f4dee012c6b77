# SPDX-License-Identifier: Apache-2.0
"""What every command has: -j, plain help, and a connection to the agent."""

from __future__ import annotations

import math
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from geneve_ebpf.cli import output
from geneve_ebpf.client import AgentClient

# Where the agent is, from --host; "" leaves it to the environment.
_host = ""


def set_host(host: str) -> None:
    """The agent that `agent()` connects to: unix:///path, or "" for the environment's."""
    global _host
    _host = host


def agent(timeout: float = 30) -> AgentClient:
    """A client for the agent that the user named. Raises BAD_REQUEST for a malformed name."""
    if _host:
        return AgentClient.from_host(_host, timeout)
    return AgentClient.from_environment(timeout)


def finite(seconds: float | None) -> float | None:
    """A number of seconds that ends: what `min` and `max` let pass is not always one."""
    if seconds is not None and not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} is no number of seconds.")
    return seconds


def given_or_none(text: str | None) -> str | None:
    """What an option says. An empty word is refused: it is a script's empty variable."""
    if text == "":
        raise typer.BadParameter("it is empty.")
    return text


def _json_option(on_root: bool) -> TyperOption:
    def take(context: Any, parameter: Any, value: bool) -> bool:
        # The root is parsed first and settles the default; the commands only add to it.
        if value or on_root:
            output.want_json(value)
        return value

    return TyperOption(
        param_decls=["--json", "-j"],
        is_flag=True,
        default=False,
        show_default=False,
        expose_value=False,
        callback=take,
        help="Print JSON.",
    )


class Command(TyperCommand):
    """A command that takes -j."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_json_option(on_root=False))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """NAME instead of {NAME}, as other commands write what is required."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """A noun that takes -j before its verb."""

    on_root = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_json_option(self.on_root))


class Root(Group):
    """The whole command."""

    on_root = True


def noun(name: str, text: str) -> typer.Typer:
    """An empty group of commands: `geneve-ebpf NAME VERB`."""
    return typer.Typer(name=name, help=text, cls=Group, no_args_is_help=True, rich_markup_mode=None)
