# SPDX-License-Identifier: Apache-2.0
"""Model and programs think alike of every frame: a fixed number of them here, more by script/fuzz.

What a longer run found once is a test of its own, below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import programs
from tests.fuzz import builder
from tests.fuzz.compare import Comparison, expect
from tests.fuzz.shrink import shrink
from tests.fuzz.states import nodes
from tests.fuzz.traffic import SANDBOX_TX, UPLINK_RX, Item, Traffic
from tests.fuzz.under_test import SLOTS, UnderTest
from tests.model.state import (
    REMOTE,
    Binding,
    Config,
    Context,
    Endpoint,
    NextHop,
    Node,
    Outcome,
    Route,
    Vtep,
)
from tests.patience import PATIENCE

STATES = max(5, int(100 / PATIENCE))
FRAMES = 256  # of each state


@pytest.fixture(scope="module")
def under_test() -> Iterator[UnderTest]:
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    with programs.loaded(SLOTS) as node:
        under_test = UnderTest(node)
        yield under_test
        under_test.close()


@settings(
    max_examples=STATES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # shrink() knows better what makes a frame small
    suppress_health_check=list(HealthCheck),
)
@given(node=nodes(), seed=st.integers(0, 2**64 - 1))
def test_programs_do_what_the_model_says(under_test: UnderTest, node: Node, seed: int):
    """Every verdict, byte and counter, of frames valid, odd and damaged, in states of all kinds."""
    comparison = Comparison(under_test)
    items = list(Traffic(node, seed, under_test.uplink_mac).items(FRAMES))

    mismatch = comparison.batch(node, items)

    if mismatch is not None:
        pytest.fail(str(shrink(comparison, mismatch)), pytrace=False)


# -- what was found

GUEST, GUEST6 = Config().guest, Config().guest6
ALICE, ALICE6 = bytes([10, 0, 1, 5]), bytes.fromhex("fd006e7600000000000000000a000105")
REMOTE4, REMOTE6 = bytes([10, 0, 2, 9]), bytes.fromhex("fd006e7600000000000000000a000209")
NODE, PEER = Config().vtep, bytes([192, 0, 2, 2])
NODE_WITH_ALICE = Node(
    bindings=(Binding(1, 43, ALICE, ALICE6, b"\x02\0\0\0\0\5"),),
    endpoints={(43, ALICE): Endpoint(1, 0), (43, ALICE6): Endpoint(1, 0)},
    prefixes={(43, bytes(4), 0): Route(REMOTE, 1), (43, bytes(16), 0): Route(REMOTE, 1)},
    nexthops={1: NextHop(PEER)},
    vteps={PEER: Vtep()},
)


def agreed(
    under_test: UnderTest, program: int, frame: bytes, node: Node = NODE_WITH_ALICE
) -> Outcome:
    """What model and programs both make of a frame in this state."""
    slot = 0 if program == SANDBOX_TX else None
    item = Item(program, frame, Context(slot=slot))

    what = Comparison(under_test).alone(node, item)

    assert what == ""
    return expect(node, item)


def from_alice(packet: bytes, padding: bytes = b"") -> bytes:
    config = Config()
    ethertype = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return config.gateway_mac + config.guest_mac + ethertype + packet + padding


def on_the_wire(under_test: UnderTest, inner: bytes, *, cut: int = 0) -> bytes:
    """An inner frame from PEER; UDP's length leaves the last `cut` bytes of it outside."""
    payload = builder.geneve(43, inner)
    datagram = builder.udp(
        PEER, NODE, (50000, 6081), payload, mode=builder.ZERO, length=8 + len(payload) - cut
    )
    packet = builder.ipv4(PEER, NODE, 17, datagram)
    return under_test.uplink_mac + b"\x02\0\0\0\xaa\2\x08\x00" + packet


def test_arp_that_runs_past_the_datagram_is_dropped(under_test: UnderTest):
    """What is behind UDP's length is padding of the outer frame, and no part of a question."""
    mac = b"\x02\0\0\0\x33\1"
    question = b"\0\1\x08\0\x06\x04\0\1" + mac + REMOTE4 + bytes(6) + ALICE
    frame = on_the_wire(under_test, b"\xff" * 6 + mac + b"\x08\x06" + question, cut=1)

    assert agreed(under_test, UPLINK_RX, frame).drop == "rx short_frame"


@pytest.mark.parametrize("next_header", [43, 44, 60])
def test_extension_header_in_the_padding_is_none(under_test: UnderTest, next_header: int):
    """A packet that ends before the header it announces is cut off, whatever comes behind it."""
    packet = builder.ipv6(GUEST6, REMOTE6, next_header, b"")

    outcome = agreed(under_test, SANDBOX_TX, from_alice(packet, padding=b"\x06\0\0\1" + bytes(20)))

    assert outcome.drop == "tx short_frame"


@pytest.mark.parametrize(("count", "drop"), [(6, ""), (7, "tx extension_header")])
def test_six_extension_headers_are_read_and_no_more(under_test: UnderTest, count: int, drop: str):
    """As many as the constant says, not one fewer."""
    headers = (b"\x3c\0" + bytes(6)) * (count - 1) + b"\xfd\0" + bytes(6)

    outcome = agreed(under_test, SANDBOX_TX, from_alice(builder.ipv6(GUEST6, REMOTE6, 60, headers)))

    assert outcome.drop == drop


