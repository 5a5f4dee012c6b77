# SPDX-License-Identifier: Apache-2.0
"""One node with an agent that tests may kill, start anew and look behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geneve_ebpf.dataplane import DataPlane
from lab.network import Lab
from tests.api import Agent
from tests.nodes import PREFIX, eventually

SLOTS = 6
VPCS = [
    {"name": "blue", "vni": 100, "prefixes": ["10.0.0.0/16"]},
    {"name": "red", "vni": 101, "prefixes": ["10.0.0.0/16", "10.9.0.0/24"]},
]
VTEPS = [{"address": "192.0.2.8", "mtu": 0}, {"address": "192.0.2.9", "mtu": 1400}]
ROUTES: list[dict[str, Any]] = [
    {"vpc": "blue", "prefix": "10.0.128.0/17", "kind": "remote", "vtep": "192.0.2.8"},
    {"vpc": "blue", "prefix": "10.0.200.1/32", "kind": "blackhole"},
    {"vpc": "red", "prefix": "10.0.128.0/17", "kind": "remote", "vtep": "192.0.2.9"},
]
STATE: dict[str, Any] = {"vpcs": VPCS, "vteps": VTEPS, "routes": ROUTES}


class Bench:
    """A node with an agent, and one connection to it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = lab.nodes[0]
        self.agent = Agent(self.node.socket)

    @property
    def pid(self) -> int:
        """The agent's."""
        return self.lab.agents[self.node.name]

    @property
    def run_directory(self) -> Path:
        """The node's, of run-time files."""
        return Path(self.node.directory, "run", self.node.name)

    @property
    def database(self) -> Path:
        """The file of its desired state."""
        return Path(self.node.directory, "state", self.node.name, "state.db")

    def start(self) -> None:
        """An agent, until it is ready."""
        self.lab.start_agent(self.node)
        self.lab.wait_ready(self.node)

    def stop(self, number: int) -> None:
        """End it by a signal."""
        self.agent.close()
        self.lab.stop_agent(self.node, number)

    def restart(self, number: int = signal.SIGKILL) -> None:
        """Both."""
        self.stop(number)
        self.start()

    def maps(self) -> tuple[set[Any], set[Any], set[Any]]:
        """What the maps hold: routes, VTEPs, attachments."""
        plane = DataPlane.open(self.run_directory, writable=False)
        try:
            return (
                {(vni, str(r.prefix), r.kind, r.vtep, r.mac) for vni, r in plane.routes()},
                {(v.address, v.mtu) for v in plane.vteps()},
                {(a.sandbox, a.slot, a.endpoint, a.generation) for a in plane.attachments()},
            )
        finally:
            plane.close()

    def ready(self) -> bool:
        """Whether all its slots are, and none is on its way."""
        counts = self.agent.must("GET", "/v1/slots")["counts"]
        return bool(counts["ready"] == SLOTS and counts["retiring"] == counts["making"] == 0)

    def log(self) -> str:
        """All that its agents have said."""
        return self.node.log.read_text()

    def reset(self) -> None:
        """Nobody attached, no slot reserved, the usual state."""
        if self.node.name not in self.lab.agents:
            self.start()
        for one in self.agent.must("GET", "/v1/sandboxes")["sandboxes"]:
            self.agent.must("DELETE", f"/v1/sandboxes/{one['sandbox']}")
        for one in self.agent.must("GET", "/v1/slots")["slots"]:
            if one["state"] == "reserved":
                self.agent.must("DELETE", f"/v1/slots/{one['id']}")
        self.agent.must("PUT", "/v1/state", STATE)
        assert eventually(self.ready, 30)


@contextmanager
def one_agent() -> Iterator[Bench]:
    """Made and started; gone at the end."""
    with Lab(Path(f"/run/{PREFIX}-agent"), f"{PREFIX}-agent") as lab:
        lab.make_nodes(1, SLOTS, metrics=False)
        config = lab.nodes[0].config
        config.write_text(config.read_text().replace("[metrics]", "address_rest = 30\n[metrics]"))
        bench = Bench(lab)
        bench.start()
        yield bench
        bench.agent.close()
