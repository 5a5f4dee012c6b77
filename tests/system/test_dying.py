# SPDX-License-Identifier: Apache-2.0
"""An agent and the processes that it starts are killed in the middle of what they do.

A few lines of each step; GENEVE_EBPF_TESTS_EVERY_LINE=1 takes every line. Whatever
died: others' packets are not lost, the next start knows everybody by name, and there
is no namespace, interface, pin or map entry that nobody knows of.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.abi import JUMP_TABLE, MAPS, PROGRAMS, EndpointKey, EndpointValue
from geneve_ebpf.agent.config import load
from geneve_ebpf.dataplane import DataPlane, tear_down
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces
from geneve_ebpf.host.given import Records
from geneve_ebpf.loader.maps import Table
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import SlotState
from lab.network import NETNS, UPLINK, Lab, Node, inside, run
from tests.dying import AGENT, EVERY_LINE, NODE_SETUP, SLOT_PROCESS, Killer, chosen
from tests.nodes import PREFIX, Stream, eventually, ping
from tests.patience import PATIENCE
from tests.watcher import tcx_programs

pytestmark = pytest.mark.timeout(0 if EVERY_LINE else 600)  # many starts of an agent
SLOTS = 2
BLOCKS = {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}
BLOCKS6 = {"node1": "fd00:1:0:1::/64", "node2": "fd00:1:0:2::/64"}
VICTIM = "/v1/sandboxes/victim"
BOX = NETNS / f"{PREFIX}dy-box"  # a namespace that a container runtime made
VETH = "runtime-veth"  # to there, of its making, where it is not a slot's
GHOSTS = {"ghost", "shade"}

ATTACHING = (
    "agent/service.py",
    "dataplane/sandboxes.py",
    "control/address_book.py",
    "control/addresses.py",
)
MAKING = (
    "agent/slot_process.py",
    "host/slots/making.py",
    "host/slots/kinds.py",
    "host/namespaces.py",
    "dataplane/sandboxes.py",
)
GIVING = (
    "agent/slot_process.py",
    "host/given.py",
    "host/walks.py",
    "host/slots/given.py",
    "host/slots/making.py",
)
BRINGING = (*GIVING, "host/slots/brought.py")
DESTROYING = ("agent/slot_process.py", "host/slots/destroying.py", "dataplane/sandboxes.py")
SETTING_UP = (
    "dataplane/node_setup.py",
    "dataplane/relay.py",
    "loader/hooks.py",
    "loader/kept.py",
    "loader/pins.py",
)
REMEMBERING = ("control/attached_log.py", "control/line_file.py", "agent/service.py")
STARTING = (
    "agent/run.py",
    "agent/life.py",
    "agent/service.py",
    "dataplane/sandboxes.py",
    "dataplane/routes.py",
    "control/line_file.py",
    "control/rest_log.py",
)


class Scene:
    """Two nodes; on each somebody who must notice nothing. The first node's agent dies."""

    def __init__(self, lab: Lab, killer: Killer) -> None:
        self.lab = lab
        self.killer = killer
        self.reserved = ""  # the slot that is to be given back
        self.node, self.other = lab.nodes
        self.one = attached(self.node, "one")
        self.two = attached(self.other, "two")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to the node whose agent dies; the answer's body."""
        return ask(self.node, method, path, body)

    def try_to(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """A request that the agent may not live to answer."""
        with contextlib.suppress(GeneveError, OSError):
            self.ask(method, path, body)

    def start(self, after_death: bool = False) -> None:
        """Start an agent where there is none; wait until it is ready and everything is whole."""
        pid = self.lab.agents.get(self.node.name)
        if after_death:
            assert eventually(lambda: not alive(pid), 30 * PATIENCE), self.killer.where
        if not alive(pid):
            self.lab.wait_gone(self.node)
            self.lab.start_agent(self.node)
        self.lab.wait_ready(self.node)
        self.check()

    def renew(self) -> None:
        """Another agent, which starts a slot process that dies as soon as if it were the first."""
        self.lab.stop_agent(self.node)
        self.lab.start_agent(self.node)
        self.lab.wait_ready(self.node)

    def wait_for_death(self) -> None:
        """Until somebody has died, or what was to be done is done."""
        assert eventually(lambda: self.killer.struck or ready(self.node), 30 * PATIENCE)

    def check(self) -> None:
        """What is listed, mapped, mounted and in the kernel is the same, and "one" is in it."""
        faults: list[object] = []

        def whole() -> bool:
            faults[:] = disagreements(self.node)
            return not faults

        # Where others let thousands of namespaces go, a slot waits ten seconds and more for RTNL.
        assert eventually(whole, 60 * PATIENCE), (self.killer.where, faults)
        assert identity(self.ask("GET", "/v1/sandboxes/one")) == identity(self.one)


def ask(node: Node, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request on a connection of its own; the answer's body."""
    with node.client() as client:
        return client.request(method, path, body)[1]


def attached(node: Node, name: str) -> dict[str, Any]:
    """A new sandbox with an address of each family."""
    return ask(node, "PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})


def identity(sandbox: dict[str, Any]) -> dict[str, Any]:
    """What must not change while the agent does."""
    names = ("sandbox", "vpc", "vni", "address", "address6", "mac", "generation")
    return {name: sandbox[name] for name in names} | {"slot": sandbox["slot"]["id"]}


def alive(pid: int | None) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    return False


def directory_of(node: Node) -> Path:
    """Its run directory."""
    return Path(node.directory, "run", node.name)


def interfaces(node: Node) -> set[str]:
    """Names of the interfaces of ours in the node's namespace."""
    with namespaces.entering(node.netns):
        names = set(os.listdir("/proc/sys/net/ipv4/conf"))
    return {name for name in names if name.startswith("gnv")}


def interfaces_in(netns: Path) -> set[str]:
    """Names of all interfaces in a namespace, but for tunnels' fallbacks that the kernel makes."""
    shown = json.loads(run(*inside(netns, "ip", "-j", "link")))
    return {one["ifname"] for one in shown if one.get("link_type") in ("ether", "loopback")}


def programs_on_uplink(node: Node) -> list[str]:
    """Names of the programs on the node's uplink."""
    with namespaces.entering(node.netns):
        return tcx_programs(socket.if_nametoindex(UPLINK))


def mounts(below: Path) -> set[str]:
    """Mount points below a directory, by their path in there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split()[4] for line in lines)
    return {point.removeprefix(f"{below}/") for point in points if point.startswith(f"{below}/")}


def disagreements(node: Node) -> list[object]:
    """What the agent lists, and how maps, pins, mounts and the kernel differ from it."""
    run_directory = directory_of(node)
    listed = ask(node, "GET", "/v1/slots")
    sandboxes = ask(node, "GET", "/v1/sandboxes")["sandboxes"]
    indexes = {int(slot["id"].removeprefix("slot-")) for slot in listed["slots"]}
    faults: list[object] = []

    def same(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            faults.append((what, found, wanted))

    counts = {name: listed["counts"][name] for name in ("ready", "making", "retiring")}
    same("counts", counts, {"ready": SLOTS, "making": 0, "retiring": 0})
    given = {int(slot["id"][5:]) for slot in listed["slots"] if slot["netns"] == str(BOX)}
    own = indexes - given
    same("namespaces", set(os.listdir(run_directory / "netns")), {f"slot-{n}" for n in own})
    same("mounts", mounts(run_directory), {"bpf", "netns"} | {f"netns/slot-{n}" for n in own})
    same("notes of others' namespaces", set(dict(Records(run_directory))), given)
    nodes_own = {"gnv-anchor", "gnv-anchor-peer", "gnv-relay0", "gnv-relay1"}
    same("interfaces", interfaces(node) - {VETH}, nodes_own | {f"gnv{n}" for n in indexes})

    pins = Pins(run_directory)
    wanted = {pins.program(name).name for name in PROGRAMS} | set(MAPS)
    wanted |= {"uplink-uplink0", pins.map(JUMP_TABLE).name}
    same("pins", set(os.listdir(pins.directory)) | {"uplink-uplink0"}, wanted)
    plane = DataPlane.open(run_directory, writable=False)
    try:
        by_state = {slot.index: slot.state for slot in plane.slots()}
        holders = {(one.sandbox, one.slot, one.generation) for one in plane.attachments()}
    finally:
        plane.close()
    same("slots in maps", set(by_state), indexes)
    here = {(s["sandbox"], int(s["slot"]["id"][5:]), s["generation"]) for s in sandboxes}
    same("attached in maps", holders, here)
    taken = {index for index, state in by_state.items() if state is SlotState.TAKEN}
    same("taken in maps", taken, {slot for _, slot, _ in holders})

    table: Table[EndpointKey, EndpointValue] = Table(
        pins.map("endpoints"), EndpointKey, EndpointValue
    )
    try:
        found = {(k.vni, str(k.address.unmapped()), v.slot, v.generation) for k, v in table.items()}
    finally:
        table.close()
    mapped = {
        (s["vni"], s[family], int(s["slot"]["id"][5:]), s["generation"])
        for s in sandboxes
        for family in ("address", "address6")
        if s[family]
    }
    same("endpoints", found, mapped)
    return faults


def ready(node: Node) -> bool:
    """Whether the agent serves, with everything in its place."""
    try:
        return not disagreements(node)
    except (GeneveError, OSError):  # it is not there yet, or not any more
        return False


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    killer = Killer(Path(f"/run/{PREFIX}-orders"))
    with Lab(Path(f"/run/{PREFIX}-dying"), f"{PREFIX}-dy") as lab:
        lab.make_nodes(2, SLOTS, metrics=False)
        node, other = lab.nodes
        lab.start_agent(other)  # whose slot process has lines of its own, once a minute: no orders
        with killer.obeyed():
            lab.start_agent(node)
            for one in lab.nodes:
                lab.wait_ready(one)
            lab.connect("blue", 42, ("10.0.0.0/16", BLOCKS), ("fd00:1::/48", BLOCKS6))
            run("ip", "netns", "add", BOX.name)
            try:
                yield Scene(lab, killer)
            finally:
                run("ip", "netns", "delete", BOX.name)


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a process does: what leads there, what starts it, what must work after."""

    process: str
    files: tuple[str, ...]
    act: Callable[[Scene], None]
    afterwards: Callable[[Scene], None]
    before: Callable[[Scene], None] = lambda scene: None
    parent: bool = False  # the agent dies with its child
    sample: int = 4


def attach(scene: Scene) -> None:
    scene.try_to("PUT", VICTIM, {"vpc": "blue"})


def attach_row(scene: Scene) -> None:
    row = [{"sandbox": name, "vpc": "blue"} for name in ("victim", "mate")]
    scene.try_to("POST", "/v1/sandboxes:batch", {"attach": row})


def detach(scene: Scene) -> None:
    scene.try_to("DELETE", VICTIM)


def attach_and_settle(scene: Scene) -> None:
    attach(scene)
    scene.check()


def works_and_goes(scene: Scene) -> None:
    """Attached or not, asking again attaches it, it talks to the other node, and goes."""
    victim = scene.ask("PUT", VICTIM, {"vpc": "blue"})
    netns = Path(victim["slot"]["netns"])
    assert ping(netns, scene.two["address"]) == ping(netns, scene.two["address6"]) == 3
    scene.ask("DELETE", VICTIM)
    scene.check()


def both_work_and_go(scene: Scene) -> None:
    """As `works_and_goes`, each of the two, whether one of them was attached or both."""
    mate = scene.ask("PUT", "/v1/sandboxes/mate", {"vpc": "blue"})
    assert ping(Path(mate["slot"]["netns"]), scene.two["address6"]) == 3
    scene.ask("DELETE", "/v1/sandboxes/mate")
    works_and_goes(scene)


def is_gone_and_rests(scene: Scene) -> None:
    """Detached for good, and its addresses are nobody else's yet."""
    victim = scene.ask("PUT", VICTIM, {"vpc": "blue"})  # its own they are
    scene.ask("DELETE", VICTIM)
    for family in ("address", "address6"):
        body = {"vpc": "blue", family: victim[family]}
        with pytest.raises(GeneveError) as caught:
            scene.ask("PUT", "/v1/sandboxes/heir", body)
        assert caught.value.code is Code.ADDRESS_RESTING
    scene.check()


def gives_back(scene: Scene) -> None:
    """A slot that was reserved, as far as anybody knows, can be given back."""
    for slot in scene.ask("GET", "/v1/slots")["slots"]:
        if slot["state"] == "reserved":
            scene.ask("DELETE", f"/v1/slots/{slot['id']}")
    scene.check()


def reserve(scene: Scene) -> None:
    scene.try_to("POST", "/v1/slots:reserve", {})


def reserve_and_settle(scene: Scene) -> None:
    scene.reserved = scene.ask("POST", "/v1/slots:reserve", {})["slot"]["id"]
    scene.check()


def release(scene: Scene) -> None:
    scene.try_to("DELETE", f"/v1/slots/{scene.reserved}")


def give(scene: Scene) -> None:
    scene.try_to("POST", "/v1/slots", {"netns": str(BOX)})


def give_attach_and_settle(scene: Scene) -> None:
    slot = scene.ask("POST", "/v1/slots", {"netns": str(BOX)})["slot"]["id"]
    scene.try_to("PUT", VICTIM, {"vpc": "blue", "slot": slot})
    scene.check()


def works_there_and_goes(scene: Scene) -> None:
    """There is one slot in there, or can be; nothing but that goes with it."""
    give_attach_and_settle(scene)
    assert ping(BOX, scene.two["address"]) == ping(BOX, scene.two["address6"]) == 3
    scene.ask("DELETE", VICTIM)
    scene.check()
    assert interfaces_in(BOX) == {"lo"}


def make_veth(scene: Scene) -> None:
    """In BOX there is nobody's eth0 then, whose other end is in the node's namespace."""
    if "eth0" not in interfaces_in(BOX):
        run("ip", "-n", scene.node.namespace, "link", "add", VETH, "type", "veth", "peer", "name",
            "eth0", "netns", BOX.name)  # fmt: skip


def bring(scene: Scene) -> None:
    scene.try_to("POST", "/v1/slots", {"netns": str(BOX), "existing": True})


def works_as_brought_and_goes(scene: Scene) -> None:
    """Taken or given back, the veth was not lost: the same call again takes it."""
    slot = scene.ask("POST", "/v1/slots", {"netns": str(BOX), "existing": True})["slot"]["id"]
    scene.try_to("PUT", VICTIM, {"vpc": "blue", "slot": slot})
    scene.check()
    assert VETH not in interfaces(scene.node)
    assert ping(BOX, scene.two["address"]) == ping(BOX, scene.two["address6"]) == 3
    scene.ask("DELETE", VICTIM)
    scene.check()
    assert interfaces_in(BOX) == {"lo"}


def stop_with_victim(scene: Scene) -> None:
    attach_and_settle(scene)
    scene.lab.stop_agent(scene.node, signal.SIGKILL)


def stop_before_upgrade(scene: Scene) -> None:
    """To programs that are not pinned yet."""
    scene.lab.stop_agent(scene.node, signal.SIGKILL)
    pins = Pins(directory_of(scene.node))
    for name in PROGRAMS:
        pins.program(name).unlink(missing_ok=True)


def stop_where_some_were_lost(scene: Scene) -> None:
    """By the file, which is of an earlier boot then; whoever is in the maps was not lost."""
    scene.lab.stop_agent(scene.node, signal.SIGKILL)
    record = Path(scene.node.directory, "state", scene.node.name, "attached")
    _, *lines = record.read_text().splitlines()
    lines += [f"+ {name} 42 10.0.1.77 9 1" for name in GHOSTS]
    record.write_text("\n".join(["an-earlier-boot", *lines, ""]))


def are_known_and_let_go(scene: Scene) -> None:
    """Who was lost; the next agent forgets whom this one was told to forget."""
    assert set(scene.ask("GET", "/v1/node")["lost"]) == GHOSTS
    for name in GHOSTS:
        scene.ask("DELETE", f"/v1/sandboxes/{name}")
    record = Path(scene.node.directory, "state", scene.node.name, "attached")
    # Written behind the answers.
    assert eventually(lambda: all(f"- {name}\n" in record.read_text() for name in GHOSTS))
    scene.lab.stop_agent(scene.node, signal.SIGKILL)
    scene.start()
    assert scene.ask("GET", "/v1/node")["lost"] == []


def start(scene: Scene) -> None:
    scene.lab.start_agent(scene.node)
    scene.wait_for_death()


STEPS = {
    "attach": Step(AGENT, ATTACHING, attach, works_and_goes),
    "attach-row": Step(AGENT, ATTACHING, attach_row, both_work_and_go),
    "detach": Step(AGENT, ATTACHING, detach, is_gone_and_rests, attach_and_settle),
    "reserve": Step(AGENT, ATTACHING, reserve, gives_back, sample=2),
    "release": Step(AGENT, ATTACHING, release, gives_back, reserve_and_settle, sample=2),
    # The slot process alone: the agent starts another, later each time.
    "refill": Step(SLOT_PROCESS, MAKING, attach, works_and_goes, sample=3),
    "refill-with-agent": Step(SLOT_PROCESS, MAKING, attach, works_and_goes, parent=True),
    "destroy": Step(SLOT_PROCESS, DESTROYING, detach, works_and_goes, attach_and_settle, sample=3),
    "destroy-with-agent": Step(
        SLOT_PROCESS, DESTROYING, detach, is_gone_and_rests, attach_and_settle, parent=True
    ),
    "give": Step(SLOT_PROCESS, GIVING, give, works_there_and_goes, sample=3),
    "give-with-agent": Step(SLOT_PROCESS, GIVING, give, works_there_and_goes, parent=True),
    "bring": Step(SLOT_PROCESS, BRINGING, bring, works_as_brought_and_goes, make_veth, sample=3),
    "bring-with-agent": Step(
        SLOT_PROCESS, BRINGING, bring, works_as_brought_and_goes, make_veth, parent=True
    ),
    "take-back-with-agent": Step(
        SLOT_PROCESS, DESTROYING, detach, works_there_and_goes, give_attach_and_settle, parent=True
    ),
    "adopt": Step(AGENT, STARTING, start, works_and_goes, stop_with_victim, sample=3),
    "mourn": Step(AGENT, REMEMBERING, start, are_known_and_let_go, stop_where_some_were_lost),
    "upgrade": Step(
        NODE_SETUP, SETTING_UP, start, works_and_goes, stop_before_upgrade, parent=True, sample=3
    ),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_whoever_is_killed_leaves_nothing_half_done(scene, step):
    """Nor does a packet of others get lost meanwhile."""
    scene.start()
    if step.process == SLOT_PROCESS:  # what it does once, when it is new, is not to be counted on
        step.before(scene)
        step.act(scene)
        scene.check()
        step.afterwards(scene)
    step.before(scene)
    with scene.killer.recording(step.process, step.files) as lines:
        step.act(scene)
        if step.process == SLOT_PROCESS:
            scene.check()  # which the agent has lines of its own for
    scene.check()
    step.afterwards(scene)
    died = 0
    assert len(lines) >= step.sample, "the step is done in other files now"

    with Stream(Path(scene.one["slot"]["netns"]), Path(scene.two["slot"]["netns"]),
                scene.two["address"]) as stream:  # fmt: skip
        numbers = chosen(len(lines), step.sample)
        print(f"{len(lines)} lines, {len(numbers)} of them now")
        for line in numbers:
            if EVERY_LINE and step.process == SLOT_PROCESS:
                scene.renew()
            step.before(scene)
            with scene.killer.armed(step.process, step.files, line, parent=step.parent):
                step.act(scene)
                scene.wait_for_death()
            died += scene.killer.struck
            if EVERY_LINE:  # how far it came, should somebody end it
                print(f"{line}: {scene.killer.where or 'nobody'}", flush=True)
            agent = step.parent or step.process == AGENT
            scene.start(after_death=agent and scene.killer.struck)
            step.afterwards(scene)
        lost = stream.lost()

    assert (lost, stream.errors) == (set(), [])
    # Once more it may take fewer lines: an index that is known, an address that comes first.
    assert died >= len(numbers) * 3 // 4


def test_a_node_that_dies_on_its_way_up_or_down_comes_up_and_goes_whole():
    """From nothing, each time; and the next `node down` leaves nothing."""
    killer = Killer(Path(f"/run/{PREFIX}-orders2"))
    with killer.obeyed(), Lab(Path(f"/run/{PREFIX}-dy1"), f"{PREFIX}-d1") as lab:
        lab.make_nodes(1, SLOTS, metrics=False)
        (node,) = lab.nodes

        def up() -> None:
            lab.start_agent(node)
            pid = lab.agents[node.name]
            assert eventually(lambda: not alive(pid) or ready(node), 60 * PATIENCE)

        def down() -> None:
            with contextlib.suppress(GeneveError):
                ask(node, "POST", "/v1/node:down", {"force": True})
            lab.wait_gone(node)

        with killer.recording(NODE_SETUP, SETTING_UP) as to_come_up:
            up()
        with killer.recording(NODE_SETUP, SETTING_UP) as to_go_down:
            down()

        ups, downs = chosen(len(to_come_up), 3), chosen(len(to_go_down), 3)
        print(f"{len(to_come_up)} lines up and {len(to_go_down)} down, {len(ups)} of them now")
        ways = max(len(ups), len(downs))  # the shorter list is gone through again
        for line_up, line_down in islice(zip(cycle(ups), cycle(downs), strict=True), ways):
            with killer.armed(NODE_SETUP, SETTING_UP, line_up, parent=True):
                up()
            assert killer.struck
            if EVERY_LINE:
                print(f"{line_up}: {killer.where}", flush=True)
            lab.wait_gone(node)
            up()
            assert disagreements(node) == []
            with killer.armed(NODE_SETUP, SETTING_UP, line_down, parent=True):
                down()
            assert killer.struck
            tear_down(load(node.config).node)
            assert interfaces(node) == set()
            assert programs_on_uplink(node) == []
            assert mounts(directory_of(node)) == set()
            assert not directory_of(node).exists()
