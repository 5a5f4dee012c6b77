# SPDX-License-Identifier: Apache-2.0
"""Underlays as they are built: what an uplink can be, and how the VTEPs reach each other.

Two nodes on each of them, with reverse path filtering strict everywhere. A kernel
without VLANs, bonds or VRFs skips those with the reason; Debian's 6.1 has all of
them, so they are marked `kernel` and run there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces
from geneve_ebpf.host.addresses import is_own
from tests.nodes import BLUE, Bed, Node, Sandbox, introduce, run, send_tcp, six
from tests.wire import parse_tunnel

DATA = os.urandom(1 << 16) * 8  # 512 KiB
DIGEST = hashlib.sha256(DATA).hexdigest()
OVERHEAD = {4: 50, 6: 70}
STRICT = {"ipv4/conf/all/rp_filter": 1, "ipv4/conf/default/rp_filter": 1}
NETWORKS = {4: ("192.0.2.", 24), 6: ("2001:db8::", 64)}
ALONE = {4: ("198.51.100.", 32), 6: ("2001:db8:100::", 128)}  # VTEPs on `lo`
_TUNSETIFF, _TUNSETLINK = 0x400454CA, 0x400454CD
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000


class Underlay:
    """Two namespaces, to be joined; `uplink` is then the name of either one's uplink."""

    def __init__(self, bed: Bed, family: int) -> None:
        self.bed = bed
        self.family = family
        self.ends = [bed.namespace(name, STRICT) for name in "ab"]
        self.uplinks = ["uplink0"]
        self.wire = "uplink0"  # where the outer packets can be seen, in the second

    def ip(self, end: int, *words: object) -> str:
        """An `ip` command in one of them."""
        return run("ip", "-n", self.ends[end].name, *words)

    def lay_wire(self, name: str = "uplink0") -> None:
        """A veth pair between them."""
        self.bed.wire(self.ends[0], name, self.ends[1], name)

    def make(self, end: int, name: str, *words: object) -> None:
        """A device on top of others, up; skips the test if the kernel knows no such kind."""
        try:
            self.ip(end, "link", "add", *words)
        except RuntimeError as error:
            if "Unknown device type" in str(error):
                pytest.skip(f"this kernel has no {words[words.index('type') + 1]}")
            raise
        with namespaces.entering(self.ends[end]):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        self.ip(end, "link", "set", name, "up")

    def take_addresses(self, interface: str) -> None:
        """The VTEPs, on an interface of either end."""
        network, length = NETWORKS[self.family]
        for number, netns in enumerate(self.ends, 1):
            self.bed.address(netns, f"{network}{number}/{length}", interface)

    def nodes(self, networks: dict[int, tuple[str, int]] = NETWORKS) -> tuple[Node, Node]:
        """Bring both up, to know each other."""
        network, _ = networks[self.family]
        a, b = (
            self.bed.node(netns, f"{network}{number}", *self.uplinks)
            for number, netns in enumerate(self.ends, 1)
        )
        introduce(a, b)
        return a, b


def plain(laid: Underlay) -> tuple[Node, Node]:
    """The address on the uplink itself."""
    laid.lay_wire()
    laid.take_addresses("uplink0")
    return laid.nodes()


def bridge(laid: Underlay) -> tuple[Node, Node]:
    """The address on a bridge that the NIC is a port of."""
    laid.lay_wire()
    for end in (0, 1):
        laid.make(end, "br0", "br0", "type", "bridge")
        laid.ip(end, "link", "set", "uplink0", "master", "br0")
    laid.take_addresses("br0")
    laid.uplinks = ["br0"]
    return laid.nodes()


def macvlan(laid: Underlay) -> tuple[Node, Node]:
    """An interface of the node's own on a NIC that others use, too."""
    laid.lay_wire("nic0")
    for end in (0, 1):
        laid.make(end, "uplink0", "link", "nic0", "name", "uplink0", "type", "macvlan")
    laid.take_addresses("uplink0")
    return laid.nodes()


def vlan(laid: Underlay) -> tuple[Node, Node]:
    """A VLAN of the NIC."""
    laid.lay_wire("nic0")
    laid.wire = "nic0"
    for end in (0, 1):
        laid.make(end, "nic0.7", "link", "nic0", "name", "nic0.7", "type", "vlan", "id", 7)
    laid.take_addresses("nic0.7")
    laid.uplinks = ["nic0.7"]
    return laid.nodes()


def make_bond(laid: Underlay) -> None:
    """Two wires made one: one works, the other waits."""
    for name in ("nic0", "nic1"):
        laid.lay_wire(name)
    for end in (0, 1):
        laid.make(
            end, "bond0", "bond0", "type", "bond", "mode", "active-backup", "miimon", 50,
        )  # fmt: skip
        for name in ("nic0", "nic1"):
            laid.ip(end, "link", "set", name, "down")
            laid.ip(end, "link", "set", name, "master", "bond0")
            laid.ip(end, "link", "set", name, "up")


