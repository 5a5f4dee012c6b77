# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration file: what it may say, and what is said about mistakes in it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from geneve_ebpf.agent.config import Filling, Placement, load
from geneve_ebpf.errors import Code, GeneveError

SMALLEST = '[node]\nvtep = "192.0.2.1"\nuplinks = ["eth1"]\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "agent.toml"

    def write(text):
        path.write_text(text)
        return path

    return write


def test_the_smallest_file_is_enough(file):
    config = load(file(SMALLEST))

    assert config.node.name == "default"
    assert config.node.uplinks == ("eth1",)
    assert (config.node.slots, config.node.udp_port) == (16, 6081)
    assert str(config.node.run_directory) == "/run/geneve-ebpf/default"
    assert config.placement.agent_cpu is None


def test_every_key_is_read(file):
    config = load(
        file(
            """
            [node]
            name = "n1"
            vtep = "192.0.2.1"
            uplinks = ["eth1", "eth2"]
            udp_port = 7000
            netns = "/run/netns/n1"
            slots = 5
            min_ready = 4
            low_watermark = 3
            refill_rate = 50
            address_rest = 1.5
            merge = "off"
            run_root = "/run/x"
            state_root = "/var/lib/x"
            [guest]
            address = "169.254.9.2"
            gateway = "169.254.9.1"
            network = "169.254.9.0/29"
            address6 = "FD12:0::2"
            gateway6 = "fe80::9"
            dns = ["2001:DB8::53", "192.0.2.53"]
            [metrics]
            listen = ""
            per_sandbox = true
            [placement]
            agent_cpu = 1
            slot_cpu = 0
            exporter_cpu = 0
            """
        )
    )

    node = config.node
    assert (node.name, node.uplinks, node.udp_port) == ("n1", ("eth1", "eth2"), 7000)
    assert (node.netns, node.slots, node.address_rest) == (Path("/run/netns/n1"), 5, 1.5)
    assert node.merge == "off"
    assert (node.run_directory, node.state_directory) == (Path("/run/x/n1"), Path("/var/lib/x/n1"))
    assert node.guest.address == IPv4Address("169.254.9.2")
    assert node.guest.network == IPv4Network("169.254.9.0/29")
    assert (node.guest.address6, node.guest.gateway6) == (
        IPv6Address("fd12::2"),
        IPv6Address("fe80::9"),
    )
    assert node.guest.dns == (IPv6Address("2001:db8::53"), IPv4Address("192.0.2.53"))
    assert node.metrics_listen == ""
    assert config.metrics_per_sandbox
    assert config.filling == Filling(4, 3, 50.0)
    placement = config.placement
    assert (placement.agent_cpu, placement.slot_cpu, placement.exporter_cpu) == (1, 0, 0)


def test_the_vtep_may_be_of_either_family(file):
    """It is the underlay's; what sandboxes have is another matter."""
    config = load(file('[node]\nvtep = "2001:DB8::1"\nuplinks = ["eth1"]\n'))

    assert str(config.node.vtep) == "2001:db8::1"


