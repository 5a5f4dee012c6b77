# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for a bench: two nodes joined by an underlay, and their sandboxes.

Everything has a name that starts with `gnvb` and holds the bench's process id,
so that two benches do not meet and what a killed one left behind is found. No
interface that the bench did not make is ever touched.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from geneve_ebpf.host import namespaces
from geneve_ebpf.host.namespaces import entering

NETNS_DIRECTORY = Path("/run/netns")  # where `ip -n NAME` looks
RUN = Path("/run")
PR_SET_PDEATHSIG = 1
PREFIX = f"gnvb{os.getpid()}"
LEFT = IPv4Address("192.0.2.1")
RIGHT = IPv4Address("192.0.2.2")
UNDERLAY = "underlay"  # the interface's name, in either node
UNDERLAY_MTU = 1500


class BenchError(Exception):
    """The bench cannot run, or did not measure what it names. One line."""


def run(*command: str, netns: Path | None = None) -> str:
    """Run a command, in a namespace when one is given; its output. Raises BenchError."""
    with entering(netns):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def need(commands: dict[str, str]) -> None:
    """Check that commands are there; the values are Debian packages. Raises BenchError."""
    missing = {package for command, package in commands.items() if not shutil.which(command)}
    if missing:
        raise BenchError(f"missing: apt-get install {' '.join(sorted(missing))}")
    if os.geteuid():
        raise BenchError("not root: namespaces and tunnels need it")


def sweep() -> None:
    """Remove what benches left that were killed: the process in the name is gone."""
    for path in [*NETNS_DIRECTORY.glob("gnvb*"), *RUN.glob("gnvb*")]:
        owner = re.match(r"gnvb(\d+)-", path.name)
        if not owner or Path("/proc", owner[1]).exists():
            continue
        if path.is_dir():
            remove_tree(path)
        else:
            namespaces.remove(path)


def remove_tree(path: Path) -> None:
    """A directory with all that is mounted below it: pins and slots' namespaces."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed(mounted):
        if Path(place).is_relative_to(path):
            run("umount", "--lazy", place)
    shutil.rmtree(path, ignore_errors=True)


def end_with_parent() -> None:
    """In a child before it starts: be killed when the bench is, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM undoes everything as ^C does, and a second ^C does not stop that."""

    def stop(number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Node:
    """One end of an underlay."""

    netns: Path
    address: IPv4Address


@contextmanager
def namespace(name: str) -> Iterator[Path]:
    """A namespace with `lo` up, gone at the end."""
    path = NETNS_DIRECTORY / f"{PREFIX}-{name}"
    # By `ip`, whose first use on a machine mounts its directory over itself:
    # what was mounted in there before could not be removed afterwards.
    run("ip", "netns", "add", path.name)
    try:
        run("ip", "link", "set", "lo", "up", netns=path)
        yield path
    finally:
        namespaces.remove(path)


@contextmanager
def two_nodes(name: str) -> Iterator[tuple[Node, Node]]:
    """Two nodes, 192.0.2.1 and 192.0.2.2, joined by a veth of MTU 1500."""
    with ExitStack() as stack:
        left = Node(stack.enter_context(namespace(f"{name}-left")), LEFT)
        right = Node(stack.enter_context(namespace(f"{name}-right")), RIGHT)
        run(
            "ip",
            "link",
            "add",
            UNDERLAY,
            "mtu",
            str(UNDERLAY_MTU),
            "type",
            "veth",
            "peer",
            "name",
            UNDERLAY,
            "mtu",
            str(UNDERLAY_MTU),
            "netns",
            right.netns.name,
            netns=left.netns,
        )
        for node in (left, right):
            run("ip", "address", "add", f"{node.address}/24", "dev", UNDERLAY, netns=node.netns)
            run("ip", "link", "set", UNDERLAY, "up", netns=node.netns)
        yield left, right


def answers(netns: Path, address: IPv4Address, timeout: float = 3.0) -> bool:
    """Whether `address` answers a ping that is sent from `netns`, within `timeout` s."""
    with (
        entering(netns),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping,
    ):
        ping.settimeout(0.1)
        end = time.monotonic() + timeout
        identifier = os.getpid() & 0xFFFF
        while time.monotonic() < end:
            with suppress(OSError):
                ping.sendto(echo_request(identifier), (str(address), 0))
                while True:
                    packet, _ = ping.recvfrom(2048)
                    header = (packet[0] & 15) * 4
                    kind, _, _, seen = struct.unpack_from("!BBHH", packet, header)
                    if kind == 0 and seen == identifier:
                        return True
            time.sleep(0.02)
    return False


def echo_request(identifier: int) -> bytes:
    """An ICMP echo request with its checksum."""
    body = struct.pack("!BBHHH", 8, 0, 0, identifier, 1) + b"geneve-ebpf bench"
    padded = body + bytes(len(body) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, identifier, 1) + b"geneve-ebpf bench"


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """This thread on one CPU, and back. None leaves it where it may be."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tunnel_kind() -> str:
    """`geneve` where this kernel can make such a device, else `vxlan`."""
    with namespace("probe") as netns:
        try:
            run(
                "ip",
                "link",
                "add",
                "probe",
                "type",
                "geneve",
                "id",
                "1",
                "remote",
                str(RIGHT),
                netns=netns,
            )
        except BenchError:
            return "vxlan"
        return "geneve"


def two_cpus() -> tuple[int, int]:
    """The CPUs to place things on; the same one twice where there is only one."""
    allowed: Sequence[int] = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[min(1, len(allowed) - 1)]


def eventually(true: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Wait until `true()`. Raises BenchError saying `what` did not come."""
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            raise BenchError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.02)
