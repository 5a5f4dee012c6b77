# SPDX-License-Identifier: Apache-2.0
"""Two nodes, the first with slots of every kind, and a virtual machine behind a tap."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from lab.network import Lab, Node
from tests.command import asked
from tests.packets import GATEWAY_MAC, GUEST, GUEST_MAC, ICMP, IP, Ether
from tests.patience import PATIENCE

OWNER, KEPT = 64998, 2  # the uid of the node's taps, and its ready slots of each kind
KINDS = pytest.mark.parametrize("kind", ["tap", "host-tap"])  # of those a machine opens
HEADER = bytes(10)  # virtio's, of a frame as it is


def start(lab: Lab) -> None:
    """Make the nodes and start them."""
    lab.patience = 90 * PATIENCE
    lab.make_nodes(2, slots=KEPT, metrics=False)
    config = lab.nodes[0].config
    kinds = f"tap_slots = {KEPT}\nhost_tap_slots = {KEPT}\ntap_owner = {OWNER}\nslots ="
    config.write_text(config.read_text().replace("slots =", kinds))
    for node in lab.nodes:
        lab.start_agent(node)
    for node in lab.nodes:
        lab.wait_ready(node)
    span = ("10.0.0.0/16", {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"})
    lab.connect("blue", 42, span)


def empty(lab: Lab) -> None:
    """Detach everybody, give back what is reserved, and wait until all slots are ready."""
    for one in lab.nodes:
        for sandbox in asked(one, "list")["sandboxes"]:
            asked(one, "detach", sandbox["sandbox"])
        for slot in asked(one, "slot", "list")["slots"]:
            if slot["state"] == "reserved":
                asked(one, "slot", "release", slot["id"])
        lab.wait_ready(one)


def where(node: Node, slot: dict[str, Any]) -> Path:
    """The namespace that a slot's tap is in."""
    return Path(slot["netns"] or node.netns)


def states(node: Node) -> dict[str, str]:
    """State of each slot, by id."""
    return {one["id"]: one["state"] for one in asked(node, "slot", "list")["slots"]}


class Machine:
    """A virtual machine that answers and sends echo requests, and nothing else."""

    def __init__(self, tap: int) -> None:
        """tap: a descriptor, the machine's to close."""
        self.fd = tap

    def asks(self, address: str, own: str = GUEST) -> bool:
        """Whether one of ten echo requests to an address is answered."""
        question = Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=own, dst=address)
        for number in range(10):
            os.write(self.fd, HEADER + bytes(question / ICMP(id=7, seq=number) / b"machine"))
            while select.select([self.fd], [], [], 0.5 * PATIENCE)[0]:
                frame = Ether(os.read(self.fd, 1 << 16)[len(HEADER) :])
                if ICMP in frame and (frame[IP].src, frame[ICMP].type) == (address, 0):
                    assert (frame[IP].dst, frame.dst) == (own, GUEST_MAC)
                    return True
        return False

    def close(self) -> None:
        """Switch it off."""
        os.close(self.fd)
