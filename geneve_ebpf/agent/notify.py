# SPDX-License-Identifier: Apache-2.0
"""Tells the service manager how the agent is, in the datagrams of sd_notify(3)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send a state such as "READY=1"; False where nobody asked for it or nobody listens."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target.startswith(("/", "@")):
        return False
    # An abstract address is written with an @ for its zero byte.
    address = "\0" + target[1:] if target.startswith("@") else target
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, address)
        except OSError:
            return False
    return True


def tell_watchdog() -> None:
    """The loop still turns."""
    notify("WATCHDOG=1")


def watchdog_seconds() -> float | None:
    """How often "WATCHDOG=1" is due: half of what the manager waits; None if it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if process and process != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
