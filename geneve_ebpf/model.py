# SPDX-License-Identifier: Apache-2.0
"""Values: what a VPC, a route, a slot and an endpoint are. No I/O, no layout.

The words are those of docs/architecture.md. All values are immutable, those that an
attach makes are named tuples, which are made in a third of a dataclass's time; the
`parse_*` functions turn a user's text into one and raise a `GeneveError` that
names the field.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    NetmaskValueError,
    ip_address,
)
from pathlib import Path
from socket import inet_ntoa
from typing import NamedTuple
from zlib import crc32

from geneve_ebpf.errors import Code, GeneveError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MERGE = ("auto", "on", "off")  # of NodeSettings.merge
GENEVE_PORT = 6081  # RFC 8926 section 3.3
VNI_MAX = (1 << 24) - 1
MTU_MIN, MTU_MAX = 576, 65535
IPV6_MTU_MIN = 1280  # RFC 8200 section 5; with less the kernel has no IPv6 on an interface
DNS_MAX = 2  # servers of either family that DHCP offers
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
IPV4_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2
LINK_LOCAL = IPv6Network("fe80::/10")


class RouteKind(str, Enum):
    """Where a route leads."""

    REMOTE = "remote"  # to a VTEP
    LOCAL = "local"  # the prefix lives on this node; an address nobody has is dropped
    BLACKHOLE = "blackhole"


class SlotKind(str, Enum):
    """What a sandbox opens: in the order of enum slot_kind."""

    NAMESPACE = "namespace"  # eth0 in a namespace of the slot's own
    TAP = "tap"  # tap0 in there, spliced to eth0
    HOST_TAP = "host-tap"  # a tap in the node's namespace


# Of what is in a slot's namespace: the same in every one, as snapshots are restored by name.
GUEST_INTERFACE, TAP = "eth0", "tap0"


def host_interface(index: int) -> str:
    """Name of a slot's host-side interface, in the node's namespace."""
    return f"gnv{index}"


class AddressMode(str, Enum):
    """Which address a guest has on its eth0."""

    CLONE = "clone"  # the same in every slot; the programs translate
    NATIVE = "native"  # that of its VPC


class SlotState(Enum):
    """A slot's life; it only ever moves forward. The numbers are stored in `bindings`."""

    ABSENT = 0  # no such slot
    READY = 1  # prepared and unbound
    RESERVED = 2  # handed out, tenant not known yet
    TAKEN = 3  # attached while its generation is not 0; otherwise waiting to be destroyed


class MacAddress(NamedTuple):
    """Six octets, transmission order."""

    octets: bytes

    def __str__(self) -> str:
        return self.octets.hex(":")


@dataclass(frozen=True, slots=True)
class Vpc:
    """A tenant's network on this node."""

    name: str
    vni: int
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Vtep:
    """Another node's tunnel end point, of the family of ours. Geneve is accepted from these only.

    mtu: bytes of the largest outer IP packet towards it; 0 leaves it to the
    kernel's route.
    """

    address: Address
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class PathMtu:
    """What a hop on the way to a VTEP has said that it carries, and no program sends more."""

    mtu: int  # bytes of an outer IP packet
    expires_in: float  # seconds


@dataclass(frozen=True, slots=True)
class Route:
    """(VPC, prefix) -> next hop. `vtep` and `mac` are for REMOTE only.

    mac: inner destination MAC; None is the gateway's, which our own nodes do
    not insist on. A peer of another make drops frames that are not to its MAC.
    """

    vpc: str
    prefix: Network
    kind: RouteKind
    vtep: Address | None = None
    mac: MacAddress | None = None


class Endpoint(NamedTuple):
    """A sandbox's presence in a VPC, as the data plane keeps it.

    One address of either family or of both; None is a family it has none of.
    """

    vni: int
    address: IPv4Address | None
    mac: MacAddress  # inner source MAC on the wire
    address6: IPv6Address | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those it has, IPv4 first."""
        return tuple(one for one in (self.address, self.address6) if one is not None)


@dataclass(frozen=True, slots=True)
class Guest:
    """What a sandbox sees on eth0: the same in every slot of the node.

    Both families, whatever its VPC has; `network` is IPv4's, for IPv6 there is
    nothing on the link but the gateway's link-local address.
    """

    address: IPv4Address = IPv4Address("169.254.77.2")
    gateway: IPv4Address = IPv4Address("169.254.77.1")
    network: IPv4Network = IPv4Network("169.254.77.0/30")
    mac: MacAddress = MacAddress(bytes.fromhex("024756000002"))
    gateway_mac: MacAddress = MacAddress(bytes.fromhex("024756000001"))
    address6: IPv6Address = IPv6Address("fd67:6e76:77::2")
    gateway6: IPv6Address = IPv6Address("fe80::1")
    dns: tuple[IPv4Address | IPv6Address, ...] = ()  # at most DNS_MAX of either family


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a sandbox, behind its host-side interface."""

    index: int
    ifindex: int  # of the host-side interface, in the node's namespace
    state: SlotState
    kind: SlotKind


