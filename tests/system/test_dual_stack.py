# SPDX-License-Identifier: Apache-2.0
"""Sandboxes with IPv4, IPv6 and both, put into VPCs through the agents of two nodes that are
joined by IPv4 or by IPv6 alone."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.network import Lab, Node, inside
from tests.nodes import PREFIX, ping, socket_in

BLOCKS = {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}
BLOCKS6 = {"node1": "fd00:10:0:1::/64", "node2": "fd00:10:0:2::/64"}
V4, V6 = ("10.0.0.0/16", BLOCKS), ("fd00:10::/48", BLOCKS6)
VPCS = {"blue": (42, V4, V6), "red": (43, V4, V6), "six": (44, V6)}


@pytest.fixture(scope="module", params=[4, 6], ids=["over-ipv4", "over-ipv6"])
def lab(request) -> Iterator[Lab]:
    with Lab(Path(f"/run/{PREFIX}-dual"), f"{PREFIX}-dual") as made:
        made.up(2, 6, metrics=False, outside=request.param)
        for vpc, (vni, *spans) in VPCS.items():
            made.connect(vpc, vni, *spans)
        yield made


@pytest.fixture
def nodes(lab: Lab) -> Iterator[tuple[Node, Node]]:
    """Both nodes; nobody is attached afterwards."""
    for node in lab.nodes:
        lab.wait_ready(node)
    yield lab.nodes[0], lab.nodes[1]
    for node in lab.nodes:
        with node.client() as client:
            for sandbox in client.request("GET", "/v1/sandboxes")[1]["sandboxes"]:
                client.request("DELETE", f"/v1/sandboxes/{sandbox['sandbox']}")


def attach(node: Node, sandbox: str, vpc: str = "blue", **more: str) -> dict[str, Any]:
    """What the agent answers."""
    with node.client() as client:
        return client.request("PUT", f"/v1/sandboxes/{sandbox}", {"vpc": vpc, **more})[1]


def reaches(sandbox: dict[str, Any], address: str, wait: float = 1) -> bool:
    """Whether three echo requests are answered, all of them."""
    return ping(sandbox["slot"]["netns"], address, wait=wait) == 3


def test_both_families_reach_both_nodes(nodes):
    """Unasked, each gets an address of each family out of its own node's blocks."""
    one, two = (attach(node, f"s-{node.name}") for node in nodes)
    beside = attach(nodes[0], "beside")

    assert (one["address"], one["address6"]) == ("10.0.1.1", "fd00:10:0:1::1")
    assert (two["address"], two["address6"]) == ("10.0.2.1", "fd00:10:0:2::1")
    for key in ("address", "address6"):
        assert reaches(one, two[key])
        assert reaches(two, one[key])
        assert reaches(one, beside[key])


def test_a_vpc_of_ipv6_alone_has_sandboxes_of_ipv6_alone(nodes):
    """Between nodes and on one."""
    one, two = (attach(node, f"six-{node.name}", "six") for node in nodes)
    beside = attach(nodes[1], "beside", "six")

    assert one["address"] is None
    assert one["mac"].startswith("02:46:")
    assert reaches(one, two["address6"])
    assert reaches(two, one["address6"])
    assert reaches(two, beside["address6"])


def test_a_family_that_a_sandbox_does_not_have_leads_nowhere(nodes):
    """It has a guest address of it, as every slot, and no VPC address."""
    both = attach(nodes[1], "both")
    only4 = attach(nodes[0], "only4", address="10.0.1.20")
    only6 = attach(nodes[0], "only6", address6="fd00:10:0:1::20")

    assert reaches(only4, both["address"])
    assert not reaches(only4, both["address6"], wait=0.3)
    assert reaches(only6, both["address6"])
    assert not reaches(only6, both["address"], wait=0.3)
    with nodes[0].client() as client:
        drops = client.request("GET", "/v1/drops")[1]["drops"]
    counts = {(row["reason"], row["direction"]): row["packets"] for row in drops}
    assert counts["no_address", "tx"] >= 6


