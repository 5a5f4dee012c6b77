# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: a TOML file in, settings out."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import (
    DNS_MAX,
    MERGE,
    Guest,
    NodeSettings,
    parse_address,
    parse_ipv4,
    parse_ipv4_prefix,
    parse_ipv6,
    parse_link_local,
    parse_mac,
    parse_name,
)

T = TypeVar("T")

READY_MAX = 10_000  # slots to keep ready; attached ones come on top of them
SOCKET_PATH_MAX = 107  # struct sockaddr_un, and its closing zero
# As the kernel's dev_valid_name(): up to 15 bytes, no slash, no colon, no white space.
INTERFACE = re.compile(r"[^\s/:]{1,15}")


@dataclass(frozen=True, slots=True)
class Placement:
    """Which CPU each process is kept on; None is the default, which `cpus` tells.

    Making slots keeps the kernel busy for a millisecond at a time, and an attach
    that waits for that CPU waits as long. So by default the slot process keeps to the last
    CPU but the agent's, the exporter with it, and the agent off it.
    """

    agent_cpu: int | None = None
    slot_cpu: int | None = None
    exporter_cpu: int | None = None

    def refuse_others(self, allowed: set[int]) -> None:
        """Raise BAD_CONFIG if a process is placed where it may not run."""
        for name in ("agent_cpu", "slot_cpu", "exporter_cpu"):
            cpu = getattr(self, name)
            if cpu is not None and cpu not in allowed:
                raise bad_config(
                    f"placement.{name} is {cpu}, where nothing of ours may run",
                    field=f"placement.{name}",
                    hint=f"one of {' '.join(map(str, sorted(allowed)))}",
                )

    def cpus(self, process: str, allowed: set[int]) -> set[int]:
        """Where "agent", "slot" or "exporter" may run, of those CPUs where we may at all."""
        placed: int | None = getattr(self, f"{process}_cpu")
        if placed is not None:
            return {placed}
        maker = self.slot_cpu
        if maker is None:
            maker = max(allowed - {self.agent_cpu} or allowed)
        return (allowed - {maker} or allowed) if process == "agent" else {maker}


@dataclass(frozen=True, slots=True)
class Filling:
    """How slots come to be, and with how much regard for attaches."""

    min_ready: int = 1  # the node is ready once so many were ready or taken
    low_watermark: int | None = None  # ready slots below which nothing goes before; None: a quarter
    refill_rate: float = 200.0  # slots a second to make, and to destroy, while attaches come in


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything the configuration file can say."""

    node: NodeSettings
    metrics_per_sandbox: bool = False
    placement: Placement = field(default_factory=Placement)
    filling: Filling = field(default_factory=Filling)


def load(
    path: Path,
    slots: int | None = None,
    metrics_listen: str | None = None,
    tap_slots: int | None = None,
    host_tap_slots: int | None = None,
) -> AgentConfig:
    """Read a configuration file; the other arguments override what it says. Raises BAD_CONFIG."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise bad_config(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise bad_config(f"{path} is not UTF-8 text") from None
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number may be too long, too
        raise bad_config(f"{path} is not TOML: {error}") from None
    config = parse(table)
    node = config.node
    if slots is not None:
        node = replace(node, slots=_slots(slots, "--slots"))
    if tap_slots is not None:
        node = replace(node, tap_slots=_slots(tap_slots, "--tap-slots"))
    if host_tap_slots is not None:
        node = replace(node, host_tap_slots=_slots(host_tap_slots, "--host-tap-slots"))
    total = sum(node.targets.values())
    if node != config.node:
        # The file's were meant for the file's number.
        filling = config.filling
        config = replace(
            config,
            filling=replace(
                filling,
                min_ready=min(filling.min_ready, total),
                low_watermark=None
                if filling.low_watermark is None
                else min(filling.low_watermark, total),
            ),
        )
    if metrics_listen is not None:
        node = replace(node, metrics_listen=_listen(metrics_listen, "--metrics-listen"))
    return replace(config, node=node)


def parse(document: dict[str, Any]) -> AgentConfig:
    """Settings from a decoded TOML document. Raises BAD_CONFIG, naming the key at fault."""
    for name, value in document.items():
        if name not in ("node", "guest", "metrics", "placement") or not isinstance(value, dict):
            raise bad_config(
                f"no such table: {name}",
                field=name,
                hint="tables are [node] [guest] [metrics] [placement]",
            )
    node, guest = Table(document, "node"), Table(document, "guest")
    metrics, placement = Table(document, "metrics"), Table(document, "placement")
    settings = _node(node, _guest(guest), metrics)
    config = AgentConfig(
        node=settings,
        filling=_filling(node, sum(settings.targets.values())),
        metrics_per_sandbox=metrics.take("per_sandbox", _boolean, False),
        placement=Placement(
            agent_cpu=placement.take("agent_cpu", _cpu, None),
            slot_cpu=placement.take("slot_cpu", _cpu, None),
            exporter_cpu=placement.take("exporter_cpu", _cpu, None),
        ),
    )
    for table in (node, guest, metrics, placement):
        table.refuse_rest()
    return config