class Attachment(NamedTuple):
    """A sandbox that is attached, as the pinned maps record it."""

    sandbox: str
    slot: int
    endpoint: Endpoint
    generation: int
    attached_at: float  # seconds since the epoch
    mode: AddressMode = AddressMode.CLONE


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One node, as its agent is configured."""

    name: str
    vtep: Address  # its family is that of the underlay, and of every other VTEP
    uplinks: tuple[str, ...]
    udp_port: int = GENEVE_PORT
    netns: Path | None = None  # the node's network namespace; None is the caller's own
    run_root: Path = Path("/run/geneve-ebpf")
    state_root: Path = Path("/var/lib/geneve-ebpf")
    slots: int = 16  # to keep ready, of the kind "namespace"
    tap_slots: int = 0
    host_tap_slots: int = 0
    tap_owner: int = 0  # the uid that may open taps
    guest: Guest = field(default_factory=Guest)
    metrics_listen: str = "127.0.0.1:16081"
    address_rest: float = 60.0  # seconds a freed address waits for another sandbox
    merge: str = "auto"  # whether the kernel merges segments before we see them: one of MERGE

    @property
    def targets(self) -> dict[SlotKind, int]:
        """Slots to keep ready, by kind."""
        return {
            SlotKind.NAMESPACE: self.slots,
            SlotKind.TAP: self.tap_slots,
            SlotKind.HOST_TAP: self.host_tap_slots,
        }

    @property
    def run_directory(self) -> Path:
        """Sockets, pins and slot namespaces of this node: gone after a reboot."""
        return self.run_root / self.name

    @property
    def state_directory(self) -> Path:
        """Desired state of this node: kept over a reboot."""
        return self.state_root / self.name

    def as_json(self) -> str:
        """One line of JSON, for the command line of a child process."""
        return json.dumps(
            {
                "name": self.name,
                "vtep": str(self.vtep),
                "uplinks": list(self.uplinks),
                "udp_port": self.udp_port,
                "netns": None if self.netns is None else str(self.netns),
                "run_root": str(self.run_root),
                "state_root": str(self.state_root),
                "slots": self.slots,
                "tap_slots": self.tap_slots,
                "host_tap_slots": self.host_tap_slots,
                "tap_owner": self.tap_owner,
                "guest": {
                    "address": str(self.guest.address),
                    "gateway": str(self.guest.gateway),
                    "network": str(self.guest.network),
                    "mac": str(self.guest.mac),
                    "gateway_mac": str(self.guest.gateway_mac),
                    "address6": str(self.guest.address6),
                    "gateway6": str(self.guest.gateway6),
                    "dns": [str(server) for server in self.guest.dns],
                },
                "metrics_listen": self.metrics_listen,
                "address_rest": self.address_rest,
                "merge": self.merge,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> NodeSettings:
        """What `as_json` wrote; trusts it, since only our own processes write it."""
        raw = json.loads(text)
        guest = raw["guest"]
        return cls(
            name=raw["name"],
            vtep=ip_address(raw["vtep"]),
            uplinks=tuple(raw["uplinks"]),
            udp_port=raw["udp_port"],
            netns=None if raw["netns"] is None else Path(raw["netns"]),
            run_root=Path(raw["run_root"]),
            state_root=Path(raw["state_root"]),
            slots=raw["slots"],
            tap_slots=raw["tap_slots"],
            host_tap_slots=raw["host_tap_slots"],
            tap_owner=raw["tap_owner"],
            guest=Guest(
                IPv4Address(guest["address"]),
                IPv4Address(guest["gateway"]),
                IPv4Network(guest["network"]),
                parse_mac(guest["mac"]),
                parse_mac(guest["gateway_mac"]),
                IPv6Address(guest["address6"]),
                IPv6Address(guest["gateway6"]),
                tuple(ip_address(server) for server in guest["dns"]),
            ),
            metrics_listen=raw["metrics_listen"],
            address_rest=raw["address_rest"],
            merge=raw["merge"],
        )


def parse_name(text: object, field_name: str = "name") -> str:
    """A name that is safe as a file name and a label. Raises BAD_NAME."""
    if isinstance(text, str) and NAME.fullmatch(text):
        return text
    raise GeneveError(
        Code.BAD_NAME,
        f"{text!r} is not a valid {field_name}",
        hint="1 to 63 of a-z 0-9 . _ -, starting with a letter or digit",
        field=field_name,
    )


def parse_vni(value: object, field_name: str = "vni") -> int:
    """A VNI, 1 to 16,777,215. Raises BAD_VNI."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= VNI_MAX:
        return value
    raise GeneveError(
        Code.BAD_VNI,
        f"{value!r} is not a VNI",
        hint=f"a whole number from 1 to {VNI_MAX}",
        field=field_name,
    )


