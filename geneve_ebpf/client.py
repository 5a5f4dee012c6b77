# SPDX-License-Identifier: Apache-2.0
"""The other end of the agent's socket: HTTP/1.1 and JSON, and nothing else.

Made for callers that attach on their hot path: it imports the standard library
and our errors only, keeps one connection, and speaks HTTP by hand, because
`http.client` alone costs several times what an attach does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter_ns
from typing import Any, BinaryIO

from geneve_ebpf.errors import Code, GeneveError

DEFAULT_SOCKET = "/run/geneve-ebpf/default/api.sock"
HOST_VARIABLE = "GENEVE_EBPF_HOST"

_CHUNK = 1 << 16
_PASSED_MAX = 8  # descriptors with an answer; the agent passes one
_HEAD_MAX = 1 << 14  # bytes of an answer's head; the agent's own is about 100
# Nanoseconds that an answer is looked for before this thread sleeps: being woken costs
# about as much as an attach, which takes half of that. And more for each byte of the
# request's body, up to a bound, as a batch takes the agent longer. Only soon after the last
# answer, or the agent sleeps, too.
_LOOK, _LOOK_A_BYTE, _LOOK_MOST, _SOON = 100_000, 250, 2_000_000, 1_000_000
# How many of the next answers are slept for at once, at the most, after answers in a row
# that came later: see `_first_bytes`.
_SLEEP_MOST = 255
_TRACEPARENT = re.compile(r"[0-9a-f-]{55}")
# json.dumps makes an encoder anew whenever its separators are not the usual ones.
_encode = json.JSONEncoder(separators=(",", ":")).encode

Receive = Callable[[socket.socket, int], bytes]  # a connection, flags: a piece of an answer


class AgentClient:
    """One connection to one agent, opened by the first request and kept.

    path: the agent's Unix socket. timeout: seconds that the agent may stay
    silent. Not for several threads at once: give each its own.
    """

    def __init__(self, path: str | os.PathLike[str] = DEFAULT_SOCKET, timeout: float = 30) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        # Header lines of every request: who calls us may be traced (W3C Trace Context).
        parent = os.environ.get("TRACEPARENT", "")
        self._lines = f"traceparent: {parent}\r\n" if _TRACEPARENT.fullmatch(parent) else ""
        self._socket: socket.socket | None = None
        self._sleeps = self._sleep_next = 0  # answers to sleep for, from now on and after a miss
        self._answered = 0  # when the last answer came

    @classmethod
    def from_host(cls, host: str, timeout: float = 30) -> AgentClient:
        """A client for `unix:///path/of/the/socket`. Raises BAD_REQUEST for anything else."""
        path = host.removeprefix("unix://")
        if path == host or not path.startswith("/"):
            raise GeneveError(
                Code.BAD_REQUEST,
                f"{host!r} does not name an agent's socket",
                hint=f"such as unix://{DEFAULT_SOCKET}",
                field=HOST_VARIABLE,
            )
        return cls(path, timeout)

    @classmethod
    def from_environment(cls, timeout: float = 30) -> AgentClient:
        """A client for the agent that GENEVE_EBPF_HOST names, else for node `default`."""
        return cls.from_host(os.environ.get(HOST_VARIABLE) or f"unix://{DEFAULT_SOCKET}", timeout)

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; the next request opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Ask once; the answer's status (below 400) and its body ({} when it has none).

        path: as on the wire, so quoted already. Raises the `GeneveError` that
        the agent answered with; AGENT_UNREACHABLE when it does not answer, in
        which case a change may or may not have been made; NOT_PERMITTED when
        the caller may not use the socket.
        """
        return self._ask(method, path, body, headers, _receive)

    def open_tap(self, slot: str) -> int:
        """The tap of a slot that is reserved or attached, opened: a descriptor, the caller's to
        close, which programs that he starts do not inherit.

        For whoever may not open /dev/net/tun. Frames have virtio's header before them, of 10
        bytes until it is changed (TUNSETVNETHDRSZ); offloads are off. Raises as `request` does;
        TAP_BUSY when somebody has it open already.
        """
        passed: list[int] = []
        try:
            self._ask(
                "POST", f"/v1/taps/{slot}", None, None, partial(_receive_passing, passed=passed)
            )
            if passed:
                return passed.pop(0)
        finally:
            for number in passed:
                os.close(number)
        raise GeneveError(
            Code.INTERNAL, f"the agent at {self.path} passed no descriptor", hint="is it ours?"
        )

    def _ask(
        self,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, str] | None,
        receive: Receive,
    ) -> tuple[int, dict[str, Any]]:
        """receive: reads the first piece of the answer."""
        content = b"" if body is None else _encode(body).encode()
        message = (
            f"{method} {path} HTTP/1.1\r\nHost: agent\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            f"{self._lines}{_header_lines(headers) if headers else ''}\r\n"
        ).encode() + content
        try:
            connection = self._sent(message)
            first = self._first_bytes(connection, receive, len(content))
            status, answer, reusable = _read_answer(connection, first)
        except (OSError, ValueError) as error:
            self.close()
            raise self._failure(error) from None
        except BaseException:  # an interrupt: the next request would read this one's answer
            self.close()
            raise
        if not reusable:
            self.close()
        if status >= 400:
            raise error_from_json(answer, status)
        return status, answer

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """GET an answer that is lines of JSON, and may have no end: each as it comes.

        Uses a connection of its own. Raises as `request` does.
        """
        with contextlib.closing(self._connect()) as connection:
            try:
                connection.sendall(
                    f"GET {path} HTTP/1.1\r\nHost: agent\r\n{self._lines}\r\n".encode(),
                    socket.MSG_NOSIGNAL,
                )
                with connection.makefile("rb") as stream:
                    status, length = stream.readline(_HEAD_MAX), 0
                    while field := stream.readline(_HEAD_MAX).strip().lower():
                        if field.startswith(b"content-length:"):
                            length = int(field[15:])
                    if length:  # an error: whole, as any other answer
                        raise error_from_json(
                            json.loads(stream.read(length)), int(status.split()[1])
                        )
                    yield from _chunked_lines(stream)
            except (OSError, ValueError) as error:
                raise self._failure(error) from None

    def _failure(self, error: OSError | ValueError) -> GeneveError:
        """What went wrong with a connection, as AGENT_UNREACHABLE."""
        if isinstance(error, BlockingIOError):  # how a socket timeout of the kernel's shows
            message = f"the agent at {self.path} did not answer within {self.timeout:g} s"
        elif isinstance(error, OSError):
            message = f"the agent at {self.path} closed the connection: {error.strerror or error}"
        else:
            return GeneveError(
                Code.AGENT_UNREACHABLE,
                f"what answers at {self.path} is not an agent: {error}",
                hint=f"is {HOST_VARIABLE} right?",
            )
        return GeneveError(
            Code.AGENT_UNREACHABLE,
            message,
            hint="look at its log; whether the request was carried out is not known",
        )

    def _sent(self, message: bytes) -> socket.socket:
        """Send it to the agent that the kept connection leads to, or else to a new one.

        Raises OSError; GeneveError where there is no agent.
        """
        kept = self._socket
        if kept is not None:
            try:
                # MSG_NOSIGNAL: an agent that went away is an error to report, not a SIGPIPE.
                kept.sendall(message, socket.MSG_NOSIGNAL)
                return kept
            except ConnectionError:
                # It has closed its end, before a restart perhaps. The message did not go out
                # whole, so nobody has carried it out: it may be sent again.
                self.close()
        connection = self._socket = self._connect()
        connection.sendall(message, socket.MSG_NOSIGNAL)
        return connection

    def _first_bytes(self, connection: socket.socket, receive: Receive, size: int) -> bytes:
        """The beginning of the answer to a request whose body has that size. Raises OSError.

        It is looked for before this thread sleeps. Where that is in vain, because the agent
        has no other CPU than ours for instance, it is soon hardly ever done any more.
        """
        now = perf_counter_ns()
        if now - self._answered > _SOON:
            received = receive(connection, 0)
        elif self._sleeps:
            self._sleeps -= 1
            received = receive(connection, 0)
        else:
            late = now + min(_LOOK + _LOOK_A_BYTE * size, _LOOK_MOST)
            received = self._looked_for(connection, receive, late)
        self._answered = perf_counter_ns()
        return received

    def _looked_for(self, connection: socket.socket, receive: Receive, late: int) -> bytes:
        while True:
            try:
                received = receive(connection, socket.MSG_DONTWAIT)
                self._sleep_next //= 2
                return received
            except BlockingIOError:
                if perf_counter_ns() > late:
                    break
        self._sleeps = self._sleep_next = min(2 * self._sleep_next + 1, _SLEEP_MOST)
        return receive(connection, 0)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The kernel's own timeouts: Python's would cost a poll(2) before each call.
        timeout = struct.pack("@ll", int(self.timeout), int(self.timeout % 1 * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        try:
            connection.connect(self.path)
        except PermissionError:
            connection.close()
            raise GeneveError(
                Code.NOT_PERMITTED,
                f"may not use the agent's socket {self.path}",
                hint="run it as root: sudo",
            ) from None
        except (OSError, ValueError) as error:
            connection.close()
            missing = isinstance(error, FileNotFoundError)
            why = "there is no such socket" if missing else getattr(error, "strerror", "") or error
            raise GeneveError(
                Code.AGENT_UNREACHABLE,
                f"no agent at {self.path}: {why}",
                hint="start one with `geneve-ebpf agent run --config FILE`, "
                f"or name its socket in {HOST_VARIABLE}",
            ) from None
        return connection


def _header_lines(headers: dict[str, str]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def _chunked_lines(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """The lines in a chunked body; the agent sends whole ones. Raises ValueError, OSError."""
    while True:
        head = stream.readline(_HEAD_MAX)
        if not head:
            raise ConnectionResetError(0, "the answer breaks off")
        size = int(head, 16)
        part = stream.read(size + 2)
        if not size:
            return
        for line in part.splitlines():
            if line:
                yield json.loads(line)


def error_from_json(answer: dict[str, Any], status: int = 500) -> GeneveError:
    """The `GeneveError` that `as_json` wrote. A code we do not know becomes INTERNAL."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return GeneveError(
            Code.INTERNAL,
            f"the agent answered {status} without saying why",
            hint="its log may say more; is that socket the agent's?",
        )
    return GeneveError.from_json(error)


def _receive(connection: socket.socket, flags: int) -> bytes:
    return connection.recv(_CHUNK, flags)


def _receive_passing(connection: socket.socket, flags: int, passed: list[int]) -> bytes:
    """As `_receive`, with the descriptors that come along: they are with the first byte."""
    data, ancillary, _, _ = connection.recvmsg(
        _CHUNK, socket.CMSG_SPACE(4 * _PASSED_MAX), flags | socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            passed += struct.unpack(f"{len(rights) // 4}i", rights)
    return data


def _field(head: bytes, start: bytes) -> bytes:
    """The value of the line of a head that starts so, in small letters; b"" if it has none."""
    at = head.find(start)
    if at < 0:
        return b""
    at += len(start)
    return head[at : head.index(b"\r\n", at)].strip()


def _read_answer(
    connection: socket.socket, received: bytes
) -> tuple[int, dict[str, Any], bool]:
    """Status, body, and whether the connection may be used again. Raises ValueError, OSError.

    received: the first bytes of it.
    """
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > _HEAD_MAX:
            raise ValueError("its answer has no end of head")
        more = connection.recv(_CHUNK)
        if not more or not received:
            raise ConnectionResetError(0, "no whole answer came")
        received += more
    if not received.startswith(b"HTTP/1.") or not received[9:12].isdigit():
        raise ValueError(f"it said {received[:40].decode('latin-1')!r}")
    status = int(received[9:12])
    head = received[: end + 2].lower()
    length = int(_field(head, b"\r\ncontent-length:") or 0)
    reusable = head.startswith(b"http/1.1") and _field(head, b"\r\nconnection:") != b"close"
    if b"\r\ntransfer-encoding:" in head:
        raise ValueError("its answer comes in chunks")
    parts = [received[end + 4 :]]
    missing = length - len(parts[0])
    while missing > 0:
        part = connection.recv(min(missing, 1 << 20))
        if not part:
            raise ConnectionResetError(0, "the answer breaks off")
        parts.append(part)
        missing -= len(part)
    if missing < 0:
        raise ValueError("more came than was announced")
    if not length:
        return status, {}, reusable
    answer = json.loads(b"".join(parts))
    if not isinstance(answer, dict):
        raise ValueError("its answer is not a JSON object")
    return status, answer, reusable
