# SPDX-License-Identifier: Apache-2.0
"""Nodes as network namespaces, joined by an underlay, one agent each.

Everything is made inside namespaces of our own: no interface of the machine is
touched or even looked at. Two nodes are joined by a veth pair, more by a
namespace with a bridge that plays the switch. Agents are started by this
process's namespaces and enter their node themselves, never by `ip netns exec`,
whose private mount namespace would take the pins with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from geneve_ebpf.agent.config import load
from geneve_ebpf.client import AgentClient
from geneve_ebpf.dataplane import tear_down
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces

ROOT = Path(__file__).resolve().parent.parent
NETNS = Path("/run/netns")
# Documentation prefixes (RFC 5737, RFC 3849): every lab has its own, each is closed in itself.
UNDERLAYS = {4: ("192.0.2.", 24), 6: ("2001:db8::", 64)}
UPLINK = "uplink0"


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a lab: its namespace, its place on disk, its agent's configuration."""

    name: str
    namespace: str  # below /run/netns
    vtep: str
    directory: str  # everything this node writes is below it
    slots: int
    metrics: bool

    @property
    def netns(self) -> Path:
        """The namespace's file."""
        return NETNS / self.namespace

    @property
    def socket(self) -> Path:
        """The agent's socket."""
        return Path(self.directory, "run", self.name, "api.sock")

    @property
    def config(self) -> Path:
        """The agent's configuration file."""
        return Path(self.directory, f"{self.name}.toml")

    @property
    def log(self) -> Path:
        """What the agent said."""
        return Path(self.directory, f"{self.name}.log")

    @property
    def host(self) -> str:
        """The value of GENEVE_EBPF_HOST that reaches this node's agent."""
        return f"unix://{self.socket}"

    def client(self) -> AgentClient:
        """A connection to the agent."""
        return AgentClient(self.socket)

    def environment(self) -> dict[str, str]:
        """The caller's environment, with this node's agent as the one to talk to."""
        return {**os.environ, "GENEVE_EBPF_HOST": self.host}

    def write_config(self) -> None:
        """Write the agent's configuration."""
        listen = "127.0.0.1:16081" if self.metrics else ""
        self.config.write_text(
            f'[node]\nname = "{self.name}"\nvtep = "{self.vtep}"\nuplinks = ["{UPLINK}"]\n'
            f'netns = "{self.netns}"\nslots = {self.slots}\n'
            f'run_root = "{self.directory}/run"\nstate_root = "{self.directory}/state"\n\n'
            f'[metrics]\nlisten = "{listen}"\n'
        )


def run(*words: object) -> str:
    """Run a command to its end; its stdout. Raises RuntimeError, ready to paste, if it fails."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def inside(netns: Path | str, *words: object) -> list[str]:
    """The command line that runs a command in a network namespace, and only that one."""
    return ["nsenter", f"--net={netns}", "--", *(str(word) for word in words)]


def set_up_namespace(name: str, settings: Mapping[str, int] | None = None) -> None:
    """Make a namespace with `lo` up. settings: paths below /proc/sys/net, and values."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    with namespaces.entering(NETNS / name):
        for path, value in (settings or {}).items():
            Path("/proc/sys/net", path).write_text(str(value))


