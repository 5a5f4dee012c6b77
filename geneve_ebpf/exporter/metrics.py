# SPDX-License-Identifier: Apache-2.0
"""Every metric there is: name, kind, labels and meaning. `docs/metrics.md` is made of this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Dashboards store names and labels: add, never rename."""

    name: str  # as exposed, so a counter ends in _total
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    text: str  # one sentence, for its HELP line


AGENT_UP = Metric(
    "geneve_ebpf_agent_up", "gauge", (), "Whether the node's agent answers on its socket."
)
CORDONED = Metric(
    "geneve_ebpf_node_cordoned", "gauge", (), "Whether the node takes no new sandboxes."
)
PROBLEMS = Metric(
    "geneve_ebpf_node_problems",
    "gauge",
    (),
    "Parts of the node that do not work; `geneve-ebpf node status` names them.",
)
LOST = Metric(
    "geneve_ebpf_sandboxes_lost",
    "gauge",
    (),
    "Sandboxes that were attached and went without being detached, and nobody has seen to.",
)
WAITING = Metric(
    "geneve_ebpf_requests_waiting", "gauge", (), "Attaches that wait for their turn in the agent."
)
OPERATIONS = Metric(
    "geneve_ebpf_operations",
    "gauge",
    ("state",),
    "Asynchronous attaches by state (pending, done, failed); a failed one stays until it is"
    " dropped or tried again.",
)
BUILD_INFO = Metric(
    "geneve_ebpf_build_info",
    "gauge",
    ("version", "layout", "program"),
    "Always 1; the labels say which version serves the node, and the hashes of its map layout"
    " and its programs.",
)
ATTACH_DURATION = Metric(
    "geneve_ebpf_attach_duration_seconds",
    "histogram",
    ("stage", "result"),
    "How long attaching took inside the agent, by stage (wait, validate, write, settle, total) and"
    " result (ok, error).",
)
SLOTS = Metric(
    "geneve_ebpf_slots",
    "gauge",
    ("state", "kind"),
    "Slots by state: ready, reserved, attached, or retiring until they are destroyed; and by"
    " kind: namespace, tap or host-tap.",
)
SLOTS_TARGET = Metric(
    "geneve_ebpf_slots_target", "gauge", ("kind",), "Ready slots that the node works towards."
)
VPC_PACKETS = Metric(
    "geneve_ebpf_vpc_packets_total",
    "counter",
    ("vpc", "direction", "path"),
    "Packets of a VPC's sandboxes on this node: tx is what they sent; local stayed on the"
    " node, remote went through the tunnel. A segmented (GSO) frame is one.",
)
VPC_BYTES = Metric(
    "geneve_ebpf_vpc_bytes_total",
    "counter",
    ("vpc", "direction", "path"),
    "Bytes of inner IP in those packets.",
)
DROPS = Metric(
    "geneve_ebpf_drops_total",
    "counter",
    ("reason", "direction", "class"),
    "Packets that a program dropped, each once: tx came from a sandbox, rx from the wire;"
    " class is invalid, policy, unreachable or resource.",
)
PATH_MTU = Metric(
    "geneve_ebpf_path_mtu_bytes",
    "gauge",
    ("vtep",),
    "Path MTUs that hops of the underlay have made known and that hold now, in bytes of an outer"
    " packet; a VTEP that none has spoken of has no row.",
)
EVENTS = Metric(
    "geneve_ebpf_events_total",
    "counter",
    ("event",),
    "Packets that were not dropped and are worth counting.",
)
MAP_PRESSURE = Metric(
    "geneve_ebpf_map_pressure_ratio",
    "gauge",
    ("map",),
    "Entries of a BPF map over its maximum; at 1 nothing more can be added.",
)
SANDBOX_PACKETS = Metric(
    "geneve_ebpf_sandbox_packets_total",
    "counter",
    ("sandbox", "vpc", "direction", "path"),
    "Packets of one attached sandbox. Only with metrics.per_sandbox.",
)
SANDBOX_BYTES = Metric(
    "geneve_ebpf_sandbox_bytes_total",
    "counter",
    ("sandbox", "vpc", "direction", "path"),
    "Bytes of inner IP in those packets. Only with metrics.per_sandbox.",
)
SCRAPE_ERROR = Metric(
    "geneve_ebpf_scrape_error",
    "gauge",
    ("source",),
    "Whether a source (dataplane, vpcs, state, latency) could not be read; its metrics are then"
    " missing.",
)

METRICS = (
    AGENT_UP,
    CORDONED,
    PROBLEMS,
    LOST,
    WAITING,
    OPERATIONS,
    BUILD_INFO,
    ATTACH_DURATION,
    SLOTS,
    SLOTS_TARGET,
    VPC_PACKETS,
    VPC_BYTES,
    DROPS,
    PATH_MTU,
    EVENTS,
    MAP_PRESSURE,
    SANDBOX_PACKETS,
    SANDBOX_BYTES,
    SCRAPE_ERROR,
)
