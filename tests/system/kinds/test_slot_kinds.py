# SPDX-License-Identifier: Apache-2.0
"""Slots of every kind, from an agent that keeps pools of them: what is told, opened, attached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.host import namespaces, taps
from lab.network import ROOT, Lab, Node, inside, run
from tests.api import Agent, children, kill_slot_process
from tests.command import asked, geneve, refused
from tests.kinds import KEPT, KINDS, OWNER, Machine, states, where
from tests.nodes import eventually, ping, socket_in


@pytest.fixture
def far(lab: Lab, node: Node) -> dict[str, Any]:
    """A sandbox on the other node."""
    return asked(lab.nodes[1], "attach", "far", "--vpc", "blue")


OPEN = "import sys; from geneve_ebpf.host import taps; taps.open_tap(sys.argv[1])"


def opens(netns: Path, tap: str, uid: int) -> bool:
    """Whether a user without privileges may open a tap, where the device lets everybody try."""
    device = "mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200"
    device += " && mount --bind /mnt/tun /dev/net/tun"
    who = f"setpriv --reuid={uid} --regid={uid} --clear-groups --inh-caps=-all"
    words = f"{device} && exec {who} {sys.executable} -c '{OPEN}' {tap}"
    done = subprocess.run(
        ["unshare", "--mount", *inside(netns, "sh", "-c", words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


def machine_on(node: Node, slot: dict[str, Any]) -> Machine:
    """A machine that opens its tap by name."""
    with namespaces.entering(where(node, slot)):
        return Machine(taps.open_tap(slot["tap"]))


@KINDS
def test_a_tap_is_told_and_opened_by_its_owner_alone(node: Node, kind: str) -> None:
    """By name, in the namespace that is told. It is down to nobody else, root apart."""
    slot = asked(node, "slot", "reserve", "--kind", kind)["slot"]

    assert (slot["kind"], slot["state"]) == (kind, "reserved")
    assert slot["tap"] == ("tap0" if kind == "tap" else slot["host_interface"])
    assert (slot["netns"] is None) == (kind == "host-tap")
    assert opens(where(node, slot), slot["tap"], OWNER)
    assert not opens(where(node, slot), slot["tap"], OWNER + 1)


@KINDS
def test_a_reservation_may_give_the_tap_to_another_user(node: Node, kind: str) -> None:
    """To that one alone, the node's own `tap_owner` included; until the slot goes."""
    slot = asked(node, "slot", "reserve", "--kind", kind, "--owner", OWNER + 1)["slot"]
    netns = where(node, slot)

    assert opens(netns, slot["tap"], OWNER + 1)
    assert not opens(netns, slot["tap"], OWNER)
    other = asked(node, "slot", "reserve", "--kind", kind)["slot"]
    assert opens(netns if kind == "host-tap" else where(node, other), other["tap"], OWNER)

    with namespaces.entering(netns):  # a user who lingers there does not keep the tap
        asked(node, "slot", "release", slot["id"])
        assert eventually(lambda: slot["id"] not in states(node), 30)


@KINDS
def test_a_tap_that_cannot_be_given_is_not_reserved(lab: Lab, node: Node, kind: str) -> None:
    """Somebody has it open: the caller is told, and may try again; that slot is destroyed."""
    slots = asked(node, "slot", "list")["slots"]
    first = next(one for one in slots if (one["kind"], one["state"]) == (kind, "ready"))
    machine = machine_on(node, first)
    try:
        reserve = ("slot", "reserve", "--kind", kind, "--owner", OWNER + 1)
        done = geneve(node, "-j", *reserve)

        assert json.loads(done.stderr)["error"]["code"] == "tap_busy"
        assert (done.returncode, done.stdout) == (6, "")
        assert eventually(lambda: first["id"] not in states(node), 30)
        assert "reserved" not in states(node).values()
    finally:
        machine.close()
    kill_slot_process(lab.agents[node.name])
    lab.wait_ready(node)
    slot = asked(node, *reserve)["slot"]  # by one that had to be started first
    assert opens(where(node, slot), slot["tap"], OWNER + 1)


@pytest.mark.parametrize(
    "words",
    [
        ("--kind", "namespace", "--owner", "7"),
        ("--owner", "7"),  # the node's first kind, which is a namespace
        ("--kind", "tap", "--owner", "4294967295"),  # nobody, so everybody's
        ("--kind", "tap", "--owner", "-1"),
        ("--kind", "tap", "--owner", "no such user"),
    ],
)
def test_an_owner_that_makes_no_sense_is_refused(node: Node, words: tuple[str, ...]) -> None:
    """And nothing is reserved."""
    assert refused(node, "slot", "reserve", *words) == (2, "bad_request")
    assert "reserved" not in states(node).values()


