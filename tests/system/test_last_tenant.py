# SPDX-License-Identifier: Apache-2.0
"""A slot's tenant is root in its namespace and leaves what it likes; the next finds nothing of it.

What can be seen of a slot is written down before the first tenant, and again by the
second, who has the slot of the same index and name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.network import Lab, inside, run
from tests.nodes import PREFIX, eventually
from tests.patience import PATIENCE

SLOTS = 2

PLANTED = """
ip address add 10.66.6.6/32 dev lo
ip link add planted0 type veth peer name planted1
ip link set planted0 up
ip route add 10.77.0.0/16 dev eth0
ip -6 route add blackhole 2001:db8:66::/48
ip rule add from 10.66.6.6 table 66 priority 66
ip neighbour replace 169.254.77.1 lladdr 02:00:00:00:66:66 dev eth0 nud permanent
ip link set eth0 mtu 1300
tc qdisc add dev eth0 clsact
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.eth0.accept_ra=2 net.ipv4.ip_default_ttl=13
iptables -w -A OUTPUT -d 10.0.0.0/8 -j DROP
"""
# Sockets of every kind, and the process that has them, which is not there to be killed.
SQUATTER = """
import socket, time
tcp = socket.create_server(("0.0.0.0", 6666))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 6667))
named = socket.socket(socket.AF_UNIX)
named.bind("\\0planted")
named.listen()
print("sits", flush=True)
while True:
    try:
        udp.sendto(b"planted", ("10.0.0.200", 7777))
    except OSError:
        pass
    time.sleep(0.01)
"""
# Settings that are counters, or of an interface's index or age.
_VOLATILE = re.compile(r"nf_conntrack_count|random|\.(base_reachable|stable_secret)|\.neigh\.")


def look(netns: Path) -> dict[str, Any]:
    """What a tenant can see of the namespace, by the kind of state. No interface's index."""

    def ask(*words: str) -> str:
        return run(*inside(netns, *words))

    def listed(*words: str) -> list[dict[str, Any]]:
        return json.loads(ask("ip", "-j", *words) or "[]")

    links = {
        one["ifname"]: (one["mtu"], one["address"], sorted(one["flags"]))
        for one in listed("link")
    }
    settings = ask("sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|core|unix)")
    return {
        "links": links,
        "addresses": sorted(
            (one["ifname"], info["local"]) for one in listed("address") for info in one["addr_info"]
        ),
        "routes": sorted(map(str, listed("route", "show", "table", "all"))),
        "routes of IPv6": sorted(
            (one["dst"], one.get("type"), one.get("gateway"), one.get("dev"))
            for one in listed("-6", "route", "show", "table", "main")
        ),
        "rules": sorted(map(str, listed("rule"))),
        "neighbours": sorted(map(str, listed("neigh"))),
        "tc": sorted(line for line in ask("tc", "qdisc").splitlines()),
        "settings": sorted(line for line in settings.splitlines() if not _VOLATILE.search(line)),
        "netfilter": [rule for rule in ask("iptables-save").splitlines() if rule.startswith("-")],
        "sockets": sorted(" ".join(one.split()) for one in ask("ss", "-Hlntux").splitlines()),
    }


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Path(f"/run/{PREFIX}-last"), f"{PREFIX}-la", patience=60 * PATIENCE) as made:
        made.up(1, SLOTS, metrics=False)
        for vpc, vni in (("old", 42), ("new", 43)):
            made.connect(vpc, vni, ("10.0.0.0/16", {"node1": "10.0.0.0/16"}))
        yield made


def ask(lab: Lab, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    with lab.nodes[0].client() as client:
        return client.request(method, path, body)[1]


def test_the_next_tenant_of_a_slot_finds_nothing_of_the_last(lab: Lab) -> None:
    """Addresses, routes, rules, neighbours, settings, filters, sockets, a process that stays."""
    watcher = ask(lab, "PUT", "/v1/sandboxes/watcher", {"vpc": "old", "address": "10.0.0.200"})
    first = ask(lab, "PUT", "/v1/sandboxes/first", {"vpc": "old"})
    netns = Path(first["slot"]["netns"])
    clean, inode = look(netns), os.stat(netns).st_ino
    for line in PLANTED.strip().splitlines():
        run(*inside(netns, *line.split()))
    squatter = subprocess.Popen(
        inside(netns, "python3", "-c", SQUATTER), stdout=subprocess.PIPE, text=True
    )
    try:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "sits\n"
        spoilt = look(netns)
        alike = [kind for kind in clean if clean[kind] == spoilt[kind]]
        assert alike == [], "nothing was planted there"

        ask(lab, "DELETE", "/v1/sandboxes/first")
        second = the_same_slot(lab, first["slot"]["id"])

        assert Path(second["slot"]["netns"]) == netns
        assert os.stat(netns).st_ino != inode
        assert squatter.poll() is None  # it is still in the old one
        assert look(netns) == clean
        assert second["generation"] > first["generation"]
        assert not hears(Path(watcher["slot"]["netns"])), "the process still talks to its VPC"
    finally:
        squatter.kill()
        squatter.communicate()


def the_same_slot(lab: Lab, ident: str) -> dict[str, Any]:
    """The next tenant's sandbox, attached to the slot of that name when there is one again."""

    def is_ready() -> bool:
        slots = ask(lab, "GET", "/v1/slots")["slots"]
        states = {slot["id"]: slot["state"] for slot in slots}
        if ident not in states:  # it is gone; something has to be taken for another to be made
            lowest = min(i for i, state in states.items() if state == "ready")
            ask(lab, "PUT", f"/v1/sandboxes/filler-{lowest}", {"vpc": "new", "slot": lowest})
        return states.get(ident) == "ready"

    assert eventually(is_ready, 30)
    return ask(lab, "PUT", "/v1/sandboxes/second", {"vpc": "new", "slot": ident})


def hears(netns: Path) -> bool:
    """Whether a datagram from the squatter arrives within half a second, a hundred of its tries."""
    code = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind(('', 7777))\ns.settimeout(0.5)\n"
        "try: s.recv(9); print('heard')\nexcept TimeoutError: print('silence')\n"
    )
    return run(*inside(netns, "python3", "-c", code)) == "heard\n"
