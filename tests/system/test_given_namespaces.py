# SPDX-License-Identifier: Apache-2.0
"""Slots in namespaces that others made, as a container runtime has it: one `attach --netns` when a
container starts, one `detach` when it ends, each safe to repeat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.network import NETNS, Lab, Node, inside, run
from tests.api import Agent, children, kill_slot_process
from tests.command import asked, geneve, new_lab, refused
from tests.given import addresses, interfaces, mtu, records, untouched
from tests.hanging import hanging
from tests.kinds import empty, states
from tests.nodes import PREFIX, eventually, ping
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
SLOTS = 2
SLOT_PROCESS = "geneve_ebpf.agent.slot_process"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab("given") as made:
        made.patience = 90 * PATIENCE
        made.up(slots=SLOTS, metrics=False)
        spans = (
            ("10.0.0.0/16", {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}),
            ("fd00::/48", {"node1": "fd00:0:0:1::/64", "node2": "fd00:0:0:2::/64"}),
        )
        made.connect("blue", 42, *spans)
        yield made


@pytest.fixture
def netns() -> Iterator[Path]:
    """A container's namespace, as its runtime makes it: with nothing in it but `lo`, down."""
    path = NETNS / f"{PREFIX}box"
    run("ip", "netns", "add", path.name)
    yield path
    if path.exists():
        run("ip", "netns", "delete", path.name)


@pytest.fixture
def node(lab: Lab, netns: Path) -> Iterator[Node]:
    """The first, with nobody attached and no slot in a namespace of others'; that one is there
    until it is so again."""
    yield lab.nodes[0]
    empty(lab)
    assert eventually(lambda: not dict(records(lab.nodes[0])), 30)


@pytest.fixture
def far(lab: Lab, node: Node) -> dict[str, Any]:
    """A sandbox on the other node."""
    return asked(lab.nodes[1], "attach", "far", "--vpc", "blue")


@pytest.mark.parametrize("mode", ["clone", "native"])
@pytest.mark.parametrize("interface", ["eth0", "net1.blue-7"])
def test_a_container_is_attached_where_it_is(
    node: Node, far: dict[str, Any], netns: Path, mode: str, interface: str
) -> None:
    """It talks to the other node by both families, under the name that was asked for; when it is
    detached only what was made is gone, and the namespace is its owner's."""
    words = ("attach", "box", "--vpc", "blue", "--netns", netns, "--mode", mode,
             "--interface", interface)  # fmt: skip
    own = asked(node, *words)

    assert own["slot"]["netns"] == str(netns)
    assert own["guest"]["interface"] == interface
    assert states(node)[own["slot"]["id"]] == "attached"
    seen = own if mode == "native" else own["guest"]
    assert addresses(netns, interface) == {seen["address"], seen["address6"]}
    assert ping(netns, far["address"]) == 3
    assert ping(netns, far["address6"]) == 3
    assert ping(Path(far["slot"]["netns"]), own["address"]) == 3
    (lo,) = json.loads(run(*inside(netns, "ip", "-j", "link", "show", "dev", "lo")))
    assert "UP" not in lo["flags"]

    again = asked(node, *words)
    assert (again["generation"], again["slot"]) == (own["generation"], own["slot"])
    assert geneve(node, "netns-exec", "box", "--", "test", "-e",
                  f"/proc/sys/net/ipv4/conf/{interface}").returncode == 0  # fmt: skip
    asked(node, "detach", "box")
    assert untouched(node, netns)
    assert geneve(node, "detach", "box").returncode == 0
    own = asked(node, *words)  # and once more in the same place
    assert ping(netns, far["address"]) == 3


def test_of_one_interface_in_one_namespace_there_is_one_slot(node: Node, netns: Path) -> None:
    """Whoever asks, how often, at once, and by whatever path."""
    link = Path(node.directory, "a link")
    link.symlink_to(netns)
    lingers = subprocess.Popen(inside(netns, "sleep", "600"))
    try:
        process = f"/proc/{lingers.pid}/ns/net"
        assert eventually(lambda: os.path.samefile(process, netns))
        paths = [str(netns), str(link), process, str(netns)]
        answers: list[tuple[int, Any]] = []

        def add(path: str) -> None:
            agent = Agent(node.socket)
            answers.append(agent.ask("POST", "/v1/slots", {"netns": path}))
            agent.close()

        adders = [threading.Thread(target=add, args=(path,)) for path in paths]
        for one in adders:
            one.start()
        for one in adders:
            one.join(60)

        assert sorted(status for status, _ in answers) == [200, 200, 200, 201]
        assert len({body["slot"]["id"] for _, body in answers}) == 1
        assert {body["slot"]["state"] for _, body in answers} == {"reserved"}
        other = asked(node, "slot", "add", "--netns", netns)["slot"]
        assert other == answers[0][1]["slot"]
        asked(node, "slot", "release", other["id"])
        assert untouched(node, netns)
    finally:
        link.unlink()
        lingers.kill()
        lingers.wait()


