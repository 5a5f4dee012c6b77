# SPDX-License-Identifier: Apache-2.0
"""The layouts that C and Python share.

The structs mirror bpf/geneve_abi.h and are compared with the loaded maps' BTF
by tests/packet/test_abi.py. Drop reasons and events are not mirrored at all:
their one table is the header's, read here.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import c_uint8, c_uint32, c_uint64
from dataclasses import dataclass
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bpf_directory() -> Path:
    """Where the C sources are: beside the package in a checkout, inside it when installed."""
    for directory in (_PACKAGE.parent / "bpf", _PACKAGE / "_bpf"):
        if (directory / "geneve_abi.h").exists():
            return directory
    raise FileNotFoundError("bpf/geneve_abi.h: this installation is incomplete")


MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2


def mapped(address: IPv4Address | IPv6Address) -> bytes:
    """An address of either family as struct address: 16 bytes."""
    return address.packed if address.version == 6 else MAPPED + address.packed


def unmapped(octets: bytes) -> IPv4Address | IPv6Address:
    """Back from the 16 bytes of a struct address."""
    if octets.startswith(MAPPED):
        return IPv4Address(octets[12:])
    return IPv6Address(octets)


class Key32(ctypes.Structure):
    """A __u32, in host order."""

    _fields_ = [("value", c_uint32)]


class Address(ctypes.Structure):
    """struct address: 16 bytes as on the wire, IPv4 behind ::ffff:0:0/96."""

    _fields_ = [("word", c_uint8 * 16)]

    @classmethod
    def of(cls, address: IPv4Address | IPv6Address) -> Address:
        """The address as maps hold it."""
        return cls.from_buffer_copy(mapped(address))

    def unmapped(self) -> IPv4Address | IPv6Address:
        """The address that is held here, in its own family."""
        return unmapped(bytes(self.word))


class Key64(ctypes.Structure):
    """A __u64, in host order."""

    _fields_ = [("value", c_uint64)]


class NodeConfig(ctypes.Structure):
    """struct node_config"""

    _fields_ = [
        ("vtep", Address),
        ("guest_address6", Address),
        ("gateway_address6", Address),
        ("guest_address", c_uint8 * 4),
        ("gateway_address", c_uint8 * 4),
        ("guest_netmask", c_uint8 * 4),
        ("dns", c_uint8 * 4 * 2),
        ("dns6", Address * 2),
        ("fib_ifindex", c_uint32),
        ("udp_port", c_uint8 * 2),
        ("guest_mac", c_uint8 * 6),
        ("gateway_mac", c_uint8 * 6),
        ("pad", c_uint8 * 2),
    ]


class NodeState(ctypes.Structure):
    """struct node_state"""

    _fields_ = [
        ("generation", c_uint64),
        ("fold_sequence", c_uint64),
        ("next_nexthop", c_uint32),
        ("slot_mtu", c_uint32),
        ("path_mtu_until", c_uint64),
        ("merging", c_uint32),
        ("relay", c_uint32),
    ]


class Binding(ctypes.Structure):
    """struct binding"""

    _fields_ = [
        ("generation", c_uint64),
        ("vni", c_uint32),
        ("address", c_uint8 * 4),
        ("mac", c_uint8 * 6),
        ("native", c_uint8),
        ("pad", c_uint8),
        ("state", c_uint32),
        ("ifindex", c_uint32),
        ("kind", c_uint32),
        ("attached_at", c_uint64),
        ("sandbox", ctypes.c_char * 64),
        ("address6", Address),
    ]


class EndpointKey(ctypes.Structure):
    """struct endpoint_key"""

    _fields_ = [("vni", c_uint32), ("address", Address)]


class EndpointValue(ctypes.Structure):
    """struct endpoint"""

    _fields_ = [("generation", c_uint64), ("slot", c_uint32), ("pad", c_uint32)]


class RouteKey(ctypes.Structure):
    """struct route_key"""

    _fields_ = [("prefix_length", c_uint32), ("vni", c_uint32), ("address", Address)]


class HostKey(ctypes.Structure):
    """struct host_key"""

    _fields_ = [("vni", c_uint32), ("address", Address)]


class RouteValue(ctypes.Structure):
    """struct route"""

    _fields_ = [("kind", c_uint32), ("nexthop", c_uint32)]


class NexthopValue(ctypes.Structure):
    """struct nexthop"""

    _fields_ = [
        ("vtep", Address),
        ("mtu", c_uint32),
        ("mac", c_uint8 * 6),
        ("pad", c_uint8 * 2),
    ]


class VtepValue(ctypes.Structure):
    """struct vtep"""

    _fields_ = [
        ("mtu", c_uint32),
        ("merged", c_uint32),
        ("path_mtu", c_uint32),
        ("pad", c_uint32),
        ("path_mtu_until", c_uint64),
    ]


class Scratch(ctypes.Structure):
    """struct scratch"""

    _fields_ = [("bytes", c_uint8 * 516)]


class TrafficRow(ctypes.Structure):
    """struct traffic"""

    _fields_ = [("packets", c_uint64), ("bytes", c_uint64)]


class SlotCounters(ctypes.Structure):
    """struct slot_counters"""

    _fields_ = [
        ("tx_local", TrafficRow),
        ("tx_remote", TrafficRow),
        ("rx_local", TrafficRow),
        ("rx_remote", TrafficRow),
    ]


# C name -> mirror, for every struct that is a map's key or value.
MIRRORS: dict[str, type[ctypes.Structure]] = {
    "address": Address,
    "node_config": NodeConfig,
    "node_state": NodeState,
    "binding": Binding,
    "endpoint_key": EndpointKey,
    "endpoint": EndpointValue,
    "route_key": RouteKey,
    "host_key": HostKey,
    "route": RouteValue,
    "nexthop": NexthopValue,
    "vtep": VtepValue,
    "scratch": Scratch,
    "traffic": TrafficRow,
    "slot_counters": SlotCounters,
}

# Map name -> (key, value).
MAPS: dict[str, tuple[type[ctypes.Structure], type[ctypes.Structure]]] = {
    "node_config": (Key32, NodeConfig),
    "node_state": (Key32, NodeState),
    "slot_by_ifindex": (Key32, Key32),
    "bindings": (Key32, Binding),
    "endpoints": (EndpointKey, EndpointValue),
    "routes_exact": (HostKey, RouteValue),
    "routes_lpm": (RouteKey, RouteValue),
    "nexthops": (Key32, NexthopValue),
    "vteps": (Address, VtepValue),
    "drop_counts": (Key32, TrafficRow),
    "event_counts": (Key32, TrafficRow),
    "slot_counters": (Key32, SlotCounters),
    "too_big_limits": (Key32, Key64),
    "scratch_row": (Key32, Scratch),
    "vpc_counters": (Key32, SlotCounters),
}

# C function and source file without its ending: programs that are hung on interfaces, and
# those that they jump to, in the order of enum jump.
HOOKS = ("sandbox_tx", "uplink_rx", "uplink_rx_l3", "sandbox_guard", "tap_splice", "relay_rx")
JUMPS = (
    "sandbox_link",
    "sandbox_too_big",
    "sandbox_error",
    "uplink_peer",
    "uplink_path_mtu",
    "sandbox_dhcp6",
)
PROGRAMS = (*HOOKS, *JUMPS)
JUMP_TABLE = "jumps"  # the map that leads there

# Outer IP, UDP, Geneve and inner Ethernet: what the tunnel adds to an inner IP packet.
OVERHEAD = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}


class Direction(str, Enum):
    """Which hook dropped: from a sandbox, or from the wire. In the order of enum direction."""

    TX = "tx"
    RX = "rx"


@dataclass(frozen=True, slots=True)
class DropReason:
    """One row of DROP_REASONS: why a packet did not get through."""

    number: int
    slug: str  # in metrics and JSON: never changes
    drop_class: str  # invalid, policy, unreachable or resource
    text: str


@dataclass(frozen=True, slots=True)
class EventKind:
    """One row of EVENTS: worth counting, and not a drop."""

    number: int
    slug: str
    text: str


@cache
def drop_reasons() -> tuple[DropReason, ...]:
    """Every reason in order of its number, NONE (0) first."""
    rows = _rows("DROP_REASONS", r'X\((\d+), (\w+), (\w+), "([^"]*)"\)')
    return tuple(DropReason(int(n), name.lower(), kind, text) for n, name, kind, text in rows)


@cache
def event_kinds() -> tuple[EventKind, ...]:
    """Every event in order of its number."""
    rows = _rows("EVENTS", r'X\((\d+), (\w+), "([^"]*)"\)')
    return tuple(EventKind(int(n), name.lower(), text) for n, name, text in rows)


def constant(name: str) -> int:
    """A #define of geneve_abi.h that is a plain number."""
    match = re.search(rf"^#define {name}\s+(\d+)", _header(), re.MULTILINE)
    if not match:
        raise KeyError(name)
    return int(match[1])


@cache
def _header() -> str:
    return (bpf_directory() / "geneve_abi.h").read_text()


def _rows(table: str, pattern: str) -> list[tuple[str, ...]]:
    text = _header()
    start = text.index(f"#define {table}(X)")
    end = text.index("\n\n", start)
    rows = [match.groups() for match in re.finditer(pattern, text[start:end])]
    if [int(row[0]) for row in rows] != list(range(len(rows))) or not rows:
        raise ValueError(f"{table} in geneve_abi.h is not numbered from 0 without gaps")
    return rows
