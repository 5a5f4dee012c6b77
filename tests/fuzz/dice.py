# SPDX-License-Identifier: Apache-2.0
"""Dice for one state: chances, and addresses, mostly those that the state knows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from tests.model.state import Node

T = TypeVar("T")

ODD4 = (
    bytes(4),
    b"\xff" * 4,
    b"\x7f\0\0\1",
    b"\xe0\0\0\1",
    b"\xe0\0\0\x16",
    b"\xef\1\2\3",
    b"\xf0\0\0\1",
    b"\0\1\2\3",
    b"\xa9\xfe\x4d\1",
    b"\xa9\xfe\x4d\2",
    b"\xdf\xff\xff\xff",
    b"\x80\0\0\1",
)
ODD6 = tuple(
    bytes.fromhex(text)
    for text in (
        "00000000000000000000000000000000",
        "00000000000000000000000000000001",
        "0000000000000000000000000000000a",
        "00000000000000000000ffff0a000105",
        "00000000000000000000ffffa9fe4d02",
        "0064ff9b00000000000000000a000105",
        "fe800000000000000000000000000001",
        "fe800000000000000000000000000099",
        "fe80000000000000004756fffe000002",
        "fec00000000000000000000000000001",
        "ff020000000000000000000000000001",
        "ff020000000000000000000000000002",
        "ff020000000000000000000000000016",
        "ff0200000000000000000001ff000001",
        "ff0200000000000000000001ff000002",
        "ff0e0000000000000000000000000101",
        "fd676e76007700000000000000000002",
        "20010db8000000000000000000000001",
    )
)


class Dice:
    """What is drawn from; the seed decides what comes."""

    def __init__(self, node: Node, seed: int, uplink_mac: bytes, *, families: str = "46") -> None:
        self._dice = random.Random(seed)
        self._random = self._dice.random
        self._node = node
        self._mac = uplink_mac
        self._families = [int(letter) for letter in families]
        self._vnis = sorted({vni for vni, _ in node.endpoints} | {1}) or [1]
        self._known: dict[tuple[int, int], list[bytes]] = {}
        self._here: dict[tuple[int, int], list[bytes]] = {}
        for vni in {*self._vnis, *(b.vni for b in node.bindings)}:
            for family in (4, 6):
                self._known[vni, family] = self._addresses(vni, family)
                size = 4 if family == 4 else 16
                self._here[vni, family] = [
                    a for owner, a in node.endpoints if owner == vni and len(a) == size
                ]
        self._vteps = sorted(node.vteps)
        config = node.config
        self._underlay = 6 if len(config.vtep) == 16 else 4

    # -- choices

    def _below(self, limit: int) -> int:
        return int(self._random() * limit)

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._random() * len(choices))]

    def _chance(self, probability: float) -> bool:
        return self._random() < probability

    def _bytes(self, size: int) -> bytes:
        return self._dice.randbytes(size)

    @staticmethod
    def _weighted(*choices: tuple[int, T]) -> list[T]:
        return [choice for weight, choice in choices for _ in range(weight)]

    # -- addresses

    def _addresses(self, vni: int, family: int) -> list[bytes]:
        """Those that the VPC knows something about, most likely ones several times."""
        size = 4 if family == 4 else 16
        node = self._node
        found = [a for owner, a in node.endpoints if owner == vni and len(a) == size] * 3
        found += [a for owner, a in node.exact if owner == vni and len(a) == size] * 2
        for owner, prefix, bits in node.prefixes:
            if owner == vni and len(prefix) == size:
                found += [self._within(prefix, bits) for _ in range(8)]
        found += [a for owner, a in node.endpoints if owner != vni and len(a) == size]
        return found or [bytes([10, 0, 0, 1]) if size == 4 else bytes.fromhex("fd" + "00" * 15)]

    def _within(self, prefix: bytes, bits: int) -> bytes:
        size = len(prefix) * 8
        host = self._dice.getrandbits(size - bits) if bits < size else 0
        if self._chance(0.3):
            host = min(host, 3)
        return (int.from_bytes(prefix, "big") | host).to_bytes(len(prefix), "big")

    def _address(self, vni: int, family: int) -> bytes:
        luck = self._random()
        if luck < 0.9:
            known = self._known.get((vni, family)) or self._known[self._vnis[0], family]
            return self._pick(known)
        if luck < 0.95:
            return self._bytes(4 if family == 4 else 16)
        return self._pick(ODD4 if family == 4 else ODD6)

    def _stranger(self, size: int) -> bytes:
        if self._chance(0.8):
            return self._bytes(size)
        return self._pick(ODD4 if size == 4 else ODD6)

    def _local(self, vni: int, family: int) -> bytes:
        """Mostly one that lives on this node."""
        here = self._here.get((vni, family))
        return self._pick(here) if here and self._chance(0.85) else self._address(vni, family)
