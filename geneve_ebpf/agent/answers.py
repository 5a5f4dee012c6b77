# SPDX-License-Identifier: Apache-2.0
"""How values look in the API's JSON. Each whole body names its schema and version."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from geneve_ebpf.agent.places import Place
from geneve_ebpf.agent.slot_pool import SlotPool
from geneve_ebpf.dataplane import Counters, Drops, Event, Probe, Traffic
from geneve_ebpf.model import (
    GUEST_INTERFACE,
    Attachment,
    Guest,
    PathMtu,
    Route,
    Vpc,
    Vtep,
    ipv4_text,
)

Json = dict[str, object]


def schema(name: str) -> str:
    """The value of a body's "schema"."""
    return f"geneve-ebpf/{name}/1"


def guest_json(guest: Guest, mtu: int) -> Json:
    """What the sandbox sees inside, the same in every slot."""
    return {
        "interface": GUEST_INTERFACE,
        "address": str(guest.address),
        "address6": str(guest.address6),
        "gateway": str(guest.gateway),
        "gateway6": str(guest.gateway6),
        "mac": str(guest.mac),
        "gateway_mac": str(guest.gateway_mac),
        "mtu": mtu,
    }


def slot_json(pool: SlotPool, place: Place, attached: Attachment | None = None) -> Json:
    """A slot in a list or a reservation. attached: who is there."""
    return {
        "id": f"slot-{place.index}",
        "kind": place.kind.value,
        "netns": pool.netns(place),
        "tap": place.tap,
        "host_interface": place.host_interface,
        "host_ifindex": place.ifindex,
        "state": place.phase.value,
        "sandbox": None if attached is None else attached.sandbox,
        "attached_at": None if attached is None else rfc3339(attached.attached_at),
    }


def sandbox_text(one: Attachment, place: Place, vpc: str) -> str:
    """What a sandbox has of its own, as members of its body.

    Put together by hand: attaching waits for it, and no value can hold a character that
    JSON escapes.
    """
    sandbox, _, (vni, address, (mac,), address6), generation, attached_at, mode = one
    ipv4 = "null" if address is None else f'"{ipv4_text(address)}"'
    ipv6 = "null" if address6 is None else f'"{address6}"'
    return (
        f'"sandbox":"{sandbox}","state":"attached","vpc":"{vpc}","vni":{vni},'
        f'"address":{ipv4},"address6":{ipv6},"mac":"{mac.hex(":")}","mode":"{mode._value_}",'
        f'"slot":{place.text},"generation":{generation},"attached_at":"{rfc3339(attached_at)}"'
    )


@lru_cache(maxsize=4)
def rfc3339(seconds: float) -> str:
    """A time since the epoch, in UTC with microseconds."""
    whole, part = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{part:06d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    """A whole second as text; sandboxes come many a second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def traffic_json(traffic: Traffic) -> Json:
    """Packets and bytes."""
    return {"packets": traffic.packets, "bytes": traffic.bytes}


def counters_json(counters: Counters) -> Json:
    """A sandbox's traffic, from its own side."""
    return {
        name: traffic_json(getattr(counters, name))
        for name in ("tx_local", "tx_remote", "rx_local", "rx_remote")
    }


def verified_json(probes: list[Probe]) -> Json:
    """What an attach with `verify` saw."""
    return {
        "passed": all(probe.passed for probe in probes),
        "probes": [
            {
                "program": probe.program,
                "family": f"ipv{probe.family}",
                "passed": probe.passed,
                "saw": probe.saw,
            }
            for probe in probes
        ],
    }


def vpc_json(vpc: Vpc) -> Json:
    """A VPC as it stands in a state."""
    return {"name": vpc.name, "vni": vpc.vni, "prefixes": [str(p) for p in vpc.prefixes]}


def vtep_json(vtep: Vtep) -> Json:
    """A VTEP as it stands in a state."""
    return {"address": str(vtep.address), "mtu": vtep.mtu}


def known_vtep_json(vtep: Vtep, learned: PathMtu | None) -> Json:
    """A VTEP as it stands in a list: with the path MTU that holds, or null."""
    path_mtu = learned and {"mtu": learned.mtu, "expires_in": round(learned.expires_in)}
    return vtep_json(vtep) | {"path_mtu": path_mtu}


def route_json(route: Route) -> Json:
    """A route as it stands in a state: `vtep` and `mac` only where it has them."""
    body: Json = {"vpc": route.vpc, "prefix": str(route.prefix), "kind": route.kind.value}
    if route.vtep is not None:
        body["vtep"] = str(route.vtep)
    if route.mac is not None:
        body["mac"] = str(route.mac)
    return body


def drops_json(drops: list[Drops], events: list[Event]) -> Json:
    """Every reason and event, those that never happened too."""
    return {
        "schema": schema("drops"),
        "drops": [
            {
                "reason": one.reason.slug,
                "direction": one.direction.value,
                "class": one.reason.drop_class,
                "packets": one.packets,
                "bytes": one.bytes,
                "text": one.reason.text,
            }
            for one in drops
        ],
        "events": [
            {"event": one.event.slug, "packets": one.packets, "text": one.event.text}
            for one in events
        ],
    }
