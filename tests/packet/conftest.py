# SPDX-License-Identifier: Apache-2.0
"""One node for the whole suite: loaded once, with the attachments and routes of its tests.

| slot | VPC  | address  |            | BLUE's prefix  | leads to                          |
|------|------|----------|            |----------------|-----------------------------------|
| 0    | BLUE | 10.0.1.5 |            | 10.0.0.0/16    | 192.0.2.3                         |
| 1    | BLUE | 10.0.1.6 |            | 10.0.1.0/24    | this node                         |
| 2    | RED  | 10.0.1.5 |            | 10.0.2.0/24    | 192.0.2.2                         |
| 3    | unbound         |            | 10.0.2.77/32   | 192.0.2.4                         |
|      |                 |            | 10.3.0.0/24    | 192.0.2.2, inner MAC of its own   |
|      |                 |            | 10.4.0.0/24    | 192.0.2.40, which takes 1400      |
|      |                 |            | 10.5.0.0/24    | 203.0.113.5, no underlay route    |
|      |                 |            | 10.51.0.0/24   | 203.0.113.51, underlay blackhole  |
|      |                 |            | 10.52.0.0/24   | 192.0.2.1, ourselves              |
|      |                 |            | 10.6.0.0/24    | 203.0.113.6, a route locked to 1300|
|      |                 |            | 10.66.0.0/16   | blackhole                         |
|      |                 |            | 10.7.0.0/24    | a next hop that does not exist    |
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.model import RouteKind
from tests import packets, programs
from tests.packets import BLUE, RED

PEER_MAC = "02:00:00:00:33:01"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "packet":
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session")
def node() -> Iterator[programs.Node]:
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    with programs.loaded(slot_count=4) as node:
        node.attach(0, "alice", BLUE, packets.ALICE)
        node.attach(1, "bob", BLUE, packets.BOB)
        node.attach(2, "carol", RED, packets.CAROL)
        _furnish_routes(node)
        yield node


def _furnish_routes(node: programs.Node) -> None:
    from pyroute2 import IPRoute

    for vtep in ("192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.1"):
        node.vtep(vtep)
    for vtep in ("203.0.113.5", "203.0.113.51", "203.0.113.6"):
        node.vtep(vtep)
    node.vtep("192.0.2.40", mtu=1400)
    remote = RouteKind.REMOTE
    node.route(BLUE, "10.0.0.0/16", remote, "192.0.2.3")
    node.route(BLUE, "10.0.1.0/24", RouteKind.LOCAL)
    node.route(BLUE, "10.0.2.0/24", remote, "192.0.2.2")
    node.route(BLUE, "10.0.2.77/32", remote, "192.0.2.4")
    node.route(BLUE, "10.3.0.0/24", remote, "192.0.2.2", PEER_MAC)
    node.route(BLUE, "10.4.0.0/24", remote, "192.0.2.40")
    node.route(BLUE, "10.5.0.0/24", remote, "203.0.113.5")
    node.route(BLUE, "10.51.0.0/24", remote, "203.0.113.51")
    node.route(BLUE, "10.52.0.0/24", remote, "192.0.2.1")
    node.route(BLUE, "10.6.0.0/24", remote, "203.0.113.6")
    node.route(BLUE, "10.66.0.0/16", RouteKind.BLACKHOLE)
    node.raw_route(BLUE, "10.7.0.0/24", kind=1, nexthop=60000)
    node.route(RED, "10.9.0.0/24", remote, "192.0.2.2")
    with namespaces.entering(node.netns), IPRoute() as ip:
        ip.route("add", dst="203.0.113.51/32", type="blackhole")
        ip.route(
            "add",
            dst="203.0.113.6/32",
            gateway="192.0.2.254",
            oif=node.uplink,
            metrics={"mtu": 1300, "lock": 1 << 2},
        )