@KINDS
def test_a_machine_talks_when_it_is_attached(node: Node, far: dict[str, Any], kind: str) -> None:
    """Not before; to a remote sandbox and to one of this node; afterwards its slot is gone."""
    near = asked(node, "attach", "near", "--vpc", "blue", "--kind", "namespace")
    slot = asked(node, "slot", "reserve", "--kind", kind)["slot"]
    machine = machine_on(node, slot)
    try:
        assert not machine.asks(far["address"])
        own = asked(node, "attach", "vm", "--vpc", "blue", "--slot", slot["id"], "--verify")

        assert own["slot"]["kind"] == kind
        assert machine.asks(far["address"])
        assert machine.asks(near["address"])
        text = geneve(node, "list").stdout
        assert any(slot["id"] in line and kind in line.split() for line in text.splitlines())
        asked(node, "detach", "vm")
        # Whoever still holds the tap does not keep the slot.
        assert eventually(lambda: slot["id"] not in states(node), 30)
    finally:
        machine.close()


def kinds(node: Node) -> dict[str, dict[str, int]]:
    """Ready slots by kind."""
    found: dict[str, dict[str, int]] = asked(node, "node", "status")["kinds"]
    return found


def test_kinds_outlive_the_agent_and_its_slot_process(lab: Lab, node: Node) -> None:
    """A killed agent's successor knows what each slot is; a tap that was half made is cleared."""
    slot = asked(node, "slot", "reserve", "--kind", "host-tap")["slot"]
    with namespaces.entering(node.netns):
        taps.make("gnv900", 0)

    kill_slot_process(lab.agents[node.name])
    lab.stop_agent(node, signal.SIGKILL)
    lab.start_agent(node)
    lab.wait_ready(node)

    full = {"ready": KEPT, "target": KEPT}
    assert kinds(node) == {"namespace": full, "tap": full, "host-tap": full}
    known = {one["id"]: one for one in asked(node, "slot", "list")["slots"]}
    assert known[slot["id"]]["kind"] == "host-tap"

    def cleared() -> bool:
        with namespaces.entering(node.netns):
            return not Path("/proc/sys/net/ipv4/conf/gnv900").exists()

    assert eventually(cleared, 10)


