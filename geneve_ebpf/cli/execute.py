# SPDX-License-Identifier: Apache-2.0
"""Commands that become another command, when they have prepared something for it."""

from __future__ import annotations

import os
from typing import Annotated, NoReturn

import typer

from geneve_ebpf.cli import output
from geneve_ebpf.errors import Code, Exit, GeneveError

Words = Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARG]...", show_default=False)]


def command_of(words: list[str], before: str) -> list[str]:
    """The command in what follows `before` on the line. Raises BAD_REQUEST if there is none."""
    first, *others = words
    words = others if first == "--" else words
    if not words:
        raise GeneveError(
            Code.BAD_REQUEST, "no command to run", hint=f"{before} -- COMMAND [ARG]..."
        )
    if first.startswith("-") and "--" in others:
        raise GeneveError(
            Code.BAD_REQUEST,
            f"{first} is no command",
            hint=f"options go before what they are for: {before} -- COMMAND [ARG]...",
        )
    return words


def execute(words: list[str]) -> NoReturn:
    """Become the command, or exit as a shell would: 127 not found, 126 not runnable."""
    try:
        os.execvp(words[0], words)
    except OSError as error:
        output.note(f"error: cannot run {output.one_line(words[0])}: {error.strerror}")
        raise typer.Exit(127 if isinstance(error, FileNotFoundError) else 126) from None
    except ValueError:  # a zero byte in an argument
        raise typer.Exit(Exit.USAGE.value) from None
