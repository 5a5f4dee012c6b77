# SPDX-License-Identifier: Apache-2.0
"""The two rtnetlink sockets: pyroute2's IPRoute, and one for what it has no call for.

In `RouteSocket` pyroute2's classes are the codec; the transport here is a plain socket, which
also keeps the event loop that IPRoute runs out of the way.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from geneve_ebpf.host.messages import Request

__all__ = ["IPRoute", "NetlinkError", "RouteSocket"]

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, body) of each netlink message in what was received."""
    at = 0
    while at < len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


class RouteSocket:
    """NETLINK_ROUTE in the network namespace the thread is in when this is made."""

    def __init__(self, groups: int = 0) -> None:
        """groups: RTMGRP_* of notifications to hear; `listen` then, and nothing else."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, groups))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, message: Any, kind: int, flags: int = 0) -> None:
        """Send one request and wait for its acknowledgement. Raises OSError."""
        self._send(message, kind, flags | _NLM_F_ACK)
        self._receive(type(message))

    def tell_all(self, requests: Sequence[Request]) -> None:
        """Send requests in one go; the kernel obeys them in this order, each by itself.

        Raises the OSError of the first that was refused, when all are answered.
        """
        first = self._sequence + 1
        sent = bytearray()
        for request in requests:
            self._sequence += 1
            sent += _HEADER.pack(
                _HEADER.size + len(request.body),
                request.kind,
                request.flags | _NLM_F_REQUEST | _NLM_F_ACK,
                self._sequence,
                0,
            )
            sent += request.body
        self._socket.send(sent)
        refused = 0
        left = len(requests)
        while left:
            for kind, sequence, body in _messages(self._socket.recv(1 << 18)):
                if sequence >= first and kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    refused = refused or -code
                    left -= 1
        if refused:
            raise OSError(refused, os.strerror(refused))

    def listen(self, seconds: float | None = None) -> list[tuple[int, bytes]]:
        """The next notifications, as (type, body). None within that time: [].

        Raises OSError ENOBUFS when some were lost.
        """
        if not select.select([self._socket], [], [], seconds)[0]:
            return []
        return [(kind, body) for kind, _, body in _messages(self._socket.recv(1 << 18))]

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def dump(self, message: Any, kind: int) -> list[Any]:
        """Send one dump request; the answers, decoded as `message`'s class. Raises OSError."""
        self._send(message, kind, _NLM_F_DUMP)
        return self._receive(type(message))

    def _send(self, message: Any, kind: int, flags: int) -> None:
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = flags | _NLM_F_REQUEST
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(message.data)

    def _receive(self, codec: Any) -> list[Any]:
        answers: list[Any] = []
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at < len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
                body = data[at : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue  # of a request that was given up
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    (code,) = struct.unpack_from("=i", body, _HEADER.size)
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    return answers
                answer = codec(body)
                answer.decode()
                answers.append(answer)
