# SPDX-License-Identifier: Apache-2.0
"""An agent's lives: it starts, dies, is followed by another, and nothing is lost or half-made."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab.network import ROOT
from tests.api import Agent, children
from tests.nodes import PREFIX, eventually
from tests.one_agent import ROUTES, STATE


def test_a_killed_agent_is_followed_by_one_that_knows_everything(bench, ask):
    for name, vpc in (("a", "blue"), ("b", "red")):
        ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": vpc})
    ask.must("PUT", "/v1/vteps/192.0.2.77", {"mtu": 1300})
    assert eventually(bench.ready, 30)
    maps = bench.maps()
    asked = ("/v1/state", "/v1/sandboxes", "/v1/slots")
    before = [ask.must("GET", target) for target in asked]

    bench.restart(signal.SIGKILL)

    assert ask.must("GET", "/v1/node")["boot"] == "adopted"
    assert eventually(bench.ready, 30)
    assert [ask.must("GET", target) for target in asked] == before
    assert bench.maps() == maps
    assert ask.ask("PUT", "/v1/sandboxes/a", {"vpc": "blue"})[0] == 200


@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.5])
def test_an_agent_killed_while_it_applies_leaves_one_of_the_two_states(bench, ask, after):
    """Store and maps say the same afterwards: all of the change, or nothing of it."""
    before = ask.must("GET", "/v1/state")["revision"]
    routes = [
        {"vpc": "red", "prefix": f"10.0.{i >> 8}.{i & 255}/32", "kind": "blackhole"}
        for i in range(20_000)
    ]
    other = Agent(bench.node.socket)

    def apply():
        with contextlib.suppress(OSError, AssertionError):
            other.ask("PUT", "/v1/state", STATE | {"routes": routes})

    thread = threading.Thread(target=apply)
    thread.start()
    time.sleep(after)
    bench.stop(signal.SIGKILL)
    thread.join()
    other.close()
    bench.start()

    state = ask.must("GET", "/v1/state")
    assert len(state["routes"]) in (len(ROUTES), len(routes))
    assert (state["revision"] > before) == (len(state["routes"]) == len(routes))
    assert len(bench.maps()[0]) == len(state["routes"])


def test_sigterm_ends_the_agent_and_nothing_else(bench, ask):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    maps = bench.maps()

    bench.stop(signal.SIGTERM)

    assert not bench.node.socket.exists()
    assert bench.maps() == maps
    assert bench.log().rstrip().endswith("event=stopped node=node1")
    bench.start()
    assert ask.must("GET", "/v1/sandboxes/a")["state"] == "attached"


def test_a_lost_state_file_costs_no_sandbox_its_network(bench, ask):
    """Maps are kept, the node says that something is wrong, and applying anew mends it."""
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    maps = bench.maps()
    bench.stop(signal.SIGKILL)
    for path in bench.database.parent.glob("state.db*"):
        path.unlink()
    bench.lab.start_agent(bench.node)
    assert eventually(lambda: _answers(ask), 30)

    assert bench.maps() == maps
    assert ask.code("GET", "/readyz") == "degraded"
    assert ask.must("GET", "/v1/node")["state"] == "degraded"
    assert ask.must("GET", "/v1/sandboxes/a")["vpc"] == ""
    ask.must("PUT", "/v1/state", STATE)
    assert ask.must("GET", "/v1/sandboxes/a")["vpc"] == "blue"
    assert bench.maps() == maps
    assert eventually(lambda: ask.ask("GET", "/readyz")[0] == 200, 30)  # it looks at hooks, too


def test_without_its_state_a_sandbox_can_still_be_detached(bench, ask):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    bench.stop(signal.SIGKILL)
    for path in bench.database.parent.glob("state.db*"):
        path.unlink()
    bench.lab.start_agent(bench.node)
    assert eventually(lambda: _answers(ask), 30)

    assert ask.must("DELETE", "/v1/sandboxes/a")["sandbox"] == "a"
    assert bench.maps()[2] == set()
    ask.must("PUT", "/v1/state", {})
    assert bench.maps() == (set(), set(), set())


def _answers(agent):
    try:
        return agent.ask("GET", "/healthz")[0] == 200
    except OSError:
        agent.close()
        return False


def _run_agent(bench, *before):
    done = subprocess.run(
        [*before, sys.executable, "-m", "geneve_ebpf", "-j", "agent", "run",
         "--config", str(bench.node.config)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_second_agent_for_a_node_is_refused(bench, ask):
    status, said = _run_agent(bench)

    assert status == 4
    assert '"agent_running"' in said
    assert str(bench.pid) in said
    assert ask.must("GET", "/v1/node")["state"] == "ready"


def test_an_agent_in_a_mount_namespace_of_its_own_is_refused(bench):
    """Whatever it pinned or mounted there would vanish with it."""
    bench.stop(signal.SIGTERM)

    status, said = _run_agent(bench, "unshare", "--mount")

    assert status == 1
    assert '"mount_namespace"' in said


def test_an_agent_that_is_not_root_is_refused(bench):
    bench.stop(signal.SIGTERM)
    bench.node.config.parent.chmod(0o755)

    status, said = _run_agent(bench, "setpriv", "--reuid=65534", "--clear-groups")
    bench.node.config.parent.chmod(0o700)

    assert status == 7
    assert '"not_permitted"' in said


def test_a_damaged_state_file_is_refused_and_nothing_is_cut(bench, ask):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    maps = bench.maps()
    bench.stop(signal.SIGTERM)
    good = bench.database.read_bytes()
    bench.database.write_bytes(b"x" * len(good))

    status, said = _run_agent(bench)
    bench.database.write_bytes(good)

    assert status == 1
    assert '"state_store"' in said
    assert bench.maps() == maps
    bench.start()


def test_the_service_manager_is_told(bench, monkeypatch, tmp_path):
    """READY=1 when it serves, WATCHDOG=1 while it does, STOPPING=1 when it ends."""
    bench.stop(signal.SIGTERM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        bench.start()

        told = [manager.recv(100), manager.recv(100)]
        bench.stop(signal.SIGTERM)
        while told[-1] != b"STOPPING=1":
            told.append(manager.recv(100))

    assert told[0] == b"READY=1"
    assert set(told[1:-1]) == {b"WATCHDOG=1"}


def test_children_end_with_an_agent_that_is_killed(bench):
    (child,) = children(bench.pid, "geneve_ebpf.agent.slot_process")

    bench.stop(signal.SIGKILL)

    assert eventually(lambda: not Path(f"/proc/{child}/cmdline").exists() or _is_zombie(child))


def _is_zombie(pid):
    with contextlib.suppress(OSError):
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


def test_processes_stay_on_the_cpus_they_are_given(bench):
    """And one that is not placed off the agent's, where there is another."""
    bench.stop(signal.SIGTERM)
    config = bench.node.config.read_text()
    last = max(os.sched_getaffinity(0))
    bench.node.config.write_text(f"{config}\n[placement]\nagent_cpu = {last}\n")
    bench.start()
    bench.node.config.write_text(config)

    (child,) = children(bench.pid, "geneve_ebpf.agent.slot_process")
    assert os.sched_getaffinity(bench.pid) == {last}
    others = os.sched_getaffinity(0) - {last}
    assert os.sched_getaffinity(child) == {max(others or {last})}


