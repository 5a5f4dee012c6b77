# SPDX-License-Identifier: Apache-2.0
"""The moment at which attaching answers: from there on the first packet passes, every way."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.network import Lab, Node
from tests.api import Agent
from tests.nodes import PREFIX, RUN_ROOT, eventually, socket_in
from tests.patience import PATIENCE

TIMES, SLOTS, PORT = 160, 24, 7000


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with Lab(RUN_ROOT / "lab", f"{PREFIX}-edge", patience=60 * PATIENCE) as lab:
        lab.up(2, SLOTS, metrics=False)
        lab.connect("blue", 42, ("10.0.0.0/16", {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}))
        yield lab.nodes[0], lab.nodes[1]
    with contextlib.suppress(OSError):
        RUN_ROOT.rmdir()


@pytest.fixture
def agents(nodes: tuple[Node, Node]) -> Iterator[tuple[Agent, Agent]]:
    both = Agent(nodes[0].socket), Agent(nodes[1].socket)
    yield both
    for agent in both:
        agent.close()


def reserve(agent: Agent) -> dict[str, Any]:
    """A slot, as soon as there is one."""
    found: list[dict[str, Any]] = []

    def reserved() -> bool:
        status, answer = agent.ask("POST", "/v1/slots:reserve")
        if status == 201:
            found.append(answer["slot"])
        return status == 201

    assert eventually(reserved, 60)
    return found[0]


def ear(slot: dict[str, Any]) -> socket.socket:
    """A UDP socket in a slot's namespace."""
    made = socket_in(Path(slot["netns"]), socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("", PORT))
    made.settimeout(5 * PATIENCE)
    return made


def test_the_first_packet_passes_both_ways_every_time(agents: tuple[Agent, Agent]) -> None:
    """
    From and to a sandbox of the other node, and one of this node: one datagram each,
    sent the moment the answer is there, none again.
    """
    here, there = agents
    with contextlib.ExitStack() as stack:
        others = []
        for name, agent in (("near", here), ("far", there)):
            slot = reserve(agent)
            one = stack.enter_context(ear(slot))
            body = {"vpc": "blue", "slot": slot["id"]}
            others.append((one, agent.must("PUT", f"/v1/sandboxes/{name}", body)["address"]))
        (_, near_address), (far, far_address) = others

        def warm() -> bool:
            """The nodes know each other's MAC: that is not what this is about."""
            others[0][0].sendto(b"warm", (far_address, PORT))
            far.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                return far.recv(64) == b"warm"
            return False

        assert eventually(warm, 30)
        far.settimeout(5 * PATIENCE)

        lost = []
        for number in range(TIMES):
            slot = reserve(here)
            with ear(slot) as new:
                body = {"vpc": "blue", "slot": slot["id"]}
                own = here.must("PUT", f"/v1/sandboxes/s{number}", body)["address"]
                for one, _ in others:
                    one.sendto(b"to %d" % number, (own, PORT))
                for _, address in others:
                    new.sendto(b"from %d" % number, (address, PORT))
                try:
                    peers = {new.recvfrom(64) for _ in others}
                    assert {peer[1][0] for peer in peers} == {near_address, far_address}
                    assert {peer[0] for peer in peers} == {b"to %d" % number}
                    for one, _ in others:
                        said, peer = one.recvfrom(64)
                        while said == b"warm":
                            said, peer = one.recvfrom(64)
                        assert (said, peer[0]) == (b"from %d" % number, own)
                except TimeoutError:
                    lost.append(number)
            here.must("DELETE", f"/v1/sandboxes/s{number}")
        assert lost == []
        here.must("DELETE", "/v1/sandboxes/near")
        there.must("DELETE", "/v1/sandboxes/far")