class Lab:
    """Some nodes and what joins them.

    directory: an empty or missing one, for agents' files and the lab's record;
    prefix: how the names of its namespaces start. Both are removed by `down`,
    which works from the record alone and so also after the maker died.
    patience: seconds that an agent may take to serve with all its slots.
    """

    def __init__(self, directory: Path, prefix: str = "gnv-lab", *, patience: float = 60) -> None:
        self.directory = directory
        self.patience = patience
        self.prefix = prefix
        self.nodes: list[Node] = []
        self.agents: dict[str, int] = {}  # node -> process id
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def record(self) -> Path:
        """Says what to take down."""
        return self.directory / "lab.json"

    @classmethod
    def recorded(cls, directory: Path) -> Lab | None:
        """The lab that lives in a directory, if any does."""
        try:
            content = json.loads((directory / "lab.json").read_text())
        except FileNotFoundError:
            return None
        lab = cls(directory, content["prefix"])
        lab.nodes = [Node(**node) for node in content["nodes"]]
        lab.agents = content["agents"]
        return lab

    def up(
        self, nodes: int = 2, slots: int = 16, metrics: bool = True, outside: Literal[4, 6] = 4
    ) -> None:
        """Make the nodes and their underlay, start the agents, wait until they are ready."""
        self.make_nodes(nodes, slots, metrics, outside)
        for node in self.nodes:
            self.start_agent(node)
        for node in self.nodes:
            self.wait_ready(node)

    def make_nodes(
        self, count: int, slots: int = 16, metrics: bool = True, outside: Literal[4, 6] = 4
    ) -> None:
        """Make namespaces and underlay, of the family `outside`, write configurations; no agent
        yet."""
        if not 1 <= count <= 200:
            raise ValueError("1 to 200 nodes")
        network, length = UNDERLAYS[outside]
        self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        for number in range(1, count + 1):
            name = f"node{number}"
            node = Node(
                name,
                f"{self.prefix}-{name}",
                f"{network}{number}",
                str(self.directory),
                slots,
                metrics,
            )
            self.nodes.append(node)
        self._write_record()  # before anything exists: `down` may be all that follows
        for node in self.nodes:
            set_up_namespace(
                node.namespace,
                {
                    "ipv4/fib_multipath_hash_policy": 1,
                    "ipv6/fib_multipath_hash_policy": 1,
                },
            )
            node.write_config()
        self._join()
        for node in self.nodes:
            # Nobody else has the address: waiting to find that out takes a second.
            nodad = ("nodad",) if outside == 6 else ()
            words = ("address", "add", f"{node.vtep}/{length}", "dev", UPLINK, *nodad)
            run("ip", "-n", node.namespace, *words)
            run("ip", "-n", node.namespace, "link", "set", UPLINK, "up")

    @property
    def switch(self) -> str:
        """The namespace whose bridge joins more than two nodes."""
        return f"{self.prefix}-switch"

    def _join(self) -> None:
        if len(self.nodes) == 1:  # a wire to nowhere: the other end stays in the same node
            node = self.nodes[0]
            self._veth(node.namespace, UPLINK, node.namespace, "nowhere0")
            run("ip", "-n", node.namespace, "link", "set", "nowhere0", "up")
        elif len(self.nodes) == 2:
            first, second = self.nodes
            self._veth(first.namespace, UPLINK, second.namespace, UPLINK)
        else:
            set_up_namespace(self.switch)
            run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", self.switch, "link", "set", "br0", "up")
            for number, node in enumerate(self.nodes, 1):
                port = f"port{number}"
                self._veth(node.namespace, UPLINK, self.switch, port)
                run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")

    @staticmethod
    def _veth(namespace: str, name: str, peer_namespace: str, peer_name: str) -> None:
        run(
            "ip", "link", "add", name, "netns", namespace, "type", "veth",
            "peer", "name", peer_name, "netns", peer_namespace,
        )  # fmt: skip

    def start_agent(self, node: Node, *through: str) -> None:
        """Start a node's agent; `wait_ready` tells when it serves.

        through: the start of a command line that becomes the agent by execve(2).
        """
        agent = (sys.executable, "-m", "geneve_ebpf", "agent", "run", "--config", str(node.config))
        with node.log.open("ab") as log:
            child = subprocess.Popen(
                [*through, *agent],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[node.name] = child
        self.agents[node.name] = child.pid
        self._write_record()

    def wait_ready(self, node: Node) -> None:
        """Wait until the agent serves and all its slots are ready.

        Raises RuntimeError with the end of its log if it exits or takes longer.
        """
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            child = self._children.get(node.name)
            if child is not None and child.poll() is not None:
                raise RuntimeError(f"the agent of {node.name} exited:\n{_end_of(node.log)}")
            try:
                with node.client() as client:
                    client.request("GET", "/readyz")
                    _, answer = client.request("GET", "/v1/node")
                if answer["slots"]["ready"] >= answer["slots"]["target"]:
                    return
            except GeneveError as error:
                if not error.code.value.retryable:
                    raise
            time.sleep(0.02)
        raise RuntimeError(f"the agent of {node.name} is not ready:\n{_end_of(node.log)}")

    def stop_agent(self, node: Node, number: signal.Signals = signal.SIGTERM) -> None:
        """End the agent alone; the data plane stays. SIGTERM, or SIGKILL for a crash."""
        pid = self.agents.pop(node.name, None)
        if pid is not None and is_agent(pid):
            os.kill(pid, number)
        if pid is not None:
            self._wait_gone(node, pid)
        self._write_record()

    def wait_gone(self, node: Node) -> None:
        """Wait until a node's agent has ended by itself, as after `node down`."""
        pid = self.agents.pop(node.name, None)
        if pid is not None:
            self._wait_gone(node, pid)
        self._write_record()

    def connect(self, vpc: str, vni: int, *spans: tuple[str, dict[str, str]]) -> None:
        """Give every node a VPC, with a block of each of its prefixes on each named node.

        spans: prefix, and node name -> the part of the prefix that lives there.
        """
        prefixes = [prefix for prefix, _ in spans]
        places = [place for _, blocks in spans for place in blocks.items()]
        for node in self.nodes:
            with node.client() as client:
                client.request("PUT", f"/v1/vpcs/{vpc}", {"vni": vni, "prefixes": prefixes})
                for other in self.nodes:
                    if other is not node:
                        client.request("PUT", f"/v1/vteps/{other.vtep}", {"mtu": 0})
                for name, block in places:
                    route: dict[str, Any] = {"vpc": vpc, "prefix": block, "kind": "local"}
                    if name != node.name:
                        vtep = next(other.vtep for other in self.nodes if other.name == name)
                        route |= {"kind": "remote", "vtep": vtep}
                    client.request("POST", "/v1/routes", route)

    def down(self) -> None:
        """Remove everything, whatever is left of it. Does as much as it can, then raises."""
        troubles: list[str] = []
        for node in self.nodes:
            try:
                self._take_down(node)
            except (GeneveError, RuntimeError, OSError) as error:
                troubles.append(f"{node.name}: {error}")
        for namespace in [*(node.namespace for node in self.nodes), self.switch]:
            if (NETNS / namespace).exists():
                try:
                    run("ip", "netns", "delete", namespace)
                except RuntimeError as error:
                    troubles.append(str(error))
        if troubles:  # the record stays, so that `down` can be tried again
            raise RuntimeError("; ".join(troubles))
        if self.record.exists():
            shutil.rmtree(self.directory)
        self.nodes, self.agents = [], {}

    def _take_down(self, node: Node) -> None:
        """The node's agent and data plane, by the agent itself if it is well."""
        pid = self.agents.get(node.name)
        if pid is not None and is_agent(pid) and self._answers(node):
            with node.client() as client:
                client.request("POST", "/v1/node:down", {"force": True})
            self._wait_gone(node, pid)
            self.agents.pop(node.name, None)
        else:
            self.stop_agent(node, signal.SIGKILL)
        if Path(node.directory, "run", node.name).exists():
            tear_down(load(node.config).node)

    def _answers(self, node: Node) -> bool:
        try:
            with AgentClient(node.socket, timeout=5) as client:
                client.request("GET", "/healthz")
        except GeneveError as error:
            return error.code is not Code.AGENT_UNREACHABLE
        return True

    def _wait_gone(self, node: Node, pid: int, seconds: float = 30) -> None:
        child = self._children.pop(node.name, None)
        if child is not None and child.pid == pid:
            try:
                child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            return
        deadline = time.monotonic() + seconds
        while is_agent(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        if is_agent(pid):
            os.kill(pid, signal.SIGKILL)

    def _write_record(self) -> None:
        content = {
            "prefix": self.prefix,
            "nodes": [asdict(node) for node in self.nodes],
            "agents": self.agents,
        }
        self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.record.write_text(json.dumps(content, indent=1) + "\n")


def is_agent(pid: int) -> bool:
    """Whether a process id is still an agent's and not somebody else's by now."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"geneve_ebpf" in words and b"agent" in words


def _end_of(log: Path, lines: int = 25) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
