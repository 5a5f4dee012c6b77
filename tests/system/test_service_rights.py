# SPDX-License-Identifier: Apache-2.0
"""The agent lives with the rights that deploy/geneve-ebpf.service leaves it, and no others.

No systemd runs here: setpriv(1) takes the capabilities away as the unit would, strace(1)
writes down each system call that its filter would refuse.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.network import ROOT, inside, run
from tests.command import asked, geneve, new_lab
from tests.nodes import eventually
from tests.patience import PATIENCE

SCRAPE = """
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:16081/metrics", timeout=10).read().decode())
"""
GROUP = 54321  # as docs/operations.md has an operator set one by Group=
UNIT = (ROOT / "deploy" / "geneve-ebpf.service").read_text()


def setting(key: str) -> list[str]:
    """The words of a setting of the unit."""
    (line,) = re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)
    return line.split()


def allowed_calls() -> set[str]:
    """The system calls that SystemCallFilter= lets through, groups taken apart."""
    known = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    groups = {
        match[1]: match[2].split()
        for match in re.finditer(r"^(@[\w-]+)\n((?:    .*\n)*)", known, re.MULTILINE)
    }

    def calls(word: str) -> set[str]:
        if not word.startswith("@"):
            return {word}
        words = (inner for inner in groups[word] if not inner.startswith("#"))
        return set().union(*(calls(inner) for inner in words if re.fullmatch(r"@?[\w-]+", inner)))

    return set().union(*(calls(word) for word in setting("SystemCallFilter")), calls("@default"))


@pytest.fixture(scope="module")
def confined(tmp_path_factory):
    """A node whose agent has the unit's rights, and where its other calls are written down."""
    trace: Path = tmp_path_factory.mktemp("strace") / "calls"
    capabilities = [name.removeprefix("CAP_").lower() for name in setting("CapabilityBoundingSet")]
    refused = "trace=!" + ",".join(f"?{name}" for name in sorted(allowed_calls()))
    with new_lab("rights") as lab:
        lab.patience = 90 * PATIENCE
        lab.make_nodes(1, slots=3)
        lab.directory.chmod(0o711)  # a lab's is root's alone, and /run is not
        (node,) = lab.nodes
        lab.start_agent(
            node,
            *("sh", "-c", 'umask "$0" && exec "$@"', *setting("UMask")),
            *("setpriv", f"--regid={GROUP}", "--clear-groups"),
            *("setpriv", "--no-new-privs", "--inh-caps=-all"),
            "--bounding-set=-all," + ",".join(f"+{name}" for name in capabilities),
            *("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", str(trace), "-e", refused),
        )
        lab.wait_ready(node)
        yield lab, node, trace


def test_the_services_group_reaches_the_agent_and_nobody_else_does(confined):
    """Through the directories above the socket, too, which the unit's umask would close."""
    _, node, _ = confined

    def status_for(group: int) -> str:
        """What the agent answers to a user who is in this group and is nobody else."""
        return subprocess.run(
            ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}",
             "--unix-socket", str(node.socket), "http://node/v1/node"],
            user=65534, group=group, extra_groups=[], capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    assert status_for(GROUP) == "200"
    assert status_for(GROUP + 1) == "000"


def test_an_agent_with_the_units_rights_serves_a_whole_life(confined):
    """Start, attach, talk to the gateway, detach, refill, scrape, `node down`."""
    _, node, _ = confined
    status = Path(f"/proc/{confined[0].agents[node.name]}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t000001ffffffffff" not in status

    assert geneve(node, "vpc", "create", "blue", "--vni", "7", "--prefix", "10.0.0.0/16").stdout
    assert geneve(node, "route", "add", "10.0.1.0/24", "--vpc", "blue", "--local").returncode == 0
    slot = asked(node, "slot", "reserve")["slot"]["id"]
    asked(node, "attach", "web", "--vpc", "blue", "--slot", slot)
    asked(node, "attach", "db", "--vpc", "blue", "--address", "10.0.1.9")
    ping = ("ping", "-n", "-c", "1", "-W", "5", "10.0.1.9")
    assert geneve(node, "netns-exec", "web", "--", *ping).returncode == 0
    assert "geneve_ebpf_slots" in run(*inside(node.netns, sys.executable, "-c", SCRAPE))
    asked(node, "detach", "web")
    asked(node, "detach", "db")
    assert eventually(lambda: asked(node, "node", "status")["slots"]["ready"] == 3, 30)
    down = geneve(node, "node", "down")
    assert (down.returncode, down.stderr) == (0, "")
    confined[0].wait_gone(node)


def test_it_made_no_system_call_that_the_units_filter_refuses(confined):
    """Of the agent and all its children, the compiler too. Runs after the life above."""
    assert "unlinkat" in allowed_calls()
    assert "kexec_load" not in allowed_calls()

    lines = confined[2].read_text().splitlines()
    calls = {match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line))}

    assert calls == set()