def test_no_other_namespace_is_entered(
    lab: Lab, node: Node, netns: Path, tmp_path: Path
) -> None:
    """The node's own, the machine's, another node's, a slot's of either, what is none, and what
    would block whoever opens it. Nothing is left of it."""
    fifo, plain = tmp_path / "fifo", tmp_path / "plain"
    os.mkfifo(fifo)
    plain.touch()
    slots = asked(node, "slot", "list")["slots"]
    before = interfaces(node.netns)
    others = asked(lab.nodes[1], "slot", "list")["slots"][0]["netns"]
    own = (node.netns, "/proc/1/ns/net", slots[0]["netns"], lab.nodes[1].netns, others)
    none = (fifo, plain, tmp_path, "/dev/null", "/proc/self/ns/mnt", tmp_path / "missing")

    for path in own + none:
        assert refused(node, "slot", "add", "--netns", path) == (2, "bad_netns"), path
    agent = Agent(node.socket)
    below = "../" * 20 + str(netns)[1:]  # of wherever the slot process is
    for text in ("", below, "/nul\0byte", "/" + "x" * 5000):
        assert agent.code("POST", "/v1/slots", {"netns": text}) == "bad_netns"
    agent.close()
    assert interfaces(node.netns) == before
    assert asked(node, "slot", "list")["slots"] == slots


def test_a_path_that_hangs_keeps_nobody_waiting(lab: Lab, node: Node, netns: Path) -> None:
    """Whoever asks for a slot by it is told, others get theirs meanwhile, and slots' MTU follows
    though the way to one of them hangs by now; no process of ours stays in there."""
    directory = Path(node.directory, "hangs")
    directory.mkdir()
    (directory / "box").symlink_to(netns)
    (maker,) = children(lab.agents[node.name], SLOT_PROCESS)
    try:
        slot = asked(node, "slot", "add", "--netns", directory / "box")["slot"]
        other = asked(node, "attach", "other", "--vpc", "blue")
        with hanging(directory):
            answers: list[tuple[int, Any]] = []

            def add() -> None:
                agent = Agent(node.socket)
                answers.append(agent.ask("POST", "/v1/slots", {"netns": f"{directory}/box"}))
                agent.close()

            adders = [threading.Thread(target=add) for _ in range(3)]
            for one in adders:
                one.start()
            assert eventually(lambda: len(children(maker, SLOT_PROCESS)) == 3)
            agent = Agent(node.socket)
            body = {"netns": str(netns)}
            assert agent.must("POST", "/v1/slots", body)["slot"]["id"] == slot["id"]
            assert answers == []
            for one in adders:
                one.join(60)
            assert [status for status, _ in answers] == [400, 400, 400]
            for _, answer in answers:
                assert answer["error"]["code"] == "bad_netns"
                assert "does not answer" in answer["error"]["message"]

            run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", 1400)
            assert eventually(lambda: mtu(Path(other["slot"]["netns"]), "eth0") == 1350, 30)
        assert children(lab.agents[node.name], SLOT_PROCESS) == [maker]
        agent.must("POST", "/v1/slots", body)
        ended = Path(f"/proc/{maker}/task/{maker}/children")
        assert eventually(lambda: not ended.read_text())
        agent.close()
    finally:
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", 1500)
        (directory / "box").unlink()
        directory.rmdir()


def test_what_is_there_already_is_not_touched(node: Node, netns: Path) -> None:
    """An interface of that name, a way out: the caller is told, and finds all as it was."""
    run("ip", "-n", netns.name, "link", "add", "eth0", "type", "veth", "peer", "name", "away")
    add = ("slot", "add", "--netns", netns)
    assert refused(node, *add) == (4, "interface_exists")
    assert interfaces(netns) == {"lo", "eth0", "away"}

    for end in ("away", "eth0"):
        run("ip", "-n", netns.name, "link", "set", end, "up")
    run("ip", "-n", netns.name, "route", "add", "default", "dev", "eth0")
    before = run("ip", "-n", netns.name, "route"), run("ip", "-n", netns.name, "-6", "route")
    assert refused(node, *add, "--interface", "net1") == (4, "interface_exists")
    assert interfaces(netns) == {"lo", "eth0", "away"}
    after = run("ip", "-n", netns.name, "route"), run("ip", "-n", netns.name, "-6", "route")
    assert after == before
    assert not dict(records(node))
    for name in ("", "sixteen-letters-", "a/b", "..", "lo", "all", "e th"):
        assert refused(node, *add, "--interface", name) == (2, "bad_request")


