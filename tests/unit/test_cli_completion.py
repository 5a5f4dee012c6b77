# SPDX-License-Identifier: Apache-2.0
"""The shell completes commands and options, set up as docs/cli.md says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
# What bash does when Tab is pressed: it calls the function that `complete` names.
TAB = """
. "$1"
shift
[[ $(complete -p geneve-ebpf) =~ -F\\ ([^ ]+) ]] || exit
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}" geneve-ebpf
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(script: str, *words: str) -> str:
    """Run it in a bash that reads no file of this user's and finds the command; its stdout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words], env={**os.environ, "PATH": path},
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def completion(tmp_path_factory) -> str:
    """The file that the page has root make for everybody."""
    (line,) = re.findall(r"^( *_GENEVE_EBPF_COMPLETE=source_bash .*)$", PAGE, re.MULTILINE)
    command, _, place = line.partition(" >")
    assert place.startswith("/etc/")
    path = tmp_path_factory.mktemp("completion") / "geneve-ebpf"
    path.write_text(bash(command))
    return str(path)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["vt"], {"vtep"}),
        (["vpc", ""], {"create", "list", "show", "delete"}),
        (["attach", "web", "--vp"], {"--vpc"}),
    ],
)
def test_bash_offers_commands_and_options(completion, typed, offered):
    assert set(bash(TAB, completion, "geneve-ebpf", *typed).split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_a_script_of_their_own(shell):
    """Neither is here to run it: it names the command, and asks it in that shell's way."""
    script = bash(f"_GENEVE_EBPF_COMPLETE=source_{shell} geneve-ebpf")

    assert f"_GENEVE_EBPF_COMPLETE=complete_{shell}" in script
