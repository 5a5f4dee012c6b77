# SPDX-License-Identifier: Apache-2.0
"""Guests that configure themselves: real DHCP clients, and the kernel's neighbour discovery."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.model import Guest
from lab.network import inside
from tests.nodes import BLUE, Bed, Node, Sandbox, eventually, six, two_nodes
from tests.wire import IPV4, UDP, ones_sum, parse_ethernet, parse_ip

DNS = ("192.0.2.53", "198.51.100.53")
DNS6 = ("2001:db8:53::53", "2001:db8:53::54")
GUEST = Guest(dns=tuple(map(ip_address, (*DNS, *DNS6))))
MTU = 1450  # of a slot; the clients must set it

# What a client calls when it has learned something: keep it, and do as it says.
UDHCPC = """#!/bin/sh
echo "event=$1" >> {log}
env >> {log}
case $1 in
    bound | renew)
        ip addr replace "$ip/$mask" dev "$interface"
        ip link set "$interface" mtu "$mtu"
        ip route replace default via "$router" dev "$interface" ;;
esac
"""
DHCLIENT = """#!/bin/sh
echo "event=$reason" >> {log}
env >> {log}
case $reason in
    BOUND | REBOOT)
        ip addr replace "$new_ip_address/30" dev "$interface"
        ip link set "$interface" mtu "$new_interface_mtu"
        ip route replace default via "$new_routers" dev "$interface" ;;
esac
"""
DHCLIENT6 = """#!/bin/sh
echo "event=$reason" >> {log}
env >> {log}
case $reason in
    BOUND6 | REBOOT6)
        ip addr replace "$new_ip6_address/$new_ip6_prefixlen" dev "$interface" nodad ;;
esac
"""
REQUESTS = "request subnet-mask, routers, interface-mtu, domain-name-servers;\n"


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed("configured") as made:
        a, b = two_nodes(made, guest=GUEST)
        for node, prefix in ((a, "10.0.2.0/24"), (b, "10.0.1.0/24")):
            node.route(BLUE, prefix, b if node is a else a)
            node.route(BLUE, six(prefix), b if node is a else a)
        yield made


@pytest.fixture
def pair(bed: Bed) -> Iterator[tuple[Node, Node]]:
    yield bed.nodes[0], bed.nodes[1]
    bed.clear()


@pytest.fixture
def far(pair: tuple[Node, Node]) -> Sandbox:
    """Somebody to reach, on the other node."""
    return pair[1].sandbox(BLUE, "10.0.2.5", address6=six("10.0.2.5"))


@pytest.fixture
def bare(pair: tuple[Node, Node], far: Sandbox) -> Sandbox:
    """A sandbox whose eth0 has no IPv4 address, no route and no neighbour, and a small MTU."""
    made = pair[0].sandbox(BLUE, "10.0.1.5", address6=six("10.0.1.5"))
    made.run("ip", "-4", "addr", "flush", "dev", "eth0")
    made.run("ip", "-4", "neigh", "flush", "dev", "eth0", "nud", "all")
    made.run("ip", "link", "set", "eth0", "mtu", 1300)
    assert not made.reaches("10.0.2.5")
    return made


def script(directory: Path, text: str) -> tuple[Path, Path]:
    """An executable hook, and the file that it writes to."""
    hook, log = directory / "hook", directory / "log"
    hook.write_text(text.format(log=log))
    hook.chmod(0o755)
    log.touch()
    return hook, log


def said(log: Path) -> dict[str, str]:
    """The last value of each variable that a hook was given."""
    pairs = (line.partition("=") for line in log.read_text().splitlines())
    return {name: value for name, _, value in pairs}


def events_in(log: Path) -> list[str]:
    """Of which the client told its hook."""
    return re.findall(r"^event=(\S+)", log.read_text(), re.MULTILINE)


def assert_configured(sandbox: Sandbox) -> None:
    """Its address, its MTU, and a way to others, by a gateway that it asks ARP for."""
    assert f"inet {GUEST.address}/30" in sandbox.run("ip", "addr", "show", "dev", "eth0")
    assert f" mtu {MTU} " in sandbox.run("ip", "link", "show", "dev", "eth0")
    assert sandbox.ping("10.0.2.5", "-s", MTU - 28, "-M", "do") == 3
    assert str(GUEST.gateway_mac) in sandbox.run("ip", "neigh", "show", GUEST.gateway)


@pytest.mark.kernel
def test_busybox_configures_its_guest(
    pair: tuple[Node, Node], bare: Sandbox, tmp_path: Path
) -> None:
    """Address, prefix, router, MTU, DNS and a day's lease."""
    hook, log = script(tmp_path, UDHCPC)

    bare.run("busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", 5, "-T", 2, "-s", hook)

    assert_configured(bare)
    told = said(log)
    assert (told["ip"], told["mask"], told["router"]) == (
        str(GUEST.address),
        "30",
        str(GUEST.gateway),
    )
    assert (told["dns"], told["mtu"], told["lease"]) == (" ".join(DNS), str(MTU), "86400")
    assert told["serverid"] == str(GUEST.gateway)
    assert pair[0].events()["dhcp_answered"] >= 2


