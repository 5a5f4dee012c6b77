# SPDX-License-Identifier: Apache-2.0
"""A hop of the underlay says that our packets are too big for it: believed, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from geneve_ebpf.abi import Address, Key32, Key64, NodeState, VtepValue
from geneve_ebpf.loader.maps import SharedArray, Table
from tests.packets import (
    ALICE,
    BLUE,
    ICMP,
    IP,
    NODE,
    NODE6,
    PEER,
    PEER6,
    REMOTE,
    TCP,
    UDP,
    Ether,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    Packet,
    Raw,
    faults,
    from_guest,
    in_vpc,
    on_wire,
    six,
    vtep_of,
)
from tests.programs import REDIRECT, ROUTER_MAC, Node, Run, assert_passed_on

HOP = "192.0.2.254"  # who says it
LIFE = 600 * 10**9  # ns
LEARNED = {"event path_mtu_learned": 1}
HALF_A_MINUTE = 30 * 10**9
SMALLEST = {4: 552, 6: 1280}


class Paths:
    """What a node has learned about the way to PEER."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.peer = vtep_of(PEER, node.family)
        self._vteps: Table[Address, VtepValue] = Table(node.pins.map("vteps"), Address, VtepValue)
        self._key = Address.of(ip_address(self.peer))
        self._state: SharedArray[NodeState] = SharedArray(
            node.pins.map("node_state"), NodeState, writable=True
        )

    def close(self) -> None:
        """As if nothing had been said."""
        self.put(0, 0)
        self.any_until = 0
        self._vteps.close()
        self._state.close()

    @property
    def held(self) -> tuple[int, int]:
        """Path MTU, and the time in ns since boot until which it holds."""
        value = self._vteps.get(self._key)
        assert value is not None
        return value.path_mtu, value.path_mtu_until

    def put(self, mtu: int, until: int) -> None:
        """Hold this."""
        value = self._vteps.get(self._key)
        assert value is not None
        value.path_mtu, value.path_mtu_until = mtu, until
        self._vteps.set(self._key, value)

    @property
    def any_until(self) -> int:
        """Until when that of any VTEP holds."""
        return int(self._state.copy(0).path_mtu_until)

    @any_until.setter
    def any_until(self, value: int) -> None:
        self._state.row(0).path_mtu_until = value


@contextmanager
def fresh(node: Node) -> Iterator[Paths]:
    """Nothing was learned, and slot 0 has not been told anything for long."""
    limits: Table[Key32, Key64] = Table(node.pins.map("too_big_limits"), Key32, Key64)
    limits.set(Key32(0), Key64(0))
    limits.close()
    found = Paths(node)
    yield found
    found.close()


@pytest.fixture
def paths(any_node: Node) -> Iterator[Paths]:
    with fresh(any_node) as found:
        yield found


@pytest.fixture
def paths4(node: Node) -> Iterator[Paths]:
    with fresh(node) as found:
        yield found


@pytest.fixture
def paths6(node6: Node) -> Iterator[Paths]:
    with fresh(node6) as found:
        yield found


def outer_packet(node: Node, length: int = 1500, **outer: object) -> bytes:
    """An outer packet of ours to PEER, as a hop sees it."""
    space = length - node.overhead - 40
    inner = in_vpc(TCP(sport=1, dport=2) / Raw(bytes(space)), ALICE, REMOTE)
    ends = {"src": vtep_of(NODE, node.family), "dst": vtep_of(PEER, node.family)}
    return bytes(on_wire(inner, **{**ends, **outer}))[14:]


def report(
    node: Node,
    mtu: int,
    quote: bytes | None = None,
    *,
    length: int = 600,
    src: str = HOP,
    dst: str = NODE,
    extension: Packet | None = None,
    icmp: dict[str, object] | None = None,
    **ip: object,
) -> Packet:
    """What a hop sends us: `length` bytes of a packet of ours, and how much it would have taken."""
    quote = (outer_packet(node) if quote is None else quote)[:length]
    ends = {"src": vtep_of(src, node.family), "dst": vtep_of(dst, node.family)}
    if node.family == 4:
        header = IP(**{**ends, **ip})
        error = ICMP(**{"type": 3, "code": 4, "nexthopmtu": mtu, **(icmp or {})})
    else:
        header = IPv6(**{**ends, **ip})
        error = ICMPv6PacketTooBig(**{"mtu": mtu, **(icmp or {})})
        if extension is not None:
            header = header / extension
    return Ether(src=ROUTER_MAC, dst=node.uplink_mac) / header / error / Raw(quote)


def assert_learned(paths: Paths, mtu: int) -> None:
    """Held from about now on."""
    held, until = paths.held
    assert held == mtu
    assert 0 <= time.monotonic_ns() + LIFE - until < HALF_A_MINUTE
    assert paths.any_until == until


