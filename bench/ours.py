# SPDX-License-Identifier: Apache-2.0
"""Our nodes, made for a bench and removed after it: agents, and a node without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench.testbed import (
    PREFIX,
    RUN,
    UNDERLAY,
    BenchError,
    Node,
    end_with_parent,
    eventually,
    remove_tree,
    two_nodes,
)
from geneve_ebpf.agent.config import Placement
from geneve_ebpf.client import AgentClient
from geneve_ebpf.dataplane import DataPlane, bring_up, tear_down
from geneve_ebpf.errors import GeneveError
from geneve_ebpf.host.slots import AT_ONCE
from geneve_ebpf.model import NodeSettings, SlotKind

START_TIMEOUT = 60.0  # seconds: compiling, loading, and the first slots


@dataclass(slots=True)
class Agent:
    """A running agent, and one connection to it that stays open."""

    node: Node
    settings: NodeSettings
    process: subprocess.Popen[bytes]
    client: AgentClient
    log: Path
    callers: dict[int, AgentClient] = field(default_factory=dict)

    def caller(self, cpu: int) -> AgentClient:
        """A connection of whoever calls from that CPU: a client learns how soon it is answered."""
        if cpu not in self.callers:
            self.callers[cpu] = AgentClient(self.client.path)
        return self.callers[cpu]

    def get(self, path: str) -> dict[str, Any]:
        """The answer's body. Raises GeneveError."""
        return self.client.request("GET", path)[1]

    def attach(self, sandbox: str, vpc: str, address: str) -> dict[str, Any]:
        """Attach one sandbox, in a slot of the kind that the node has; the answer's body.
        Raises GeneveError."""
        body = {"vpc": vpc, "address": address}
        return self.client.request("PUT", f"/v1/sandboxes/{sandbox}", body)[1]

    def wait_for_slots(self) -> None:
        """Wait until every slot is made and nothing is being destroyed."""

        def at_rest() -> bool:
            slots = self.get("/v1/node")["slots"]
            return bool(
                slots["ready"] >= slots["target"] and not slots["making"] and not slots["retiring"]
            )

        eventually(at_rest, f"the slots of node {self.settings.name}")

    def last_words(self) -> str:
        """The end of its log, on one line."""
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])

    def is_serving(self) -> bool:
        """Whether it answers yet. Raises BenchError when it has ended."""
        if self.process.poll() is not None:
            raise BenchError("the agent ended")
        try:
            self.get("/readyz")
        except GeneveError:
            return False
        return True


@contextmanager
def run_root() -> Iterator[Path]:
    """A directory for the run-time files of the bench's nodes, gone at the end."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-", dir=RUN))
    try:
        yield path
    finally:
        remove_tree(path)


def settings_of(
    node: Node,
    name: str,
    root: Path,
    slots: int,
    kind: SlotKind = SlotKind.NAMESPACE,
    taps: int = 0,
) -> NodeSettings:
    """A node's settings, with slots of one kind and `taps` more of either kind of tap; nothing of
    it lies outside `root`."""
    counts = dict.fromkeys(SlotKind, taps) | {SlotKind.NAMESPACE: 0, kind: slots}
    return NodeSettings(
        name=name,
        vtep=node.address,
        uplinks=(UNDERLAY,),
        netns=node.netns,
        run_root=root,
        state_root=root / "state",
        slots=counts[SlotKind.NAMESPACE],
        tap_slots=counts[SlotKind.TAP],
        host_tap_slots=counts[SlotKind.HOST_TAP],
        metrics_listen="",
    )


@contextmanager
def agent(
    node: Node,
    name: str,
    root: Path,
    slots: int,
    placement: Placement | None = None,
    kind: SlotKind = SlotKind.NAMESPACE,
    taps: int = 0,
) -> Iterator[Agent]:
    """An agent that serves, with all its slots ready."""
    settings = settings_of(node, name, root, slots, kind, taps)
    config = root / f"{name}.toml"
    config.write_text(as_toml(settings, placement or Placement()))
    log = root / f"{name}.log"
    process = start(config, log)
    with AgentClient(settings.run_directory / "api.sock") as client:
        running = Agent(node, settings, process, client, log)
        try:
            try:
                eventually(running.is_serving, f"the agent of node {name}", START_TIMEOUT)
                running.wait_for_slots()
            except BenchError as error:
                raise BenchError(f"{error}; its log ends: {running.last_words()}") from None
            yield running
        finally:
            for caller in running.callers.values():
                caller.close()
            stop(running)


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start an agent that ends with this process. What it says is added to the log."""
    command = ("-c", "from geneve_ebpf.cli import main; main()", "agent", "run", "--config")
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *command, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def stop(running: Agent) -> None:
    """Take the node down, with all it made, however the agent is."""
    with suppress(GeneveError):
        running.client.request("POST", "/v1/node:down", {"force": True})
    try:
        running.process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()
    if running.settings.run_directory.exists():
        with suppress(GeneveError, OSError):
            tear_down(running.settings)


