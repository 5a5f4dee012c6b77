# SPDX-License-Identifier: Apache-2.0
"""`lab/nodes` and `script/demo`, as the README has people run them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from lab.network import ROOT
from tests.nodes import PREFIX

NAME = f"{PREFIX}-lab"


def nodes(*words: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    """Run lab/nodes on a lab of this test's own."""
    return subprocess.run(
        [str(ROOT / "lab/nodes"), *words],
        env={**os.environ, "GENEVE_EBPF_LAB": NAME},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def afterwards_down():
    """Takes the lab down, whatever the test left of it."""
    yield
    assert nodes("down").returncode == 0
    assert not Path(f"/run/gnv-{NAME}").exists()
    assert not [name for name in os.listdir("/run/netns") if NAME in name]


def test_a_lab_of_three_nodes_is_up_until_it_is_taken_down(afterwards_down):
    """up, up again, exec in each node, packets between them, status, down, down again."""
    assert nodes("exec", "node1", "--", "true").returncode == 1

    up = nodes("up", "--nodes", "3", "--slots", "2")
    assert up.returncode == 0, up.stderr
    assert len(up.stdout.splitlines()) == 3
    assert nodes("up").returncode == 0
    assert nodes("status").stdout.count("agent runs") == 3

    for number in (1, 3):
        attach = nodes(
            "exec", f"node{number}", "--", "geneve-ebpf", "attach", f"s{number}", "--vpc", "blue",
            "--address", f"10.0.{number}.10",
        )  # fmt: skip
        assert attach.returncode == 0, attach.stderr
    ping = ["ping", "-c", "2", "-i", "0.05", "-W", "2", "10.0.3.10"]
    there = nodes("exec", "node1", "--", "geneve-ebpf", "netns-exec", "s1", "--", *ping)
    assert there.returncode == 0, there.stdout + there.stderr
    assert nodes("exec", "node9", "--", "true").returncode == 1

    assert nodes("down").returncode == 0
    assert nodes("down").stderr == "no lab is up\n"


def test_an_agent_that_was_killed_does_not_keep_the_lab_from_going_down(afterwards_down):
    """`down` takes pins, slots and hooks away without the agent's help."""
    assert nodes("up", "--nodes", "1", "--slots", "2").returncode == 0
    (pid,) = (
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and f"/run/gnv-{NAME}/node1.toml" in _words(entry)
    )
    os.kill(pid, signal.SIGKILL)

    assert nodes("down").returncode == 0


def _words(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def demo(**options) -> subprocess.Popen[str]:
    """Start script/demo."""
    return subprocess.Popen(
        [str(ROOT / "script/demo")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_demo_shows_what_it_promises():
    """It checks itself; here: it ends well, shows every part, and writes no colour to a pipe."""
    out, err = demo().communicate(timeout=110)

    assert err == ""
    assert "\x1b" not in out
    assert len(re.findall(r"\$ geneve-ebpf attach .* \d+ us$", out, re.M)) == 6
    for vni in (4097, 4098):
        assert f"Geneve VNI {vni}  [ 10.0.1.10 > 10.0.2.10 ]" in out
    assert "Geneve VNI 4097  [ fd00:10:0:1::10 > fd00:10:0:2::10 ]" in out
    assert "ok  blue-1 -> fd00:10:0:2::10" in out
    assert "hears: I am blue-2" in out
    assert "hears: I am red-2" in out
    assert re.search(r"spoofed_address +tx", out)
    assert re.search(r"no_endpoint +rx", out)
    assert re.search(r"[\d.]+ Gbit/s", out)
    assert "are gone" in out
    assert "lab/nodes up" in out


def test_an_interrupted_demo_leaves_nothing():
    """SIGTERM in the middle: status 130, everything removed (the module's check looks too)."""
    process = demo()
    for line in process.stdout:
        if "Attach" in line:
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "are gone" in out
    assert not Path("/run/gnv-demo").exists()