def bad_config(message: str, *, field: str = "", hint: str = "") -> GeneveError:
    """A BAD_CONFIG error."""
    return GeneveError(Code.BAD_CONFIG, message, field=field, hint=hint)


class Table:
    """One TOML table, emptied key by key, so that what is left over is unknown."""

    def __init__(self, document: dict[str, Any], name: str) -> None:
        self.name = name
        self.left: dict[str, Any] = dict(document.get(name, {}))
        self.known: list[str] = []

    def take(self, key: str, read: Callable[[Any, str], T], default: T) -> T:
        """The value of a key through `read`, or the default where the key is missing."""
        self.known.append(key)
        if key not in self.left:
            return default
        return self._read(key, read)

    def need(self, key: str, read: Callable[[Any, str], T]) -> T:
        """The value of a key that has no default. Raises BAD_CONFIG."""
        self.known.append(key)
        if key not in self.left:
            name = f"{self.name}.{key}"
            raise bad_config(f"{name} is missing", field=name)
        return self._read(key, read)

    def refuse_rest(self) -> None:
        """Raise BAD_CONFIG if a key was never asked for: most likely a typing mistake."""
        for key in self.left:
            name = f"{self.name}.{key}"
            raise bad_config(
                f"no such key: {name}",
                field=name,
                hint=f"[{self.name}] takes {' '.join(self.known)}",
            )

    def _read(self, key: str, read: Callable[[Any, str], T]) -> T:
        name = f"{self.name}.{key}"
        try:
            return read(self.left.pop(key), name)
        except GeneveError as error:
            if error.code is Code.BAD_CONFIG:
                raise
            raise bad_config(f"{name}: {error.message}", field=name, hint=error.hint) from None


def _node(table: Table, guest: Guest, metrics: Table) -> NodeSettings:
    default = NodeSettings("default", guest.address, ())
    vtep = table.need("vtep", parse_address)
    if vtep in guest.network or vtep == guest.address6:
        raise bad_config(
            f"node.vtep {vtep} is in the guest's own range",
            field="node.vtep",
            hint="change guest.address, guest.gateway and guest.network together",
        )
    settings = NodeSettings(
        name=table.take("name", parse_name, default.name),
        vtep=vtep,
        uplinks=table.need("uplinks", _interfaces),
        udp_port=table.take("udp_port", _port, default.udp_port),
        netns=table.take("netns", _optional_path, None),
        run_root=table.take("run_root", _path, default.run_root),
        state_root=table.take("state_root", _path, default.state_root),
        slots=table.take("slots", _slots, default.slots),
        tap_slots=table.take("tap_slots", _slots, default.tap_slots),
        host_tap_slots=table.take("host_tap_slots", _slots, default.host_tap_slots),
        tap_owner=table.take("tap_owner", _user, default.tap_owner),
        guest=guest,
        metrics_listen=metrics.take("listen", _listen, default.metrics_listen),
        address_rest=table.take("address_rest", _seconds, default.address_rest),
        merge=table.take("merge", _merge, default.merge),
    )
    # Known now, and not when the node is up and the agent cannot listen.
    if len(os.fsencode(settings.run_directory / "api.sock")) > SOCKET_PATH_MAX:
        raise bad_config(
            f"{settings.run_directory}/api.sock is too long for a socket's path",
            field="node.run_root",
            hint=f"{SOCKET_PATH_MAX} bytes at most: a shorter node.run_root or node.name",
        )
    return settings


def _filling(table: Table, slots: int) -> Filling:
    default = Filling()

    def up_to_slots(value: object, name: str) -> int:
        return _integer(value, name, 0, slots)

    return Filling(
        min_ready=table.take("min_ready", up_to_slots, min(default.min_ready, slots)),
        low_watermark=table.take("low_watermark", up_to_slots, None),
        refill_rate=table.take("refill_rate", _rate, default.refill_rate),
    )


