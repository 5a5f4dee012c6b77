# SPDX-License-Identifier: Apache-2.0
"""What is in namespaces that container runtimes made, and what a node notes of them."""

from __future__ import annotations

import json
from pathlib import Path

from geneve_ebpf.host.given import Records
from lab.network import Node, inside, run
from tests.nodes import eventually


def records(node: Node) -> Records:
    return Records(Path(node.directory, "run", node.name))


def interfaces(netns: Path) -> set[str]:
    """Names of those in a namespace, but for tunnels' fallbacks, which the kernel makes."""
    shown = json.loads(run(*inside(netns, "ip", "-j", "link")))
    return {one["ifname"] for one in shown if one.get("link_type") in ("ether", "loopback")}


def addresses(netns: Path, interface: str) -> set[str]:
    (shown,) = json.loads(run(*inside(netns, "ip", "-j", "address", "show", "dev", interface)))
    return {one["local"] for one in shown["addr_info"]}


def mtu(netns: Path, interface: str) -> int:
    (link,) = json.loads(run(*inside(netns, "ip", "-j", "link", "show", "dev", interface)))
    return link["mtu"]


def untouched(node: Node, netns: Path) -> bool:
    """Whether the namespace is as it was made, and the node has no slot there."""
    return eventually(lambda: interfaces(netns) == {"lo"} and not dict(records(node)), 30)