def parse_address(text: object, field_name: str = "address") -> Address:
    """A unicast address of either family, in any spelling. Raises BAD_ADDRESS."""
    if isinstance(text, str) and ":" in text:
        return parse_ipv6(text, field_name)
    return _parse_ipv4(text, field_name, "an IP address", "such as 10.0.0.5 or fd00:1::5")


def ipv4_text(address: IPv4Address) -> str:
    """As str() writes it, in a third of the time."""
    return inet_ntoa(address.packed)


def parse_ipv4(text: object, field_name: str = "address") -> IPv4Address:
    """A unicast IPv4 address. Raises BAD_ADDRESS."""
    hint = "four numbers, such as 10.0.0.5"
    if field_name == "address" and isinstance(text, str) and ":" in text:
        hint = "an IPv6 address is given as address6"
    return _parse_ipv4(text, field_name, "an IPv4 address", hint)


def parse_ipv6(text: object, field_name: str = "address6") -> IPv6Address:
    """A unicast IPv6 address that means the same on every link. Raises BAD_ADDRESS."""
    address = _read_ipv6(text, field_name)
    if address in LINK_LOCAL:
        raise _not_unicast(address, field_name, "a link-local address means nothing in a VPC")
    if address.ipv4_mapped is not None:
        raise _not_unicast(address, field_name, f"write it as {address.ipv4_mapped}")
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise _not_unicast(address, field_name, "not ::, ::1 or ff00::/8")
    return address


def parse_link_local(text: object, field_name: str) -> IPv6Address:
    """A link-local IPv6 address, without its zone. Raises BAD_ADDRESS."""
    address = _read_ipv6(text, field_name)
    if address in LINK_LOCAL:
        return address
    raise GeneveError(
        Code.BAD_ADDRESS,
        f"{address} is not a link-local address",
        hint="in fe80::/10, such as fe80::1",
        field=field_name,
    )


def _parse_ipv4(text: object, field_name: str, what: str, hint: str) -> IPv4Address:
    try:
        if not isinstance(text, str):
            raise AddressValueError
        address = IPv4Address(text)
    except AddressValueError:
        raise GeneveError(
            Code.BAD_ADDRESS, f"{text!r} is not {what}", hint=hint, field=field_name
        ) from None
    if (
        address.is_multicast
        or address.is_unspecified
        or address.is_loopback
        or (int(address) >> 28 == 15)
    ):
        raise _not_unicast(address, field_name, "not 0.0.0.0, 127/8, 224/4 or 240/4")
    return address


def _read_ipv6(text: object, field_name: str) -> IPv6Address:
    hint = "eight groups, :: for zeros, such as fd00:1::5"
    try:
        if not isinstance(text, str):
            raise AddressValueError
        if "%" in text:  # a zone, RFC 4007: the name of a link of one machine
            hint = f"without the zone: {text.partition('%')[0]}"
            raise AddressValueError
        return IPv6Address(text)
    except AddressValueError:
        raise GeneveError(
            Code.BAD_ADDRESS, f"{text!r} is not an IPv6 address", hint=hint, field=field_name
        ) from None


