# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 on a connection: bytes in, requests out, answers back in their order.

Knows no path of the API. A request that cannot be read gets one JSON error and
its connection is closed; so does a peer that may not use the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from http import HTTPStatus
from time import perf_counter_ns
from typing import TYPE_CHECKING, cast

import httptools

from geneve_ebpf.agent.attention import Attention
from geneve_ebpf.agent.descriptor import Descriptor
from geneve_ebpf.agent.exchange import (
    KEPT,
    KEPT_LENGTHS,
    NO_FIELDS,
    TRACEPARENT,
    Answer,
    Patient,
    Peer,
    Request,
    error_answer,
)
from geneve_ebpf.errors import Code, GeneveError

if TYPE_CHECKING:
    from geneve_ebpf.agent.server import Server

HEAD_MAX = 32 << 10  # bytes of request line and header fields
# Requests of one connection that are read and not begun, and bytes of their bodies: with so many
# it is not read from.
WAITING_MAX, WAITING_BYTES_MAX = 256, 64 << 10
# A body of more bytes is large; the large ones of all connections have so much room together,
# from their first byte to their answer.
LARGE, LARGE_BYTES_MAX = 64 << 10, 256 << 20
LINGER = 1.0  # seconds that a refused peer may go on sending
PART_TIMEOUT = 30.0  # seconds that a request may stay half-sent
PASS_TIMEOUT = 5.0  # seconds that a peer has to make room for an answer with a descriptor
SO_PEERGROUPS = 59  # asm-generic/socket.h


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for part in nothing:
        yield part