def bond(laid: Underlay) -> tuple[Node, Node]:
    """Two NICs as one."""
    make_bond(laid)
    laid.take_addresses("bond0")
    laid.uplinks = ["bond0"]
    laid.wire = "bond0"
    return laid.nodes()


def vlan_on_bond(laid: Underlay) -> tuple[Node, Node]:
    """As most racks have it."""
    make_bond(laid)
    for end in (0, 1):
        laid.make(end, "bond0.7", "link", "bond0", "name", "bond0.7", "type", "vlan", "id", 7)
    laid.take_addresses("bond0.7")
    laid.uplinks = ["bond0.7"]
    laid.wire = "bond0"
    return laid.nodes()


def vrf(laid: Underlay) -> tuple[Node, Node]:
    """Uplink and VTEP in a routing table of their own: the main one knows nothing of them."""
    laid.lay_wire()
    for end in (0, 1):
        laid.make(end, "fabric", "fabric", "type", "vrf", "table", 100)
        laid.ip(end, "link", "set", "uplink0", "master", "fabric")
    laid.take_addresses("uplink0")
    for end in (0, 1):
        assert "192.0.2" not in laid.ip(end, "route", "show")
    return laid.nodes()


def loopback(laid: Underlay) -> tuple[Node, Node]:
    """The address on `lo`, announced as a host's route is."""
    laid.lay_wire()
    laid.take_addresses("uplink0")
    network, _ = NETWORKS[laid.family]
    alone, length = ALONE[laid.family]
    for end in (0, 1):
        laid.bed.address(laid.ends[end], f"{alone}{end + 1}/{length}", "lo")
        other = f"{alone}{2 - end}/{length}"
        laid.ip(end, "route", "add", other, "via", f"{network}{2 - end}")
    return laid.nodes(ALONE)


def by_ipv6_next_hop(laid: Underlay) -> tuple[Node, Node]:
    """IPv4 VTEPs in a fabric that has IPv6 alone (RFC 5549): `via inet6`, link-local at that."""
    laid.lay_wire()
    for end in (0, 1):
        laid.bed.address(laid.ends[end], f"fe80::{end + 1}/64", "uplink0")
        laid.bed.address(laid.ends[end], f"198.51.100.{end + 1}/32", "lo")
        other, hop = f"198.51.100.{2 - end}", f"fe80::{2 - end}"
        laid.ip(end, "route", "add", other, "via", "inet6", hop, "dev", "uplink0")
    return laid.nodes(ALONE)


class Relay:
    """Carries packets between two tun devices, as a tunnel in user space does."""

    def __init__(self, ends: list[Path], name: str) -> None:
        self._doors = [self._open(netns, name) for netns in ends]
        self._stop, stopped = os.pipe()
        self._stopped = stopped
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    @staticmethod
    def _open(netns: Path, name: str) -> int:
        with namespaces.entering(netns):
            door = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(
                door, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            )
        return door

    def set_type(self, hardware: int) -> None:
        """Have the devices claim another link type, an ARPHRD_* number."""
        for door in self._doors:
            fcntl.ioctl(door, _TUNSETLINK, hardware)

    def _carry(self) -> None:
        other = dict(zip(self._doors, reversed(self._doors), strict=True))
        while True:
            ready = select.select([*self._doors, self._stop], [], [])[0]
            if self._stop in ready:
                return
            for door in ready:
                try:
                    os.write(other[door], os.read(door, 65536))
                except OSError:  # nothing there after all, or the other end is down
                    continue

    def close(self) -> None:
        """Both devices go."""
        os.close(self._stopped)
        self._thread.join()
        for door in (*self._doors, self._stop):
            os.close(door)


def without_ethernet(laid: Underlay) -> tuple[Node, Node]:
    """Bare IP packets, no MAC and no neighbour: as WireGuard's devices are."""
    laid.bed.keep_longer(Relay(laid.ends, "wg0"))
    for end in (0, 1):
        with namespaces.entering(laid.ends[end]):
            Path("/proc/sys/net/ipv6/conf/wg0/addr_gen_mode").write_text("1")
        laid.ip(end, "link", "set", "wg0", "mtu", 1420, "up")
    laid.take_addresses("wg0")
    laid.uplinks = ["wg0"]
    laid.wire = "wg0"
    return laid.nodes()


WAYS: list[tuple[Callable[[Underlay], tuple[Node, Node]], int]] = [
    *((plain, family) for family in (4, 6)),
    *((loopback, family) for family in (4, 6)),
    (bridge, 4),
    (macvlan, 4),
    (by_ipv6_next_hop, 4),
    (without_ethernet, 4),
]
ALSO_ELSEWHERE: list[tuple[Callable[[Underlay], tuple[Node, Node]], int]] = [
    (vlan, 4),
    (bond, 4),
    (vlan_on_bond, 6),
    *((vrf, family) for family in (4, 6)),
    (without_ethernet, 6),
]


