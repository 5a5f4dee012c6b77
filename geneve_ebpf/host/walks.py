# SPDX-License-Identifier: Apache-2.0
"""Walking a path to a network namespace that others made, which may be on a mount that hangs.

A dead NFS server or a FUSE file system that does not answer blocks whoever walks there, at times
so that not even SIGKILL ends it. So a child walks, and what it finds it passes on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import time

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host.namespaces import CLONE_NEWNET
from geneve_ebpf.host.processes import ending_with_parent

PATIENCE = 3.0  # seconds that a path may take to be walked
STUCK_MAX = 64  # children that could not be ended: then no other path is walked
_NS_GET_NSTYPE = 0xB703

# Children of this process that were given up, and have not ended yet.
_stuck: list[int] = []


class Walk:
    """A path that is being walked; `select` finds it readable once that has come to an end."""

    def __init__(self, path: str, patience: float = PATIENCE) -> None:
        """patience: seconds. Raises BUSY if too many paths hang, OSError if no child can be had."""
        _stuck[:] = [child for child in _stuck if not _ended(child)]
        if len(_stuck) >= STUCK_MAX:
            raise GeneveError(
                Code.BUSY,
                f"{STUCK_MAX} paths that were to be walked hang in the kernel",
                hint="the file systems that they are on do not answer: mend or unmount them",
                field="netns",
            )
        self._path = path
        self._patience = patience
        self.end = time.monotonic() + patience
        self._ear, mouth = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mouth:
            try:
                tie = ending_with_parent()
                self._child = os.fork()
            except BaseException:
                self._ear.close()
                raise
            if not self._child:
                try:
                    tie()
                    _walk(path, mouth)
                finally:
                    os._exit(0)

    def fileno(self) -> int:
        """For select."""
        return self._ear.fileno()

    def namespace(self) -> int:
        """A descriptor of the network namespace at the path. To be called once.

        Waits for it until `end`. Raises BAD_NETNS if there is none, TimeoutError if nothing
        answers.
        """
        try:
            left = max(0.0, self.end - time.monotonic())
            if not select.select([self._ear], [], [], left)[0]:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"cannot be walked in {self._patience:g} s: a file system on the way does not"
                    " answer",
                )
            said, found, _, _ = socket.recv_fds(self._ear, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)
            os.waitpid(self._child, 0)  # having answered, it does nothing but end
        except BaseException:
            os.kill(self._child, signal.SIGKILL)
            _stuck.append(self._child)
            raise
        finally:
            self._ear.close()
        if found:
            return found[0]
        if not said:
            raise OSError(f"whoever was to walk {self._path[:200]!r} has died")
        raise GeneveError.from_json(json.loads(said))


def _ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def _walk(path: str, mouth: socket.socket) -> None:
    """What the child does."""
    # Everything else that is open is the parent's: whoever waits for it to close, as the agent
    # does for the end of the slot process, is not to wait for this path.
    own = mouth.fileno()
    os.closerange(0, own)
    os.closerange(own + 1, os.sysconf("SC_OPEN_MAX"))
    try:
        found = open_netns(path)
    except GeneveError as error:
        mouth.send(json.dumps(error.as_json()["error"]).encode())
    else:
        socket.send_fds(mouth, [b"{}"], [found])


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at a path. Raises BAD_NETNS if none is there.

    The path is walked once. Nothing is opened before it is known to be a namespace's
    file: opening a device or a FIFO can do something, or wait for ever.
    """
    if not path.startswith("/"):
        raise bad_netns(path, "is no absolute path")
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            # All namespaces' files are on one file system, which holds nothing else.
            if os.fstat(place).st_dev != os.stat("/proc/self/ns/net").st_dev:
                raise bad_netns(path, "is no namespace's file")
            descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as error:
        raise bad_netns(path, f"cannot be opened: {error.strerror}") from None
    except ValueError:  # a zero byte
        raise bad_netns(path, "is no path") from None
    if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) != CLONE_NEWNET:
        os.close(descriptor)
        raise bad_netns(path, "is a namespace of another type")
    return descriptor


def bad_netns(path: str, why: str) -> GeneveError:
    """What is said of a path that is not to be had."""
    return GeneveError(
        Code.BAD_NETNS,
        f"{path[:200]!r} {why}",
        hint="the path of a sandbox's network namespace, such as /run/netns/NAME or"
        " /proc/PID/ns/net, as the agent sees it",
        field="netns",
    )