def test_a_native_namespace_has_its_vpc_address(lab: Lab, node: Node, far: dict[str, Any]) -> None:
    """When the answer is there; alone; also if the process that gives it dies meanwhile."""
    address = "10.0.1.77"
    own = asked(
        node, "attach", "web", "--vpc", "blue", "--address", address, "--mode", "native", "--verify"
    )

    assert (own["mode"], own["guest"]["address"], own["guest"]["address6"]) == (
        "native", address, None,
    )  # fmt: skip
    timing = own["timing_ns"]
    assert timing["settle"] > 0
    assert timing["settle"] + timing["validate"] + timing["write"] < timing["total"]
    netns = Path(own["slot"]["netns"])
    shown = subprocess.run(
        inside(netns, "ip", "-o", "addr", "show", "dev", "eth0"),
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [line.split()[3] for line in shown.splitlines()] == [f"{address}/32"]
    assert ping(netns, far["address"]) == 3
    assert ping(Path(far["slot"]["netns"]), address) == 3
    with socket_in(netns, 2, 2) as door:
        door.connect((far["address"], 9))
        assert door.getsockname()[0] == address
    assert "timing_ns" not in asked(node, "attach", "web", "--vpc", "blue", "--mode", "native")
    assert refused(node, "attach", "web", "--vpc", "blue", "--mode", "clone")[1] == "sandbox_exists"
    assert refused(node, "attach", "web", "--vpc", "blue", "--kind", "tap")[1] == "sandbox_exists"


def test_what_a_tiny_wire_costs_is_given_back_to_each_as_its_own(lab: Lab, node: Node) -> None:
    """Below 1280 bytes eth0 loses its IPv6 address. Who is native has one of the VPC's, or none;
    whose kernel is a machine's has none on the host."""
    spans = (("10.5.0.0/16", {"node1": "10.5.1.0/24"}), ("fd05::/48", {"node1": "fd05:0:0:1::/64"}))
    lab.connect("wide", 43, *spans)
    native = ("--vpc", "wide", "--mode", "native", "--address")
    both = asked(node, "attach", "both", *native, "10.5.1.9", "--address", "fd05:0:0:1::9")
    old = asked(node, "attach", "old", *native, "10.5.1.10")
    clone = asked(node, "attach", "clone", "--vpc", "wide")
    vm = asked(node, "attach", "vm", "--vpc", "wide", "--kind", "tap")

    def eth0(own: dict[str, Any]) -> tuple[int, list[str]]:
        words = inside(Path(own["slot"]["netns"]), "ip", "-j", "address", "show", "dev", "eth0")
        (shown,) = json.loads(run(*words))
        six = [one["local"] for one in shown["addr_info"] if one["family"] == "inet6"]
        return shown["mtu"], six

    wide = eth0(both)[0]
    expected = [(both, ["fd05:0:0:1::9"]), (old, []), (clone, [clone["guest"]["address6"]]),
                (vm, [])]  # fmt: skip
    try:
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", 1300)
        assert eventually(lambda: all(eth0(own) == (1250, []) for own, _ in expected))
    finally:
        run("ip", "-n", node.namespace, "link", "set", "uplink0", "mtu", 1500)
    assert eventually(lambda: [eth0(own) for own, _ in expected] == [
        (wide, six) for _, six in expected
    ])  # fmt: skip


def test_a_native_attach_waits_for_a_slot_process_that_died(lab: Lab, node: Node) -> None:
    """It is started again, and is told again."""
    for number in range(3):
        kill_slot_process(lab.agents[node.name])
        own = asked(node, "attach", f"n{number}", "--vpc", "blue", "--mode", "native",
                    "--timeout", "30")  # fmt: skip
        shown = geneve(node, "netns-exec", f"n{number}", "--", "ip", "-4", "-o", "addr")
        assert f"{own['address']}/32" in shown.stdout


def test_a_native_attach_that_cannot_be_done_is_undone_and_told(node: Node) -> None:
    """Its slot has no eth0 any more: who follows events hears of the detach as well."""
    slot = asked(node, "slot", "reserve", "--kind", "namespace")["slot"]
    for words in (("down",), ("name", "other0")):
        subprocess.run(inside(Path(slot["netns"]), "ip", "link", "set", "eth0", *words), check=True)
    agent = Agent(node.socket)
    before = agent.must("GET", "/v1/node")["last_event"]

    wish = {"vpc": "blue", "mode": "native", "slot": slot["id"]}
    assert agent.code("PUT", "/v1/sandboxes/half", wish) == "no_slot"

    told = agent.must("GET", f"/v1/events?since={before}")
    assert [(one["event"], one["sandbox"]) for one in told if one.get("sandbox") == "half"] == [
        ("attach", "half"), ("detach", "half"),
    ]  # fmt: skip
    assert agent.code("GET", "/v1/sandboxes/half") == "sandbox_not_found"
    agent.close()


def test_what_does_not_go_together_is_refused(node: Node) -> None:
    """With one line and a code each."""
    slot = asked(node, "slot", "reserve", "--kind", "tap")["slot"]["id"]
    asked(node, "attach", "vm", "--vpc", "blue", "--kind", "host-tap")
    attach = ("attach", "x", "--vpc", "blue")

    assert refused(node, *attach, "--slot", slot, "--kind", "namespace")[1] == "slot_taken"
    assert refused(node, *attach, "--mode", "native", "--async")[1] == "bad_request"
    assert refused(node, "netns-exec", "vm", "--", "true")[1] == "bad_request"
    assert geneve(node, *attach, "--kind", "balloon").returncode == 2


def test_who_waits_for_one_kind_neither_takes_its_turn_with_another_nor_stops_it(
    lab: Lab, node: Node
) -> None:
    """Taps are all reserved: an attach waits for one, and namespaces are attached meanwhile."""
    agent, other = Agent(node.socket), Agent(node.socket)
    (maker,) = children(lab.agents[node.name], "geneve_ebpf.agent.slot_process")
    wish = {"vpc": "blue", "kind": "tap"}
    answers: list[tuple[int, Any]] = []

    def attach() -> None:
        answers.append(other.ask("PUT", "/v1/sandboxes/late", wish, {"Request-Timeout": "90"}))

    waiting = threading.Thread(target=attach)
    os.kill(maker, signal.SIGSTOP)  # no slot becomes ready
    try:
        for _ in range(KEPT):
            agent.must("POST", "/v1/slots:reserve", {"kind": "tap"})
        waiting.start()
        assert eventually(lambda: agent.must("GET", "/v1/node")["waiting"] == 1)

        agent.must("PUT", "/v1/sandboxes/now", {"vpc": "blue"})
        assert agent.code("PUT", "/v1/sandboxes/first", wish) == "no_slot"
        assert not eventually(lambda: answers, 0.5)
    finally:
        os.kill(maker, signal.SIGCONT)
    waiting.join(90)
    agent.close()
    other.close()

    ((status, body),) = answers
    assert (status, body["slot"]["kind"]) == (201, "tap"), body


def test_a_node_without_that_kind_says_so(lab: Lab, node: Node) -> None:
    """And which key of its configuration would give it some."""
    done = geneve(lab.nodes[1], "slot", "reserve", "--kind", "tap")

    assert done.returncode != 0
    assert "keeps no tap slots" in done.stderr
    assert "node.tap_slots" in done.stderr
