# SPDX-License-Identifier: Apache-2.0
"""A node's life by commands: no agent, agent killed, no slot, taken down."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.network import Lab
from tests.command import asked, geneve, new_lab, refused


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One node, not started."""
    with new_lab("n") as lab:
        lab.make_nodes(1, slots=2, metrics=False)
        yield lab


def test_commands_say_when_no_agent_runs_and_the_node_outlives_it(lab):
    """Exit 5 before the first and after a killed agent; the next one adopts what was attached."""
    (node,) = lab.nodes
    assert refused(node, "list") == (5, "agent_unreachable")
    assert refused(node, "node", "status") == (5, "agent_unreachable")

    lab.start_agent(node)
    assert geneve(node, "node", "status", "--wait", "30").returncode == 0
    lab.wait_ready(node)
    asked(node, "vpc", "create", "blue", "--vni", "7", "--prefix", "10.0.0.0/16")
    attached = asked(node, "attach", "web", "--vpc", "blue")
    assert asked(node, "node", "status")["boot"] == "kept"

    lab.stop_agent(node, signal.SIGKILL)
    assert refused(node, "list") == (5, "agent_unreachable")

    lab.start_agent(node)
    lab.wait_ready(node)
    (adopted,) = asked(node, "list")["sandboxes"]
    assert (adopted["sandbox"], adopted["generation"]) == ("web", attached["generation"])
    assert asked(node, "node", "status")["boot"] == "adopted"


def test_node_down_refuses_while_sandboxes_are_attached(lab):
    """Or slots reserved: exit 4, nothing is touched; with --force it goes, the agent too."""
    (node,) = lab.nodes
    lab.start_agent(node)
    lab.wait_ready(node)
    asked(node, "vpc", "create", "blue", "--vni", "7", "--prefix", "10.0.0.0/16")
    asked(node, "attach", "web", "--vpc", "blue")

    assert refused(node, "node", "down") == (4, "node_in_use")
    assert len(asked(node, "list")["sandboxes"]) == 1
    asked(node, "detach", "web")
    reserved = asked(node, "slot", "reserve")["slot"]["id"]
    plain = geneve(node, "node", "down")
    assert plain.stderr.startswith("error: the node has 1 slot reserved (node_in_use)\n")
    assert "slot release" in plain.stderr
    assert asked(node, "slot", "list")["counts"]["reserved"] == 1
    asked(node, "attach", "web", "--vpc", "blue", "--slot", reserved)

    done = geneve(node, "node", "down", "--force")
    assert (done.returncode, done.stdout) == (0, "node is down\n")
    lab.wait_gone(node)
    assert refused(node, "list") == (5, "agent_unreachable")
    assert not node.socket.parent.exists()


def test_a_node_whose_agent_is_dead_goes_down_by_its_configuration(lab):
    """`node down --config` refuses like the agent does, then removes what the dead one made."""
    (node,) = lab.nodes
    lab.start_agent(node)
    lab.wait_ready(node)
    asked(node, "vpc", "create", "blue", "--vni", "7", "--prefix", "10.0.0.0/16")
    asked(node, "attach", "web", "--vpc", "blue")
    config = ("--config", str(node.config))
    asked(node, "slot", "reserve")
    assert refused(node, "node", "down", *config) == (4, "agent_running")

    lab.stop_agent(node, signal.SIGKILL)
    assert refused(node, "node", "down", *config) == (4, "node_in_use")

    gone = asked(node, "node", "down", "--force", *config)
    assert (gone["schema"], gone["sandboxes"]) == ("geneve-ebpf/down/1", 1)
    assert not node.socket.parent.exists()
    assert asked(node, "node", "down", *config)["slots"] == 0


def test_no_slot_is_exit_6_and_retryable(lab):
    """A node that keeps no slot says so at once, and how to mend it."""
    (node,) = lab.nodes
    node.config.write_text(node.config.read_text().replace("slots = 2", "slots = 0"))
    lab.start_agent(node)
    lab.wait_ready(node)
    asked(node, "vpc", "create", "blue", "--vni", "7", "--prefix", "10.0.0.0/16")

    assert refused(node, "attach", "web", "--vpc", "blue") == (6, "no_slot")
    assert refused(node, "slot", "reserve") == (6, "no_slot")
    assert asked(node, "list")["sandboxes"] == []


def test_a_node_that_is_refused_at_its_start_leaves_no_files(lab, tmp_path):
    """In another node's namespace: neither a lock, nor an empty state."""
    (node,) = lab.nodes
    lab.start_agent(node)
    lab.wait_ready(node)
    table = tomllib.loads(node.config.read_text())["node"]
    config = tmp_path / "second.toml"
    config.write_text(
        f'[node]\nname = "second"\nvtep = "{table["vtep"]}"\nuplinks = ["uplink0"]\n'
        f'netns = "{table["netns"]}"\nrun_root = "{table["run_root"]}"\n'
        f'state_root = "{table["state_root"]}"\n'
    )

    done = geneve(node, "agent", "run", "--config", config)

    assert (done.returncode, "(node_in_use)" in done.stderr) == (4, True), done.stderr
    assert not Path(table["run_root"], "second").exists()
    assert not Path(table["state_root"], "second").exists()
    assert geneve(node, "node", "status").returncode == 0
