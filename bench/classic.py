# SPDX-License-Identifier: Apache-2.0
"""The classic way to attach a sandbox, in several forms, each of which really works.

One namespace is the host. Its underlay leads to a second one, where a responder
is put once per form, outside the timed part, to see a ping through the tunnel.
All forms make the same thing: a sandbox's namespace and veth, a bridge, and a
tunnel device of the tenant's VNI as the bridge's port.

The host is empty but for the batch that is being measured, and no service
stands before these forms: both favour them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from bench.netlink import RouteSocket, tunnel_data
from bench.testbed import (
    NETNS_DIRECTORY,
    PREFIX,
    BenchError,
    Node,
    answers,
    run,
    two_nodes,
)
from geneve_ebpf.host import namespaces
from geneve_ebpf.host.namespaces import entering

SCRIPT = Path(__file__).with_name("classic.sh")
MTU = 1450
GROUP = 4242  # of every link made on the host: deleted together
FIRST_LINK = 1000  # link numbers are chosen here, so that nothing must be looked up
FIRST_VNI = 5000


@dataclass(frozen=True, slots=True)
class Tenant:
    """One sandbox and its tenant's network; `number` is never used twice in a run."""

    number: int

    @property
    def namespace(self) -> Path:
        """Where the sandbox's namespace is kept."""
        return NETNS_DIRECTORY / f"{PREFIX}-s{self.number}"

    @property
    def vni(self) -> int:
        """The tenant's."""
        return FIRST_VNI + self.number

    @property
    def network(self) -> str:
        """The first three bytes of its /24."""
        return f"10.{self.number >> 8}.{self.number & 255}"

    def address(self, host: int) -> IPv4Address:
        """1 is the gateway, on the bridge; 2 the sandbox; 3 the responder."""
        return IPv4Address(f"{self.network}.{host}")

    @property
    def links(self) -> tuple[int, int, int]:
        """Link numbers of bridge, tunnel and veth."""
        first = FIRST_LINK + 3 * self.number
        return first, first + 1, first + 2

    @property
    def names(self) -> tuple[str, str, str]:
        """Their names, in the same order."""
        return f"gnvb{self.number}", f"gnvt{self.number}", f"gnvh{self.number}"


@dataclass(slots=True)
class Host:
    """The node the classic forms work on, its peer, and what is attached right now."""

    node: Node
    peer: Node
    kind: str  # vxlan or geneve
    netlink: Any  # a pyroute2 IPRoute of the host's namespace, open all the time
    raw: RouteSocket  # the same without a library
    rules: bool = True  # whether a form may have set any, which `clear` removes
    numbers: Iterator[int] = field(default_factory=count)
    tenants: list[Tenant] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)
    open_sockets: list[Any] = field(default_factory=list)

    def tenant(self) -> Tenant:
        """The next one; `clear` removes what is made for it."""
        tenant = Tenant(next(self.numbers))
        self.tenants.append(tenant)
        return tenant

    def make_namespace(self, tenant: Tenant) -> int:
        """The tenant's namespace; the file descriptor is closed by `clear`."""
        descriptor = namespaces.create(tenant.namespace)
        self.open_files.append(descriptor)
        return descriptor

    def clear(self) -> None:
        """Remove everything that was attached, all at once."""
        with entering(self.node.netns):
            # Fails when the group is empty.
            subprocess.run(
                ["ip", "link", "delete", "group", str(GROUP)], capture_output=True, check=False
            )
            for table in ("raw", "nat", "filter") if self.rules else ():
                run("iptables", "-t", table, "-F")
        while self.open_sockets:
            self.open_sockets.pop().close()
        while self.open_files:
            os.close(self.open_files.pop())
        while self.tenants:
            namespaces.remove(self.tenants.pop().namespace)


class Form(Protocol):
    """One of the classic ways."""

    name: str
    text: str

    def prepare(self, host: Host, tenant: Tenant) -> Any:
        """What is made ahead, not timed."""

    def attach(self, host: Host, tenant: Tenant, ahead: Any) -> None:
        """The timed part. Afterwards a first ping can pass."""