def _not_unicast(address: Address, field_name: str, hint: str) -> GeneveError:
    return GeneveError(
        Code.BAD_ADDRESS,
        f"{address} is not a unicast address that a node or sandbox can have",
        hint=hint,
        field=field_name,
    )


def parse_prefix(text: object, field_name: str = "prefix") -> Network:
    """A prefix of either family without host bits. Raises BAD_PREFIX."""
    hint = "an address and a length, such as 10.0.0.0/16 or fd00:1::/48"
    # The classes also take a bare address, netmasks, host masks and zones.
    if isinstance(text, str) and re.fullmatch(r"[0-9a-fA-F:.]+/(0|[1-9][0-9]{0,2})", text):
        kind = IPv6Network if ":" in text else IPv4Network
        try:
            network: Network = kind(text)
        except (AddressValueError, NetmaskValueError):
            pass
        except ValueError:
            hint = f"did you mean {kind(text, strict=False)}?"
        else:
            if isinstance(network, IPv4Network) or not network.subnet_of(IPV4_MAPPED):
                return network
            inner = IPv4Network((int(network[0]) & 0xFFFF_FFFF, network.prefixlen - 96))
            hint = f"write it as {inner}"
    elif text == "default":
        hint = "0.0.0.0/0 or ::/0: each family has its own"
    raise GeneveError(Code.BAD_PREFIX, f"{text!r} is not a prefix", hint=hint, field=field_name)


def parse_ipv4_prefix(text: object, field_name: str = "prefix") -> IPv4Network:
    """An IPv4 prefix without host bits. Raises BAD_PREFIX."""
    network = parse_prefix(text, field_name)
    if isinstance(network, IPv4Network):
        return network
    raise GeneveError(
        Code.BAD_PREFIX, f"{network} is not an IPv4 prefix", hint="such as 10.0.0.0/16",
        field=field_name,
    )  # fmt: skip


def parse_mac(text: object, field_name: str = "mac") -> MacAddress:
    """A unicast MAC address, aa:bb:cc:dd:ee:ff. Raises BAD_MAC."""
    if isinstance(text, str) and re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", text):
        octets = bytes.fromhex(text.replace(":", ""))
        if not octets[0] & 1 and any(octets):
            return MacAddress(octets)
    raise GeneveError(
        Code.BAD_MAC,
        f"{text!r} is not a unicast MAC address",
        hint="such as 02:00:00:00:00:07",
        field=field_name,
    )


def parse_mtu(value: object, field_name: str = "mtu") -> int:
    """Bytes of an outer IP packet; 0 leaves it to the kernel's route. Raises BAD_MTU."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (value == 0 or MTU_MIN <= value <= MTU_MAX)
    ):
        return value
    raise GeneveError(
        Code.BAD_MTU,
        f"{value!r} is not an MTU",
        hint=f"{MTU_MIN} to {MTU_MAX}, or 0 to follow the kernel's route",
        field=field_name,
    )


def in_order(value: Address | Network) -> tuple[int, int, int]:
    """A key for sorting: IPv4 first, then by address, the wider prefix first."""
    if isinstance(value, (IPv4Address, IPv6Address)):
        return value.version, int(value), 0
    return value.version, int(value.network_address), value.prefixlen


def refuse_other_family(vtep: Address, own: Address) -> None:
    """Raise VTEP_FAMILY unless a VTEP is of the family of the node's own."""
    if vtep.version != own.version:
        raise GeneveError(
            Code.VTEP_FAMILY,
            f"{vtep} is IPv{vtep.version}, and this node's own VTEP {own} is IPv{own.version}",
            hint=f"give the other node's IPv{own.version} address: an underlay has one family",
            field="vtep",
        )


def endpoint_mac(address: Address) -> MacAddress:
    """The MAC an endpoint has inside its VPC, the same wherever the sandbox runs.

    Of an IPv4 address, 02:47 and the address: unique in a VPC as the address
    is. Of an IPv6 address, for endpoints that have no other, 02:46 and its
    CRC-32: two that differ in their last 32 bits only never share one, others do
    with a chance of 2**-32. Our own nodes find endpoints by address alone; a
    peer of another make that learns MACs would mix up two that share one.
    """
    if isinstance(address, IPv4Address):
        return MacAddress(b"\x02\x47" + address.packed)
    return MacAddress(b"\x02\x46" + crc32(address.packed).to_bytes(4, "big"))
