# SPDX-License-Identifier: Apache-2.0
"""What `geneve-ebpf doctor` looks at. Every check is quick and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from geneve_ebpf.errors import GeneveError
from geneve_ebpf.model import IPV6_MTU_MIN, NodeSettings, SlotKind

if TYPE_CHECKING:
    from geneve_ebpf.agent.config import AgentConfig, Placement

NEIGHBOURS_WANTED = 16384  # entries; one table for all namespaces of the machine
DISK_WANTED = 256 << 20  # bytes; desired state of 1 M routes is about half of it
# Bytes of kernel memory that a slot takes, as `script/bench slots` measures it.
SLOT_MEMORY = {
    SlotKind.NAMESPACE: 335 << 10,
    SlotKind.TAP: 430 << 10,
    SlotKind.HOST_TAP: 80 << 10,
}


class Verdict(str, Enum):
    """How a check came out. Only FAIL keeps an agent from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `fix` is a command or a sentence, "" when all is well."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


def examine(config: AgentConfig | None) -> Iterator[Check]:
    """All checks of this machine, and of one node if its configuration is given."""
    settings = None if config is None else config.node
    yield _root()
    yield from _python()
    yield _bcc()
    yield _headers()
    yield _mount_namespace()
    yield _bpf_file_system()
    if os.geteuid() == 0:
        yield from _kernel()
    yield _neighbours()
    yield from _disk(settings)
    if config is not None:
        yield _memory(config.node.targets)
        yield _placement(config.placement)
    with _node_namespace(settings) as failed:
        if failed is not None:
            yield failed
            return
        yield from _routing(settings)
        if settings is not None:
            yield from _underlay(settings)


def _root() -> Check:
    if os.geteuid() == 0:
        return Check("root", Verdict.OK, "running as root")
    return Check("root", Verdict.FAIL, f"running as user {os.geteuid()}", "run it with sudo")


def _python() -> Iterator[Check]:
    wanted = ("uvloop", "httptools", "msgspec", "pyroute2", "prometheus_client")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        yield Check("python packages", Verdict.FAIL, f"missing: {names}", "run script/bootstrap")
    else:
        yield Check("python packages", Verdict.OK, "all there")


def _bcc() -> Check:
    import ctypes

    fix = "apt-get install python3-bpfcc, and a venv with --system-site-packages"
    found = find_spec("bcc")
    if found is None or found.origin is None:
        return Check("bcc", Verdict.FAIL, "there is no module bcc", fix)
    # Not imported: this process has no use for it. PyPI's package of the name has no such file.
    package = Path(found.origin).parent
    if not (package / "libbcc.py").exists():
        return Check("bcc", Verdict.FAIL, f"{package} is an unrelated package of that name", fix)
    try:
        ctypes.CDLL("libbcc.so.0")
    except OSError as error:
        return Check("bcc", Verdict.FAIL, f"its library cannot be loaded: {error}", fix)
    return Check("bcc", Verdict.OK, f"module and library, from {package}")


def _headers() -> Check:
    from geneve_ebpf.loader import headers

    with tempfile.TemporaryDirectory(prefix="geneve-ebpf-doctor-") as scratch:
        try:
            headers.make_tree(Path(scratch))
        except (GeneveError, OSError) as error:
            return Check("headers", Verdict.FAIL, str(error), "apt-get install linux-libc-dev")
    return Check("headers", Verdict.OK, "user-space headers are installed")


def _mount_namespace() -> Check:
    from geneve_ebpf.host import namespaces

    try:
        namespaces.require_machine_mounts()
    except GeneveError as error:
        return Check("mount namespace", Verdict.FAIL, error.message, error.hint)
    except PermissionError:
        return Check("mount namespace", Verdict.WARN, "cannot be seen without root")
    return Check("mount namespace", Verdict.OK, "the machine's own")


def _bpf_file_system() -> Check:
    if any(line.split()[-1:] == ["bpf"] for line in _lines("/proc/filesystems")):
        return Check("bpf file system", Verdict.OK, "known to the kernel")
    return Check(
        "bpf file system",
        Verdict.FAIL,
        "not known to the kernel",
        "a kernel with CONFIG_BPF_SYSCALL",
    )


def _kernel() -> Iterator[Check]:
    from geneve_ebpf.loader import capabilities

    for found in capabilities.probe():
        if found.ok:
            yield Check(f"kernel {found.name}", Verdict.OK, found.detail)
        elif found.needed:
            yield Check(f"kernel {found.name}", Verdict.FAIL, found.detail, "a kernel that has it")
        else:
            detail = f"not there, and can be done without: {found.detail}"
            yield Check(f"kernel {found.name}", Verdict.WARN, detail)


