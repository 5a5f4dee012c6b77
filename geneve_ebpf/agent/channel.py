# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the slot process's socket: JSON lines to and from it.

A line with "passes" has a descriptor with it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from geneve_ebpf.agent.descriptor import Descriptor

_DESCRIPTORS_MAX = 8  # with one piece of what is read; the kernel gives those of one line at most


class Channel:
    """JSON lines to and from the slot process."""

    def __init__(
        self,
        connection: socket.socket,
        on_event: Callable[[dict[str, Any], Descriptor | None], None],
    ) -> None:
        self._connection = connection
        self._passed: deque[Descriptor] = deque()  # whose lines are not read yet
        self._on_event = on_event
        self._pending = b""
        self._unsent = b""
        asyncio.get_running_loop().add_reader(connection, self._readable)

    def order(self, op: str, indexes: list[int], **more: object) -> None:
        """Send one order."""
        self._unsent += json.dumps({"op": op, "indexes": indexes, **more}).encode() + b"\n"
        self._writable()

    def close(self) -> None:
        """Close our end."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection)
        loop.remove_writer(self._connection)
        self._connection.close()

    def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sent = self._connection.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it died, which whoever watches the process is about to learn
        self._unsent = self._unsent[sent:]
        if self._unsent:
            loop.add_writer(self._connection, self._writable)
        else:
            loop.remove_writer(self._connection)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._connection.recvmsg(
                65536, socket.CMSG_SPACE(4 * _DESCRIPTORS_MAX), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for _, _, rights in ancillary:
            numbers = struct.unpack(f"{len(rights) // 4}i", rights)
            self._passed.extend(map(Descriptor, numbers))
        if not data:
            asyncio.get_running_loop().remove_reader(self._connection)
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            self._on_event(event, self._passed.popleft() if event.get("passes") else None)
