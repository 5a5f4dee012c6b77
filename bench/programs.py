# SPDX-License-Identifier: Apache-2.0
"""The few BPF programs of the contestants, as instructions: a redirect, Cilium's shared tunnel,
an XDP program that passes everything on."""

from __future__ import annotations

import os
import struct
from ipaddress import IPv4Address
from pathlib import Path

from geneve_ebpf.host import tc
from geneve_ebpf.host.namespaces import entering
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.loader import bpf

_XDP, _XDP_ATTACH, _DRIVER_MODE = 6, 37, 1 << 2
_XDP_PASS, _SHOT = 2, 2
_GET_TUNNEL_KEY, _SET_TUNNEL_KEY, _REDIRECT, _REDIRECT_PEER = 20, 21, 23, 155
_ZERO_CHECKSUM = 2  # as the kernel's own VXLAN over IPv4 has it


def _op(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, destination | source << 4, offset, value & 0xFFFFFFFF)


def _set(register: int, value: int) -> bytes:
    return _op(0xB7, register, value=value)


def _call(helper: int) -> bytes:
    return _op(0x85, value=helper)


_EXIT = _op(0x95)


def _drop_unless_zero(register: int) -> bytes:
    return _op(0x15, register, offset=2) + _set(0, _SHOT) + _EXIT


def _to(ifindex: int, helper: int) -> bytes:
    return _set(1, ifindex) + _set(2, 0) + _call(helper) + _EXIT


def _key(helper: int, flags: int) -> bytes:
    """Call with struct bpf_tunnel_key's first 8 bytes (VNI, remote), which lie on the stack."""
    return (
        _op(0xBF, 1, 6)
        + _op(0xBF, 2, 10)
        + _op(0x07, 2, value=-8)
        + _set(3, 8)
        + _set(4, flags)
        + _call(helper)
        + _drop_unless_zero(0)
    )


def redirect(ifindex: int) -> bytes:
    """Everything goes out of another interface."""
    return _to(ifindex, _REDIRECT)


def redirect_peer(ifindex: int) -> bytes:
    """Everything comes in at a veth's other end."""
    return _to(ifindex, _REDIRECT_PEER)


def into_tunnel(ifindex: int, vni: int, remote: IPv4Address) -> bytes:
    """Everything goes out of a shared tunnel device, with this VNI, to this VTEP."""
    key = _op(0x62, 10, offset=-8, value=vni) + _op(0x62, 10, offset=-4, value=int(remote))
    return _op(0xBF, 6, 1) + key + _key(_SET_TUNNEL_KEY, _ZERO_CHECKSUM) + _to(ifindex, _REDIRECT)


def out_of_tunnel(ifindex: int, vni: int) -> bytes:
    """What came by a shared tunnel device with this VNI goes to a veth's other end."""
    check = _op(0x61, 1, 10, offset=-8) + _op(0x15, 1, offset=2, value=vni) + _set(0, _SHOT) + _EXIT
    return _op(0xBF, 6, 1) + _key(_GET_TUNNEL_KEY, 0) + check + _to(ifindex, _REDIRECT_PEER)


def hang(netns: Path, ifindex: int, program: bytes) -> None:
    """Put a program on an interface's tc ingress; it goes with the interface."""
    fd = bpf.load_program(program)
    try:
        with entering(netns), RouteSocket() as door:
            tc.add_clsact(door, ifindex)
            tc.set_ingress_program(door, ifindex, fd, "bench")
    finally:
        os.close(fd)


def hang_xdp_pass(netns: Path, ifindex: int) -> int:
    """Put an XDP program that passes everything on into an interface's driver; its link, to close.

    Raises OSError where the driver has no XDP.
    """
    fd = bpf.load_program(_set(0, _XDP_PASS) + _EXIT, kind=_XDP)
    try:
        with entering(netns):
            attr = bpf.create_attr("<IIII32x", fd, ifindex, _XDP_ATTACH, _DRIVER_MODE)
            return bpf.call(bpf.LINK_CREATE, attr)
    finally:
        os.close(fd)