def test_isc_client_configures_its_guest(bare: Sandbox, tmp_path: Path) -> None:
    """The same with another client, which also says who it is."""
    hook, log = script(tmp_path, DHCLIENT)
    settings, pid = tmp_path / "dhclient.conf", tmp_path / "pid"
    settings.write_text('send dhcp-client-identifier "guest";\n' + REQUESTS)
    files = ("-cf", settings, "-lf", tmp_path / "leases", "-pf", pid, "-sf", hook)

    try:
        bare.run("dhclient", "-4", "-1", *files, "eth0")
        assert_configured(bare)
    finally:
        bare.run("dhclient", "-4", "-x", *files, "eth0")

    told = re.findall(r"^new_(\S+?)=(.*)$", log.read_text(), re.MULTILINE)
    found = dict(told)
    assert found["ip_address"] == str(GUEST.address)
    assert found["subnet_mask"] == "255.255.255.252"
    assert found["routers"] == found["dhcp_server_identifier"] == str(GUEST.gateway)
    assert found["domain_name_servers"] == " ".join(DNS)
    assert (found["interface_mtu"], found["dhcp_lease_time"]) == (str(MTU), "86400")


@pytest.mark.kernel
def test_isc_client_asks_for_its_ipv6_address(
    pair: tuple[Node, Node], bare: Sandbox, tmp_path: Path
) -> None:
    """And for its DNS servers; what it says when it ends is heard."""
    hook, log = script(tmp_path, DHCLIENT6)
    bare.run("ip", "-6", "addr", "flush", "dev", "eth0")
    bare.run("ip", "addr", "add", "fe80::2/64", "dev", "eth0", "nodad")
    assert not bare.reaches(six("10.0.2.5"))
    settings, pid = tmp_path / "dhclient.conf", tmp_path / "pid"
    settings.write_text("request dhcp6.name-servers;\n")
    files = ("-cf", settings, "-lf", tmp_path / "leases", "-pf", pid, "-sf", hook)
    drops = pair[0].drops()

    try:
        bare.run("dhclient", "-6", "-1", *files, "eth0")
        assert f"inet6 {GUEST.address6}/128" in bare.run("ip", "addr", "show", "dev", "eth0")
        assert bare.ping(six("10.0.2.5")) == 3
    finally:
        bare.run("dhclient", "-6", "-r", *files, "eth0")

    found = dict(re.findall(r"^new_(\S+?)=(.*)$", log.read_text(), re.MULTILINE))
    assert found["ip6_address"] == str(GUEST.address6)
    assert found["dhcp6_name_servers"] == " ".join(DNS6)
    assert (found["preferred_life"], found["max_life"]) == ("86400", "86400")
    assert (found["renew"], found["rebind"]) == ("43200", "75600")
    # solicit, request and release
    assert eventually(lambda: pair[0].events().get("dhcp6_answered") == 3)
    assert pair[0].drops().get("tx dhcp6_refused", 0) == drops.get("tx dhcp6_refused", 0)


