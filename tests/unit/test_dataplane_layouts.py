# SPDX-License-Identifier: Apache-2.0
"""What attaching packs by hand, for speed, is laid out as the mirrors of the C structs are."""

from __future__ import annotations

import ctypes
from ipaddress import IPv4Address, IPv6Address

from geneve_ebpf.abi import MAPPED, Address, Binding, EndpointKey, EndpointValue
from geneve_ebpf.dataplane import sandboxes


def test_an_endpoints_key():
    """Of either family."""
    four, six = IPv4Address("10.0.1.5"), IPv6Address("fd00::5")

    packed = sandboxes._ENDPOINT_KEY.pack(4242, MAPPED, four.packed)
    assert packed == bytes(EndpointKey(4242, Address.of(four)))
    packed = sandboxes._ENDPOINT_KEY6.pack(4242, six.packed)
    assert packed == bytes(EndpointKey(4242, Address.of(six)))


def test_an_endpoints_value():
    """All of it, padding too."""
    packed = sandboxes._ENDPOINT.pack(1 << 40, 7)

    assert packed == bytes(EndpointValue(generation=1 << 40, slot=7))


def test_a_bindings_parts():
    """Each where its fields are, and nothing beside them."""
    row = bytearray(ctypes.sizeof(Binding))
    mac, name = bytes(range(2, 8)), b"web".ljust(64, b"\0")
    sandboxes._TENANT.pack_into(row, sandboxes._TENANT_AT, 4242, bytes(range(10, 14)), mac, 1)
    sandboxes._OCCUPANT.pack_into(row, sandboxes._OCCUPANT_AT, 1 << 50, name)
    at = sandboxes._ADDRESS6_AT
    row[at : at + 16] = bytes(range(16))

    wanted = Binding(vni=4242, native=1, attached_at=1 << 50, sandbox=b"web")
    wanted.address[:] = range(10, 14)
    wanted.mac[:] = range(2, 8)
    wanted.address6 = Address.from_buffer_copy(bytes(range(16)))
    assert row == bytes(wanted)


def test_a_bindings_words():
    """Those that are stored alone: the generation is the first of its row."""
    assert Binding.generation.offset == 0
    assert Binding.generation.size == 8
    assert Binding.state.offset == sandboxes._STATE_WORD * 4
    assert Binding.state.size == 4
