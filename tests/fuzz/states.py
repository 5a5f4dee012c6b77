# SPDX-License-Identifier: Apache-2.0
"""Node states, drawn by hypothesis: consistent mostly, half written sometimes."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.model.state import (
    BLACKHOLE,
    HOST_TAP,
    LOCAL,
    NAMESPACE,
    NO_MAC,
    REMOTE,
    TAP,
    ZERO4,
    ZERO6,
    Binding,
    Config,
    Endpoint,
    NextHop,
    Node,
    Route,
    Vtep,
)

SLOTS = 4
_VNIS = (1, 43, 0xABCD, 0xFFFFFF, 0)
_VTEPS4 = tuple(
    bytes(octets)
    for octets in (
        (192, 0, 2, 2),
        (192, 0, 2, 3),
        (192, 0, 2, 40),
        (192, 0, 2, 1),  # ourselves
        (203, 0, 113, 5),  # no route
        (203, 0, 113, 51),  # blackhole
        (203, 0, 113, 6),  # a smaller MTU
    )
)
_VTEPS6 = tuple(
    bytes.fromhex(text)
    for text in (
        "20010db8000000000000000000000002",
        "20010db8000000000000000000000003",
        "20010db8000000000000000000000040",
        "20010db8000000000000000000000001",
        "20010db8000500000000000000000005",
        "20010db8005100000000000000000051",
        "20010db8000600000000000000000006",
    )
)
_OURS = {4: bytes([192, 0, 2, 1]), 6: bytes.fromhex("20010db8000000000000000000000001")}

_DNS6 = (bytes.fromhex("262000fe") + bytes(11) + b"\xfe", bytes.fromhex("fd" + "53" * 15))

_macs = st.binary(min_size=6, max_size=6).map(lambda mac: bytes([mac[0] & 0xFC | 2]) + mac[1:])
_hosts4 = st.integers(1, 40).map(lambda n: bytes([10, 0, n % 3, n]))
_hosts6 = st.integers(1, 40).map(
    lambda n: bytes.fromhex("fd006e7600000000") + bytes([0] * 5 + [n % 3, 0, n])
)
# Of integers hypothesis likes the ends best; of these it takes each alike.
_seldom = st.sampled_from((False,) * 60 + (True,))
_has = st.sampled_from(("4", "6", "46", "46", "46", "46", "46", "46"))
_likely = st.sampled_from((True, True, False))
_either = st.sampled_from((True, False))
_often = st.sampled_from((False,) * 7 + (True,))
_kinds = st.sampled_from((NAMESPACE, TAP, HOST_TAP))
_path_mtus = st.sampled_from((0, 0, 0, 0, 1280, 1400))
_mtus = st.sampled_from((0, 0, 0, 0, 1280, 1350, 1400, 1499, 1501, 9000))


def _prefix(address: bytes, bits: int) -> bytes:
    size = len(address) * 8
    kept = int.from_bytes(address, "big") >> (size - bits) << (size - bits)
    return kept.to_bytes(len(address), "big")


@st.composite
def _prefixes(draw: st.DrawFn, families: str) -> tuple[bytes, int]:
    if draw(st.sampled_from(families)) == "4":
        bits = draw(st.sampled_from((0, 8, 16, 22, 24, 24, 30, 31)))
        return _prefix(draw(_hosts4), bits), bits
    bits = draw(st.sampled_from((0, 8, 48, 64, 112, 112, 120, 127)))
    return _prefix(draw(_hosts6), bits), bits


@st.composite
def nodes(draw: st.DrawFn, families: str = "46", underlays: str = "46") -> Node:
    """A node's state. `families` of the addresses inside, `underlays` of the VTEPs."""
    underlay = int(draw(st.sampled_from(underlays)))
    catalogue = _VTEPS4 if underlay == 4 else _VTEPS6
    config = Config(
        vtep=b"" if draw(_seldom) else _OURS[underlay],
        port=draw(st.sampled_from((6081, 6081, 6081, 4789, 1))),
        dns=tuple(
            draw(st.lists(st.sampled_from((b"\x09\x09\x09\x09", b"\x01\1\1\1")), max_size=2))
        ),
        dns6=tuple(draw(st.lists(st.sampled_from(_DNS6), max_size=2))),
        slot_mtu=draw(st.sampled_from((1450, 1430, 8950))),
        relay=draw(_either),
    )
    vnis = draw(st.lists(st.sampled_from(_VNIS), min_size=1, max_size=3, unique=True))
    generations = iter(range(1, 100))

    bindings: list[Binding] = []
    endpoints: dict[tuple[int, bytes], Endpoint] = {}
    for slot in range(SLOTS):
        native, kind = draw(_either), draw(_kinds)
        if draw(_often):
            # What is left of an attach or a detach that was cut short means nothing.
            left = (draw(_hosts4), draw(_hosts6), draw(_macs)) if native else (ZERO4, ZERO6, NO_MAC)
            bindings.append(Binding(0, 0, *left, native, kind))
            continue
        vni = draw(st.sampled_from(vnis))
        has = draw(_has)
        address = draw(_hosts4) if "4" in has and "4" in families else ZERO4
        address6 = draw(_hosts6) if "6" in has and "6" in families else ZERO6
        if address == ZERO4 and address6 == ZERO6:
            address = draw(_hosts4) if "4" in families else ZERO4
            address6 = draw(_hosts6) if "4" not in families else ZERO6
        generation = next(generations)
        bindings.append(Binding(generation, vni, address, address6, draw(_macs), native, kind))
        for own in (address, address6):
            if any(own):
                endpoints[vni, own] = Endpoint(generation, slot)
    # What an attach or detach that was cut short leaves behind.
    for _ in range(draw(st.integers(0, 2))):
        host = draw(_hosts4 if "4" in families else _hosts6)
        slot = draw(st.integers(0, SLOTS - 1))
        endpoints[draw(st.sampled_from(vnis)), host] = Endpoint(1000 + slot, slot)

    count = draw(st.integers(1, 4))
    nexthops = {
        number: NextHop(
            draw(st.sampled_from(catalogue[:3] * 3 + catalogue)), draw(_mtus), draw(_macs)
        )
        for number in range(1, count + 1)
    }
    route = st.builds(
        Route,
        st.sampled_from((REMOTE, REMOTE, REMOTE, REMOTE, LOCAL, BLACKHOLE, 0, 9)),
        st.sampled_from((*nexthops, *nexthops, *nexthops, 60000)),
    )
    vni = st.sampled_from(vnis)
    prefixes = {
        (draw(vni), *draw(_prefixes(families))): draw(route) for _ in range(draw(st.integers(1, 6)))
    }
    for owner in vnis:
        for family, size in ((4, 4), (6, 16)):
            if str(family) in families and draw(_likely):
                everything = (owner, bytes(size), 0)
                prefixes.setdefault(everything, Route(REMOTE, draw(st.sampled_from((1, count)))))
    hosts = st.one_of([s for f, s in (("4", _hosts4), ("6", _hosts6)) if f in families])
    exact = {(draw(vni), draw(hosts)): draw(route) for _ in range(draw(st.integers(0, 3)))}
    known = draw(st.lists(st.sampled_from(catalogue), min_size=1, max_size=5, unique=True))
    known += [hop.vtep for hop in nexthops.values() if draw(_likely)]
    vteps = {address: Vtep(draw(_mtus), draw(_path_mtus)) for address in known}
    return Node(config, tuple(bindings), endpoints, exact, prefixes, nexthops, vteps)
