# SPDX-License-Identifier: Apache-2.0
"""What is in a network namespace, as the kernel says."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from geneve_ebpf.host import namespaces
from lab.network import run
from tests.watcher import tcx_programs


def hooks_of(netns: Path) -> list[str]:
    """The programs on the uplink and on the shared block."""
    with namespaces.entering(netns):
        linked = tcx_programs(socket.if_nametoindex("uplink0"))
    shown = json.loads(run("nsenter", f"--net={netns}", "bpftool", "-j", "net", "show"))[0]
    return linked + [entry["name"] for entry in shown["tc"] if "name" in entry]


def interfaces(netns: Path) -> set[str]:
    """Names of a namespace's interfaces."""
    with namespaces.entering(netns):
        return {path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()} - {
            "all",
            "default",
        }