def _guest(table: Table) -> Guest:
    default = Guest()
    guest = Guest(
        address=table.take("address", parse_ipv4, default.address),
        gateway=table.take("gateway", parse_ipv4, default.gateway),
        network=table.take("network", parse_ipv4_prefix, default.network),
        mac=table.take("mac", parse_mac, default.mac),
        gateway_mac=table.take("gateway_mac", parse_mac, default.gateway_mac),
        address6=table.take("address6", parse_ipv6, default.address6),
        gateway6=table.take("gateway6", parse_link_local, default.gateway6),
        dns=table.take("dns", _servers, default.dns),
    )
    for name, address in (("address", guest.address), ("gateway", guest.gateway)):
        if not _is_host(address, guest.network):
            raise bad_config(
                f"guest.{name} {address} is no host address of {guest.network}",
                field=f"guest.{name}",
                hint="change guest.address, guest.gateway and guest.network together",
            )
    if guest.address == guest.gateway:
        raise bad_config("the guest cannot be its own gateway", field="guest.gateway")
    if guest.mac == guest.gateway_mac:
        raise bad_config("guest and gateway have one MAC", field="guest.gateway_mac")
    return guest


def _is_host(address: object, network: IPv4Network) -> bool:
    ends = (network.network_address, network.broadcast_address)
    return address in network and (network.prefixlen > 30 or address not in ends)


def _integer(value: object, name: str, low: int, high: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise bad_config(
        f"{name} is {value!r}", field=name, hint=f"a whole number from {low} to {high}"
    )


def _slots(value: object, name: str) -> int:
    return _integer(value, name, 0, READY_MAX)


def _user(value: object, name: str) -> int:
    return _integer(value, name, 0, 0xFFFF_FFFE)


def _port(value: object, name: str) -> int:
    return _integer(value, name, 1, 65535)


def _cpu(value: object, name: str) -> int | None:
    return _integer(value, name, 0, 8191)


def _seconds(value: object, name: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 86400:
        return float(value)
    raise bad_config(f"{name} is {value!r}", field=name, hint="seconds, 0 to 86400")


def _rate(value: object, name: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= 10_000:
        return float(value)
    raise bad_config(f"{name} is {value!r}", field=name, hint="slots a second, 1 to 10000")


def _merge(value: object, name: str) -> str:
    if value in MERGE:
        return str(value)
    raise bad_config(f"{name} is {value!r}", field=name, hint="one of " + " ".join(MERGE))


def _boolean(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise bad_config(f"{name} is {value!r}", field=name, hint="true or false")


def _path(value: object, name: str) -> Path:
    if isinstance(value, str) and value.startswith("/") and "\0" not in value:
        return Path(value)
    raise bad_config(f"{name} is {value!r}", field=name, hint="an absolute path")


def _optional_path(value: object, name: str) -> Path | None:
    return _path(value, name)


def _servers(value: object, name: str) -> tuple[IPv4Address | IPv6Address, ...]:
    if isinstance(value, list):
        servers = tuple(parse_address(item, name) for item in value)
        families = [server.version for server in servers]
        if max(families.count(4), families.count(6)) <= DNS_MAX:
            return servers
    raise bad_config(
        f"{name} is {value!r}",
        field=name,
        hint=f"a list of up to {DNS_MAX} IPv4 and {DNS_MAX} IPv6 addresses",
    )


def _interfaces(value: object, name: str) -> tuple[str, ...]:
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, str) and INTERFACE.fullmatch(item) for item in value)
    ):
        if len(set(value)) == len(value):
            return tuple(value)
        twice = next(item for item in value if value.count(item) > 1)
        raise bad_config(f"{name} has {twice} twice", field=name, hint="each interface once")
    raise bad_config(
        f"{name} is {value!r}", field=name, hint='a list of interfaces, such as ["eth1"]'
    )


def _listen(value: object, name: str) -> str:
    if value == "":
        return ""
    if isinstance(value, str):
        host, _, port = value.rpartition(":")
        if port.isdecimal() and 1 <= int(port) <= 65535:
            if re.fullmatch(r"[0-9.]+", host):
                parse_listen_host(host, name)
                return value
            if re.fullmatch(r"\[[^]]+\]", host):  # as RFC 3986 writes it
                parse_listen_host(host[1:-1], name)
                return value
    raise bad_config(
        f"{name} is {value!r}",
        field=name,
        hint='such as "127.0.0.1:16081" or "[::1]:16081"; "" is off',
    )


def parse_listen_host(host: str, name: str) -> None:
    """Raise BAD_CONFIG unless `host` is an address; any and loopback are fine here."""
    if host in ("0.0.0.0", "::", "::1") or host.startswith("127."):
        return
    parse_address(host, name)
