# SPDX-License-Identifier: Apache-2.0
"""What Prometheus sees of a node, scraped inside the node's namespace."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from geneve_ebpf.exporter.metrics import METRICS
from geneve_ebpf.exporter.server import CONNECTIONS_MAX
from geneve_ebpf.host import namespaces
from geneve_ebpf.loader.pins import Pins
from lab.network import Lab, Node
from tests.command import asked, geneve, new_lab
from tests.nodes import eventually
from tests.programs import path_mtu

PER_SANDBOX = {metric.name for metric in METRICS if "sandbox" in metric.labels}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes of one VPC; the second one counts per sandbox too."""
    with new_lab("m") as lab:
        lab.make_nodes(2, slots=4)
        second = lab.nodes[1]
        text = second.config.read_text().replace("127.0.0.1:16081", "[::]:16081")
        second.config.write_text(text + "per_sandbox = true\n")
        for node in lab.nodes:
            lab.start_agent(node)
        for node in lab.nodes:
            lab.wait_ready(node)
        blocks = {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}
        lab.connect("blue", 7, ("10.0.0.0/16", blocks))
        asked(lab.nodes[0], "attach", "web", "--vpc", "blue", "--address", "10.0.1.10")
        asked(lab.nodes[1], "attach", "db", "--vpc", "blue", "--address", "10.0.2.10")
        for node in lab.nodes:
            assert eventually(lambda node=node: serves(node)), "no exporter"
        yield lab


def get(node: Node, path: str = "/metrics", host: str = "127.0.0.1") -> tuple[int, str]:
    """One GET from inside the node's namespace."""
    with namespaces.entering(node.netns):
        connection = socket.create_connection((host, 16081), timeout=10)
    client = http.client.HTTPConnection("127.0.0.1")
    client.sock = connection
    try:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    finally:
        client.close()


def serves(node: Node) -> bool:
    """Whether somebody serves metrics on the node."""
    try:
        return get(node, "/")[0] == 200
    except OSError:
        return False


def scrape(node: Node) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) -> value of every sample."""
    status, text = get(node)
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    """One sample's value; `class_` stands for the label `class`."""
    wanted = {key.rstrip("_"): text for key, text in labels.items()}
    return samples[(f"geneve_ebpf_{name}", frozenset(wanted.items()))]


def exposed(node: Node) -> set[str]:
    """The names on the TYPE lines."""
    return {line.split()[2] for line in get(node)[1].splitlines() if line.startswith("# TYPE")}


def test_metrics_are_served_at_an_ipv6_address(lab):
    """`[::]` is every address of the node, of either family; 127.0.0.1 is no IPv6."""
    first, second = lab.nodes

    assert get(second, host="::1")[0] == get(second)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(first, host="::1")


def test_exactly_the_documented_metrics_are_exposed(lab):
    """docs/metrics.md is made of METRICS, and METRICS is what a scrape gives: no more, no less."""
    plain, detailed = lab.nodes

    assert exposed(plain) == {metric.name for metric in METRICS} - PER_SANDBOX
    assert exposed(detailed) == {metric.name for metric in METRICS}


@pytest.mark.parametrize("index", [0, 1])
def test_samples_have_the_documented_types_and_labels(lab, index):
    """Labels are an interface as much as names."""
    known = {metric.name: metric for metric in METRICS}
    for family in text_string_to_metric_families(get(lab.nodes[index])[1]):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        metric = known[name]
        assert family.type == metric.kind
        assert family.samples or name == "geneve_ebpf_path_mtu_bytes"  # nobody has complained
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_a_learned_path_mtu_is_shown_while_it_holds(lab):
    """In a scrape, and by the agent."""
    node, other = lab.nodes
    pins = Pins(Path(node.directory, "run", node.name))

    with path_mtu(pins, other.vtep, 1400):
        assert value(scrape(node), "path_mtu_bytes", vtep=other.vtep) == 1400
        (known,) = asked(node, "vtep", "list")["vteps"]
    assert (known["address"], known["path_mtu"]["mtu"]) == (other.vtep, 1400)
    assert 0 < known["path_mtu"]["expires_in"] <= 100
    assert ("geneve_ebpf_path_mtu_bytes", frozenset({("vtep", other.vtep)})) not in scrape(node)