@pytest.mark.parametrize("words", [0, 64], ids=["ends", "overruns"])
def test_seventh_extension_header_that_is_not_there_is_cut_off(under_test: UnderTest, words: int):
    """Whether the packet ends behind the sixth or within it: that comes before their number."""
    headers = (b"\x3c\0" + bytes(6)) * 5 + bytes([60, words]) + bytes(6)
    packet = builder.ipv6(GUEST6, REMOTE6, 60, headers)

    outcome = agreed(under_test, SANDBOX_TX, from_alice(packet, padding=bytes(60)))

    assert outcome.drop == "tx short_frame"


def test_icmp_without_a_type_does_not_borrow_one_from_the_padding(under_test: UnderTest):
    """An IPv4 header that announces ICMP and ends."""
    packet = builder.ipv4(GUEST, REMOTE4, 1, b"")

    outcome = agreed(under_test, SANDBOX_TX, from_alice(packet, padding=bytes(30)))

    assert outcome.drop == "tx short_frame"


@pytest.mark.parametrize("family", [4, 6])
def test_quoted_udp_checksum_never_becomes_none(under_test: UnderTest, family: int):
    """Where the arithmetic gives 0, all ones are written (RFC 768)."""
    guest, alice = (GUEST, ALICE) if family == 4 else (GUEST6, ALICE6)
    remote = REMOTE4 if family == 4 else REMOTE6
    # The port that makes the checksum 0 once the address is ALICE's.
    for port in range(65536):
        datagram = builder.udp(remote, alice, (port, 53), b"", mode=builder.FULL)
        if datagram[6:8] == b"\xff\xff":
            break
    quoted = builder.udp(remote, guest, (port, 53), b"")
    if family == 4:
        quote = builder.ipv4(remote, guest, 17, quoted)
        packet = builder.ipv4(guest, remote, 1, builder.icmp4(3, 1, 0, quote))
    else:
        quote = builder.ipv6(remote, guest, 17, quoted)
        message = builder.icmp6(guest, remote, 1, 0, bytes(4) + quote)
        packet = builder.ipv6(guest, remote, 58, message)

    outcome = agreed(under_test, SANDBOX_TX, from_alice(packet))

    assert outcome.frame is not None
    assert outcome.frame[-2:] == b"\xff\xff"


def test_what_a_cut_short_attach_has_left_is_nobodys(under_test: UnderTest):
    """Who is not attached has the clone's address, whatever native one his slot's binding holds."""
    config = Config()
    mac, everybody = config.guest_mac, b"\xff" * 4
    node = Node(bindings=(Binding(0, 43, ALICE, ALICE6, b"\x02\0\0\0\0\5", native=True),))
    arp = b"\0\1\x08\0\x06\x04\0\1" + mac + GUEST + bytes(6) + config.gateway
    routers = bytes.fromhex("ff020000000000000000000000000002")
    message = builder.icmp6(GUEST6, routers, 133, 0, bytes(4))
    bootp = b"\1\1\6\0" + bytes(24) + mac + bytes(202) + b"\x63\x82\x53\x63\x35\1\1\xff"
    datagram = builder.udp(bytes(4), everybody, (68, 67), bootp)
    asked = [
        config.gateway_mac + mac + b"\x08\x06" + arp,
        from_alice(builder.ipv6(GUEST6, routers, 58, message, ttl=255)),
        from_alice(builder.ipv4(bytes(4), everybody, 17, datagram)),
    ]

    answers = [agreed(under_test, SANDBOX_TX, frame, node) for frame in asked]

    events = [one.events[0] for one in answers]
    assert events == ["arp_answered", "router_answered", "dhcp_answered"]
    offer = answers[-1].frame
    assert offer is not None
    assert offer[14 + 28 + 16 : 14 + 28 + 20] == GUEST


@pytest.mark.parametrize(
    "source", [bytes(10) + b"\xff\xff\x0a\0\1\5", REMOTE6], ids=["mapped", "plain"]
)
def test_pseudo_header_has_all_of_an_ipv6_address(under_test: UnderTest, source: bytes):
    """Also of one that looks like IPv4 (::ffff:10.0.1.5), from which a router may well write."""
    vtep, peer = (
        bytes.fromhex("20010db8") + bytes(11) + b"\1",
        bytes.fromhex("20010db8") + bytes(11) + b"\2",
    )
    node = Node(Config(vtep=vtep), vteps={peer: Vtep()})
    tunnel = builder.udp(vtep, peer, (50000, 6081), b"", mode=builder.ZERO)
    quote = builder.ipv6(vtep, peer, 17, tunnel, length=1460)
    message = builder.icmp6(source, vtep, 2, 0, (1400).to_bytes(4, "big") + quote)
    frame = (
        under_test.uplink_mac
        + b"\x02\0\0\0\xaa\2\x86\xdd"
        + builder.ipv6(source, vtep, 58, message)
    )

    assert agreed(under_test, UPLINK_RX, frame, node).learned == (peer, 1400)
