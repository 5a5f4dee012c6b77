# SPDX-License-Identifier: Apache-2.0
"""The settings under /proc/sys/net, for those who touch them in thousands of namespaces.

The kernel keeps the names of all namespaces' settings in one chain for each
mounted proc: with 4,000 namespaces looked into, each further look walks 4,000
entries. So what is written in slots goes through a proc of our own, in no
directory, that is thrown away before it has seen many.
"""

from __future__ import annotations

import ctypes
import errno
import os

# System calls that came after the tables had been made one, so they are numbered alike
# everywhere (asm-generic/unistd.h).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_NAMESPACES_MAX = 64  # that one proc sees
_libc = ctypes.CDLL(None, use_errno=True)


class Settings:
    """A proc of our own; what is read and written is of the namespace the thread is in."""

    def __init__(self) -> None:
        self._proc = -1
        self._entered = 0

    def close(self) -> None:
        """Let go of it."""
        if self._proc >= 0:
            os.close(self._proc)
            self._proc = -1

    def enter(self) -> None:
        """The thread is in another namespace from now on, one of many."""
        self._entered += 1
        if self._entered >= _NAMESPACES_MAX:
            self._entered = 0
            self.close()

    def write(self, name: str, text: bytes) -> bool:
        """Set `name`, a path below /proc/sys/net. False if there is no such setting."""
        if self._proc < 0:
            self._proc = _mount_proc()
        try:
            fd = os.open(f"sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except FileNotFoundError:
            return False
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
        return True


def _mount_proc() -> int:
    """A new instance of proc (since Linux 5.8: each mount is one), mounted nowhere."""
    context = _call(_FSOPEN, b"proc", _FSOPEN_CLOEXEC)
    try:
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{errno.errorcode.get(code)} while mounting a proc of our own")
    return result
