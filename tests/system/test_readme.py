# SPDX-License-Identifier: Apache-2.0
"""Every command of the README does what a reader expects: it ends well.

The commands are taken out of the page. Those of "On a node of your own" run in a node of
this test's, whose configuration is the README's and says also where the node's namespace
and files are.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lab.network import ROOT, run, set_up_namespace
from tests.nodes import PREFIX, eventually

README = (ROOT / "README.md").read_text()
NAME = f"{PREFIX}-readme"
HOME = Path(f"/run/{NAME}")
COMMAND = str(Path(sys.executable).with_name("geneve-ebpf"))
# Shown by other tests, or by CI itself; each must be there and say what it is for.
ELSEWHERE = {"script/demo", "script/test", "script/bench", "script/fuzz", "script/bootstrap"}


def chapter(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return text


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The command lines of a text's shell blocks as words, comments taken off."""
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [line for line in lines if line]


def ends_well(words: list[str], **options) -> str:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False,
        **options,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def test_every_script_that_is_named_is_there_and_can_be_started():
    """Anywhere in the page, in a block or in a sentence."""
    named = set(re.findall(r"(?<![./\w])((?:script|lab)/[a-z]+)\b", README))

    assert named >= {"lab/nodes", "script/demo", "script/test", "script/bench"}
    for name in named:
        assert os.access(ROOT / name, os.X_OK), name
    for words in commands(README):
        plain = words[1:] if words[0] == "sudo" else words
        known = plain[0] in ELSEWHERE or plain[0].endswith(("geneve-ebpf", "lab/nodes"))
        assert known or plain[0] in ("exit", "curl"), words


def test_the_lab_can_be_played_with_as_written():
    """By hand: what stands between `shell` and `exit` is typed inside the node."""
    environment = {**os.environ, "GENEVE_EBPF_LAB": NAME}
    nodes = str(ROOT / "lab/nodes")
    inside: list[str] = []
    typed = 0
    try:
        for words in commands(chapter("By hand")):
            plain = words[1:] if words[0] == "sudo" else words
            if plain[:2] == ["lab/nodes", "shell"]:
                inside = [nodes, "exec", plain[2], "--"]
            elif plain == ["exit"]:
                inside = []
            elif plain[0] == "lab/nodes":
                ends_well([nodes, *plain[1:]], env=environment)
            else:
                ends_well([*inside, *plain], env=environment)
                typed += 1
    finally:
        ends_well([nodes, "down"], env=environment)
    assert typed >= 6


@pytest.fixture
def machine():
    """A namespace that plays the reader's machine: an eth1 with the README's VTEP address."""
    set_up_namespace(NAME)
    HOME.mkdir()
    try:
        run("ip", "-n", NAME, "link", "add", "eth1", "type", "veth", "peer", "name", "far1")
        for name in ("eth1", "far1"):
            run("ip", "-n", NAME, "link", "set", name, "up")
        (toml,) = blocks(chapter("On a node of your own"), "toml")
        vtep = tomllib.loads(toml)["node"]["vtep"]
        run("ip", "-n", NAME, "address", "add", f"{vtep}/24", "dev", "eth1")
        (HOME / "node.toml").write_text(
            f'{toml}netns = "/run/netns/{NAME}"\n'
            f'run_root = "{HOME}/run"\nstate_root = "{HOME}/state"\n'
        )
        yield
    finally:
        config = ["--config", str(HOME / "node.toml")]
        subprocess.run([COMMAND, "node", "down", "--force", *config], check=False, timeout=60)
        run("ip", "netns", "delete", NAME)
        run("rm", "-r", str(HOME))


def test_a_node_of_ones_own_comes_up_as_written(machine):
    """From `doctor` to the request of a platform with curl."""
    socket = HOME / "run" / "default" / "api.sock"
    environment = {**os.environ, "GENEVE_EBPF_HOST": f"unix://{socket}"}
    agent = None
    typed = []
    try:
        for words in commands(chapter("On a node of your own")):
            plain = words[1:] if words[0] == "sudo" else words
            if plain[0] in ELSEWHERE:
                continue
            plain = [str(HOME / word) if word == "node.toml" else word for word in plain]
            plain = [str(socket) if word.endswith("/api.sock") else word for word in plain]
            if plain[0] == "curl":
                plain.insert(1, "--fail")
            else:
                assert plain[0] == ".venv/bin/geneve-ebpf"
                plain[0] = COMMAND
            if plain[-1] == "&":
                with (HOME / "log").open("wb") as log:
                    agent = subprocess.Popen(
                        plain[:-1], env=environment, stdin=subprocess.DEVNULL,
                        stdout=log, stderr=log,
                    )  # fmt: skip
            else:
                if plain[1:3] == ["node", "status"]:
                    assert eventually(socket.exists, 60)
                ends_well(plain, env=environment)
            typed.append(plain[1])
    finally:
        if agent is not None:
            agent.send_signal(signal.SIGTERM)
            agent.wait(30)
    assert {"doctor", "agent", "node", "vpc", "vtep", "route", "attach", "--fail"} <= set(typed)
