# SPDX-License-Identifier: Apache-2.0
"""The contestants' plans: names, numbers and messages that need no root to be checked."""

from __future__ import annotations

import re
import struct
import subprocess
import tomllib
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from bench import classic, netlink, ours, testbed
from bench.testbed import BenchError, Node
from geneve_ebpf.agent import config
from geneve_ebpf.model import SlotKind


@pytest.mark.parametrize("number", [0, 1, 255, 256, 2_000])
def test_two_tenants_share_nothing(number):
    """Neither links, VNI nor network: else an attach would fail or cost less."""
    one, other = classic.Tenant(number), classic.Tenant(number + 1)

    assert not set(one.links) & set(other.links)
    assert not set(one.names) & set(other.names)
    assert one.vni != other.vni
    assert one.address(2) != other.address(2)
    assert all(len(name) <= 15 for name in one.names), "the kernel's limit for a link's name"


def test_the_script_does_what_the_classic_way_means():
    """Namespace, veth, tunnel with the VNI, bridge, addresses and six rules."""
    text = classic.SCRIPT.read_text()
    commands = [line for line in text.splitlines() if re.match(r"(ip|iptables) ", line)]

    assert sum(line.startswith("iptables") for line in commands) == 6
    for part in ("ip netns add", "type veth", 'type "$kind"', "type bridge", "address add"):
        assert part in text


def test_the_script_is_valid_shell():
    """Read by the shell that the bench runs it with."""
    subprocess.run(["/bin/sh", "-n", str(classic.SCRIPT)], check=True)


def test_an_attribute_is_padded_and_its_length_is_not():
    """The kernel takes the next attribute at the next multiple of four."""
    assert netlink.attribute(3, b"abc\0x") == struct.pack("=HH", 9, 3) + b"abc\0x" + b"\0\0\0"


def test_a_ping_has_a_right_checksum():
    """All words of a message and its checksum sum up to ones."""
    message = testbed.echo_request(0x1234)
    padded = message + bytes(len(message) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)

    assert total == 0xFFFF


def test_a_node_may_have_taps_beside_its_slots(tmp_path):
    """As many of either kind; else none but of the kind that was asked for."""
    node = Node(Path("/run/netns/gnvb0"), IPv4Address("192.0.2.1"))

    both = ours.settings_of(node, "left", tmp_path, 5, taps=2)
    one = ours.settings_of(node, "left", tmp_path, 5, SlotKind.HOST_TAP)

    assert list(both.targets.values()) == [5, 2, 2]
    assert list(one.targets.values()) == [0, 0, 5]


def test_a_missing_command_is_named_with_its_package():
    """One line that says what to install."""
    with pytest.raises(BenchError, match="apt-get install a-package"):
        testbed.need({"no-such-command-at-all": "a-package"})


@pytest.mark.parametrize("kind", list(SlotKind))
def test_what_the_bench_writes_is_a_configuration_that_the_agent_takes(tmp_path, kind):
    """Every key is known to the agent, and every setting arrives."""
    node = Node(Path("/run/netns/gnvb0"), IPv4Address("192.0.2.1"))
    settings = ours.settings_of(node, "left", tmp_path, 5, kind)
    placement = config.Placement(agent_cpu=0, slot_cpu=1)

    read = config.parse(tomllib.loads(ours.as_toml(settings, placement)))

    assert read.node == settings
    assert settings.targets[kind] == sum(settings.targets.values()) == 5
    assert read.placement == placement
