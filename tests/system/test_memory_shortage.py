# SPDX-License-Identifier: Apache-2.0
"""An agent whose control group has no more memory, which is charged for its slots: the kernel
kills a child of it, or refuses what it is asked for.

What is attached keeps its network and what is ready is given out. Why there is no more is said,
and made when there is memory.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.host import namespaces
from lab.network import Lab
from tests.api import Agent, children
from tests.memory import MemoryGroup
from tests.nodes import PREFIX, eventually, ping
from tests.patience import PATIENCE

FEW, MANY = 3, 600  # slots; of these some 400 KB each are the kernel's
ROOM = 32 << 20  # bytes that are left for more slots: not enough for so many
SLOT_PROCESS = "geneve_ebpf.agent.slot_process"


class Bench:
    """A node in a group of its own."""

    def __init__(self, lab: Lab, group: MemoryGroup) -> None:
        self.lab = lab
        self.group = group
        (self.node,) = lab.nodes
        self.ask = Agent(self.node.socket)

    def start(self, slots: int) -> None:
        """Another agent, in the group from its first instruction, to keep so many slots."""
        self.ask.close()
        self.lab.stop_agent(self.node)
        config = self.node.config.read_text()
        self.node.config.write_text(re.sub(r"(?m)^slots = \d+$", f"slots = {slots}", config))
        join = f'echo $$ > {self.group.entrance}; exec "$@"'
        self.lab.start_agent(self.node, "sh", "-c", join, "sh")
        assert eventually(self.answers, 60)

    def answers(self) -> bool:
        """Whether a request gets an answer."""
        try:
            return self.ask.ask("GET", "/healthz")[0] == 200
        except OSError:
            self.ask.close()
            return False

    @property
    def pid(self) -> int:
        return self.lab.agents[self.node.name]

    def slots(self) -> dict[str, int]:
        """How many are in which state."""
        found: dict[str, int] = self.ask.must("GET", "/v1/node")["slots"]
        return found

    def problems(self) -> str:
        """What the node says is wrong."""
        found: dict[str, Any] = self.ask.must("GET", "/v1/node")
        return "; ".join(found["problems"])

    def talks(self) -> bool:
        """Whether the two that are attached reach each other."""
        one, two = (self.ask.must("GET", f"/v1/sandboxes/{name}") for name in ("one", "two"))
        return ping(Path(one["slot"]["netns"]), two["address"]) == 3

    def whole(self) -> bool:
        """Whether all slots are ready, nobody is leaving and nothing is wrong or half made."""
        slots = self.slots()
        if slots["ready"] < slots["target"] or slots["making"] or slots["retiring"]:
            return False
        return not self.problems() and not self.half_made()

    def half_made(self) -> set[str]:
        """Slots that lack one of a namespace, an interface and a place in the agent's list."""
        known = {slot["id"] for slot in self.ask.must("GET", "/v1/slots")["slots"]}
        kept = set(os.listdir(Path(self.node.directory, "run", self.node.name, "netns")))
        with namespaces.entering(self.node.netns):
            names = {name for _, name in socket.if_nameindex()}
        there = {name.replace("gnv", "slot-") for name in names if re.fullmatch(r"gnv\d+", name)}
        return known ^ kept | known ^ there


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with (
        MemoryGroup(f"{PREFIX}-memory") as group,
        Lab(Path(f"/run/{PREFIX}-mem"), f"{PREFIX}-mem", patience=60 * PATIENCE) as lab,
    ):
        lab.make_nodes(1, FEW, metrics=False)
        made = Bench(lab, group)
        made.start(FEW)
        made.ask.must("PUT", "/v1/vpcs/blue", {"vni": 42, "prefixes": ["10.0.0.0/16"]})
        assert eventually(made.whole, 60)
        for name in ("one", "two"):
            made.ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})
        yield made
        made.ask.close()


@pytest.fixture
def refusing(bench: Bench) -> Iterator[MemoryGroup]:
    """A group for the slot process alone, in which nobody is killed."""
    with MemoryGroup(f"{PREFIX}-slots") as group:
        group.refuse()
        yield group
        move(bench, bench.group)  # it has to be empty to go


def move(bench: Bench, group: MemoryGroup) -> None:
    """The slot process that there is now is in the group from now on."""
    for pid in children(bench.pid, SLOT_PROCESS):
        group.entrance.write_text(str(pid))


def test_a_slot_that_the_kernel_has_no_memory_for_leaves_nothing(
    bench: Bench, refusing: MemoryGroup
) -> None:
    """Wherever in its making the memory ends. The reason is said; with memory it is made."""
    reasons = []
    for kilobytes in (0, 10, 20, 30, 40, 70, 90):
        assert eventually(bench.whole, 30), (kilobytes, bench.problems(), bench.half_made())
        move(bench, refusing)
        refusing.limit(refusing.usage + (kilobytes << 10))
        bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})
        assert eventually(lambda: bench.problems() or bench.whole(), 30), bench.slots()
        reasons.append(bench.problems())
        assert bench.talks()
        refusing.limit(None)
        bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert eventually(bench.whole, 30), (bench.problems(), bench.half_made())
    assert any("Cannot allocate memory" in one for one in reasons), reasons


def test_an_agent_without_memory_to_look_at_its_node_serves_by_the_maps(bench: Bench) -> None:
    """It says so, and looks when there is memory."""
    assert eventually(bench.whole, 30), bench.problems()
    needs = own_memory(bench.pid)
    bench.ask.close()
    bench.lab.stop_agent(bench.node)
    bench.group.limit(bench.group.usage + needs + (12 << 20))
    bench.start(FEW)

    killed = "bring the node up was killed by signal 9"
    assert eventually(lambda: killed in bench.problems(), 30), bench.problems()
    agent = bench.pid
    bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})
    bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert bench.talks()

    bench.group.limit(None)
    assert eventually(bench.whole, 30), (bench.problems(), bench.half_made())
    assert bench.pid == agent


def own_memory(pid: int) -> int:
    """Bytes that a process has to itself."""
    (found,) = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) << 10


def test_where_memory_ends_the_slot_process_is_killed_and_not_the_agent(bench: Bench) -> None:
    """Each time it is there again, until there is memory; nothing that it half made stays."""
    assert eventually(bench.whole, 30), bench.problems()
    bench.group.limit(bench.group.usage + ROOM)
    bench.start(MANY)
    agent, before = bench.pid, bench.group.killed

    assert eventually(lambda: bench.group.killed >= before + 2, 60), bench.slots()
    assert eventually(lambda: "slot process was killed by signal 9" in bench.problems(), 30)
    assert FEW < bench.slots()["ready"] < MANY
    bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})
    bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert bench.talks()

    bench.group.limit(None)
    assert eventually(bench.whole, 60), (bench.problems(), bench.half_made())
    assert bench.slots()["ready"] >= MANY
    assert bench.pid == agent
    assert eventually(bench.talks)