def assert_ignored(paths: Paths, frame: Packet | bytes) -> None:
    """Passed on, not counted, nothing held."""
    before = paths.held, paths.any_until

    run = paths.node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {}
    assert (paths.held, paths.any_until) == before


def largest(node: Node, inner: int) -> Run:
    """A sandbox's packet of so many bytes to behind PEER."""
    return node.sends(from_guest(UDP(sport=1, dport=2) / bytes(inner - 28), flags="DF"))


# -- believed


def test_path_mtu_is_learned_and_the_message_passed_on(paths: Paths):
    """The host's kernel reads it too, whatever it makes of it."""
    frame = report(paths.node, 1400)

    run = paths.node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == LEARNED
    assert_learned(paths, 1400)


def test_next_packet_that_would_not_pass_is_refused_and_its_sender_told(paths: Paths):
    """From what the hop carries to what is left for the sandbox."""
    node = paths.node
    mtu = 1400 - node.overhead
    node.receives(report(node, 1400))

    fits, too_big = largest(node, mtu), largest(node, mtu + 1)

    assert fits.verdict == too_big.verdict == REDIRECT
    assert fits.counted == {}
    assert too_big.counted == {"tx too_big": 1, "event too_big_sent": 1}
    assert Ether(too_big.frame)[ICMP].nexthopmtu == mtu
    assert faults(too_big.frame) == []


def test_what_was_learned_can_be_seen_while_it_holds(paths: Paths):
    """Of that VTEP alone; and no longer when its time is over."""
    plane, peer = paths.node.plane, ip_address(paths.peer)
    assert plane.path_mtus() == {}

    paths.node.receives(report(paths.node, 1400))

    (found,) = plane.path_mtus().items()
    assert (found[0], found[1].mtu) == (peer, 1400)
    assert LIFE / 1e9 - 60 < found[1].expires_in <= LIFE / 1e9
    paths.put(1400, time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 1)
    assert plane.path_mtus() == {}


def test_handshakes_ask_for_segments_that_pass(paths: Paths):
    """The peer is not to find out for itself."""
    node = paths.node
    node.receives(report(node, 1400))

    run = node.sends(from_guest(TCP(flags="S", options=[("MSS", 8960)])))

    inner = in_vpc(TCP(flags="S", options=[("MSS", 1400 - node.overhead - 40)]), ALICE, REMOTE)
    assert run.frame == node.tunnelled(run, inner)
    assert run.counted == {"event mss_clamped": 1}


def test_other_vteps_are_not_concerned(paths: Paths):
    """Each has its own way."""
    node = paths.node
    node.receives(report(node, 1300))

    run = node.sends(from_guest(UDP() / bytes(1400 - node.overhead - 28), "10.4.0.1"))

    assert run.counted == {}
    assert run.verdict == REDIRECT


def test_smallest_wins(paths: Paths):
    """A VTEP's own MTU that is less than the hop's still holds."""
    node = paths.node
    node.vtep(paths.peer, 1350)
    try:
        node.receives(report(node, 1400))
        run = largest(node, 1400 - node.overhead)
    finally:
        node.vtep(paths.peer)

    assert Ether(run.frame)[ICMP].nexthopmtu == 1350 - node.overhead


@pytest.mark.parametrize("length", [28, 36, 44, 120])
def test_hop_may_quote_little(paths: Paths, length: int):
    """RFC 792 asks for the IP header and eight bytes of UDP; more than that must be ours."""
    more = 20 if paths.node.family == 6 else 0

    run = paths.node.receives(report(paths.node, 1400, length=length + more))

    assert run.counted == LEARNED


@pytest.mark.parametrize("sport", [32768, 65535])
def test_every_source_port_of_ours_is_known(paths: Paths, sport: int):
    """The flow's hash chose it."""
    frame = report(paths.node, 1400, outer_packet(paths.node, sport=sport))

    assert paths.node.receives(frame).counted == LEARNED


def test_another_port_is_known_when_configured(paths: Paths):
    """And the usual one then means nothing."""
    quote = outer_packet(paths.node, dport=6082)

    with paths.node.configured(udp_port=6082):
        assert_ignored(paths, report(paths.node, 1400))
        assert paths.node.receives(report(paths.node, 1400, quote)).counted == LEARNED


def test_what_hops_change_does_not_matter(paths: Paths):
    """TTL, DSCP, ECN."""
    changed = {4: {"tos": 0xB9, "ttl": 1, "id": 77}, 6: {"tc": 0xB9, "hlim": 1, "fl": 77}}[
        paths.node.family
    ]
    quote = outer_packet(paths.node, ip=changed)

    assert paths.node.receives(report(paths.node, 1400, quote)).counted == LEARNED


