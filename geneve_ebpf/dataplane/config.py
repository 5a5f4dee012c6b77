# SPDX-License-Identifier: Apache-2.0
"""The node's configuration as the programs read it: one row of one map."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from geneve_ebpf.abi import Address, Key32, NodeConfig
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader.maps import Table
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import DNS_MAX, NodeSettings


@dataclass(frozen=True, slots=True)
class Config:
    """struct node_config without what is found anew at each start."""

    vtep: IPv4Address | IPv6Address
    udp_port: int
    guest_address: IPv4Address
    gateway_address: IPv4Address
    guest_netmask: IPv4Address
    guest_address6: IPv6Address
    gateway_address6: IPv6Address
    dns: tuple[IPv4Address | IPv6Address, ...]  # those of IPv4 first
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
            guest.network.netmask,
            guest.address6,
            guest.gateway6,
            tuple(sorted(guest.dns, key=lambda server: server.version)),
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
    if row is None or not any(row.vtep.word):
        raise GeneveError(
            Code.NODE_SETUP,
            "the node's configuration was never written: its start was cut short",
            hint="start the agent again",
        )
    servers: tuple[IPv4Address | IPv6Address, ...] = (
        *(IPv4Address(bytes(octets)) for octets in row.dns),
        *(IPv6Address(bytes(address.word)) for address in row.dns6),
    )
    return Config(
        row.vtep.unmapped(),
        int.from_bytes(bytes(row.udp_port), "big"),
        IPv4Address(bytes(row.guest_address)),
        IPv4Address(bytes(row.gateway_address)),
        IPv4Address(bytes(row.guest_netmask)),
        IPv6Address(bytes(row.guest_address6.word)),
        IPv6Address(bytes(row.gateway_address6.word)),
        tuple(server for server in servers if int(server)),
        bytes(row.guest_mac),
        bytes(row.gateway_mac),
    )


def write_config(pins: Pins, config: Config, fib_ifindex: int) -> None:
    """Let the programs use this from the next packet on."""
    octets, mac = ctypes.c_uint8 * 4, ctypes.c_uint8 * 6
    servers = [server for server in config.dns if server.version == 4]
    servers6 = [server for server in config.dns if server.version == 6]
    row = NodeConfig(
        vtep=Address.of(config.vtep),
        guest_address6=Address.of(config.guest_address6),
        gateway_address6=Address.of(config.gateway_address6),
        guest_address=octets(*config.guest_address.packed),
        gateway_address=octets(*config.gateway_address.packed),
        guest_netmask=octets(*config.guest_netmask.packed),
        dns=(octets * DNS_MAX)(*(octets(*server.packed) for server in servers)),
        dns6=(Address * DNS_MAX)(*map(Address.of, servers6)),
        fib_ifindex=fib_ifindex,
        udp_port=(ctypes.c_uint8 * 2)(*config.udp_port.to_bytes(2, "big")),
        guest_mac=mac(*config.guest_mac),
        gateway_mac=mac(*config.gateway_mac),
    )
    table = _table(pins)
    try:
        table.set(Key32(0), row)
    finally:
        table.close()
