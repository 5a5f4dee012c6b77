# SPDX-License-Identifier: Apache-2.0
"""Agents that die, race and refill while sandboxes talk: what forwards goes on, nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces
from lab.network import Lab, Node, inside, run
from tests.nodes import PREFIX, RUN_ROOT, Stream, eventually, ping
from tests.patience import PATIENCE

SLOTS = 4
BLOCKS = {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    directory = RUN_ROOT / "lab"
    with Lab(directory, f"{PREFIX}-ag", patience=60 * PATIENCE) as made:
        made.up(2, SLOTS, metrics=False)
        for vpc, vni in (("blue", 42), ("red", 43)):
            made.connect(vpc, vni, ("10.0.0.0/16", BLOCKS))
        yield made
    with contextlib.suppress(OSError):
        RUN_ROOT.rmdir()


@pytest.fixture
def nodes(lab: Lab) -> Iterator[tuple[Node, Node]]:
    """Both nodes, with agents that serve; afterwards nobody is attached and nothing reserved."""
    for node in lab.nodes:
        if node.name not in lab.agents:
            lab.start_agent(node)
        lab.wait_ready(node)
    yield lab.nodes[0], lab.nodes[1]
    for node in lab.nodes:
        if node.name not in lab.agents:
            lab.start_agent(node)
            lab.wait_ready(node)
        for sandbox in ask(node, "GET", "/v1/sandboxes")["sandboxes"]:
            ask(node, "DELETE", f"/v1/sandboxes/{sandbox['sandbox']}")
        for slot in ask(node, "GET", "/v1/slots")["slots"]:
            if slot["state"] == "reserved":
                ask(node, "DELETE", f"/v1/slots/{slot['id']}")


def ask(node: Node, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request on a connection of its own; the answer's body."""
    with node.client() as client:
        return client.request(method, path, body)[1]


def attach(node: Node, name: str, vpc: str = "blue", **more: str) -> dict[str, Any]:
    """Attach a sandbox."""
    return ask(node, "PUT", f"/v1/sandboxes/{name}", {"vpc": vpc, **more})


def netns(sandbox: dict[str, Any]) -> Path:
    """Where the sandbox lives."""
    return Path(sandbox["slot"]["netns"])


def identity(sandbox: dict[str, Any]) -> tuple[Any, ...]:
    """What must not change while the agent does."""
    return tuple(
        sandbox[key] if key != "slot" else sandbox[key]["id"]
        for key in ("sandbox", "vpc", "vni", "address", "address6", "mac", "generation", "slot")
    )


def interfaces(node: Node) -> set[str]:
    """Names of the interfaces of ours in the node's namespace."""
    with namespaces.entering(node.netns):
        names = {path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()}
    return {name for name in names if name.startswith("gnv")}


def settle(node: Node) -> None:
    """Wait until there are as many ready slots as asked for and no other change is under way;
    then what is on disk and in the kernel must be what is listed."""
    found: dict[str, Any] = {}

    def settled() -> bool:
        listed = ask(node, "GET", "/v1/slots")
        counts, ids = listed["counts"], {slot["id"] for slot in listed["slots"]}
        netns_directory = Path(node.directory, "run", node.name, "netns")
        found["counts"] = {name: counts[name] for name in ("ready", "making", "retiring")}
        found["listed"] = {f"gnv{ident.removeprefix('slot-')}" for ident in ids}
        found["interfaces"] = {one for one in interfaces(node) if not one.startswith("gnv-")}
        found["on disk"] = {f"gnv{path.name[5:]}" for path in netns_directory.iterdir()}
        return (
            found["counts"] == {"ready": SLOTS, "making": 0, "retiring": 0}
            and found["listed"] == found["interfaces"] == found["on disk"]
        )

    assert eventually(settled), found


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.kernel), signal.SIGTERM]
)
def test_agents_that_end_under_traffic_lose_no_packet(
    lab: Lab, nodes: tuple[Node, Node], number: signal.Signals
) -> None:
    """Both agents end, both come back: no gap in a stream, every attachment as it was, by name."""
    a, b = nodes
    one, two = attach(a, "one", address="10.0.1.50"), attach(b, "two", address="10.0.2.50")
    others = [attach(a, f"other-{vpc}", vpc, address="10.0.1.60") for vpc in ("blue", "red")]
    known = [identity(sandbox) for sandbox in [one, *others]]

    with Stream(netns(one), netns(two), "10.0.2.50") as stream:
        for node in nodes:
            lab.stop_agent(node, number)
        assert stream.errors == []
        assert ping(netns(two), "10.0.1.50") == ping(netns(one), "10.0.1.60") == 3
        for node in nodes:
            lab.start_agent(node)
        for node in nodes:
            lab.wait_ready(node)
        lost = stream.lost()

    assert (lost, stream.errors) == (set(), [])
    found = ask(a, "GET", "/v1/sandboxes")["sandboxes"]
    assert sorted(identity(sandbox) for sandbox in found) == sorted(known)
    assert ask(a, "GET", "/v1/node")["boot"] == "adopted"
    shown = ask(a, "GET", "/v1/sandboxes/one")
    assert shown["counters"]["tx_remote"]["packets"] >= stream.sent
    new = attach(b, "three", address="10.0.2.51")
    assert ping(netns(one), "10.0.2.51") == ping(netns(new), "10.0.1.60") == 3
    settle(a)
    settle(b)