def _neighbours() -> Check:
    # One table for the whole machine: the setting is the initial namespace's, and
    # shows in no other.
    limit = _number("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
    if limit is None:
        return Check("neighbour table", Verdict.WARN, "its limit does not show in this namespace")
    if limit >= NEIGHBOURS_WANTED:
        return Check("neighbour table", Verdict.OK, f"up to {limit} entries")
    return Check(
        "neighbour table",
        Verdict.WARN,
        f"up to {limit} entries for all namespaces; one busy tenant can fill it",
        f"sysctl -w net.ipv4.neigh.default.gc_thresh3={NEIGHBOURS_WANTED}",
    )


def _disk(settings: NodeSettings | None) -> Iterator[Check]:
    roots = (
        (Path("/var/lib"), Path("/run"))
        if settings is None
        else (settings.state_root, settings.run_root)
    )
    for name, path in zip(("state", "run"), roots, strict=True):
        while not os.path.exists(path):  # Path's own raises where it may not look
            path = path.parent
        free = shutil.disk_usage(path).free
        detail = f"{free >> 20} MiB free below {path}"
        if free >= DISK_WANTED or name == "run":
            yield Check(f"disk for {name}", Verdict.OK, detail)
        else:
            yield Check(
                f"disk for {name}", Verdict.WARN, detail, f"free {DISK_WANTED >> 20} MiB there"
            )


def _memory(targets: dict[SlotKind, int]) -> Check:
    slots = sum(targets.values())
    wanted = sum(number * SLOT_MEMORY[kind] for kind, number in targets.items())
    available = 0
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    detail = f"{slots} slots take about {wanted >> 20} of {available >> 20} MiB available"
    if wanted <= available // 2:
        return Check("memory", Verdict.OK, detail)
    return Check("memory", Verdict.WARN, detail, "keep fewer slots ready")


def _placement(placement: Placement) -> Check:
    allowed = os.sched_getaffinity(0)
    try:
        placement.refuse_others(allowed)
    except GeneveError as error:
        return Check("placement", Verdict.FAIL, error.message, error.hint)
    where = [
        f"{process} on CPU {','.join(map(str, sorted(placement.cpus(process, allowed))))}"
        for process in ("agent", "slot", "exporter")
    ]
    return Check("placement", Verdict.OK, ", ".join(where))


@contextmanager
def _node_namespace(settings: NodeSettings | None) -> Iterator[Check | None]:
    """Inside the node's namespace meanwhile, or a failed check instead."""
    from geneve_ebpf.host import namespaces

    path = None if settings is None else settings.netns
    entered = namespaces.entering(path)
    try:
        entered.__enter__()
    except GeneveError as error:
        yield Check("node namespace", Verdict.FAIL, error.message, error.hint)
        return
    try:
        yield None
    finally:
        entered.__exit__(None, None, None)


def _routing(settings: NodeSettings | None) -> Iterator[Check]:
    family = "ipv6" if settings is not None and settings.vtep.version == 6 else "ipv4"
    policy = _number(f"/proc/sys/net/{family}/fib_multipath_hash_policy")
    several = settings is not None and len(settings.uplinks) > 1
    if policy == 0 and several:
        yield Check(
            "multipath hash",
            Verdict.WARN,
            "by addresses only: all flows to one node take one uplink",
            f"sysctl -w net.{family}.fib_multipath_hash_policy=1",
        )
    else:
        yield Check(
            "multipath hash",
            Verdict.OK,
            "by addresses; matters with several uplinks" if policy == 0 else "by flow",
        )
    strict = _number("/proc/sys/net/ipv4/conf/all/rp_filter")
    yield Check(
        "reverse path filter",
        Verdict.OK,
        f"mode {strict}; Geneve is taken before it looks",
    )


def _underlay(settings: NodeSettings) -> Iterator[Check]:
    from geneve_ebpf.abi import OVERHEAD
    from geneve_ebpf.host.addresses import is_own
    from geneve_ebpf.host.netlink import IPRoute
    from geneve_ebpf.loader import hooks

    found = []
    with IPRoute() as ip:
        for name in settings.uplinks:
            try:
                found.append(hooks.find_uplink(ip, name))
            except GeneveError as error:
                yield Check(f"uplink {name}", Verdict.FAIL, error.message, error.hint)
    for uplink in found:
        mtu = uplink.mtu - OVERHEAD[settings.vtep.version]
        if not _flags(uplink.name) & 1:  # IFF_UP
            yield Check(
                f"uplink {uplink.name}", Verdict.WARN, "is down", f"ip link set {uplink.name} up"
            )
        elif mtu < IPV6_MTU_MIN:
            yield Check(
                f"uplink {uplink.name}",
                Verdict.WARN,
                f"its MTU of {uplink.mtu} leaves {mtu} bytes in the slots: too few for IPv6",
                f"ip link set {uplink.name} mtu {IPV6_MTU_MIN + uplink.mtu - mtu}, or more",
            )
        else:
            yield Check(
                f"uplink {uplink.name}",
                Verdict.OK,
                f"is up, and its MTU of {uplink.mtu} leaves {mtu} bytes in the slots",
            )
    try:
        hooks.vrf_of(found)
    except GeneveError as error:
        yield Check("vrf", Verdict.FAIL, error.message, error.hint)
    if is_own(settings.vtep, settings.uplinks):
        yield Check("vtep", Verdict.OK, f"{settings.vtep} is an address of the node")
    else:
        yield Check(
            "vtep",
            Verdict.FAIL,
            f"{settings.vtep} is no address of the node",
            f"ip address add {settings.vtep}/{settings.vtep.max_prefixlen} dev lo, or correct"
            " node.vtep",
        )


def _flags(interface: str) -> int:
    """An interface's flags in this thread's namespace; 0 if there is none."""
    import fcntl
    import socket
    import struct

    get_flags = 0x8913  # SIOCGIFFLAGS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            request = struct.pack("16sh22x", interface.encode(), 0)
            answer = fcntl.ioctl(sock, get_flags, request)
        except OSError:
            return 0
    return int(struct.unpack("16sh22x", answer)[1]) & 0xFFFF


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _number(path: str) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None
