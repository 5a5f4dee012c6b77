# SPDX-License-Identifier: Apache-2.0
"""A node's state as the model sees it, and what comes of a frame.

Addresses are bytes as on the wire, four or sixteen of them: the length is the
family. The repr of a state is Python that makes the state again.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields

SHOT, REDIRECT, PASS_ON = 2, 7, -1  # verdicts

REMOTE, LOCAL, BLACKHOLE = 1, 2, 3  # kinds of routes
NAMESPACE, TAP, HOST_TAP = 0, 1, 2  # kinds of slots

ZERO4, ZERO6 = bytes(4), bytes(16)
NO_MAC = bytes(6)


class _Brief:
    """Prints what differs from the defaults."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            plain = one.default if one.default_factory is MISSING else one.default_factory()
            if value != plain:
                shown.append(f"{one.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False)
class Config(_Brief):
    """What holds for every packet of the node."""

    vtep: bytes = bytes([192, 0, 2, 1])  # empty: not configured yet
    port: int = 6081
    guest: bytes = bytes([169, 254, 77, 2])
    gateway: bytes = bytes([169, 254, 77, 1])
    netmask: bytes = bytes([255, 255, 255, 252])
    dns: tuple[bytes, ...] = ()
    dns6: tuple[bytes, ...] = ()
    guest6: bytes = bytes.fromhex("fd676e76007700000000000000000002")
    gateway6: bytes = bytes.fromhex("fe800000000000000000000000000001")
    guest_mac: bytes = bytes.fromhex("024756000002")
    gateway_mac: bytes = bytes.fromhex("024756000001")
    slot_mtu: int = 1450
    relay: bool = False  # is there one?


@dataclass(frozen=True, slots=True, repr=False)
class Binding(_Brief):
    """Who is in a slot. Generation 0: nobody, whatever else is left of an attach or detach.

    Native: its address in the VPC is its address on eth0 too.
    """

    generation: int = 0
    vni: int = 0
    address: bytes = ZERO4  # all zero: has none
    address6: bytes = ZERO6
    mac: bytes = NO_MAC
    native: bool = False
    kind: int = NAMESPACE


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint(_Brief):
    """Where an address of a VPC lives on this node."""

    generation: int
    slot: int


@dataclass(frozen=True, slots=True, repr=False)
class Route(_Brief):
    """Where a prefix leads."""

    kind: int
    nexthop: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class NextHop(_Brief):
    """Another node, as routes name it. MTU 0: the underlay says."""

    vtep: bytes
    mtu: int = 0
    mac: bytes = bytes.fromhex("024756000001")


@dataclass(frozen=True, slots=True, repr=False)
class Vtep(_Brief):
    """A sender whose Geneve is ours. `path_mtu` 0: no hop on the way has complained."""

    mtu: int = 0
    path_mtu: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Node(_Brief):
    """Everything that the programs look up."""

    config: Config = Config()
    bindings: tuple[Binding, ...] = (Binding(),)
    endpoints: dict[tuple[int, bytes], Endpoint] = field(default_factory=dict)
    exact: dict[tuple[int, bytes], Route] = field(default_factory=dict)
    prefixes: dict[tuple[int, bytes, int], Route] = field(default_factory=dict)
    nexthops: dict[int, NextHop] = field(default_factory=dict)
    vteps: dict[bytes, Vtep] = field(default_factory=dict)


def is_native(binding: Binding) -> bool:
    """Whether the guest has its VPC addresses itself, as it may while it is attached."""
    return binding.native and bool(binding.generation)


def guest_address(config: Config, binding: Binding, family: int) -> bytes:
    """What a sandbox has on eth0, or should; all zero: none of this family."""
    if is_native(binding):
        return binding.address if family == 4 else binding.address6
    return config.guest if family == 4 else config.guest6


# What the kernel's routes in the test namespace say: (prefix, bits, MTU of the
# path, or None where there is no way). The longest match counts.
UNDERLAY: tuple[tuple[bytes, int, int | None], ...] = (
    (bytes([192, 0, 2, 1]), 32, None),  # ourselves
    (bytes([192, 0, 2, 0]), 24, 1500),
    (bytes([203, 0, 113, 51]), 32, None),  # blackhole
    (bytes([203, 0, 113, 6]), 32, 1300),  # a route with a locked MTU
    (bytes.fromhex("20010db8000000000000000000000001"), 128, None),  # ourselves
    (bytes.fromhex("20010db8000000000000000000000000"), 64, 1500),
    (bytes.fromhex("20010db8005100000000000000000051"), 128, None),  # blackhole
    (bytes.fromhex("20010db8000600000000000000000006"), 128, 1400),  # a route with a locked MTU
)


def underlay_mtu(vtep: bytes) -> int | None:
    """Bytes of an outer packet that the kernel's route to a VTEP takes; None: no route."""
    for prefix, bits, mtu in UNDERLAY:
        if len(prefix) == len(vtep) and same_prefix(prefix, vtep, bits):
            return mtu
    return None


def same_prefix(a: bytes, b: bytes, bits: int) -> bool:
    """Whether two addresses of one family agree in their first bits."""
    shift = len(a) * 8 - bits
    return int.from_bytes(a, "big") >> shift == int.from_bytes(b, "big") >> shift


@dataclass(frozen=True, slots=True, repr=False)
class Context(_Brief):
    """What the kernel knows of a frame besides its bytes."""

    slot: int | None = None  # whose interface; None: the uplink
    to_us: bool = True  # its destination MAC is the interface's (PACKET_HOST)
    may_answer: bool = True  # the slot's share of too-big answers is not used up


@dataclass(slots=True)
class Outcome:
    """What must come of a frame."""

    verdict: int
    frame: bytes | None = None  # None: dropped
    drop: str = ""  # "tx no_route"
    events: tuple[str, ...] = ()
    traffic: tuple[tuple[int, str, int], ...] = ()  # (slot, "tx_local", bytes)
    free: tuple[tuple[int, int], ...] = ()  # (offset, mask) of 16 bits the kernel may choose
    flow: tuple[object, ...] = ()  # frames of one flow make the same choice
    learned: tuple[bytes, int] | None = None  # (VTEP, its path MTU from now on)
    asked_limit: bool = False  # a too-big answer was made, or held back by the limit


class Drop(Exception):
    """The frame must not get through, for this reason."""

    def __init__(self, reason: str, *events: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.events = events