@pytest.mark.parametrize(
    ("length", "mtu"),
    [(9000, 8166), (1501, 1492), (1500, 1492), (1492, 1006), (1007, 1006), (1006, 552), (553, 552)],
)
def test_hop_that_does_not_know_its_mtu_means_the_next_plateau(
    paths4: Paths, length: int, mtu: int
):
    """RFC 1191 section 7, for routers that are older."""
    node = paths4.node

    assert node.receives(report(node, 0, outer_packet(node, length))).counted == LEARNED
    assert_learned(paths4, mtu)


# -- how long


def test_lower_one_lowers_and_starts_anew(paths: Paths):
    """Another hop behind the first."""
    paths.put(1400, time.monotonic_ns() + LIFE // 2)

    run = paths.node.receives(report(paths.node, 1399))

    assert run.counted == LEARNED
    assert_learned(paths, 1399)


@pytest.mark.parametrize("mtu", [1400, 1401, 1450])
def test_higher_one_changes_nothing_while_it_holds(paths: Paths, mtu: int):
    """It may be of another way, or of a hop before the small one."""
    until = time.monotonic_ns() + LIFE // 2
    paths.put(1400, until)
    paths.any_until = until

    assert_ignored(paths, report(paths.node, mtu))


def test_time_that_was_lost_is_written_again(paths: Paths):
    """sandbox_tx clears the node's time when it is over; a new one may fall into that instant."""
    until = time.monotonic_ns() + LIFE // 2
    paths.put(1400, until)

    run = paths.node.receives(report(paths.node, 1400))

    assert run.counted == {}
    assert paths.any_until == until


def test_over_is_over(paths: Paths):
    """Packets are tried at full size again, and a hop that still minds is believed again."""
    node = paths.node
    paths.put(1400, time.monotonic_ns() - 1)
    paths.any_until = time.monotonic_ns() + LIFE

    assert largest(node, 1500 - node.overhead).counted == {}
    assert node.receives(report(node, 1450)).counted == LEARNED
    assert_learned(paths, 1450)


def test_nodes_time_is_cleared_when_it_is_over(paths: Paths):
    """So that no packet looks at the clock any more."""
    paths.put(1400, time.monotonic_ns() + LIFE)
    paths.any_until = 1

    run = largest(paths.node, 1500 - paths.node.overhead)

    assert run.counted == {}
    assert paths.any_until == 0


def test_nodes_time_is_the_latest_of_all(paths: Paths):
    """Another VTEP's may hold longer."""
    later = time.monotonic_ns() + 2 * LIFE
    paths.any_until = later

    paths.node.receives(report(paths.node, 1400))

    assert paths.held[0] == 1400
    assert paths.any_until == later


# -- not believed


@pytest.mark.parametrize("mtu", [1500, 1501, 9000, 0xFFFF])
def test_what_was_no_larger_was_not_too_big(paths: Paths, mtu: int):
    """A hop that takes 1500 has not refused 1500."""
    assert_ignored(paths, report(paths.node, mtu))


def test_smallest_that_is_believed(paths: Paths):
    """Linux's own limits: less would be an attack, or carry no tunnel."""
    smallest = SMALLEST[paths.node.family]

    assert_ignored(paths, report(paths.node, smallest - 1))
    assert_ignored(paths, report(paths.node, 68))
    assert paths.node.receives(report(paths.node, smallest)).counted == LEARNED


def test_mtu_of_zero_means_nothing_in_icmpv6(paths6: Paths):
    """RFC 4443 section 3.2 always has it."""
    assert_ignored(paths6, report(paths6.node, 0))


NOT_OURS = {
    "another-source": {"src": "192.0.2.77"},
    "unknown-vtep": {"dst": "192.0.2.77"},
    "another-port": {"dport": 4789},
    "source-port-not-ours": {"sport": 32767},
    "version": {"version": 1},
    "payload-type": {"proto": 0x0800},
    "reserved-byte": {"reserved2": 1},
}


@pytest.mark.parametrize("outer", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_packet_that_we_did_not_send_means_nothing(paths: Paths, outer: dict[str, object]):
    """Whoever makes messages up has to know what we send, and to whom."""
    of_family = {
        name: vtep_of(str(value), paths.node.family) if name in ("src", "dst") else value
        for name, value in outer.items()
    }
    assert_ignored(paths, report(paths.node, 1400, outer_packet(paths.node, **of_family)))


def with_bytes(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


QUOTES4 = {
    "ip-version": (0, b"\x65"),
    "ip-options": (0, b"\x46"),
    "without-df": (6, b"\x00\x00"),
    "later-fragment": (6, b"\x40\x01"),
    "tcp": (9, b"\x06"),
}
QUOTES6 = {"ip-version": (0, b"\x40"), "tcp": (6, b"\x06"), "extension": (6, b"\x3c")}


@pytest.mark.parametrize(("at", "value"), QUOTES4.values(), ids=QUOTES4.keys())
def test_quoted_header_is_as_we_write_it(paths4: Paths, at: int, value: bytes):
    """DF, no options, UDP."""
    node = paths4.node

    assert_ignored(paths4, report(node, 1400, with_bytes(outer_packet(node), at, value)))


@pytest.mark.parametrize(("at", "value"), QUOTES6.values(), ids=QUOTES6.keys())
def test_quoted_ipv6_header_is_as_we_write_it(paths6: Paths, at: int, value: bytes):
    """UDP, and nothing before it."""
    node = paths6.node

    assert_ignored(paths6, report(node, 1400, with_bytes(outer_packet(node), at, value)))


@pytest.mark.parametrize("length", [0, 8, 19, 20, 27])
def test_quote_that_ends_before_the_ports_means_nothing(paths: Paths, length: int):
    """It could be anybody's."""
    more = 20 if paths.node.family == 6 else 0

    assert_ignored(paths, report(paths.node, 1400, length=length + more))


def test_quote_that_goes_on_in_the_padding_means_nothing(paths: Paths):
    """A message is as long as its IP packet says."""
    header = 20 if paths.node.family == 4 else 40
    whole = outer_packet(paths.node)

    short = bytes(report(paths.node, 1400, length=header))

    assert_ignored(paths, short + whole[header : header + 60])


def test_other_messages_mean_nothing(paths: Paths):
    """Unreachable for other reasons, an echo with our packet in it."""
    kinds = [{"code": 3}, {"type": 11, "code": 0}, {"type": 8, "code": 4}, {"type": 5, "code": 4}]
    if paths.node.family == 6:
        kinds = [{"type": 1}, {"type": 3}, {"type": 128}, {"type": 4}]
    for kind in kinds:
        assert_ignored(paths, report(paths.node, 1400, icmp=kind))


def test_wrong_checksum_means_nothing(paths: Paths):
    """RFC 792: a message that was damaged on the way says nothing."""
    frame = bytes(report(paths.node, 1400))

    assert_ignored(paths, frame[:-1] + bytes([frame[-1] ^ 1]))


def test_message_for_another_address_means_nothing(paths: Paths):
    """Another of the host's."""
    assert_ignored(paths, report(paths.node, 1400, dst="192.0.2.77"))


def test_message_for_another_mac_means_nothing(paths: Paths):
    """Overheard."""
    frame = report(paths.node, 1400)
    frame[Ether].dst = "02:00:00:00:00:77"

    assert_ignored(paths, frame)


def test_fragment_means_nothing(paths4: Paths):
    """These messages are short."""
    assert_ignored(paths4, report(paths4.node, 1400, flags="MF"))
    assert_ignored(paths4, report(paths4.node, 1400, frag=5))


def test_message_behind_an_extension_means_nothing(paths6: Paths):
    """No router puts one there."""
    assert_ignored(paths6, report(paths6.node, 1400, extension=IPv6ExtHdrDestOpt()))


def test_message_of_the_other_family_means_nothing(paths: Paths):
    """The underlay has one."""
    if paths.node.family == 4:
        quote = IPv6(src=NODE6, dst=PEER6) / UDP(sport=50000, dport=6081)
        error = IPv6(src="2001:db8::fe", dst=NODE6) / ICMPv6PacketTooBig(mtu=1400)
    else:
        quote = IP(src=NODE, dst=PEER, flags="DF", len=1500) / UDP(sport=50000, dport=6081)
        error = IP(src=HOP, dst=NODE) / ICMP(type=3, code=4, nexthopmtu=1400)
    frame = Ether(src=ROUTER_MAC, dst=paths.node.uplink_mac) / error / Raw(bytes(quote))

    assert_ignored(paths, frame)


def test_tunnel_goes_on_working(paths: Paths):
    """What comes through it has nothing to do with the size of what goes in."""
    node = paths.node
    node.receives(report(node, SMALLEST[node.family]))
    inner = in_vpc(UDP() / bytes(1300), REMOTE, ALICE)

    run = node.receives(node.arriving(inner, vni=BLUE))

    assert run.verdict == REDIRECT
    assert run.counted == {}


def test_ipv6_of_sandboxes_hears_of_it_too(paths: Paths):
    """As ICMPv6."""
    node = paths.node
    node.receives(report(node, 1400))

    run = node.sends(from_guest(UDP() / bytes(1400), six(REMOTE)))

    assert run.counted == {"tx too_big": 1, "event too_big_sent": 1}
    assert Ether(run.frame)[ICMPv6PacketTooBig].mtu == 1400 - node.overhead