def test_an_interface_of_somebody_elses_is_not_deleted_for_its_name(
    node: Node, netns: Path
) -> None:
    """The node's namespace has one that is called like the host side of the slot to come: the
    caller is told, and both namespaces stay as they are."""
    there = {name for name in interfaces(node.netns) if name.startswith("gnv")}
    strangers = [name for name in (f"gnv{number}" for number in range(8)) if name not in there]
    try:
        for name in strangers:
            run("ip", "-n", node.namespace, "link", "add", name, "type", "veth", "peer",
                f"away{name}")  # fmt: skip
        assert refused(node, "slot", "add", "--netns", netns) == (6, "no_slot")
        assert set(strangers) <= interfaces(node.netns)
        assert untouched(node, netns)
    finally:
        for name in interfaces(node.netns) & set(strangers):
            run("ip", "-n", node.namespace, "link", "delete", name)
    asked(node, "slot", "add", "--netns", netns)


def test_a_failed_attach_leaves_no_slot(node: Node, netns: Path) -> None:
    """One that was made for it; one that was there before stays."""
    words = ("--vpc", "nowhere", "--netns", netns)
    assert refused(node, "attach", "box", *words) == (3, "vpc_not_found")
    assert untouched(node, netns)
    assert refused(node, "attach", "box", *words, "--kind", "namespace") == (2, "bad_request")

    slot = asked(node, "slot", "add", "--netns", netns)["slot"]["id"]
    assert refused(node, "attach", "box", *words) == (3, "vpc_not_found")
    assert states(node)[slot] == "reserved"


@pytest.mark.parametrize("how", ["namespace", "interface"])
def test_a_container_that_has_gone_is_lost(
    lab: Lab, node: Node, far: dict[str, Any], netns: Path, how: str
) -> None:
    """Nobody detached it: it is told as lost, its slot and address are free again. One that was
    only reserved goes without a word."""
    agent = Agent(node.socket)
    before = agent.must("GET", "/v1/node")["last_event"]
    own = asked(node, "attach", "box", "--vpc", "blue", "--netns", netns)
    asked(node, "attach", "other", "--vpc", "blue")

    def go() -> None:
        if how == "namespace":
            run("ip", "netns", "delete", netns.name)
        else:
            run("ip", "-n", netns.name, "link", "delete", "eth0")

    go()
    assert eventually(lambda: own["slot"]["id"] not in states(node), 30)
    events = agent.must("GET", f"/v1/events?since={before}")
    lost = [one for one in events if one["event"] == "sandbox-lost"]
    assert [(one["sandbox"], one["slot"]) for one in lost] == [("box", own["slot"]["id"])]
    assert agent.must("GET", "/v1/node")["lost"] == ["box"]
    assert [one["sandbox"] for one in asked(node, "list")["sandboxes"]] == ["other"]
    assert not dict(records(node))

    if how == "namespace":
        run("ip", "netns", "add", netns.name)
    asked(node, "attach", "box", "--vpc", "blue", "--netns", netns)
    assert ping(netns, far["address"]) == 3
    assert agent.must("GET", "/v1/node")["lost"] == []
    asked(node, "detach", "box")
    assert untouched(node, netns)
    slot = asked(node, "slot", "add", "--netns", netns)["slot"]["id"]
    go()
    assert eventually(lambda: slot not in states(node), 30)
    assert agent.must("GET", "/v1/node")["lost"] == []
    agent.close()