def as_toml(settings: NodeSettings, placement: Placement) -> str:
    """The configuration file that says these settings."""
    lines = [
        "[node]",
        f'name = "{settings.name}"',
        f'vtep = "{settings.vtep}"',
        f"uplinks = {json.dumps(settings.uplinks)}",
        f'netns = "{settings.netns}"',
        f"slots = {settings.slots}",
        f"tap_slots = {settings.tap_slots}",
        f"host_tap_slots = {settings.host_tap_slots}",
        f'run_root = "{settings.run_root}"',
        f'state_root = "{settings.state_root}"',
        "[metrics]",
        'listen = ""',
        "[placement]",
    ]
    for name in ("agent_cpu", "slot_cpu", "exporter_cpu"):
        if getattr(placement, name) is not None:
            lines.append(f"{name} = {getattr(placement, name)}")
    return "\n".join(lines) + "\n"


@contextmanager
def agents(
    name: str, slots: int, kind: SlotKind = SlotKind.NAMESPACE
) -> Iterator[tuple[Agent, Agent]]:
    """Two nodes with an agent each."""
    with ExitStack() as stack:
        left, right = stack.enter_context(two_nodes(name))
        root = stack.enter_context(run_root())
        yield (
            stack.enter_context(agent(left, "left", root, slots, kind=kind)),
            stack.enter_context(agent(right, "right", root, slots, kind=kind)),
        )


def connect(pair: Sequence[Agent], vpc: str, vni: int) -> None:
    """One VPC on both nodes: 10.1.0.0/16 on the first, 10.2.0.0/16 on the second."""
    for number, here in enumerate(pair, 1):
        other = pair[2 - number]
        join(here, vpc, vni, other.node.address, f"10.{3 - number}.0.0/16")


def join(here: Agent, vpc: str, vni: int, vtep: IPv4Address, remote: str) -> None:
    """Tell an agent of a VPC and of the node that has its other half."""
    ask = here.client.request
    ask("PUT", f"/v1/vpcs/{vpc}", {"vni": vni, "prefixes": ["10.1.0.0/16", "10.2.0.0/16"]})
    ask("PUT", f"/v1/vteps/{vtep}", {"mtu": 0})
    ask("POST", "/v1/routes", {"vpc": vpc, "prefix": remote, "kind": "remote", "vtep": str(vtep)})


@dataclass(slots=True)
class LibraryNode:
    """A node without an agent: the data plane as a library, and the process that makes slots."""

    node: Node
    settings: NodeSettings
    plane: DataPlane
    process: subprocess.Popen[bytes]
    control: socket.socket
    made_in: list[float] = field(default_factory=list)  # microseconds each
    indexes: list[int] = field(default_factory=list)  # ready slots
    received: bytes = b""

    def make_slots(self, wanted: int) -> list[float]:
        """Have `wanted` slots ready; what those made for it took, in microseconds."""
        missing = [index for index in range(wanted) if index not in self.indexes]
        took = []
        for start in range(0, len(missing), AT_ONCE):
            self.tell("make", missing[start : start + AT_ONCE], kind="namespace")
            event = self.event("ready")
            self.indexes += [index for index, _ in event["slots"]]
            took += [event["us"] / len(event["slots"])] * len(event["slots"])
        self.indexes.sort()
        return took

    def destroy_slots(self, indexes: Iterable[int]) -> None:
        """Destroy slots that had a tenant; returns when their numbers may be used again."""
        indexes = list(indexes)
        self.tell("destroy", indexes)
        left = set(indexes)
        while left:
            gone = self.event("gone")["indexes"]
            left.difference_update(gone)
            self.indexes = [index for index in self.indexes if index not in gone]

    def netns(self, index: int) -> Path:
        """Where a slot's namespace is mounted."""
        return self.settings.run_directory / "netns" / f"slot-{index}"

    def tell(self, operation: str, indexes: list[int], **more: str) -> None:
        """One line to the slot process."""
        line = json.dumps({"op": operation, "indexes": indexes, **more})
        self.control.sendall(line.encode() + b"\n")

    def event(self, wanted: str) -> dict[str, Any]:
        """Its next line but those about uplinks. Raises BenchError when that is no `wanted`."""
        while True:
            while b"\n" not in self.received:
                more = self.control.recv(1 << 16)
                if not more:
                    raise BenchError("the slot process ended")
                self.received += more
            line, _, self.received = self.received.partition(b"\n")
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "uplinks":
                continue
            if event["event"] != wanted:
                raise BenchError(f"the slot process said {line.decode()}, not {wanted}")
            return event


@contextmanager
def library_node(node: Node, root: Path, slot_cpu: int | None) -> Iterator[LibraryNode]:
    """A node brought up by library calls alone."""
    settings = settings_of(node, "library", root, 0)
    near, far = socket.socketpair()
    near.settimeout(30)
    try:
        plane = bring_up(settings)
        far_number = far.fileno()

        def take_place() -> None:
            end_with_parent()
            # Not the pipe by which subprocess reports a failure: the two sockets
            # were opened before it, so 3 is one of them or was taken earlier.
            os.dup2(far_number, 3)
            if slot_cpu is not None:
                os.sched_setaffinity(0, {slot_cpu})

        log = root / "slots.log"
        with near, log.open("wb") as out:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "geneve_ebpf.agent.slot_process",
                    "--settings-json",
                    settings.as_json(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=take_place,
                pass_fds=(3,),
            )
            far.close()
            made = LibraryNode(node, settings, plane, process, near)
            try:
                yield made
            finally:
                with suppress(OSError):
                    near.shutdown(socket.SHUT_WR)
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                plane.close()
    finally:
        far.close()
        near.close()
        with suppress(GeneveError):
            tear_down(settings)