def test_one_address_in_two_vpcs_is_two_sandboxes(nodes):
    """In IPv6 as in IPv4: who is not in the VPC does not answer for it."""
    blue = attach(nodes[0], "blue-1")
    attach(nodes[1], "red-2", "red", address6="fd00:10:0:2::50")

    assert not reaches(blue, "fd00:10:0:2::50", wait=0.3)
    attach(nodes[1], "blue-2", address6="fd00:10:0:2::50")
    assert reaches(blue, "fd00:10:0:2::50")


def test_a_detached_sandbox_answers_at_neither_address(nodes):
    one, two = (attach(node, f"d-{node.name}") for node in nodes)
    assert reaches(one, two["address6"])
    with nodes[1].client() as client:
        client.request("DELETE", "/v1/sandboxes/d-node2")

    assert not reaches(one, two["address"], wait=0.3)
    assert not reaches(one, two["address6"], wait=0.3)


def test_an_agent_that_was_killed_adopts_both(lab, nodes):
    """Packets of both families pass while it is away, and who has which address is known after."""
    one, two = (attach(node, f"k-{node.name}") for node in nodes)
    lab.stop_agent(nodes[1], signal.SIGKILL)
    assert reaches(one, two["address6"])
    assert reaches(one, two["address"])
    lab.start_agent(nodes[1])
    lab.wait_ready(nodes[1])

    with nodes[1].client() as client:
        _, found = client.request("GET", "/v1/sandboxes/k-node2")
    assert (found["address"], found["address6"]) == (two["address"], two["address6"])
    assert reaches(two, one["address6"])


def test_a_tcp_stream_crosses_in_each_family(nodes):
    """Every byte, in frames that are merged and segmented on the way."""
    one, two = (attach(node, f"t-{node.name}") for node in nodes)
    data = random.Random(9).randbytes(4 << 20)

    for address in (two["address"], two["address6"]):
        assert sent_over_tcp(one, two, address, data) == data


def sent_over_tcp(one: dict[str, Any], two: dict[str, Any], address: str, data: bytes) -> bytes:
    """What arrives of `data`, sent from one sandbox to an address of the other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket_in(two["slot"]["netns"], family, socket.SOCK_STREAM) as listener,
        socket_in(one["slot"]["netns"], family, socket.SOCK_STREAM) as client,
    ):
        listener.bind(("", 0))
        listener.listen()
        for end in (listener, client):
            end.settimeout(10)
        client.connect((address, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        accepted.settimeout(10)

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        with accepted:
            parts = list(iter(lambda: accepted.recv(1 << 17), b""))
        sender.join(10)
    return b"".join(parts)


def test_the_command_shows_both(nodes):
    """The table, the answer, and where an address leads."""

    def command(*words: str) -> str:
        return subprocess.run(
            ["geneve-ebpf", *words],
            env=nodes[0].environment(), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    said = command("attach", "web", "--vpc", "blue", "--ip", "FD00:10:0:1::77", "--ip", "10.0.1.77")
    assert "10.0.1.77,fd00:10:0:1::77 in vpc blue" in said
    row = command("list").splitlines()[1].split()
    assert row[:4] == ["web", "blue", "10.0.1.77", "fd00:10:0:1::77"]
    assert "10.0.1.77,fd00:10:0:1::77" in command("show", "web")
    assert command("route", "get", "fd00:10:0:1::77", "--vpc", "blue").endswith(
        "is sandbox web on this node\n"
    )
    far = command("route", "get", "fd00:10:0:2::77", "--vpc", "blue")
    assert f"in fd00:10:0:2::/64 remote via {nodes[1].vtep}" in far
    shown = json.loads(command("-j", "vpc", "show", "blue"))
    assert shown["prefixes"] == ["10.0.0.0/16", "fd00:10::/48"]
    (sandbox,) = json.loads(command("-j", "list"))["sandboxes"]
    seen = subprocess.run(
        inside(sandbox["slot"]["netns"], "ip", "-6", "-br", "address", "show", "eth0"),
        capture_output=True, text=True, check=True, env=os.environ,
    ).stdout  # fmt: skip
    assert sandbox["guest"]["address6"] in seen