def race(
    node: Node, first: tuple[str, dict[str, str]], second: tuple[str, dict[str, str]]
) -> tuple[list[str], list[Code]]:
    """Two clients attach at the same moment; who got through and why the others did not."""
    start = threading.Barrier(2)
    won: list[str] = []
    lost: list[Code] = []

    def run_one(name: str, body: dict[str, str]) -> None:
        with node.client() as client:
            client.request("GET", "/healthz")  # connected
            start.wait()
            try:
                status, _ = client.request("PUT", f"/v1/sandboxes/{name}", body)
            except GeneveError as error:
                lost.append(error.code)
            else:
                won.append(f"{name} {status}")

    threads = [threading.Thread(target=run_one, args=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, lost


def test_two_that_race_for_one_name_are_not_both_served(nodes: tuple[Node, Node]) -> None:
    """The same name with different wishes: one 201, one conflict."""
    a = nodes[0]
    for number in range(8):
        name = f"racer-{number}"
        settle(a)

        won, lost = race(a, (name, {"vpc": "blue"}), (name, {"vpc": "red"}))

        assert (won, lost) == ([f"{name} 201"], [Code.SANDBOX_EXISTS])
        ask(a, "DELETE", f"/v1/sandboxes/{name}")


def test_two_that_race_for_one_address_are_not_both_served(nodes: tuple[Node, Node]) -> None:
    """Different names, one address: one 201, one conflict; the loser holds no slot."""
    a = nodes[0]
    for number in range(8):
        address = f"10.0.1.{100 + number}"
        settle(a)

        won, lost = race(
            a,
            (f"left-{number}", {"vpc": "blue", "address": address}),
            (f"right-{number}", {"vpc": "blue", "address": address}),
        )

        assert [word.split()[1] for word in won] == ["201"]
        assert lost == [Code.ADDRESS_IN_USE]
        ask(a, "DELETE", f"/v1/sandboxes/{won[0].split()[0]}")
    settle(a)


def test_two_that_race_for_one_slot_are_not_both_served(nodes: tuple[Node, Node]) -> None:
    """Both name the slot that one of them reserved."""
    a = nodes[0]
    for number in range(8):
        settle(a)
        slot = ask(a, "POST", "/v1/slots:reserve", {})["slot"]["id"]

        won, lost = race(
            a,
            (f"left-{number}", {"vpc": "blue", "slot": slot}),
            (f"right-{number}", {"vpc": "red", "slot": slot}),
        )

        assert [word.split()[1] for word in won] == ["201"]
        assert lost == [Code.SLOT_TAKEN]
        ask(a, "DELETE", f"/v1/sandboxes/{won[0].split()[0]}")
    settle(a)


def test_more_attaches_than_slots_are_told_to_wait_and_then_served(
    nodes: tuple[Node, Node],
) -> None:
    """The pool refills while they come; whoever is refused is told why and succeeds later."""
    a = nodes[0]
    refused = set()

    for number in range(5 * SLOTS):
        name = f"many-{number}"

        def attached(name: str = name) -> bool:
            try:
                attach(a, name)
            except GeneveError as error:
                refused.add(error.code)
                return False
            return True

        assert eventually(attached)

    assert refused <= {Code.NO_SLOT, Code.BUSY}
    assert len(ask(a, "GET", "/v1/sandboxes")["sandboxes"]) == 5 * SLOTS
    for number in range(5 * SLOTS):
        ask(a, "DELETE", f"/v1/sandboxes/many-{number}")
    settle(a)


def test_a_detached_slot_is_destroyed_though_a_process_lingers_in_it(
    nodes: tuple[Node, Node],
) -> None:
    """Its interface is taken away, the pool is full again, and the index is used only then."""
    a = nodes[0]
    sandbox = attach(a, "haunted")
    index, ifindex = sandbox["slot"]["id"], sandbox["slot"]["host_ifindex"]
    with subprocess.Popen(inside(netns(sandbox), "sleep", "60")) as ghost:
        try:
            place = Path(f"/proc/{ghost.pid}/ns/net")
            assert eventually(lambda: os.readlink(place) != os.readlink("/proc/self/ns/net"))

            ask(a, "DELETE", "/v1/sandboxes/haunted")

            def replaced() -> bool:
                slots = {slot["id"]: slot for slot in ask(a, "GET", "/v1/slots")["slots"]}
                if index not in slots or slots[index]["host_ifindex"] != ifindex:
                    return True
                assert slots[index]["state"] == "retiring"
                return False

            assert eventually(replaced)
            settle(a)
            assert "eth0" not in run(*inside(place, "ip", "-o", "link", "show"))
            assert ghost.poll() is None
        finally:
            ghost.kill()


def test_a_slot_whose_interface_somebody_deleted_is_not_given_to_anybody(
    lab: Lab, nodes: tuple[Node, Node]
) -> None:
    """Found by the slot process when it starts; a whole one takes its place."""
    node, other = nodes
    attach(other, "far", address="10.0.2.9")
    lab.stop_agent(node, signal.SIGTERM)
    run("ip", "-n", node.namespace, "link", "del", "gnv0")

    lab.start_agent(node)
    lab.wait_ready(node)
    eventually(lambda: "slot-lost slot=slot-0 was=ready" in node.log.read_text())
    lab.wait_ready(node)

    for number in range(SLOTS):
        there = attach(node, f"near{number}")
        assert ping(netns(there), "10.0.2.9", wait=1) > 0


def test_names_addresses_and_slots_do_not_leak_into_each_other(nodes: tuple[Node, Node]) -> None:
    """Sandboxes come and go on two nodes, two VPCs, same addresses; each reaches its own."""
    a, b = nodes
    for number in range(6):
        settle(a)
        settle(b)
        left = {vpc: attach(a, f"{vpc}-{number}", vpc) for vpc in ("blue", "red")}
        right = {vpc: attach(b, f"{vpc}-{number}", vpc) for vpc in ("blue", "red")}
        for vpc in ("blue", "red"):
            target = right[vpc]["address"]
            assert ping(netns(left[vpc]), target) == 3
            counters = ask(b, "GET", f"/v1/sandboxes/{vpc}-{number}")["counters"]
            assert counters["rx_remote"]["packets"] == 3
        for node in nodes:
            for vpc in ("blue", "red"):
                ask(node, "DELETE", f"/v1/sandboxes/{vpc}-{number}")


class Churn:
    """Attaches and detaches one after the other until the agent is gone; knows what it was told."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stop = threading.Event()
        self.attached: set[str] = set()  # answered 201 and not detached since
        self.open: str | None = None  # asked for, not answered
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._node.client() as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                for method, name in (("PUT", f"c{number}"), ("DELETE", f"c{number - 3}")):
                    if method == "DELETE" and name not in self.attached:
                        continue
                    body = {"vpc": "blue"} if method == "PUT" else None
                    self.open = name
                    try:
                        client.request(method, f"/v1/sandboxes/{name}", body)
                    except GeneveError as error:
                        if error.code is Code.AGENT_UNREACHABLE:
                            return  # and `open` says what is not known
                        self.open = None
                        time.sleep(0.005)
                        continue
                    (self.attached.add if method == "PUT" else self.attached.discard)(name)
                    self.open = None


def slot_process(agent: int) -> int | None:
    """The process id of an agent's slot process."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
            if b"slot_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def test_kills_at_any_moment_leave_nothing_half_made(lab: Lab, nodes: tuple[Node, Node]) -> None:
    """Agent or slot process, in the middle of attaching, detaching and making slots: who was told
    "attached" is attached afterwards, nobody else is, and no slot is left half-made."""
    a, b = nodes
    chance = random.Random(2)
    one, two = attach(a, "one", address="10.0.1.50"), attach(b, "two", address="10.0.2.50")
    with Stream(netns(one), netns(two), "10.0.2.50") as stream:
        for number in range(10):
            with Churn(a) as churn:
                time.sleep(chance.uniform(0, 0.15))
                if number % 3 == 2:
                    victim = slot_process(lab.agents[a.name])
                    if victim is not None:
                        os.kill(victim, signal.SIGKILL)
                    time.sleep(chance.uniform(0, 0.05))
                lab.stop_agent(a, signal.SIGKILL)
            lab.start_agent(a)
            lab.wait_ready(a)

            names = {sandbox["sandbox"] for sandbox in ask(a, "GET", "/v1/sandboxes")["sandboxes"]}
            unknown = {churn.open} if churn.open else set()
            assert names - {"one"} - unknown == churn.attached - unknown
            settle(a)
            for name in names - {"one"}:
                ask(a, "DELETE", f"/v1/sandboxes/{name}")
        lost = stream.lost()

    assert (lost, stream.errors) == (set(), [])


def test_node_down_under_traffic_leaves_nothing(nodes: tuple[Node, Node], lab: Lab) -> None:
    """Refused while somebody is attached; forced, the node is as it was before, and comes back
    with its VPCs, VTEPs and routes."""
    a, b = nodes
    one, two = attach(a, "one", address="10.0.1.50"), attach(b, "two", address="10.0.2.50")
    run_directory = Path(a.directory, "run", a.name)

    with pytest.raises(GeneveError) as refused:
        ask(a, "POST", "/v1/node:down", {"force": False})
    assert refused.value.code is Code.NODE_IN_USE
    with Stream(netns(one), netns(two), "10.0.2.50"):
        ask(a, "POST", "/v1/node:down", {"force": True})
        lab.wait_gone(a)

    assert interfaces(a) == set()
    assert not run_directory.exists() or list(run_directory.iterdir()) == []
    assert str(run_directory) not in Path("/proc/mounts").read_text()
    assert ping(a.netns, b.vtep) == 3
    lab.start_agent(a)
    lab.wait_ready(a)
    again = attach(a, "one", address="10.0.1.50")
    assert ping(netns(again), "10.0.2.50") == 3