def test_slots_of_the_command_line_win(file):
    assert load(file(SMALLEST + "slots = 4\n"), slots=0).node.slots == 0


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('[node]\nuplinks = ["eth1"]', "node.vtep"),
        ('[node]\nvtep = "192.0.2.1"', "node.uplinks"),
        ('[node]\nvtep = "192.0.2"\nuplinks = ["eth1"]', "node.vtep"),
        ('[node]\nvtep = "169.254.77.3"\nuplinks = ["eth1"]', "node.vtep"),
        ('[node]\nvtep = "fd67:6e76:77::2"\nuplinks = ["eth1"]', "node.vtep"),
        ('[node]\nvtep = "fe80::1"\nuplinks = ["eth1"]', "node.vtep"),
        ('[node]\nvtep = "::ffff:192.0.2.1"\nuplinks = ["eth1"]', "node.vtep"),
        ('[node]\nvtep = "192.0.2.1"\nuplinks = []', "node.uplinks"),
        ('[node]\nvtep = "192.0.2.1"\nuplinks = "eth1"', "node.uplinks"),
        ('[node]\nvtep = "192.0.2.1"\nuplinks = ["../eth1"]', "node.uplinks"),
        (SMALLEST + 'name = "../../etc"', "node.name"),
        (SMALLEST + "slots = true", "node.slots"),
        (SMALLEST + "slots = -1", "node.slots"),
        (SMALLEST + "udp_port = 65536", "node.udp_port"),
        (SMALLEST + 'netns = "relative"', "node.netns"),
        (SMALLEST + 'address_rest = "60"', "node.address_rest"),
        (SMALLEST + "merge = true", "node.merge"),
        (SMALLEST + "slot = 3", "node.slot"),
        (SMALLEST + '[guests]\naddress = "169.254.9.2"', "guests"),
        ("node = 3", "node"),
        (SMALLEST + '[guest]\naddress = "10.0.0.2"', "guest.address"),
        (SMALLEST + '[guest]\naddress = "169.254.77.3"', "guest.address"),
        (SMALLEST + '[guest]\naddress = "169.254.77.1"', "guest.gateway"),
        (SMALLEST + '[guest]\nnetwork = "169.254.77.1/30"', "guest.network"),
        (SMALLEST + '[guest]\naddress6 = "10.0.0.2"', "guest.address6"),
        (SMALLEST + '[guest]\naddress6 = "fe80::2"', "guest.address6"),
        (SMALLEST + '[guest]\ngateway6 = "fd00::1"', "guest.gateway6"),
        (SMALLEST + '[guest]\ngateway6 = "fe80::1%eth0"', "guest.gateway6"),
        (SMALLEST + '[guest]\ndns = "9.9.9.9"', "guest.dns"),
        (SMALLEST + '[guest]\ndns = ["fe80::53"]', "guest.dns"),
        (SMALLEST + '[guest]\ndns = ["9.9.9.9", "9.9.9.10", "9.9.9.11"]', "guest.dns"),
        (SMALLEST + '[guest]\ndns = ["fd00::1", "fd00::2", "9.9.9.9", "fd00::3"]', "guest.dns"),
        (SMALLEST + '[metrics]\nlisten = "16081"', "metrics.listen"),
        (SMALLEST + '[metrics]\nlisten = "127.0.0.1:0"', "metrics.listen"),
        (SMALLEST + '[metrics]\nlisten = "::1:16081"', "metrics.listen"),
        (SMALLEST + '[metrics]\nlisten = "[fe80::1%eth1]:16081"', "metrics.listen"),
        (SMALLEST + "[metrics]\nper_sandbox = 1", "metrics.per_sandbox"),
        (SMALLEST + "[placement]\nagent_cpu = -1", "placement.agent_cpu"),
        (SMALLEST + "min_ready = 17", "node.min_ready"),
        (SMALLEST + "slots = 3\nlow_watermark = 4", "node.low_watermark"),
        (SMALLEST + "refill_rate = 0", "node.refill_rate"),
        (SMALLEST + f'run_root = "/run/{"x" * 90}"', "node.run_root"),
        ("[node", ""),
        (f"[node]\nslots = {'9' * 5000}", ""),
    ],
)
def test_a_mistake_is_named(file, text, field):
    """The key at fault and what to do; nothing is guessed or ignored."""
    with pytest.raises(GeneveError) as refused:
        load(file(text))

    assert refused.value.code is Code.BAD_CONFIG
    assert refused.value.field == field


@pytest.mark.parametrize("make", ["missing", "directory", "bytes"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, make):
    path = tmp_path / make
    if make == "directory":
        path.mkdir()
    elif make == "bytes":
        path.write_bytes(b"\xff\xfe")

    with pytest.raises(GeneveError) as refused:
        load(path)

    assert refused.value.code is Code.BAD_CONFIG


def test_the_page_shows_every_key_with_its_default(file):
    """What docs/configuration.md gives is a whole file, and right."""
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    config = load(file(example))
    default = load(file(SMALLEST))

    assert config.node == replace(default.node, netns=Path("/run/netns/node1"))
    assert config.metrics_per_sandbox == default.metrics_per_sandbox
    assert None not in (config.placement.agent_cpu, config.placement.slot_cpu)


def test_the_command_line_overrides_where_metrics_are(tmp_path):
    """--metrics-listen goes before the file, "" switches off, nonsense is refused by name."""
    file = tmp_path / "node.toml"
    file.write_text('[node]\nvtep = "192.0.2.1"\nuplinks = ["eth1"]\n')

    assert load(file, metrics_listen="127.0.0.1:9999").node.metrics_listen == "127.0.0.1:9999"
    assert load(file, metrics_listen="[::1]:9999").node.metrics_listen == "[::1]:9999"
    assert load(file, metrics_listen="").node.metrics_listen == ""
    with pytest.raises(GeneveError) as refusal:
        load(file, metrics_listen="nowhere")
    assert refusal.value.field == "--metrics-listen"


def test_a_number_of_slots_from_the_command_bounds_what_the_file_says_of_them(file):
    """Else fewer slots than the file's would leave a node that is never ready."""
    config = load(file(SMALLEST + "slots = 90\nmin_ready = 60\nlow_watermark = 40"), slots=50)

    assert config.node.slots == 50
    assert (config.filling.min_ready, config.filling.low_watermark) == (50, 40)
    assert load(file(SMALLEST), slots=0).filling.min_ready == 0


@pytest.mark.parametrize(
    ("placement", "agent", "others"),
    [
        (Placement(), {0, 1, 2}, {3}),
        (Placement(slot_cpu=1), {0, 2, 3}, {1}),
        (Placement(agent_cpu=3), {3}, {2}),
    ],
)
def test_making_slots_and_attaching_go_on_different_cpus(placement, agent, others):
    """The last one by default; what is placed is where it was placed."""
    cpus = {0, 1, 2, 3}

    assert placement.cpus("agent", cpus) == agent
    assert placement.cpus("slot", cpus) == placement.cpus("exporter", cpus) == others
    assert Placement().cpus("agent", {2}) == Placement().cpus("slot", {2}) == {2}


def test_an_interface_that_stands_twice_is_named(file):
    with pytest.raises(GeneveError) as refused:
        load(file('[node]\nvtep = "192.0.2.1"\nuplinks = ["eth1", "eth2", "eth1"]\n'))

    assert refused.value.message == "node.uplinks has eth1 twice"
