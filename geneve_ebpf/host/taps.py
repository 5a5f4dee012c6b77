# SPDX-License-Identifier: Apache-2.0
"""Taps: what a virtual machine opens by name, or gets as a descriptor.

Persistent, so that they are there before the machine and keep their name; with one
queue; and always with an owner, since everybody may open a tap that has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from functools import cache

from geneve_ebpf.errors import Code, GeneveError

_DEVICE = "/dev/net/tun"
_TUNSETPERSIST, _TUNSETIFF, _TUNSETOWNER = 0x400454CB, 0x400454CA, 0x400454CC
_TUNSETIFINDEX, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454DA, 0x400454D0, 0x400454D8
VNET_HEADER = 10  # bytes of virtio's header before each frame, as long as nobody says otherwise
_CHECKSUMS, _SEGMENTS, _TUNNELS = 0x1, 0x2, 0x80  # TUN_F_CSUM, _TSO4, _UDP_TUNNEL_GSO
_PROBE = "gnv-probe"
_TAP, _NO_PACKET_INFO, _VNET_HEADER, _EXCLUSIVE = 0x2, 0x1000, 0x4000, 0x8000
_IFREQ = struct.Struct("16sH22x")


def make(name: str, owner: int, index: int = 0) -> int:
    """Make a tap in the thread's network namespace, down; its interface index.

    owner: the uid that may open it, beside whoever may configure interfaces there.
    index: the index to have; 0 leaves it to the kernel. Raises OSError, EBUSY if
    there is an interface of that name; then nothing is left behind.
    """
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        if index:
            fcntl.ioctl(descriptor, _TUNSETIFINDEX, struct.pack("I", index))
        _attach(descriptor, name, _EXCLUSIVE)
        fcntl.ioctl(descriptor, _TUNSETOWNER, owner)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        return socket.if_nametoindex(name)
    finally:
        os.close(descriptor)


def give(name: str, owner: int) -> None:
    """Let another user open a tap in the thread's network namespace, in place of who may now.

    The kernel takes that only from who has the tap open. Raises TAP_BUSY if somebody has;
    OSError, ENODEV if there is no such tap.
    """
    descriptor = open_tap(name)
    try:
        fcntl.ioctl(descriptor, _TUNSETOWNER, owner)
    finally:
        os.close(descriptor)


def open_tap(name: str) -> int:
    """A descriptor of a tap in the thread's network namespace, as a virtual machine has it.

    With a virtio header of VNET_HEADER bytes before each frame and all offloads off, whatever
    the one before had. Raises TAP_BUSY if somebody has it open; OSError, ENODEV if there is no
    such tap.
    """
    socket.if_nametoindex(name)  # or opening would make one
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        _attach(descriptor, name)
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EBUSY:
            raise
        raise GeneveError(
            Code.TAP_BUSY,
            f"{name} is open already, and has one queue",
            hint="end who has it open: a virtual machine, or whoever was given its descriptor",
        ) from None
    return descriptor


@cache
def take_what_was_in_a_tunnel() -> bool:
    """Whether taps of this kernel take a superpacket whole that has come out of a tunnel.

    They have done so since one may say that it takes UDP tunnels too. Asks a tap in the
    thread's network namespace, which is gone again then. Raises OSError.
    """
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        _attach(descriptor, _PROBE, _EXCLUSIVE)
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CHECKSUMS | _SEGMENTS | _TUNNELS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _attach(descriptor: int, name: str, more: int = 0) -> None:
    flags = _TAP | _NO_PACKET_INFO | _VNET_HEADER | more
    fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
