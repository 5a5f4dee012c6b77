# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the slot process's socket: JSON lines to and from it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any


class Channel:
    """JSON lines to and from the slot process."""

    def __init__(
        self, connection: socket.socket, on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        self._connection = connection
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
            data = self._connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._connection)
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._on_event(json.loads(line))
