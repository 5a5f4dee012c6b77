# SPDX-License-Identifier: Apache-2.0
"""Sandboxes with IPv4, IPv6 and both, put into VPCs through the agents of two nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.network import Lab, Node, inside
from tests.nodes import PREFIX, ping

BLOCKS = {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}
BLOCKS6 = {"node1": "fd00:10:0:1::/64", "node2": "fd00:10:0:2::/64"}
V4, V6 = ("10.0.0.0/16", BLOCKS), ("fd00:10::/48", BLOCKS6)
VPCS = {"blue": (42, V4, V6), "red": (43, V4, V6), "six": (44, V6)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Path(f"/run/{PREFIX}-dual"), f"{PREFIX}-dual") as made:
        made.up(2, 6, metrics=False)
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
    """Over an IPv4 underlay, between nodes and on one."""
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
    assert "in fd00:10:0:2::/64 remote via 192.0.2.2" in far
    shown = json.loads(command("-j", "vpc", "show", "blue"))
    assert shown["prefixes"] == ["10.0.0.0/16", "fd00:10::/48"]
    (sandbox,) = json.loads(command("-j", "list"))["sandboxes"]
    seen = subprocess.run(
        inside(sandbox["slot"]["netns"], "ip", "-6", "-br", "address", "show", "eth0"),
        capture_output=True, text=True, check=True, env=os.environ,
    ).stdout  # fmt: skip
    assert sandbox["guest"]["address6"] in seen
