# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf` as a user types it: a process of its own, asking a real agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.network import Lab, Node
from tests.nodes import PREFIX

COMMAND = str(Path(sys.executable).with_name("geneve-ebpf"))


def new_lab(name: str) -> Lab:
    """A lab of this test run; nothing of it exists yet."""
    return Lab(Path(f"/run/{PREFIX}-{name}"), f"{PREFIX}{name}")


def geneve(node: Node, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command against a node's agent, to its end."""
    options = {"stdin": subprocess.DEVNULL, **options}
    if "input" in options:
        del options["stdin"]
    return subprocess.run(
        [COMMAND, *(str(word) for word in words)],
        env=node.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def asked(node: Node, *words: object) -> dict[str, Any]:
    """The JSON that a command prints; it must succeed and say nothing else."""
    done = geneve(node, "-j", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refused(node: Node, *words: object, **options: Any) -> tuple[int, str]:
    """(exit status, code) of a command that fails as it should: no stdout, no traceback."""
    done = geneve(node, "-j", *words, **options)
    assert done.stdout == ""
    error = json.loads(done.stderr)
    assert error["schema"] == "geneve-ebpf/error/1"
    assert error["error"]["message"]

    plain = geneve(node, *words, **options)
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: ")
    assert f"({error['error']['code']})" in plain.stderr.splitlines()[0], plain.stderr
    assert "Traceback" not in plain.stderr
    assert plain.returncode == done.returncode
    return done.returncode, error["error"]["code"]


def as_nobody(*words: str, node: Node) -> subprocess.CompletedProcess[str]:
    """The command run by somebody who is not root."""
    return subprocess.run(
        [COMMAND, *words],
        env={**node.environment(), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=os.sep,
    )