def test_a_lease_is_renewed_and_released(
    pair: tuple[Node, Node], bare: Sandbox, tmp_path: Path
) -> None:
    """Through a socket, which leaves the checksum to the device, and then so must the answer."""
    hook, log = script(tmp_path, UDHCPC)
    words = ("busybox", "udhcpc", "-i", "eth0", "-f", "-R", "-t", 5, "-T", 2, "-s", hook)
    drops = pair[0].drops()
    with subprocess.Popen(
        inside(bare.netns, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        try:
            assert eventually(lambda: "bound" in events_in(log))
            heard = bare.capture()
            client.send_signal(signal.SIGUSR1)

            assert eventually(lambda: "renew" in events_in(log))

            # Answered before the call that asked returns, and so at the socket that
            # it is about to close, this client asks all a second time.
            talk = [one for one in heard.frames() if parse_ethernet(one.data).kind == IPV4]
            asked, answered = talk[:2]
            question, answer = parse_ip(asked.data[14:]), parse_ip(answered.data[14:])
            assert (asked.outgoing, str(question.destination)) == (True, str(GUEST.gateway))
            assert (answered.outgoing, str(answer.destination)) == (False, str(GUEST.address))
            assert answer.protocol == UDP
            assert asked.checksum_pending
            assert answered.checksum_pending
            unsummed = ones_sum(answer.pseudo_header).to_bytes(2, "big")
            assert answer.payload[6:8] == unsummed
        finally:
            client.terminate()
    released = drops.get("tx dhcp_refused", 0) + 1
    assert eventually(lambda: pair[0].drops().get("tx dhcp_refused") == released)


def test_nobody_else_has_the_guests_address(pair: tuple[Node, Node], bare: Sandbox) -> None:
    """A probe for a duplicate is not answered, by ARP nor by neighbour discovery."""
    drops = pair[0].drops()

    found = bare.run("arping", "-D", "-c", 2, "-w", 2, "-I", "eth0", GUEST.address)

    assert "Received 0 response" in found
    assert pair[0].gained(drops, {"tx arp_refused": 2}) == {"tx arp_refused": 2}
    bare.run("ip", "-6", "addr", "flush", "dev", "eth0")
    bare.run("ip", "-6", "addr", "add", f"{GUEST.address6}/128", "dev", "eth0")
    assert eventually(
        lambda: "tentative" not in bare.run("ip", "-6", "addr", "show", "dev", "eth0")
    )
    shown = bare.run("ip", "-6", "addr", "show", "dev", "eth0")
    assert str(GUEST.address6) in shown
    assert "dadfailed" not in shown
    assert pair[0].drops()["tx nd_refused"] - drops.get("tx nd_refused", 0) >= 1
    assert bare.ping(six("10.0.2.5")) == 3


@pytest.mark.kernel
def test_the_kernel_finds_its_gateway(pair: tuple[Node, Node], bare: Sandbox) -> None:
    """Without its permanent neighbour: by the group first, then asked whether it is still there."""
    gateway = ("ip", "-6", "neigh", "show", GUEST.gateway6, "dev", "eth0")
    bare.run("ip", "-6", "neigh", "del", GUEST.gateway6, "dev", "eth0")
    before = pair[0].events().get("nd_answered", 0)

    assert bare.ping(six("10.0.2.5")) == 3

    assert f"lladdr {GUEST.gateway_mac} router REACHABLE" in bare.run(*gateway)
    assert pair[0].events()["nd_answered"] == before + 1

    # Without one of these the kernel has no address to ask from when nothing waits.
    bare.run("ip", "addr", "add", "fe80::2/64", "dev", "eth0", "nodad")
    mac = ("lladdr", GUEST.gateway_mac, "dev", "eth0")
    bare.run("ip", "-6", "neigh", "replace", GUEST.gateway6, *mac, "nud", "probe")

    assert eventually(lambda: "REACHABLE" in bare.run(*gateway))
    assert pair[0].events()["nd_answered"] >= before + 2


@pytest.mark.kernel
def test_the_kernel_takes_its_router_and_its_mtu(pair: tuple[Node, Node], bare: Sandbox) -> None:
    """From the advertisement that it solicits when its link comes up."""
    bare.run("ip", "link", "set", "eth0", "down")
    bare.run("ip", "link", "set", "eth0", "addrgenmode", "eui64", "mtu", 1500)
    with namespaces.entering(bare.netns):
        for name, value in (
            ("accept_ra", 1),
            ("dad_transmits", 0),
            ("router_solicitation_delay", 0),
        ):
            Path("/proc/sys/net/ipv6/conf/eth0", name).write_text(str(value))
    before = pair[0].events().get("router_answered", 0)

    bare.run("ip", "link", "set", "eth0", "up")

    def default() -> str:
        return bare.run("ip", "-6", "route", "show", "default")

    assert eventually(lambda: "proto ra" in default())
    assert f"via {GUEST.gateway6} dev eth0 proto ra" in default()
    assert "hoplimit 64" in default()
    with namespaces.entering(bare.netns):
        assert Path("/proc/sys/net/ipv6/conf/eth0/mtu").read_text() == f"{MTU}\n"
    assert pair[0].events()["router_answered"] > before
    bare.run("ip", "addr", "add", f"{GUEST.address6}/128", "dev", "eth0", "nodad")
    assert eventually(lambda: bare.ping(six("10.0.2.5"), "-s", MTU - 48, "-M", "do") == 3)


def test_what_a_guests_kernel_says_by_itself_has_its_own_reason(
    pair: tuple[Node, Node], bare: Sandbox
) -> None:
    """Memberships of groups, when an interface comes up with an address of its own making."""
    drops = pair[0].drops()
    bare.run("ip", "link", "set", "eth0", "down")
    bare.run("ip", "link", "set", "eth0", "addrgenmode", "eui64")

    bare.run("ip", "link", "set", "eth0", "up")

    def members() -> int:
        return pair[0].drops().get("tx group_membership", 0) - drops.get("tx group_membership", 0)

    assert eventually(lambda: members() >= 1)
