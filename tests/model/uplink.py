# SPDX-License-Identifier: Apache-2.0
"""What comes from the wire: delivered, answered, dropped, or somebody else's.

The order of the checks is in docs/fuzzing.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model import arp, geneve, mtu, nd, packet, relay
from tests.model.packet import ARP, IPV4, IPV6, TEB, Packet
from tests.model.sandbox import find_endpoint, to_guest
from tests.model.state import (
    PASS_ON,
    REDIRECT,
    SHOT,
    Config,
    Context,
    Drop,
    Node,
    Outcome,
    underlay_mtu,
)
from tests.model.sums import ones, word

OUTER_EXTENSIONS = 3  # that are looked through for UDP


def receives(node: Node, frame: bytes, context: Context) -> Outcome:
    """What becomes of a frame that arrives at an uplink."""
    outer = find_tunnel(node, frame, context)
    if isinstance(outer, Outcome):
        return outer
    try:
        return _decapsulate(node, frame, outer)
    except Drop as drop:
        return Outcome(SHOT, drop=f"rx {drop.reason}", events=drop.events)


def _untouched(frame: bytes, *events: str) -> Outcome:
    return Outcome(PASS_ON, frame, events=events)


def _overheard(node: Node, frame: bytes, context: Context) -> Outcome:
    """Somebody else's, too, but a router may speak of what we sent."""
    outcome = _untouched(frame)
    learned = mtu.learn(node, frame) if context.to_us and node.config.vtep else None
    if learned is not None:
        outcome.events, outcome.learned = ("path_mtu_learned",), learned
    return outcome


@dataclass(slots=True)
class Arrival:
    """A UDP datagram to our VTEP and port. Offsets count from the outer IP header."""

    sender: bytes
    ecn: int
    udp: int
    end: int  # of the outer packet, as its header says
    odd: str = ""  # why the outer header is none that we take


def find_tunnel(node: Node, frame: bytes, context: Context) -> Outcome | Arrival:
    """The frame as ours, or as somebody else's."""
    config, data = node.config, frame[14:]
    arrival = None
    if context.to_us and len(config.vtep) == 4 and word(frame, 12) == IPV4:
        arrival = _outer4(config, data)
    elif context.to_us and len(config.vtep) == 16 and word(frame, 12) == IPV6:
        arrival = _outer6(config, data)
    whole = arrival is not None and arrival.udp + geneve.UDP_HEADER <= len(data)
    if arrival is None or not whole or word(data, arrival.udp + 2) != config.port:
        return _overheard(node, frame, context)
    if arrival.sender not in node.vteps:
        return _untouched(frame, "unknown_vtep")
    return arrival


def _outer4(config: Config, data: bytes) -> Arrival | None:
    """RFC 791. A later fragment shows no port, and may be anybody's."""
    if len(data) < 20 or data[0] >> 4 != 4 or data[9] != geneve.UDP:
        return None
    if data[16:20] != config.vtep or word(data, 6) & 0x1FFF:
        return None
    header = (data[0] & 15) * 4
    arrival = Arrival(data[12:16], data[1] & 3, header, word(data, 2))
    if word(data, 6) & 0x2000:
        arrival.odd = "outer_fragment"
    elif header != 20:
        arrival.odd = "outer_options"
    elif ones(data[:20]) != 0xFFFF:
        arrival.odd = "outer_checksum"
    return arrival


def _outer6(config: Config, data: bytes) -> Arrival | None:
    """RFC 8200, with the extension headers that somebody may have put in."""
    if len(data) < 40 or data[0] >> 4 != 6 or data[24:40] != config.vtep:
        return None
    arrival = Arrival(data[8:24], data[1] >> 4 & 3, 40, 40 + word(data, 4))
    protocol = data[6]
    for _ in range(OUTER_EXTENSIONS):
        if protocol not in packet.EXTENSIONS:
            break
        at = arrival.udp
        if at + 4 > len(data):
            return None
        if protocol == packet.FRAGMENT:
            if word(data, at + 2) & 0xFFF8:
                return None
            arrival.odd = "outer_fragment"
            arrival.udp += 8
        else:
            arrival.odd = arrival.odd or "outer_options"
            arrival.udp += 8 + data[at + 1] * 8
        protocol = data[at]
    return arrival if protocol == geneve.UDP else None


@dataclass(slots=True)
class Opened:
    """What is behind the Geneve header. Offsets count from the outer IP header."""

    vni: int
    protocol: int
    payload: int
    end: int
    options: bool
    unsummed: bool  # the field holds the pseudo-header's sum: the rest is a device's to add


def open_tunnel(config: Config, data: bytes, arrival: Arrival) -> Opened:
    """Whether the outer headers may be believed (RFC 8926 sections 3.3 to 3.5). Raises Drop."""
    if arrival.odd:
        raise Drop(arrival.odd)
    udp = arrival.udp
    header = udp + geneve.UDP_HEADER
    payload = header + geneve.GENEVE_HEADER
    if payload > len(data):
        raise Drop("short_frame")
    end = udp + word(data, udp + 4)
    if arrival.end > len(data) or end > arrival.end or end < payload:
        raise Drop("outer_length")
    good = geneve.udp_sum_is_good(arrival.sender, config.vtep, data[udp:end])
    if not good and not geneve.sums_around_partial(arrival.sender, config, data, udp, end):
        raise Drop("outer_checksum")
    payload += (data[header] & 0x3F) * 4
    if payload > end:
        raise Drop("short_frame")
    geneve.check_header(data[header:payload])
    vni = int.from_bytes(data[header + 4 : header + 7], "big")
    return Opened(
        vni,
        word(data, header + 2),
        payload,
        end,
        options=payload > header + geneve.GENEVE_HEADER,
        unsummed=word(data, udp + 6)
        == geneve.pseudo_sum(arrival.sender, config.vtep, word(data, udp + 4)),
    )


