# SPDX-License-Identifier: Apache-2.0
"""Two nodes for the whole suite, one with an IPv4 underlay and one with IPv6, alike otherwise.

| slot | VPC  | address        |     | BLUE's prefix  | leads to                            |
|------|------|----------------|     |----------------|-------------------------------------|
| 0    | BLUE | 10.0.1.5, +6   |     | 10.0.0.0/16    | 192.0.2.3                           |
| 1    | BLUE | 10.0.1.6, +6   |     | 10.0.1.0/24    | this node                           |
| 2    | RED  | 10.0.1.5, +6   |     | 10.0.2.0/24    | 192.0.2.2                           |
| 3    | unbound               |     | 10.0.2.77/32   | 192.0.2.4                           |
| 4    | BLUE | 10.0.1.7       |     | 10.3.0.0/24    | 192.0.2.2, inner MAC of its own     |
| 5    | BLUE | that of .8, 6  |     | 10.4.0.0/24    | 192.0.2.40, which takes 1400        |
|      |      |                |     | 10.5.0.0/24    | 203.0.113.5, no underlay route      |
|      |      |                |     | 10.51.0.0/24   | 203.0.113.51, underlay blackhole    |
|      |      |                |     | 10.52.0.0/24   | 192.0.2.1, ourselves                |
|      |      |                |     | 10.6.0.0/24    | 203.0.113.6, a route locked to 1300 |
|      |      |                |     | 10.66.0.0/16   | blackhole                           |
|      |      |                |     | 10.7.0.0/24    | a next hop that does not exist      |

+6: the IPv6 address beside it, `packets.six`; each prefix is there a second time
as `six` of it. On the IPv6 underlay a VTEP is what `packets.vtep_of` makes of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from geneve_ebpf.host import namespaces
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import RouteKind
from tests import packets, programs
from tests.packets import BLUE, RED, six, vtep_of

COMPILING = {"other_sources", "cache"}  # fixtures of tests that compile
PEER_MAC = "02:00:00:00:33:01"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark this directory's tests `kernel`, to be repeated on kernels that run them slowly.

    Of a test with a hundred parameters two, far apart, are enough there. None
    compiles: the programs were kept before.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.parent.name == "packet" and not COMPILING & set(item.fixturenames):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for variants in tests.values():
        step = -(-len(variants) // 2)
        for item in variants[::step]:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(kept_programs: None) -> None:
    """For every node of these tests."""


@pytest.fixture(scope="session")
def node() -> Iterator[programs.Node]:
    yield from _furnished(packets.NODE)


@pytest.fixture(scope="session")
def node6() -> Iterator[programs.Node]:
    yield from _furnished(packets.NODE6)


@pytest.fixture(params=["node", "node6"], ids=["over-ipv4", "over-ipv6"])
def any_node(request: pytest.FixtureRequest) -> programs.Node:
    """Each of the two in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, programs.Node)
    return found


def _furnished(vtep: str) -> Iterator[programs.Node]:
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    with programs.loaded(slot_count=6, vtep=vtep) as node:
        node.attach(0, "alice", BLUE, packets.ALICE, packets.ALICE6)
        node.attach(1, "bob", BLUE, packets.BOB, packets.BOB6)
        node.attach(2, "carol", RED, packets.CAROL, packets.CAROL6)
        node.attach(4, "dora", BLUE, packets.DORA)
        node.attach(5, "emil", BLUE, packets.EMIL6)
        _furnish_routes(node)
        yield node


def _furnish_routes(node: programs.Node) -> None:
    from pyroute2 import IPRoute

    def on_underlay(address: str) -> str:
        return vtep_of(address, node.family)

    def route(vni: int, prefix: str, kind: RouteKind, vtep: str = "", mac: str = "") -> None:
        for one in (prefix, six(prefix)):
            node.route(vni, one, kind, on_underlay(vtep) if vtep else "", mac)

    for vtep in ("192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.1"):
        node.vtep(on_underlay(vtep))
    for vtep in ("203.0.113.5", "203.0.113.51", "203.0.113.6"):
        node.vtep(on_underlay(vtep))
    node.vtep(on_underlay("192.0.2.40"), mtu=1400)
    remote = RouteKind.REMOTE
    route(BLUE, "10.0.0.0/16", remote, "192.0.2.3")
    route(BLUE, "10.0.1.0/24", RouteKind.LOCAL)
    route(BLUE, "10.0.2.0/24", remote, "192.0.2.2")
    route(BLUE, "10.0.2.77/32", remote, "192.0.2.4")
    route(BLUE, "10.3.0.0/24", remote, "192.0.2.2", PEER_MAC)
    route(BLUE, "10.4.0.0/24", remote, "192.0.2.40")
    route(BLUE, "10.5.0.0/24", remote, "203.0.113.5")
    route(BLUE, "10.51.0.0/24", remote, "203.0.113.51")
    route(BLUE, "10.52.0.0/24", remote, "192.0.2.1")
    route(BLUE, "10.6.0.0/24", remote, "203.0.113.6")
    route(BLUE, "10.66.0.0/16", RouteKind.BLACKHOLE)
    for prefix in ("10.7.0.0/24", six("10.7.0.0/24")):
        node.raw_route(BLUE, prefix, kind=1, nexthop=60000)
    route(RED, "10.9.0.0/24", remote, "192.0.2.2")
    whole = {4: 32, 6: 128}[node.family]
    with namespaces.entering(node.netns), IPRoute() as ip:
        ip.route("add", dst=f"{on_underlay('203.0.113.51')}/{whole}", type="blackhole")
        ip.route(
            "add",
            dst=f"{on_underlay('203.0.113.6')}/{whole}",
            gateway=on_underlay("192.0.2.254"),
            oif=node.uplink,
            metrics={"mtu": 1300, "lock": 1 << 2},
        )


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """A run directory with a bpffs and nothing else."""
    root = Path(tempfile.mkdtemp(prefix="gnv-test-", dir="/run"))
    pins = Pins(root / "node")
    try:
        pins.mount()
        yield root / "node"
    finally:
        pins.unmount()
        shutil.rmtree(root)