class Script:
    """A shell script of `ip` and `iptables` commands."""

    name = "classic.script"
    text = "a shell script of `ip` and `iptables`, from its start to its end"

    def prepare(self, host: Host, tenant: Tenant) -> list[str]:
        return [
            "/bin/sh",
            str(SCRIPT),
            str(tenant.number),
            tenant.namespace.name,
            str(tenant.vni),
            tenant.network,
            host.kind,
            str(host.node.address),
            str(host.peer.address),
            str(MTU),
            str(GROUP),
        ]

    def attach(self, host: Host, tenant: Tenant, ahead: list[str]) -> None:
        done = subprocess.run(ahead, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise BenchError(f"classic.sh: {done.stderr.decode().strip()}")


class Netlink:
    """The same without rules over one pyroute2 socket that stays open.

    Its fastest form: link numbers are chosen and master and state are given with
    each link, so that no look-up and no second message is needed.
    """

    name = "classic.netlink"
    text = "one open pyroute2 socket, no rules, one message per link, no look-ups"

    def prepare(self, host: Host, tenant: Tenant) -> None:
        return None

    def attach(self, host: Host, tenant: Tenant, ahead: None) -> None:
        descriptor = host.make_namespace(tenant)
        make_bridge_and_veth(host, tenant, descriptor)
        add_tunnel(host, tenant)
        from pyroute2 import IPRoute

        with entering(tenant.namespace), IPRoute() as inside:
            inside.addr("add", index=2, address=str(tenant.address(2)), prefixlen=24)
            inside.link("set", index=2, state="up")
            inside.route("add", dst="default", gateway=str(tenant.address(1)))


class NetlinkRaw:
    """The same again, its messages packed by hand: the cost is the kernel's alone."""

    name = "classic.netlink_raw"
    text = "the same with hand-packed messages: what remains is the kernel's own cost"

    def prepare(self, host: Host, tenant: Tenant) -> None:
        return None

    def attach(self, host: Host, tenant: Tenant, ahead: None) -> None:
        descriptor = host.make_namespace(tenant)
        bridge, _, veth = tenant.links
        bridge_name, _, veth_name = tenant.names
        host.raw.add_bridge(bridge, bridge_name, GROUP)
        host.raw.add_veth(veth, veth_name, GROUP, bridge, MTU, descriptor)
        host.raw.add_address(bridge, tenant.address(1))
        add_tunnel_raw(host, tenant)
        with entering(tenant.namespace), RouteSocket() as inside:
            inside.add_address(2, tenant.address(2))
            inside.set_up(2)
            inside.add_default_route(tenant.address(1))


class Pooled:
    """Namespace, veth, bridge and addresses made ahead; only the tunnel is left."""

    name = "classic.pooled"
    text = "all but the tunnel device made ahead, the addresses too; over pyroute2"

    def prepare(self, host: Host, tenant: Tenant) -> Any:
        make_bridge_and_veth(host, tenant, host.make_namespace(tenant))
        with entering(tenant.namespace), RouteSocket() as inside:
            inside.add_address(2, tenant.address(2))
            inside.set_up(2)
            inside.add_default_route(tenant.address(1))

    def attach(self, host: Host, tenant: Tenant, ahead: Any) -> None:
        add_tunnel(host, tenant)


class PooledRaw(Pooled):
    """The same by one hand-packed message: the least that a tunnel device can cost."""

    name = "classic.pooled_raw"
    text = "the same by one hand-packed netlink message: the kernel's own cost"

    def attach(self, host: Host, tenant: Tenant, ahead: Any) -> None:
        add_tunnel_raw(host, tenant)


class PooledAddress(Pooled):
    """As pooled, but the sandbox's address is not known ahead, as it is not for ours.

    A netlink socket inside each namespace is opened ahead as well.
    """

    name = "classic.pooled_address"
    text = "as pooled, but the tenant's addresses come with the attach, as with ours"

    def prepare(self, host: Host, tenant: Tenant) -> Any:
        from pyroute2 import IPRoute

        make_bridge_and_veth(host, tenant, host.make_namespace(tenant), addresses=False)
        with entering(tenant.namespace):
            inside = IPRoute()
        host.open_sockets.append(inside)
        inside.link("set", index=2, state="up")
        return inside

    def attach(self, host: Host, tenant: Tenant, ahead: Any) -> None:
        add_tunnel(host, tenant)
        host.netlink.addr(
            "add", index=tenant.links[0], address=str(tenant.address(1)), prefixlen=24
        )
        ahead.addr("add", index=2, address=str(tenant.address(2)), prefixlen=24)
        ahead.route("add", dst="default", gateway=str(tenant.address(1)))


FORMS: tuple[Form, ...] = (
    Script(),
    Netlink(),
    NetlinkRaw(),
    PooledAddress(),
    Pooled(),
    PooledRaw(),
)


def make_bridge_and_veth(
    host: Host, tenant: Tenant, namespace: int, *, addresses: bool = True
) -> None:
    """Bridge with the gateway's address, and the sandbox's veth in it, by pyroute2."""
    bridge, _, veth = tenant.links
    bridge_name, _, veth_name = tenant.names
    host.netlink.link(
        "add", index=bridge, ifname=bridge_name, kind="bridge", state="up", group=GROUP
    )
    host.netlink.link(
        "add",
        index=veth,
        ifname=veth_name,
        kind="veth",
        mtu=MTU,
        master=bridge,
        state="up",
        group=GROUP,
        peer={"ifname": "eth0", "mtu": MTU, "index": 2, "net_ns_fd": namespace},
    )
    if addresses:
        host.netlink.addr("add", index=bridge, address=str(tenant.address(1)), prefixlen=24)


def add_tunnel(host: Host, tenant: Tenant) -> None:
    """The tunnel device with its VNI, in the bridge and up, by pyroute2."""
    bridge, tunnel, _ = tenant.links
    if host.kind == "geneve":
        options = {"geneve_id": tenant.vni, "geneve_remote": str(host.peer.address)}
    else:
        options = {
            "vxlan_id": tenant.vni,
            "vxlan_local": str(host.node.address),
            "vxlan_group": str(host.peer.address),
            "vxlan_port": 4789,
        }
    host.netlink.link(
        "add",
        index=tunnel,
        ifname=tenant.names[1],
        kind=host.kind,
        mtu=MTU,
        master=bridge,
        state="up",
        group=GROUP,
        **options,
    )


def add_tunnel_raw(host: Host, tenant: Tenant) -> None:
    """The same without a library."""
    bridge, tunnel, _ = tenant.links
    host.raw.add_tunnel(
        tunnel,
        tenant.names[1],
        GROUP,
        bridge,
        MTU,
        host.kind,
        tunnel_data(host.kind, tenant.vni, host.node.address, host.peer.address),
    )


@contextmanager
def classic_host(kind: str) -> Iterator[Host]:
    """The host and its peer; everything goes at the end, whatever happened."""
    from pyroute2 import IPRoute

    with two_nodes("classic") as (node, peer):
        with entering(node.netns):
            netlink = IPRoute()
            raw = RouteSocket()
        with netlink, raw:
            host = Host(node, peer, kind, netlink, raw)
            try:
                yield host
            finally:
                host.clear()


def measure(host: Host, form: Form, samples: int) -> list[float]:
    """Attach `samples` tenants in this form, microseconds each, and remove them."""
    taken: list[float] = []
    try:
        ready = []
        for _ in range(samples):
            tenant = host.tenant()
            ready.append((tenant, form.prepare(host, tenant)))
        with entering(host.node.netns):
            for tenant, ahead in ready:
                start = time.perf_counter_ns()
                form.attach(host, tenant, ahead)
                taken.append((time.perf_counter_ns() - start) / 1e3)
    finally:
        host.clear()
    return taken


def verify(host: Host, form: Form) -> None:
    """
    Attach once and ping through the tunnel, not timed. Raises BenchError.

    A form that is fast because something is missing would fail here.
    """
    tenant = host.tenant()
    peer = host.peer.netns
    options = ["local", str(host.peer.address), "dstport", "4789"] if host.kind == "vxlan" else []
    try:
        ahead = form.prepare(host, tenant)
        with entering(host.node.netns):
            form.attach(host, tenant, ahead)
        run(
            "ip",
            "link",
            "add",
            "responder",
            "mtu",
            str(MTU),
            "type",
            host.kind,
            "id",
            str(tenant.vni),
            "remote",
            str(host.node.address),
            *options,
            netns=peer,
        )
        run("ip", "address", "add", f"{tenant.address(3)}/24", "dev", "responder", netns=peer)
        run("ip", "link", "set", "responder", "up", netns=peer)
        if not answers(tenant.namespace, tenant.address(3)):
            raise BenchError(f"{form.name}: no ping passes after the attach")
    finally:
        with suppress(BenchError):
            run("ip", "link", "delete", "responder", netns=peer)
        host.clear()
