# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: make, enter, drop; and the mount namespace they must be seen in.

A namespace is kept by a bind mount of its nsfs file, as `ip netns` does, so it
lives in whatever mount namespace made it. That must be the machine's own: in a
private one (which `ip netns exec` and hardened units make) everything mounted
here would vanish with the process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError

CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def require_machine_mounts() -> None:
    """Raise MOUNT_NAMESPACE unless this process sees the mounts that pid 1 sees."""
    # A mount's id is of one mount namespace only. (/proc/1/ns/mnt itself may not
    # be read by whoever lacks one of pid 1's capabilities, as in many VMs.)
    if _first_mount("self") != _first_mount("1"):
        raise GeneveError(
            Code.MOUNT_NAMESPACE,
            "this process has a mount namespace of its own",
            hint="not under `ip netns exec` (use `netns` in the configuration) nor a unit with"
            " file-system protection",
        )


def _first_mount(process: str) -> str:
    with Path(f"/proc/{process}/mountinfo").open() as mounts:
        return mounts.readline().split(" ", 1)[0]


def make_directory(path: Path) -> None:
    """A directory for namespaces to be kept in: a tmpfs of its own, also where /run is none.

    On a disk's file system each mount point costs 2.7 ms. One that has
    namespaces in it already stays as it is.
    """
    path.mkdir(mode=0o755, exist_ok=True)
    if os.path.ismount(path) or any(path.iterdir()):
        return
    options = b"mode=0755,size=64k,nr_inodes=65536"
    _check(_libc.mount(b"geneve-ebpf", os.fsencode(path), b"tmpfs", 0, options), "mount")


def remove_directory(path: Path) -> None:
    """Undo `make_directory`, and let go of all that is in there. No error if it is not there."""
    while os.path.ismount(path) and _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        pass


def current() -> int:
    """A file descriptor for this thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(fd: int) -> None:
    """Move this thread into a network namespace, for good."""
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


def come_back(fd: int) -> None:
    """Move this thread into the namespace that it came from. If it cannot, the process ends.

    The kernel refuses it where it has no memory for that. Whatever a thread that is still there
    did next, it would do in somebody else's network.
    """
    try:
        enter(fd)
    except OSError as error:
        raise SystemExit(f"cannot come back from a network namespace: {error}") from error


@contextmanager
def entering(path: Path | None) -> Iterator[None]:
    """This thread is in the namespace at `path` meanwhile. None: stay where it is.

    Raises GeneveError NODE_SETUP if there is no namespace at `path`, NOT_PERMITTED without the
    right to go there.
    """
    if path is None:
        yield
        return
    before = current()
    try:
        try:
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                enter(there)
            finally:
                os.close(there)
        except PermissionError:
            raise GeneveError(
                Code.NOT_PERMITTED, f"going into {path} needs root", hint="use sudo"
            ) from None
        except OSError as error:
            raise GeneveError(
                Code.NODE_SETUP,
                f"{path} is not a network namespace: {error.strerror}",
                hint="make it with: ip netns add NAME",
            ) from None
        try:
            yield
        finally:
            come_back(before)
    finally:
        os.close(before)


@contextmanager
def visiting(path: Path) -> Iterator[None]:
    """As `entering`, of a namespace that may be gone: raises the OSError that says so."""
    there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(there):
            yield
    finally:
        os.close(there)


@contextmanager
def inside(there: int) -> Iterator[None]:
    """This thread is meanwhile in a namespace that is open. Raises OSError."""
    before = current()
    try:
        enter(there)
        try:
            yield
        finally:
            come_back(before)
    finally:
        os.close(before)


def create(path: Path) -> int:
    """As `enter_new`, and the thread is back in its own namespace afterwards."""
    before = current()
    try:
        try:
            return enter_new(path)
        finally:
            come_back(before)
    finally:
        os.close(before)


def enter_new(path: Path) -> int:
    """Make a namespace, keep it at `path` (a new file) and go there; a descriptor of it.

    Nothing is left behind on failure, but the thread may be somewhere else.
    0.5 ms; forking for it, as netns libraries do, 13 ms.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        made = current()
        try:
            here, there = b"/proc/thread-self/ns/net", os.fsencode(path)
            _check(_libc.mount(here, there, b"none", _MS_BIND, None), "mount")
        except OSError:
            os.close(made)
            raise
    except OSError:
        path.unlink()
        raise
    return made


def remove(path: Path) -> None:
    """Let go of the namespace at `path`; the kernel drops it when nobody is in it.

    Its interfaces go with it, later and in batches. No error if there is none.
    """
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)