def peer_of(connection: socket.socket) -> Peer:
    """The credentials that the kernel noted when the peer connected."""
    pid, uid, gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:  # more than 256 groups: the first one has to do
        packed = b""
    groups = frozenset(struct.unpack(f"{len(packed) // 4}I", packed[: len(packed) // 4 * 4]))
    return Peer(pid, uid, gid, groups)


_HEADS = {
    status.value: (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        + ("" if status.value == 204 else "Content-Type: application/json\r\nContent-Length: ")
    ).encode()
    for status in HTTPStatus
    if status.value >= 200
}


class Connection(asyncio.Protocol):
    """One connection. Requests are answered one after another, in their order."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._peer = Peer(0, -1, -1, frozenset())
        self._allowed = False
        self._parser = httptools.HttpRequestParser(self)
        self._received = 0  # of the bytes that are being parsed
        self._started = 0  # when the request that is being read began; 0 between two
        self._attention = Attention()
        self._closing = False  # nothing more is read
        self._target = b""
        self._body: bytes | bytearray = b""  # what has come of it
        self._announced = 0  # bytes that the body is to have
        self._size = 0  # bytes that have come
        self._head_size = 0
        self._in_head = True
        self._limit = 0
        self._expects = False
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._waiting_bytes = 0  # of their bodies
        self._in_work = 0  # bytes of the body of what is being answered, if it is a large one
        self._working: asyncio.Task[None] | None = None
        self._patient = False  # what is waited for may be cancelled
        self._fields = NO_FIELDS
        self._paused_by_peer = False
        self._paused_by_us = False  # it asks faster than it is answered
        self._room: asyncio.Event | None = None  # a stream waits for it while the peer is slow
        self._refusal: GeneveError | None = None

    @property
    def busy(self) -> bool:
        """Is a request read and not answered?"""
        return self._working is not None

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have all of its methods and do not descend from it.
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        connection = transport.get_extra_info("socket")
        self._peer = peer_of(connection)
        peer = self._peer
        self._allowed = peer.uid == 0 or peer.gid == server.group or server.group in peer.groups
        refusal = server.add(self)
        if refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._closing = True
        self._drop_waiting()
        self._drop_body()
        self._transport = None
        if self._working is not None and self._patient:
            self._working.cancel()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._received = perf_counter_ns()
        if self._in_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(
                GeneveError(
                    Code.BAD_REQUEST, "no other protocol is spoken here", hint="leave Upgrade out"
                )
            )
            return
        except httptools.HttpParserError as error:
            refusal = self._refusal
            if refusal is None:
                refusal = GeneveError(
                    Code.BAD_REQUEST, f"not HTTP/1.1: {error}", hint="see docs/api.md"
                )
            self._refuse(refusal)
            return
        if self._in_head and self._head_size > HEAD_MAX:
            self._refuse(_too_large("the request's head", HEAD_MAX))

    def eof_received(self) -> bool:
        """The peer has sent its last. What it asked for whole is still answered."""
        if self._started and not self._closing:
            self._refuse(
                GeneveError(
                    Code.BAD_REQUEST,
                    "the request ends half-way",
                    hint="nothing was changed; send it whole",
                )
            )
        self._closing = True
        # True keeps the transport open for the answers. Who closes while waiting for what
        # can be cancelled has gone: half of a connection is not told from the whole.
        return self.busy and not self._patient

    def pause_writing(self) -> None:
        self._paused_by_peer = True
        self._read_on_or_not()

    def resume_writing(self) -> None:
        self._paused_by_peer = False
        if self._room is not None:
            self._room.set()
        self._read_on_or_not()

    # From the parser

    def on_message_begin(self) -> None:
        self._announced = 0
        self._target = b""
        self._expects = False
        self._fields = NO_FIELDS
        self._in_head = True
        self._started = self._received

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 6 and name.lower() == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif len(name) == 14 and name.lower() == b"content-length":
            self._announced = int(value) if value.isdigit() else 0
        elif len(name) in KEPT_LENGTHS and (key := name.lower()) in KEPT:
            if self._fields is NO_FIELDS:
                self._fields = {}
            self._fields[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_size = 0
        self._limit = self._server.handler.body_limit(self._target)
        if self._announced > self._limit:
            self._stop_parsing(_too_large("the body", self._limit))
        if self._expects and self._transport is not None and not self.busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._closing:
            return
        before = self._size
        self._size = size = before + len(body)
        if not before:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:  # not a list of parts: the smallest ones would take fifty times their size
            self._body = bytearray(self._body) + body
        if size > LARGE:
            self._server.large_bytes += _large(size) - _large(before)
            if self._server.large_bytes > LARGE_BYTES_MAX:
                self._stop_parsing(_no_room())
        if size > self._limit:
            self._stop_parsing(_too_large("the body", self._limit))

    def on_message_complete(self) -> None:
        self._started = 0
        self._in_head = True
        self._head_size = 0
        if self._parser.should_upgrade() or self._closing:
            return  # feed_data raises for the former
        fields, traces = self._fields, self._server.traces
        request = Request(
            self._parser.get_method().decode("ascii"),
            self._target.decode("latin-1"),
            bytes(self._body),
            self._peer,
            self._received,
            traces.next() if fields is NO_FIELDS else traces.of(fields.get(TRACEPARENT, "")),
            fields,
        )
        self._body, self._size = b"", 0
        keep = self._parser.should_keep_alive() and not self._server.stopping
        if self._working is not None:
            self._waiting.append((request, keep))
            self._waiting_bytes += len(request.body)
            self._read_on_or_not()
            return
        self._begin(request, keep)

    # Answering

    def _begin(self, request: Request, keep: bool) -> None:
        """Answer one request, at once where that is possible."""
        if not self._allowed:
            answer: Answer | Awaitable[Answer] = error_answer(
                GeneveError(
                    Code.NOT_PERMITTED,
                    f"uid {request.peer.uid} may not use this socket",
                    hint="run it as root, or as a member of the socket's group",
                )
            )
            keep = False
        else:
            answer = self._server.handler.handle(request)
        size = len(request.body)
        self._in_work = size if size > LARGE else 0
        if isinstance(answer, Answer):
            self._send(request, answer, keep)
            if self._in_work:
                self._end_work()
        else:
            self._patient = isinstance(answer, Patient)
            self._working = asyncio.ensure_future(self._work(request, answer, keep))
            self._working.add_done_callback(self._never_begun)

    def _end_work(self) -> None:
        """A request is answered, or never will be: its body takes no room any more."""
        self._server.large_bytes -= self._in_work
        self._in_work = 0

    def _never_begun(self, task: asyncio.Task[None]) -> None:
        if self._working is task:  # cancelled before its first step: `_work` saw nothing of it
            self._end_work()

    def _next(self) -> tuple[Request, bool]:
        """The next request that waits, which is worked on from now on instead of the last one."""
        request, keep = self._waiting.popleft()
        self._waiting_bytes -= len(request.body)
        self._end_work()
        self._in_work = _large(len(request.body))
        return request, keep

    def _drop_waiting(self) -> None:
        """Forget what was read and not begun."""
        self._server.large_bytes -= sum(_large(len(one.body)) for one, _ in self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _drop_body(self) -> None:
        """Forget what has come of the request that is being read."""
        self._server.large_bytes -= _large(self._size)
        self._body, self._size = b"", 0

    async def _work(self, request: Request, awaitable: Awaitable[Answer], keep: bool) -> None:
        """Wait for one answer, then go through what has come in meanwhile."""
        try:
            await self._deliver(request, await awaitable, keep)
            while self._waiting:
                request, keep = self._next()
                answer = self._server.handler.handle(request)
                if not isinstance(answer, Answer):
                    self._patient = isinstance(answer, Patient)
                    answer = await answer
                await self._deliver(request, answer, keep)
        except BaseException as error:
            # Part of the answer may be out: a close in the middle is what says so.
            self._end_work()
            self._drop_waiting()
            self._working = None
            self.close()
            if not isinstance(error, Exception):
                raise
            self._server.log.defect(
                "defect", error, method=request.method, target=request.target[:200],
                uid=request.peer.uid, pid=request.peer.pid, trace=request.trace,
            )  # fmt: skip
            return
        self._end_work()
        self._working = None
        self._read_on_or_not()
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._closing:
            self.close()

    async def _deliver(self, request: Request, answer: Answer, keep: bool) -> None:
        """Send an answer, all of its stream if it has one, no faster than the peer reads."""
        transport = self._transport
        if answer.descriptor is not None:
            await self._pass(request, answer, keep, answer.descriptor)
            return
        if answer.stream is None or transport is None:
            self._send(request, answer, keep)
            return
        self._patient = True
        self._room = asyncio.Event()
        close = b"" if keep else b"Connection: close\r\n"
        transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\nTrace-Id: %b\r\n%b\r\n"
            % (request.trace.encode(), close)
        )
        async for part in answer.stream if request.method != "HEAD" else _nothing():
            transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            if self._paused_by_peer:
                self._room.clear()
                await self._room.wait()
        if request.method != "HEAD":
            transport.write(b"0\r\n\r\n")
        self._room = None
        if not keep:
            self.close()

    async def _pass(
        self, request: Request, answer: Answer, keep: bool, descriptor: Descriptor
    ) -> None:
        """Send an answer with a descriptor, which must be with its own first byte: not before
        all that was written earlier is out. It is closed here, whatever comes, and before the
        answer is whole: nobody is to find a tap busy that he has closed."""
        text = self._text(request, answer, keep)
        deadline = asyncio.get_running_loop().time() + PASS_TIMEOUT
        try:
            while (transport := self._transport) is not None:
                waiting = transport.get_write_buffer_size()
                if not waiting and pass_on(transport, text[:1], descriptor):
                    descriptor.close()
                    self._write(text[1:], keep)
                    return
                if asyncio.get_running_loop().time() > deadline:
                    self.close()  # it does not read; nobody is to hold what it was to get
                    return
                await asyncio.sleep(0.001)
        finally:
            descriptor.close()

    def _send(self, request: Request, answer: Answer, keep: bool, linger: bool = False) -> None:
        self._write(self._text(request, answer, keep), keep, linger)
        if answer.then is not None:
            answer.then()

    def _text(self, request: Request, answer: Answer, keep: bool) -> bytes:
        if answer.status == 204:
            head = _HEADS[204] + answer.head
        else:
            head = b"%b%d\r\n%b" % (_HEADS[answer.status], len(answer.body), answer.head)
        if request.trace:
            head = b"%bTrace-Id: %b\r\n" % (head, request.trace.encode())
        if not keep:
            head += b"Connection: close\r\n"
        body = b"" if request.method == "HEAD" else answer.body
        return b"%b\r\n%b" % (head, body)

    def _write(self, text: bytes, keep: bool, linger: bool = False) -> None:
        transport = self._transport
        if transport is None:
            return
        began = perf_counter_ns()
        transport.write(text)
        until = self._attention.until(self._received, began, perf_counter_ns(), len(text))
        self._server.stay_awake(until)
        if not keep:
            self._closing = True
            self._drop_waiting()
            if linger:
                transport.write_eof()
            else:
                transport.close()

    def _stop_parsing(self, error: GeneveError) -> None:
        """Within a callback of the parser: raise, after noting what for."""
        self._refusal = error
        raise error

    def _refuse(self, error: GeneveError) -> None:
        """Answer with an error after all that went before, and close."""
        self._closing = True
        self._refusal = error
        self._drop_body()
        if self._working is not None:
            return  # _work comes back here when the answers before it are out
        self._started = 0
        self._server.log.change(
            "refused",
            uid=self._peer.uid,
            pid=self._peer.pid,
            code=error.code.slug,
            message=error.message,
        )
        if self._transport is not None:
            # A peer that is still sending must come to read the answer: what it
            # sends is thrown away for a moment, then the connection is closed.
            asyncio.get_running_loop().call_later(LINGER, self.close)
            nobody = Request("", "", b"", self._peer, 0)
            self._send(nobody, error_answer(error), keep=False, linger=True)

    def refuse_if_slow(self, now: int) -> None:
        """Close if a request began PART_TIMEOUT before now (perf_counter_ns) and is not whole."""
        if self._closing or self._paused_by_us:
            return
        if self._started and self._started < now - PART_TIMEOUT * 1e9:
            self._refuse(
                GeneveError(
                    Code.BAD_REQUEST,
                    f"the request was not whole within {PART_TIMEOUT:.0f} s",
                    hint="nothing was changed; send it whole",
                )
            )

    def close(self) -> None:
        """Close the connection once its answers are out."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _read_on_or_not(self) -> None:
        """Stop reading from a peer that does not read, or asks faster than it is answered."""
        if self._transport is None or self._transport.is_closing():
            return
        many = len(self._waiting) >= WAITING_MAX or self._waiting_bytes >= WAITING_BYTES_MAX
        if self._paused_by_us and not many and self._started:
            self._started = perf_counter_ns()  # the peer could not send on before
        self._paused_by_us = many
        if self._paused_by_peer or many:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def pass_on(transport: asyncio.Transport, byte: bytes, descriptor: Descriptor) -> bool:
    """Send a byte and a descriptor; whether there was room for it."""
    # Transports cannot do it, and have no socket that can; a copy of theirs can.
    number = os.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=number) as door:
        rights = struct.pack("i", descriptor.number)
        with contextlib.suppress(OSError):  # no room; or it has gone, which is about to be said
            door.sendmsg(
                [byte], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL
            )
            return True
    return False


def _large(size: int) -> int:
    """What a body of so many bytes takes of the room for large ones."""
    return size if size > LARGE else 0


def _no_room() -> GeneveError:
    return GeneveError(
        Code.BUSY,
        f"requests of {LARGE_BYTES_MAX} bytes are here already",
        hint="nothing was changed; try again when others have been answered",
    )


def _too_large(what: str, limit: int) -> GeneveError:
    return GeneveError(
        Code.TOO_LARGE,
        f"{what} exceeds {limit} bytes",
        hint="split it, or use PUT /v1/state, which takes most",
    )
