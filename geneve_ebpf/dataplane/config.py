# SPDX-License-Identifier: Apache-2.0
"""The node's configuration as the programs read it: one row of one map."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from ipaddress import IPv4Address

from geneve_ebpf.abi import Key32, NodeConfig
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader.maps import Table
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import NodeSettings


@dataclass(frozen=True, slots=True)
class Config:
    """struct node_config without its interface index, which is found anew at each start."""

    vtep: IPv4Address
    udp_port: int
    guest_address: IPv4Address
    gateway_address: IPv4Address
    guest_mac: bytes
    gateway_mac: bytes

    @classmethod
    def of(cls, settings: NodeSettings) -> Config:
        """What these settings ask for."""
        guest = settings.guest
        return cls(
            settings.vtep,
            settings.udp_port,
            guest.address,
            guest.gateway,
            guest.mac.octets,
            guest.gateway_mac.octets,
        )


def _table(pins: Pins) -> Table[Key32, NodeConfig]:
    return Table(pins.map("node_config"), Key32, NodeConfig)


def read_config(pins: Pins) -> Config:
    """What the programs use now. Raises NODE_SETUP before it was ever written."""
    table = _table(pins)
    try:
        row = table.get(Key32(0))
    finally:
        table.close()
    if row is None or not any(row.vtep):
        raise GeneveError(
            Code.NODE_SETUP,
            "the node's configuration was never written: its start was cut short",
            hint="start the agent again",
        )
    return Config(
        IPv4Address(bytes(row.vtep)),
        int.from_bytes(bytes(row.udp_port), "big"),
        IPv4Address(bytes(row.guest_address)),
        IPv4Address(bytes(row.gateway_address)),
        bytes(row.guest_mac),
        bytes(row.gateway_mac),
    )


def write_config(pins: Pins, config: Config, fib_ifindex: int) -> None:
    """Let the programs use this from the next packet on."""
    octets, mac = ctypes.c_uint8 * 4, ctypes.c_uint8 * 6
    row = NodeConfig(
        octets(*config.vtep.packed),
        octets(*config.guest_address.packed),
        octets(*config.gateway_address.packed),
        fib_ifindex,
        (ctypes.c_uint8 * 2)(*config.udp_port.to_bytes(2, "big")),
        mac(*config.guest_mac),
        mac(*config.gateway_mac),
    )
    table = _table(pins)
    try:
        table.set(Key32(0), row)
    finally:
        table.close()
