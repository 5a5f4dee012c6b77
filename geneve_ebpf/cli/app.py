# SPDX-License-Identifier: Apache-2.0
"""The whole command: nouns and verbs together, and how every failure ends.

Nothing heavy is imported here or in the files of the nouns: a command that
asks the agent something starts in a fraction of a second.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from geneve_ebpf import __version__
from geneve_ebpf.cli import (
    config,
    daemon,
    doctor,
    drops,
    events,
    node,
    operations,
    output,
    route,
    sandbox,
    slot,
    state,
    version,
    vpc,
    vtep,
)
from geneve_ebpf.cli.command import Command, Root, set_host
from geneve_ebpf.errors import Code, Exit, GeneveError

# Click's UsageError, which typer keeps in different places from version to version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="geneve-ebpf",
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"geneve-ebpf {__version__}")
        raise typer.Exit


@app.callback()
def root(
    host: Annotated[
        str,
        typer.Option(
            "--host",
            "-H",
            metavar="unix:///PATH",
            help="The agent's socket; else $GENEVE_EBPF_HOST, else that of node `default`.",
            show_default=False,
        ),
    ] = "",
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version of this command and exit.",
        ),
    ] = False,
) -> None:
    """Put sandboxes into tenants' VPCs over Geneve, with eBPF."""
    set_host(host)


app.command("attach", cls=Command)(sandbox.attach)
app.command("detach", cls=Command)(sandbox.detach)
app.command("list", cls=Command)(sandbox.list_)
app.command("show", cls=Command)(sandbox.show)
app.command("netns-exec", cls=Command, context_settings={"allow_interspersed_args": False})(
    sandbox.netns_exec
)
app.add_typer(slot.app)
app.add_typer(vpc.app)
app.add_typer(vtep.app)
app.add_typer(route.app)
app.command("apply", cls=Command)(state.apply)
app.command("export", cls=Command)(state.export)
app.command("drops", cls=Command)(drops.drops)
app.command("events", cls=Command)(events.events)
app.add_typer(operations.app)
app.add_typer(node.app)
app.add_typer(daemon.app)
app.add_typer(config.app)
app.command("doctor", cls=Command)(doctor.doctor)
app.command("version", cls=Command)(version.version)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Users' mistakes end in one line, never a traceback."""
    # As any other command dies in `geneve-ebpf list | head -1`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        result = app(args=arguments, prog_name="geneve-ebpf", standalone_mode=False)
    except GeneveError as error:
        output.complain(error)
        return error.code.value.exit.value
    except _UsageError as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or sys.stdout is None:
            if sys.stdout is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            output.note(f"error: the answer could not be written: {error.strerror}")
            return Exit.FAILED.value
        if not isinstance(error, BrokenPipeError):
            raise
        # Nobody reads any more; keep the interpreter from saying so while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return result if isinstance(result, int) else Exit.OK.value


def _usage(error: Exception) -> int:
    """A mistake on the command line, in the same words as any other error."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        output.note(message)
        return Exit.USAGE.value
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "geneve-ebpf"
    if "--json" in sys.argv or "-j" in sys.argv:
        output.want_json(True)  # the mistake may have come before it was parsed
    output.complain(
        GeneveError(Code.BAD_REQUEST, message.rstrip("."), hint=f"see {command} --help")
    )
    return Exit.USAGE.value
