# SPDX-License-Identifier: Apache-2.0
"""`lab/bench` across three machines, which here are namespaces: two workers and a client outside.

What a machine has of its own and a namespace has not is put in its place by the line that
reaches it: the agents run already, so `systemctl` has nothing to do, and names below /etc and
of namespaces are told apart.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.network import ROOT, Lab
from tests.command import geneve, new_lab

REACH = """#!/bin/sh
case $1 in client) node=node3 ;; *) node=$1 ;; esac
line=$(printf %s "$2" | sed "s|/etc/geneve-ebpf/agent.toml|{directory}/$node.toml|g
    s|gnv-classic|{prefix}-$node-classic|g")
export PATH={bin}:$PATH GENEVE_EBPF_HOST=unix://{directory}/run/$node/api.sock
exec nsenter --net=/run/netns/{prefix}-$node -- {bin}/sudo sh -c "$line"
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three nodes, the last one without an agent: the client."""
    with new_lab("bench") as made:
        made.make_nodes(3, slots=2)
        for node in made.nodes[:2]:
            made.start_agent(node)
        for node in made.nodes[:2]:
            made.wait_ready(node)
        yield made


@pytest.fixture
def through(lab: Lab, tmp_path: Path) -> str:
    """The command that reaches a machine."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    files = {
        "sudo": '#!/bin/sh\nexec "$@"\n',
        "systemctl": "#!/bin/sh\necho active\n",
        "geneve-ebpf": f'#!/bin/sh\nexec {sys.executable} -m geneve_ebpf "$@"\n',
        "reach": REACH.format(directory=lab.directory, prefix=lab.prefix, bin=bin_),
    }
    for name, text in files.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    return f"{bin_}/reach {{}}"


def bench(through: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "lab" / "bench"), "--through", through, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def state(lab: Lab) -> list[dict[str, object]]:
    return [json.loads(geneve(node, "export").stdout) for node in lab.nodes[:2]]


def test_it_measures_each_way_and_the_client_gets_nowhere(lab, through, tmp_path):
    """A row of each, all above nothing; what it made is gone."""
    file = tmp_path / "figures.json"

    done = bench(through, "--rounds", 1, "--seconds", 1, "--json", file)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert set(found["rows"]) == {
        f"{work}.{way}"
        for work in ("rtt", "tcp1")
        for way in ("ours", "vxlan_bridge", "underlay")
    }
    assert all(value > 0 for values in found["rows"].values() for value in values)
    assert [line.split(":")[0] for line in found["outsider"]] == [
        "20 packets that the client forged",
        "3 pings that the client routed to node2",
        "node2's metrics, which listen on 127.0.0.1",
    ]
    assert all(line in done.stdout for line in found["outsider"])
    assert not any(left["vpcs"] or left["vteps"] for left in state(lab))


def test_metrics_that_are_served_outside_are_there(lab, through):
    """The client asks for them at node2's address on the wire, wherever they listen."""
    node2 = lab.nodes[1]
    text = node2.config.read_text()
    try:
        lab.stop_agent(node2)
        node2.config.write_text(re.sub(r'listen = ".*"', 'listen = "0.0.0.0:16081"', text))
        lab.start_agent(node2)
        lab.wait_ready(node2)
        done = bench(through, "--rounds", 0)
    finally:
        lab.stop_agent(node2)
        node2.config.write_text(text)
        lab.start_agent(node2)
        lab.wait_ready(node2)

    assert done.returncode == 0, done.stderr
    assert re.search(r"0\.0\.0\.0:16081: [1-9][0-9]* metrics for the client", done.stdout)


def test_a_client_that_is_let_in_is_told(lab, through):
    """As a VTEP that node2 knows it may forge what it likes: no figure is printed then."""
    node2, client = lab.nodes[1], lab.nodes[2]
    assert geneve(node2, "vtep", "add", client.vtep).returncode == 0
    try:
        done = bench(through, "--rounds", 0)
    finally:
        assert geneve(node2, "vtep", "delete", client.vtep).returncode == 0

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bench: of 20 forged packets 0 were seen as an unknown VTEP's\n"
    assert not any(left["vpcs"] or left["vteps"] for left in state(lab))