def test_each_change_is_logged_with_its_caller_and_what_came_of_it(bench, ask):
    ask.must("PUT", "/v1/sandboxes/logged", {"vpc": "blue"})
    ask.code("PUT", "/v1/sandboxes/logged", {"vpc": "red"})
    ask.must("DELETE", "/v1/sandboxes/logged")
    ask.must("POST", "/v1/slots:reserve")
    ask.must("PUT", "/v1/vteps/192.0.2.80", {})

    assert eventually(lambda: "address=192.0.2.80" in bench.log())
    who = f"uid=0 pid={os.getpid()}"
    lines = [line for line in bench.log().splitlines() if who in line]
    for wanted in (
        r"event=attach sandbox=logged vpc=blue vni=100 address=\S+ slot=\S+ generation=\d+"
        r" status=201",
        r"event=change method=PUT target=/v1/sandboxes/logged status=409 .*code=sandbox_exists",
        r"event=detach sandbox=logged .*status=200",
        r"event=reserve slot=slot-\d+ status=201",
        r"event=vtep-added address=192.0.2.80 mtu=0 status=201",
    ):
        assert any(re.search(wanted, line) for line in lines), wanted


def test_a_node_that_is_taken_down_leaves_its_state_file_only(bench, ask):
    """Refused while somebody is attached; forced, everything goes and the agent with it."""
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    assert ask.code("POST", "/v1/node:down", {}) == "node_in_use"
    assert ask.must("GET", "/v1/sandboxes/a")["state"] == "attached"
    pid = bench.pid

    answer = ask.must("POST", "/v1/node:down", {"force": True})
    ask.close()
    bench.lab.stop_agent(bench.node)

    assert answer["sandboxes"] == 1
    assert not Path(f"/proc/{pid}").exists()
    assert not bench.run_directory.exists()
    links = subprocess.run(
        ["ip", "-n", bench.node.namespace, "-o", "link"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "gnv" not in links.replace(PREFIX, "")
    bench.start()
    assert ask.must("GET", "/v1/node")["boot"] == "kept"
    assert {one["name"] for one in ask.must("GET", "/v1/vpcs")["vpcs"]} == {"blue", "red"}
    assert len(bench.maps()[0]) == len(ROUTES)


def test_an_agent_that_comes_back_serves_by_its_maps_and_mends_what_hangs_no_more(bench):
    """Nothing but pins and maps is read before it serves; it is ready when all hangs again."""
    bench.agent.must("PUT", "/v1/sandboxes/stays", {"vpc": "blue"})
    bench.stop(signal.SIGKILL)
    (hook,) = bench.run_directory.glob("bpf/*/uplink-*")
    hook.unlink()
    before = len(bench.log())

    bench.start()

    said = bench.log()[before:]
    assert said.index("event=serving") < said.index('child="slot process"')
    assert hook.exists()
    assert bench.agent.must("GET", "/v1/sandboxes/stays")["state"] == "attached"
    assert eventually(bench.ready, 30)
