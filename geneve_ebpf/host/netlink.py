# SPDX-License-Identifier: Apache-2.0
"""The two rtnetlink sockets: pyroute2's IPRoute, and one for what it has no call for.

In `RouteSocket` pyroute2's classes are the codec; the transport here is a plain socket, which
also keeps the event loop that IPRoute runs out of the way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from geneve_ebpf.host.messages import Request

__all__ = ["Batch", "IPRoute", "NetlinkError", "RouteSocket"]

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_FLAGS, _FLAGS_AT = struct.Struct("=H"), 6
_SEQUENCE, _SEQUENCE_AT = struct.Struct("=I"), 8
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_ECHO, _NLM_F_DUMP = 0x1, 0x4, 0x8, 0x300
_SO_RCVBUFFORCE = 33
# Bytes: every refused request of a batch is answered, at some 800 bytes each as the kernel
# counts them, and all of them before the first can be read. What finds no room is lost.
_ROOM = 4 << 20
# Seconds. The kernel has answered when `send` returns, so an answer that is not there is lost.
PATIENCE = 5


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, body) of each netlink message in what was received."""
    at = 0
    while at < len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


class Batch:
    """Requests made ready to be sent together, as often as need be."""

    __slots__ = ("data", "starts")

    def __init__(self, requests: Sequence[Request]) -> None:
        data = bytearray()
        self.starts: list[int] = []  # where each begins
        for request in requests:
            self.starts.append(len(data))
            size = _HEADER.size + len(request.body)
            data += _HEADER.pack(size, request.kind, request.flags | _NLM_F_REQUEST, 0, 0)
            data += request.body
        self.data = bytes(data)


class RouteSocket:
    """NETLINK_ROUTE in the network namespace the thread is in when this is made.

    It stays there, wherever the thread goes, and takes that namespace's ioctls too.
    Whatever waits for an answer raises OSError when that was lost: ENOBUFS or ETIMEDOUT.
    """

    def __init__(self, groups: int = 0) -> None:
        """groups: RTMGRP_* of notifications to hear, with `listen`."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", PATIENCE, 0)
        )
        self._socket.bind((0, groups))
        self._sequence = 0
        self._heard: list[tuple[int, bytes]] = []  # while an answer was waited for

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
        self.tell_batch(Batch(requests))

    def tell_batch(self, batch: Batch) -> None:
        """As `tell_all`, of requests that are ready."""
        (refused,) = self.tell_each([batch])
        if refused:
            raise OSError(refused, os.strerror(refused))

    def tell_each(self, batches: Sequence[Batch]) -> list[int]:
        """Send several batches in one go; for each the errno of its first refused request, or 0.

        Some hundred kilobytes at most, all together.
        """
        if not batches:
            return []
        first = self._sequence + 1
        sent = bytearray()
        owners = []  # batch of each request
        start = 0
        for number, batch in enumerate(batches):
            base = len(sent)
            sent += batch.data
            for start in batch.starts:
                start += base
                self._sequence += 1
                _SEQUENCE.pack_into(sent, start + _SEQUENCE_AT, self._sequence)
                owners.append(number)
        # The kernel answers whatever it refuses, and what asks for it: the last is enough.
        flags = _FLAGS.unpack_from(sent, start + _FLAGS_AT)[0] | _NLM_F_ACK
        _FLAGS.pack_into(sent, start + _FLAGS_AT, flags)
        self._socket.send(sent)
        refused = [0] * len(batches)
        last = self._sequence
        while True:
            for kind, sequence, body in _messages(self._answer()):
                if kind != _NLMSG_ERROR:
                    self._heard.append((kind, body))
                elif sequence >= first:
                    (code,) = struct.unpack_from("=i", body)
                    owner = owners[sequence - first]
                    refused[owner] = refused[owner] or -code
                    if sequence == last:
                        return refused

    def ask_strictly(self) -> None:
        """Have dumps tell only what their requests ask for, where the kernel can sort it out."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def listen(self, seconds: float | None = None) -> list[tuple[int, bytes]]:
        """The next notifications, as (type, body). None within that time: [].

        Raises OSError ENOBUFS when some were lost.
        """
        if self._heard:
            heard, self._heard = self._heard, []
            return heard
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

    def get(self, message: Any, kind: int) -> list[Any]:
        """Ask about one thing; the answer, decoded as `message`'s class. Raises OSError."""
        self._send(message, kind, _NLM_F_ACK | _NLM_F_ECHO)  # tc answers to an echo alone
        return self._receive(type(message))

    def dump_bytes(self, request: Request, most: int = 0) -> list[bytes]:
        """Send a dump's request; all answers' bodies as they are. Raises OSError.

        most: raises E2BIG where there are more, unless it is 0; the socket is of no use then.

        All: a dump goes on only as it is read, and until its end the kernel refuses
        another one on the socket (EBUSY).
        """
        return self._bodies(request, _NLM_F_DUMP, most)

    def get_bytes(self, request: Request) -> bytes:
        """Send a request about one thing; its answer's body as it is. Raises OSError."""
        (body,) = self._bodies(request, _NLM_F_ACK)
        return body

    def _bodies(self, request: Request, flags: int, most: int = 0) -> list[bytes]:
        bodies: list[bytes] = []
        self._sequence += 1
        flags |= request.flags | _NLM_F_REQUEST
        size = _HEADER.size + len(request.body)
        self._socket.send(
            _HEADER.pack(size, request.kind, flags, self._sequence, 0) + request.body
        )
        while True:
            for kind, sequence, body in _messages(self._answer()):
                if sequence != self._sequence:
                    continue  # of a request that was given up
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    (code,) = struct.unpack_from("=i", body)
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    return bodies
                bodies.append(body)
            if most and len(bodies) > most:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    def _answer(self) -> bytes:
        """What the kernel says next, one message or several."""
        try:
            return self._socket.recv(1 << 18)
        except BlockingIOError:
            raise TimeoutError(errno.ETIMEDOUT, "an answer of the kernel was lost") from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                # Until nothing is left to read the kernel drops whatever comes, unsaid.
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
            raise

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
            data = self._answer()
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
