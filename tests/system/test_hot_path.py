# SPDX-License-Identifier: Apache-2.0
"""Callers on the hot path, against one agent: the C client, and attaches that are verified."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from geneve_ebpf.abi import Address, EndpointKey
from geneve_ebpf.dataplane import DataPlane
from lab.network import ROOT, Lab, inside
from tests.api import Agent, faults, operations, resolved
from tests.nodes import PREFIX, eventually

SLOTS = 4
STATE = {
    "vpcs": [{"name": "blue", "vni": 100, "prefixes": ["10.0.0.0/16", "fd00:1::/48"]}],
    "vteps": [{"address": "192.0.2.2"}],
}


@pytest.fixture(scope="module")
def lab():
    with Lab(Path(f"/run/{PREFIX}-hot"), f"{PREFIX}-hot") as made:
        made.make_nodes(1, SLOTS, metrics=False)
        made.start_agent(made.nodes[0])
        made.wait_ready(made.nodes[0])
        yield made


@pytest.fixture
def node(lab):
    """The node, with all slots ready and nobody attached."""
    node = lab.nodes[0]
    agent = Agent(node.socket)
    for one in agent.must("GET", "/v1/sandboxes")["sandboxes"]:
        agent.must("DELETE", f"/v1/sandboxes/{one['sandbox']}")
    agent.must("PUT", "/v1/state", STATE)

    def ready():
        counts = agent.must("GET", "/v1/slots")["counts"]
        return counts["ready"] >= SLOTS and not counts["making"] and not counts["retiring"]

    assert eventually(ready, 30)
    agent.close()
    return node


@pytest.fixture
def ask(node):
    agent = Agent(node.socket)
    yield agent
    agent.close()


# The C client


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """clients/c/example as its Makefile makes it."""
    build = tmp_path_factory.mktemp("c")
    subprocess.run(
        ["make", "-s", "-C", ROOT / "clients" / "c", f"BUILD={build}"], check=True, timeout=120
    )
    return build / "example"


def test_a_sandboxs_life_from_c(node, ask, example):
    """Reserve, attach, attach again, detach, release: what it prints is what the API says."""

    def run(*words, status=0):
        done = subprocess.run(
            [example, *words],
            env={**os.environ, "GENEVE_EBPF_HOST": f"unix://{node.socket}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done
        return dict(line.split("=", 1) for line in done.stdout.splitlines()) or done.stderr

    kept, spare = run("reserve"), run("reserve")
    first = run("attach", "web", "blue", kept["slot"], "10.0.0.7", "fd00:1::7")
    again = run("attach", "web", "blue")
    other = run("attach", "web", "blue", "-", "10.0.0.8", status=1)
    shown = ask.must("GET", "/v1/sandboxes/web")
    late = run("detach", "web", str(int(first["generation"]) + 1), status=1)
    run("detach", "web", first["generation"])
    run("detach", "web")
    run("release", spare["slot"])
    gone = run("release", kept["slot"], status=1)

    assert (first["address"], first["address6"]) == ("10.0.0.7", "fd00:1::7")
    assert {first[key] for key in ("slot", "netns")} == {kept[key] for key in ("slot", "netns")}
    assert (first["existed"], again["existed"], again["agent_ns"]) == ("0", "1", "0")
    assert int(first["agent_ns"]) > 0
    for said, true in (
        ("generation", shown["generation"]), ("mac", shown["mac"]), ("vni", shown["vni"]),
        ("kind", shown["slot"]["kind"]), ("netns", shown["slot"]["netns"]),
        ("host_interface", shown["slot"]["host_interface"]),
        ("host_ifindex", shown["slot"]["host_ifindex"]),
        *((f"guest_{key}", shown["guest"][key]) for key in (
            "address", "address6", "gateway", "gateway6", "mac", "gateway_mac", "mtu",
        )),
    ):  # fmt: skip
        assert first[said] == again[said] == str(true)
    assert other.startswith("sandbox_exists: ")
    assert late.startswith("generation_mismatch: ")
    assert gone.partition(":")[0] in ("slot_taken", "slot_not_found")
    assert ask.code("GET", "/v1/sandboxes/web") == "sandbox_not_found"


# Verified attaches


def fits_the_file(status, body):
    operation = operations()["/v1/sandboxes/{sandbox}", "PUT"]
    content = resolved(operation["responses"][str(status)])["content"]
    assert faults(body, content["application/json"]["schema"]) == []


def received(netns):
    """Packets that eth0 of a slot has received."""
    done = subprocess.run(
        inside(Path(netns), "ip", "-j", "-s", "link", "show", "eth0"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)[0]["stats64"]["rx"]["packets"]


def test_a_verified_attach_saw_its_packets_delivered_and_nobody_got_them(ask):
    """Both programs, both families; the guest's interface has received nothing."""
    body = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue", "verify": True})
    plain = ask.must("PUT", "/v1/sandboxes/b", {"vpc": "blue"})

    fits_the_file(201, body)
    assert body["verified"]["passed"] is True
    assert [(one["program"], one["family"]) for one in body["verified"]["probes"]] == [
        (program, family) for family in ("ipv4", "ipv6") for program in ("sandbox_tx", "uplink_rx")
    ]
    assert received(body["slot"]["netns"]) == 0
    assert "verified" not in plain


def test_what_is_broken_behind_the_agents_back_is_seen(node, ask):
    """An endpoint that is gone from the map: the answer says which drop reason that makes."""
    body = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue", "address": "10.0.0.9"})
    plane = DataPlane.open(Path(node.directory, "run", node.name))
    try:
        (alone,) = plane.attachments()
        assert plane._endpoints.remove(EndpointKey(100, Address.of(alone.endpoint.address)))
    finally:
        plane.close()

    status, again = ask.ask("PUT", "/v1/sandboxes/a", {"vpc": "blue", "verify": True})

    fits_the_file(status, again)
    assert (status, again["generation"]) == (200, body["generation"])
    assert again["verified"]["passed"] is False
    assert [one["saw"] for one in again["verified"]["probes"]] == [
        "dropped: no_route", "dropped: no_endpoint"
    ]  # fmt: skip


def test_the_command_says_what_was_seen_and_ends_with_its_status(node, ask):
    def attach(name):
        return subprocess.run(
            [ROOT / ".venv/bin/geneve-ebpf", "attach", name, "--vpc", "blue", "--verify"],
            env={**os.environ, "GENEVE_EBPF_HOST": f"unix://{node.socket}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    good = attach("a")
    address = ask.must("GET", "/v1/sandboxes/a")["address"]
    plane = DataPlane.open(Path(node.directory, "run", node.name))
    try:
        plane._endpoints.remove(EndpointKey(100, Address.of(plane_address(plane, address))))
    finally:
        plane.close()
    bad = attach("a")

    assert good.returncode == 0, good.stderr
    assert f"ok    sandbox_tx: {address} is delivered to the guest" in good.stdout
    assert good.stdout.count("\nok    ") == 4
    assert bad.returncode == 8
    assert "FAIL  uplink_rx: dropped: no_endpoint" in bad.stdout


def plane_address(plane, text):
    (found,) = [one.endpoint.address for one in plane.attachments()]
    assert str(found) == text
    return found