@pytest.mark.parametrize("index", [0, 1])
def test_promtool_finds_nothing_to_say(lab, index):
    """`promtool check metrics` is clean. script/bootstrap test installs promtool."""
    promtool = shutil.which("promtool") or shutil.which(
        "promtool", path=str(Path(sys.executable).parent)
    )
    assert promtool, "promtool is missing: script/bootstrap test"

    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=get(lab.nodes[index])[1],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_traffic_drops_and_attaches_are_counted_and_never_fall(lab):
    """Three pings are three packets each way, per VPC and per sandbox, after a detach too."""
    web, db = lab.nodes
    before, before_db = scrape(web), scrape(db)
    ping = ["netns-exec", "web", "--", "ping", "-c", "3", "-i", "0.05", "-W", "2", "10.0.2.10"]
    assert geneve(web, *ping).returncode == 0
    lost = ["netns-exec", "web", "--", "ping", "-c", "1", "-W", "0.3", "10.0.2.99"]
    assert geneve(web, *lost).returncode == 1

    after, after_db = scrape(web), scrape(db)

    def grew(name, old, new, **labels):
        return value(new, name, **labels) - value(old, name, **labels)

    remote = {"vpc": "blue", "path": "remote"}
    assert grew("vpc_packets_total", before, after, direction="tx", **remote) == 4
    assert grew("vpc_bytes_total", before, after, direction="tx", **remote) == 4 * 84
    assert grew("vpc_packets_total", before, after, direction="rx", **remote) == 3
    db_labels = {"sandbox": "db", "direction": "rx", **remote}
    assert grew("sandbox_packets_total", before_db, after_db, **db_labels) == 3
    reason = {"reason": "no_endpoint", "direction": "rx", "class_": "unreachable"}
    assert grew("drops_total", before_db, after_db, **reason) == 1

    asked(web, "attach", "brief", "--vpc", "blue", "--address", "10.0.1.20")
    brief = ["netns-exec", "brief", "--", "ping", "-c", "2", "-i", "0.05", "-W", "2", "10.0.2.10"]
    assert geneve(web, *brief).returncode == 0
    asked(web, "detach", "brief")
    folded = scrape(web)
    assert grew("vpc_packets_total", after, folded, direction="tx", **remote) == 2
    assert grew(
        "attach_duration_seconds_count", before, folded, stage="total", result="ok"
    ) == 1
    assert value(folded, "slots", state="attached", kind="namespace") == 1
    assert value(folded, "map_pressure_ratio", map="endpoints") > 0


def test_an_agent_that_does_not_answer_is_down(lab):
    """The exporter goes on without it: the maps are there, only agent_up is 0."""
    node = lab.nodes[0]
    pid = lab.agents[node.name]
    assert value(scrape(node), "agent_up") == 1

    os.kill(pid, signal.SIGSTOP)
    try:
        stopped = scrape(node)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert value(stopped, "agent_up") == 0
    assert value(stopped, "slots", state="attached", kind="namespace") == 1
    assert value(scrape(node), "agent_up") == 1


def test_other_paths_are_not_found(lab):
    """/ points to /metrics, anything else is a 404."""
    node = lab.nodes[0]

    assert "/metrics" in get(node, "/")[1]
    assert get(node, "/nothing")[0] == 404


def test_idle_connections_do_not_take_threads_without_end(lab):
    """Beyond so many somebody is told to come again, and is served when they are gone."""
    node = lab.nodes[0]
    with contextlib.ExitStack() as idle:
        with namespaces.entering(node.netns):
            for _ in range(CONNECTIONS_MAX):
                idle.enter_context(socket.create_connection(("127.0.0.1", 16081), timeout=10))
        assert eventually(lambda: status(node) == 503)

    assert eventually(lambda: status(node) == 200)


def status(node: Node) -> int:
    """Of an answer; 0 if there was none."""
    try:
        return get(node, "/")[0]
    except OSError:
        return 0


def test_the_exporter_is_not_the_agent_and_ends_with_it(lab):
    """A process of its own; when the agent is killed nobody serves stale numbers."""
    node = lab.nodes[1]
    agent = lab.agents[node.name]
    with namespaces.entering(node.netns):
        words = ["ss", "-Hltnp", "sport", "=", ":16081"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    pid = int(done.stdout.partition("pid=")[2].partition(",")[0])
    assert pid != agent

    lab.stop_agent(node, signal.SIGKILL)

    assert eventually(lambda: not serves(node))
    assert eventually(lambda: not _command_line(pid)), "it lives on"
    lab.start_agent(node)
    lab.wait_ready(node)
    assert eventually(lambda: serves(node))
    assert value(scrape(node), "agent_up") == 1


def _command_line(pid: int) -> bytes:
    """Empty for a process that is gone, or that only its parent has not asked about yet."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
