# SPDX-License-Identifier: Apache-2.0
"""The VPC's terms over maps and programs: the library behind the agent.

    from geneve_ebpf.dataplane import DataPlane, bring_up

`bring_up` prepares a node (programs, hooks, maps) and returns its `DataPlane`;
attaching a sandbox to a slot is then a call that writes two map entries. Nothing
here brings a netlink library along; `uplinks` does, for the process that needs one.
"""

from geneve_ebpf.abi import Direction, DropReason, EventKind
from geneve_ebpf.dataplane.counters import Counters, Drops, Event, Traffic
from geneve_ebpf.dataplane.node import (
    NotDone,
    adopt,
    bring_up,
    facts,
    look_after,
    splice_program,
    tear_down,
)
from geneve_ebpf.dataplane.plane import DataPlane
from geneve_ebpf.dataplane.probe import Probe, Prober, not_probed

__all__ = [
    "Counters",
    "DataPlane",
    "Direction",
    "DropReason",
    "Drops",
    "Event",
    "EventKind",
    "NotDone",
    "Probe",
    "Prober",
    "Traffic",
    "adopt",
    "bring_up",
    "facts",
    "look_after",
    "not_probed",
    "splice_program",
    "tear_down",
]
