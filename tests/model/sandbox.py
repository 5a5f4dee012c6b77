# SPDX-License-Identifier: Apache-2.0
"""What a sandbox sends: answered, handed over, encapsulated, or dropped.

The order of the checks is in docs/fuzzing.md.
"""

from __future__ import annotations

from tests.model import arp, dhcp, dhcp6, geneve, mtu, nd, packet, translate
from tests.model.packet import ARP, IPV4, IPV6, Packet
from tests.model.state import (
    BLACKHOLE,
    REDIRECT,
    REMOTE,
    SHOT,
    ZERO4,
    ZERO6,
    Binding,
    Config,
    Context,
    Drop,
    Endpoint,
    Node,
    Outcome,
    Route,
    Vtep,
    guest_address,
    same_prefix,
    underlay_mtu,
)
from tests.model.sums import word

TYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}


def sends(node: Node, frame: bytes, context: Context) -> Outcome:
    """What becomes of a frame that the sandbox in `context.slot` sends."""
    try:
        return _sends(node, frame, context)
    except Drop as drop:
        return Outcome(SHOT, drop=f"tx {drop.reason}", events=drop.events)


def _sends(node: Node, frame: bytes, context: Context) -> Outcome:
    config = node.config
    if not config.vtep:
        raise Drop("no_config")
    if context.slot is None:
        raise Drop("no_slot")
    if frame[6:12] != config.guest_mac:
        raise Drop("spoofed_mac")
    ethertype = word(frame, 12)
    binding = node.bindings[context.slot]
    if ethertype == ARP:
        answer = arp.answer_sandbox(config, binding, frame)
        return Outcome(REDIRECT, answer, events=("arp_answered",))
    try:
        if ethertype not in (IPV4, IPV6):
            raise Drop("not_ip")
        inner = packet.read(frame[14:], 4 if ethertype == IPV4 else 6)
    except Drop:
        # Who is unbound is told nothing more.
        if not binding.generation:
            raise Drop("unbound") from None
        raise
    if nd.is_membership(inner):
        raise Drop("group_membership")
    if nd.is_discovery(inner):
        return nd.answer_sandbox(config, binding, inner)
    if dhcp.is_question(config, inner):
        return dhcp.answer(config, binding, inner)
    if dhcp6.is_question(inner):
        return dhcp6.answer(config, binding, inner)
    if not binding.generation:
        raise Drop("unbound")
    if inner.source != guest_address(config, binding, inner.family):
        raise Drop("spoofed_address")
    if frame[0] & 1 or not packet.is_unicast(inner.destination):
        raise Drop("not_unicast")
    mine = binding.address if inner.family == 4 else binding.address6
    if mine in (ZERO4, ZERO6):
        raise Drop("no_address")

    to = find_endpoint(node, binding.vni, inner.destination)
    if to is not None:
        return _send_local(node, frame, context.slot, inner, mine, to)
    route = find_route(node, binding.vni, inner.destination)
    if route is None:
        raise Drop("no_route")
    if route.kind == BLACKHOLE:
        raise Drop("blackhole")
    if route.kind != REMOTE:
        raise Drop("no_endpoint")
    return _send_remote(node, frame, context, inner, binding, mine, route)


def find_endpoint(node: Node, vni: int, address: bytes) -> Endpoint | None:
    """Who has the address on this node. Raises Drop when that is somebody who has left."""
    found = node.endpoints.get((vni, address))
    if found is None:
        return None
    bound = node.bindings[found.slot]
    own = bound.address if len(address) == 4 else bound.address6
    if (bound.generation, bound.vni, own) != (found.generation, vni, address):
        raise Drop("stale_endpoint")
    return found


def find_route(node: Node, vni: int, address: bytes) -> Route | None:
    """The most specific route of the VPC."""
    exact = node.exact.get((vni, address))
    if exact is not None:
        return exact
    best, route = -1, None
    for (owner, prefix, bits), candidate in node.prefixes.items():
        fits = owner == vni and len(prefix) == len(address) and bits > best
        if fits and same_prefix(prefix, address, bits):
            best, route = bits, candidate
    return route


def to_guest(config: Config, to: Binding, inner: Packet) -> bytes:
    """The frame that a sandbox receives: from its gateway, to its own address."""
    guest = guest_address(config, to, inner.family)
    data = translate.translate(inner, translate.DESTINATION, guest)
    return config.guest_mac + config.gateway_mac + TYPES[inner.family] + data


def _send_local(
    node: Node, frame: bytes, slot: int, inner: Packet, mine: bytes, to: Endpoint
) -> Outcome:
    inner.data = translate.translate(inner, translate.SOURCE, mine)
    out = to_guest(node.config, node.bindings[to.slot], inner)
    traffic = ((slot, "tx_local", inner.length), (to.slot, "rx_local", inner.length))
    return Outcome(REDIRECT, out, traffic=traffic)


def _send_remote(
    node: Node,
    frame: bytes,
    context: Context,
    inner: Packet,
    binding: Binding,
    mine: bytes,
    route: Route,
) -> Outcome:
    config, whole = node.config, inner.data
    hop = node.nexthops.get(route.nexthop)
    if hop is None:
        raise Drop("no_nexthop")
    carried = underlay_mtu(hop.vtep)
    if carried is None:
        raise Drop("no_underlay_route")
    known = node.vteps.get(hop.vtep, Vtep()).path_mtu
    room = min(carried, hop.mtu or carried, known or carried) - geneve.overhead(hop.vtep)
    if len(inner.data) > room:
        return _too_big(config, frame, context, inner, room)
    inner.data = mtu.clamp(inner, room) or inner.data
    clamped = inner.data is not whole
    data = translate.translate(inner, translate.SOURCE, mine)
    out = geneve.encapsulate(
        config,
        hop.vtep,
        binding.vni,
        hop.mac + binding.mac,
        word(TYPES[inner.family], 0),
        data,
        geneve.ecn_of(data, inner.family),
    )
    return Outcome(
        REDIRECT,
        out,
        traffic=((context.slot or 0, "tx_remote", inner.length),),
        events=("mss_clamped",) if clamped else (),
        free=geneve.free_fields(hop.vtep),
        flow=flow_of(inner),
    )


def _too_big(config: Config, frame: bytes, context: Context, inner: Packet, room: int) -> Outcome:
    """Refused, and the sender told how much fits if he may hear it."""
    told = mtu.may_be_told(inner, room)
    if not told or not context.may_answer:
        return Outcome(SHOT, drop="tx too_big", asked_limit=told)
    return Outcome(
        REDIRECT,
        mtu.too_big(config, inner, room),
        drop="tx too_big",
        events=("too_big_sent",),
        asked_limit=True,
    )


def flow_of(inner: Packet) -> tuple[object, ...]:
    """What frames of one flow have in common; () where that is not clear, as of fragments.

    An IPv6 flow label stands for the ports (RFC 6437 section 2), so two frames
    of one connection must not be compared when their labels differ.
    """
    plain = inner.whole and (inner.family == 4 or inner.body == 40)
    if inner.protocol not in (6, 17) or not plain or inner.body + 4 > inner.length:
        return ()
    label = inner.data[1:4] if inner.family == 6 else b""
    ports = inner.data[inner.body : inner.body + 4]
    return (inner.source, inner.destination, inner.protocol, ports, label)