def _decapsulate(node: Node, frame: bytes, arrival: Arrival) -> Outcome:
    config, data = node.config, frame[14:]
    opened = open_tunnel(config, data, arrival)
    vni, protocol, payload, end = opened.vni, opened.protocol, opened.payload, opened.end
    asker = b""
    if protocol == TEB:
        if payload + 14 > end:
            raise Drop("short_frame")
        protocol = word(data, payload + 12)
        asker = data[payload + 6 : payload + 12]
        payload += 14
        if protocol == ARP:
            return _answer_arp(node, arrival.sender, opened, data[payload:], end - payload)
        if protocol not in (IPV4, IPV6):
            raise Drop("not_ip")
    elif protocol not in (IPV4, IPV6):
        raise Drop("geneve_protocol")
    family = 4 if protocol == IPV4 else 6
    # Behind the packet there may be padding, the outer frame's as well.
    inner = packet.read(data[payload:], family, end - payload)
    if nd.is_discovery(inner):
        if not asker:
            raise Drop("nd_refused")
        return _answer_solicitation(node, arrival.sender, opened, inner, asker)
    to = find_endpoint(node, vni, inner.destination)
    if to is None:
        raise Drop("no_endpoint")
    inner.data = geneve.with_outer_ecn(inner.data, family, arrival.ecn)
    clamped = mtu.clamp(inner, _room_back(node, arrival.sender))
    inner.data = clamped or inner.data
    binding = node.bindings[to.slot]
    delivered = to_guest(config, binding, inner)
    if relay.goes_by_relay(config, binding.kind, inner.protocol):
        delivered = relay.label(to.slot, to.generation) + delivered[12:]
    return Outcome(
        REDIRECT,
        delivered,
        traffic=((to.slot, "rx_remote", inner.length),),
        events=("mss_clamped",) if clamped else (),
    )


def _room_back(node: Node, sender: bytes) -> int:
    """Bytes of the largest packet that a sandbox may send back, as far as is known here."""
    more, vtep = geneve.overhead(sender), node.vteps[sender]
    known = [mtu - more for mtu in (vtep.mtu, vtep.path_mtu) if mtu]
    return min([node.config.slot_mtu, *known])


def _answer_arp(node: Node, sender: bytes, opened: Opened, data: bytes, end: int) -> Outcome:
    """A peer that takes the VPC for one Ethernet asks for a sandbox's MAC."""
    question = data[: arp.LENGTH]
    if end < arp.LENGTH:
        raise Drop("short_frame")
    if not arp.is_question(question):
        raise Drop("arp_refused")
    to = find_endpoint(node, opened.vni, question[24:28])
    if to is None:
        raise Drop("no_endpoint")
    mac = node.bindings[to.slot].mac
    payload = arp.answer(question, mac) + data[arp.LENGTH :]
    return _answer(node, sender, opened, question[8:14] + mac, ARP, payload, "wire_arp_answered")


def _answer_solicitation(
    node: Node, sender: bytes, opened: Opened, packet: Packet, asker: bytes
) -> Outcome:
    """The same by neighbour discovery; what pads the question is gone."""
    message = nd.read_question(packet)
    if message[0] != nd.NEIGHBOUR_SOLICITATION:
        raise Drop("nd_refused")
    target = message[8:24]
    if target.startswith(bytes(10) + b"\xff\xff"):
        raise Drop("nd_refused")  # no IPv6 address, but an IPv4 one in disguise
    to = find_endpoint(node, opened.vni, target)
    if to is None:
        raise Drop("no_endpoint")
    mac = node.bindings[to.slot].mac
    answer = nd.neighbour(target, mac, nd.SOLICITED | nd.OVERRIDE)
    payload = nd.advertised(target, packet.source, answer)
    return _answer(node, sender, opened, asker + mac, IPV6, payload, "wire_nd_answered")


def _answer(
    node: Node, sender: bytes, opened: Opened, macs: bytes, kind: int, payload: bytes, event: str
) -> Outcome:
    """Back through the tunnel, to whom the question came from."""
    carried = underlay_mtu(sender)
    if carried is None:
        raise Drop("no_underlay_route")
    if len(payload) + geneve.overhead(sender) > carried:
        raise Drop("too_big")
    frame = geneve.encapsulate(node.config, sender, opened.vni, macs, kind, payload, 0)
    if opened.unsummed:
        # The device would look for the sum where the options were.
        if opened.options:
            raise Drop("no_room")
        at = 14 + geneve.overhead(sender) - 30
        total = geneve.pseudo_sum(node.config.vtep, sender, len(frame) - at)
        frame = frame[: at + 6] + total.to_bytes(2, "big") + frame[at + 8 :]
    return Outcome(
        REDIRECT,
        frame,
        events=(event,),
        free=geneve.free_fields(sender),
    )