@pytest.fixture(
    scope="module",
    params=[
        *WAYS,
        *(pytest.param(way, marks=pytest.mark.kernel) for way in ALSO_ELSEWHERE),
    ],
    ids=lambda way: f"{way[0].__name__.replace('_', '-')}-ipv{way[1]}",
)
def laid(request: pytest.FixtureRequest) -> Iterator[Underlay]:
    way, family = request.param
    with Bed(f"ul{way.__name__[:4]}{family}") as bed:
        made = Underlay(bed, family)
        way(made)
        yield made


@pytest.fixture
def ends(laid: Underlay) -> Iterator[tuple[Sandbox, Sandbox]]:
    """A sandbox of both families on either node."""
    a, b = laid.bed.nodes
    yield (
        a.sandbox(BLUE, "10.0.1.5", address6=six("10.0.1.5")),
        b.sandbox(BLUE, "10.0.2.5", address6=six("10.0.2.5")),
    )
    laid.bed.clear()


def test_both_families_cross_whole(laid: Underlay, ends: tuple[Sandbox, Sandbox]) -> None:
    """Ping and TCP, both ways, and packets of the slots' MTU, which is the uplink's without the
    header and no byte too much. Nothing is dropped at either end, and no VLAN is on the wire but
    the underlay's own."""
    one, two = ends
    a, b = laid.bed.nodes
    shown = laid.ip(0, "-o", "link", "show", laid.uplinks[0])
    assert a.facts.mtu == int(shown.split(" mtu ")[1].split()[0]) - OVERHEAD[laid.family]
    before = a.drops(), b.drops()
    seen = laid.bed.capture(laid.ends[1], laid.wire)

    for address, back, header in ((two.address, one.address, 28), (two.address6, one.address6, 48)):
        largest = ("-M", "do", "-s", a.facts.mtu - header)
        assert (one.ping(address), two.ping(back), one.ping(address, *largest)) == (3, 3, 3)
        assert send_tcp(one, two, DATA, address) == send_tcp(two, one, DATA, back) == DIGEST

    assert (a.drops(), b.drops()) == before
    if laid.wire != "wg0":  # there the capture has no Ethernet header to parse
        tags = {one.vlan for one in seen.frames() if not one.outgoing and parse_tunnel(one.data)}
        assert tags == ({7} if laid.uplinks[0].endswith(".7") else {None})


def test_coming_up_again_adopts_it(laid: Underlay, ends: tuple[Sandbox, Sandbox]) -> None:
    """The VTEP is found to be the node's own, as readiness and `doctor` ask; nothing is lost."""
    one, two = ends
    a, b = laid.bed.nodes
    with namespaces.entering(a.netns):
        assert is_own(a.settings.vtep, a.settings.uplinks)
        assert not is_own(b.settings.vtep, a.settings.uplinks)

    a.bring_up()

    assert one.ping(two.address) == two.ping(one.address6) == 3


def refusal(bed: Bed, netns: Path, *uplinks: str) -> str:
    """What a node says that does not come up on these."""
    with pytest.raises(GeneveError) as refused:
        bed.node(netns, "192.0.2.1", *uplinks)

    assert (refused.value.code, refused.value.field) == (Code.NODE_SETUP, "uplinks")
    assert refused.value.hint
    return f"{refused.value.message}; {refused.value.hint}"


def test_a_port_of_something_else_is_refused() -> None:
    """Packets for the node come in by the bridge or bond: that is to be named."""
    with Bed("ulr") as bed:
        laid = Underlay(bed, 4)
        laid.lay_wire()
        laid.make(0, "br0", "br0", "type", "bridge")
        laid.ip(0, "link", "set", "uplink0", "master", "br0")

        said = refusal(bed, laid.ends[0], "uplink0")

        assert "port of the bridge br0" in said
        assert "name br0 instead" in said


def test_other_link_types_are_refused() -> None:
    """Neither Ethernet nor bare IP: our programs would read the wrong bytes."""
    with Bed("ulr") as bed:
        laid = Underlay(bed, 4)
        relay = Relay(laid.ends, "wg0")
        bed.keep_longer(relay)
        relay.set_type(512)  # PPP

        assert "link type 512" in refusal(bed, laid.ends[0], "wg0")


@pytest.mark.kernel
def test_a_vrf_itself_and_uplinks_of_several_are_refused() -> None:
    """There is one table that VTEPs are looked up in."""
    with Bed("ulr") as bed:
        laid = Underlay(bed, 4)
        for name in ("uplink0", "uplink1"):
            laid.lay_wire(name)
        laid.make(0, "fabric", "fabric", "type", "vrf", "table", 100)
        laid.ip(0, "link", "set", "uplink0", "master", "fabric")

        assert "is a VRF" in refusal(bed, laid.ends[0], "fabric")
        assert "several VRFs" in refusal(bed, laid.ends[0], "uplink0", "uplink1")
