# SPDX-License-Identifier: Apache-2.0
"""An agent that is started, killed and started again over what it left; and what it takes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.ours import as_toml, settings_of, start
from bench.testbed import BenchError, Node, eventually
from geneve_ebpf.agent.config import Filling, Placement
from geneve_ebpf.client import AgentClient
from geneve_ebpf.dataplane import tear_down
from geneve_ebpf.errors import GeneveError
from geneve_ebpf.model import NodeSettings, SlotKind

PATIENCE = 900.0  # seconds for thousands of slots
VPC, VNI = "blue", 4242
METRICS = "127.0.0.1:16081"  # in the node's own namespace


@dataclass(slots=True)
class Served:
    """One node and its agent, which comes and goes."""

    settings: NodeSettings
    placement: Placement
    log: Path
    client: AgentClient
    filling: Filling = field(default_factory=Filling)
    process: subprocess.Popen[bytes] | None = None

    def start(self, slots: int | None = None) -> None:
        """Start the agent, with another number of slots to keep if one is given."""
        if slots is not None:
            self.settings = replace(self.settings, slots=slots)
        text = as_toml(self.settings, self.placement)
        keys = f"slots = {self.settings.slots}\nrefill_rate = {self.filling.refill_rate}"
        if self.filling.low_watermark is not None:
            keys += f"\nlow_watermark = {min(self.filling.low_watermark, self.settings.slots)}"
        text = text.replace(f"slots = {self.settings.slots}", keys, 1)
        config = self.log.with_suffix(".toml")
        config.write_text(text.replace('listen = ""', f'listen = "{self.settings.metrics_listen}"'))
        self.process = start(config, self.log)

    def end(self, number: int) -> None:
        """End the agent by a signal; its node goes on."""
        assert self.process is not None
        self.client.close()
        self.process.send_signal(number)
        self.process.wait()

    def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        """One request, again and again while the agent does not answer yet."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.client.request(method, path, body)[1]
            except GeneveError as error:
                if error.code.name != "AGENT_UNREACHABLE":
                    raise
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                words = self.log.read_text(errors="replace").strip().splitlines()[-3:]
                raise BenchError(f"the agent does not answer; its log ends: {' / '.join(words)}")
            time.sleep(0.002)

    def counts(self) -> dict[str, int]:
        """Slots by state, and the target."""
        found: dict[str, int] = self.ask("GET", "/v1/node")["slots"]
        return found

    def wait(self, state: str, count: int) -> None:
        """Wait until so many slots are in a state."""
        eventually(lambda: self.counts()[state] == count, f"{count} slots {state}", PATIENCE)

    def rest(self) -> None:
        """Wait until every slot is made and nothing is being destroyed."""

        def at_rest() -> bool:
            slots = self.counts()
            full = slots["ready"] >= slots["target"]
            return full and not slots["making"] and not slots["retiring"]

        eventually(at_rest, f"the slots of node {self.settings.name}", PATIENCE)

    def whole(self) -> None:
        """Wait until an agent that came back has looked at everything that hangs."""

        def ready() -> bool:
            try:
                self.ask("GET", "/readyz")
            except GeneveError as error:
                if error.code.name != "DEGRADED":
                    raise
                return False
            return True

        eventually(ready, f"node {self.settings.name}", PATIENCE)

    def make_vpc(self) -> None:
        """One VPC with room for many addresses."""
        self.ask("PUT", f"/v1/vpcs/{VPC}", {"vni": VNI, "prefixes": ["10.0.0.0/8"]})
        route: dict[str, object] = {"vpc": VPC, "prefix": "10.0.0.0/12", "kind": "local"}
        self.ask("POST", "/v1/routes", route)

    def attach(self, name: str, slot: int | None = None) -> float:
        """Attach one sandbox; microseconds until the answer."""
        body: dict[str, object] = {"vpc": VPC}
        if slot is not None:
            body["slot"] = f"slot-{slot}"
        began = time.perf_counter_ns()
        self.client.request("PUT", f"/v1/sandboxes/{name}", body)
        return (time.perf_counter_ns() - began) / 1000

    def detach(self, name: str) -> None:
        """Detach one sandbox."""
        self.client.request("DELETE", f"/v1/sandboxes/{name}")

    def pids(self) -> dict[str, int]:
        """The agent's process and its children, by name."""
        assert self.process is not None
        pid = self.process.pid
        found = {"agent": pid}
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found["exporter" if b"geneve_ebpf.exporter" in words else "slot process"] = child
        return found

    def cpu_seconds(self) -> float:
        """What those have run."""
        ticks = 0
        for pid in self.pids().values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Their memory; what they share counts in parts."""
        return sum(self.memory().values())

    def memory(self) -> dict[str, float]:
        """Megabytes of each; what they share counts in parts."""
        found = {}
        for name, pid in self.pids().items():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found[name] = int(rollup.partition("\nPss:")[2].split()[0]) / 1024
        return found

    def descriptors(self) -> dict[str, int]:
        """Open descriptors of each."""
        return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in self.pids().items()}


@contextmanager
def served(
    node: Node,
    name: str,
    root: Path,
    slots: int,
    *,
    kind: SlotKind = SlotKind.NAMESPACE,
    placement: Placement | None = None,
    filling: Filling | None = None,
) -> Iterator[Served]:
    """A node whose agent was started; it and all it made are gone at the end."""
    settings = replace(settings_of(node, name, root, slots, kind), metrics_listen=METRICS)
    with AgentClient(settings.run_directory / "api.sock", timeout=120) as client:
        made = Served(
            settings,
            placement or Placement(),
            root / f"{name}.log",
            client,
            filling or Filling(),
        )
        made.start()
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.process.kill()
                made.process.wait()
            with suppress(GeneveError, OSError):
                tear_down(settings)
