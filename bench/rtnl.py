# SPDX-License-Identifier: Apache-2.0
"""How long others wait for the kernel's network lock, and how much of the time it is held."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench.beside import beside
from bench.harness import percentile

EVERY = 0.01  # seconds between two looks
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A


def waiting(netns: Path) -> AbstractContextManager[list[float]]:
    """Microseconds that a look at a link takes, which needs the lock; taken all the while."""
    return beside(looker, EVERY, netns)


def looker() -> Callable[[], object]:
    """Ask whether `lo` has a link."""
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    value = ctypes.create_string_buffer(struct.pack("<II", _ETHTOOL_GLINK, 0), 8)
    request = struct.pack("16sQ8x", b"lo", ctypes.addressof(value))
    return lambda: (fcntl.ioctl(door, _SIOCETHTOOL, request), value)  # `value` must live


def held_share(waits: Sequence[float], idle: Sequence[float]) -> float:
    """The share of the time in which the lock was held: of the looks, made at times that know
    nothing of who holds it, those that took longer than nearly all did when nobody did."""
    free = percentile(sorted(idle), 0.99)
    return sum(wait > free for wait in waits) / len(waits)