def test_an_agent_that_was_killed_adopts_them(
    lab: Lab, node: Node, far: dict[str, Any], netns: Path
) -> None:
    """One attached and one reserved; one whose namespace went meanwhile is lost; what a dead slot
    process had half made is cleared."""
    names = [f"{PREFIX}box{number}" for number in range(3)]
    for name in names:
        run("ip", "netns", "add", name)
    try:
        own = asked(node, "attach", "box", "--vpc", "blue", "--netns", netns, "--mode", "native")
        kept, gone, half = (NETNS / name for name in names)
        slot = asked(node, "slot", "add", "--netns", kept, "--interface", "net1")["slot"]
        asked(node, "attach", "gone", "--vpc", "blue", "--netns", gone)
        lab.stop_agent(node, signal.SIGKILL)
        run("ip", "netns", "delete", gone.name)
        records(node).add(900, records(node).get(int(slot["id"][5:])))  # type: ignore[arg-type]
        run("ip", "-n", node.namespace, "link", "add", "gnv900", "type", "veth", "peer", "name",
            "eth0", "netns", half.name)  # fmt: skip
        assert ping(netns, far["address"]) == 3
        lab.start_agent(node)
        lab.wait_ready(node)

        assert eventually(lambda: "eth0" not in interfaces(half))
        assert eventually(lambda: set(dict(records(node))) == {
            int(one["id"][5:]) for one in (own["slot"], slot)
        })  # fmt: skip
        assert [one["sandbox"] for one in asked(node, "list")["sandboxes"]] == ["box"]
        assert asked(node, "node", "status")["lost"] == ["gone"]
        assert asked(node, "show", "box")["guest"] == own["guest"]
        assert ping(netns, far["address"]) == 3
        again = asked(node, "slot", "add", "--netns", kept, "--interface", "net1")["slot"]
        assert again == slot
        assert geneve(node, "detach", "gone").returncode == 0
        asked(node, "detach", "box")
        asked(node, "slot", "release", slot["id"])
        assert untouched(node, netns)
        assert interfaces(kept) == {"lo"}
    finally:
        for name in names:
            if (NETNS / name).exists():
                run("ip", "netns", "delete", name)


def test_a_dead_slot_process_makes_it_once_all_the_same(
    lab: Lab, node: Node, netns: Path
) -> None:
    """Started again it is asked again, whatever the one before had come to."""
    agent = Agent(node.socket)
    answers: list[tuple[int, Any]] = []

    def add() -> None:
        answers.append(agent.ask("POST", "/v1/slots", {"netns": str(netns)}))

    for number in range(4):
        adder = threading.Thread(target=add)
        adder.start()
        kill_slot_process(lab.agents[node.name])
        adder.join(60)
        status, body = answers.pop()
        assert status in (200, 201), body
        assert interfaces(netns) == {"lo", "eth0"}
        if number % 2:
            asked(node, "slot", "release", body["slot"]["id"])
            assert untouched(node, netns)
    agent.close()


def test_its_mtu_follows_the_uplinks(node: Node, netns: Path) -> None:
    """As that of any slot; an IPv6 address that a tiny one costs is given back."""
    own = asked(node, "attach", "box", "--vpc", "blue", "--netns", netns, "--interface", "net1")

    def seen() -> tuple[int, set[str]]:
        (link,) = json.loads(run(*inside(netns, "ip", "-j", "link", "show", "dev", "net1")))
        return link["mtu"], addresses(netns, "net1")

    wide = seen()
    assert wide[1] == {own["guest"]["address"], own["guest"]["address6"]}
    try:
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", 1300)
        assert eventually(lambda: seen() == (1250, {own["guest"]["address"]}), 30)
    finally:
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", 1500)
    assert eventually(lambda: seen() == wide, 30)


def test_where_ipv6_is_off_it_stays_off(node: Node, far: dict[str, Any], netns: Path) -> None:
    """As many container runtimes have it."""
    run(*inside(netns, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"))
    own = asked(node, "attach", "box", "--vpc", "blue", "--netns", netns)

    assert addresses(netns, "eth0") == {own["guest"]["address"]}
    assert ping(netns, far["address"]) == 3


def test_a_cordoned_node_makes_none(node: Node, netns: Path) -> None:
    """As it reserves none."""
    geneve(node, "node", "cordon")
    try:
        assert refused(node, "slot", "add", "--netns", netns) == (6, "node_cordoned")
    finally:
        geneve(node, "node", "uncordon")
    assert untouched(node, netns)


def test_one_is_brought_and_attached_from_c(node: Node, netns: Path, tmp_path: Path) -> None:
    """By clients/c, against a real agent; asked again it says that it existed."""
    made = ["make", "-s", "-C", ROOT / "clients" / "c", f"BUILD={tmp_path}"]
    subprocess.run(made, check=True, timeout=120)

    def example(*words: str) -> dict[str, str]:
        done = subprocess.run(
            [tmp_path / "example", *words], env=node.environment(),
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    said = [example("add", str(netns), "net1") for _ in range(2)]
    own = example("attach", "box", "blue", said[0]["slot"])

    assert [one["existed"] for one in said] == ["0", "1"]
    assert said[0]["slot"] == said[1]["slot"] == own["slot"]
    assert said[0]["netns"] == str(netns)
    assert interfaces(netns) == {"lo", "net1"}
    assert own["guest_address"] in addresses(netns, "net1")
