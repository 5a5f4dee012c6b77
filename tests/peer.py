# SPDX-License-Identifier: Apache-2.0
"""Somebody at the other end of a Unix socket, who says exactly what a test wants said."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Peer:
    """A server whose every word is a test's. Counts connections, keeps what it was sent."""

    def __init__(self, path, script, passed):
        self.path = path
        self.script = script  # per connection: a list of answers, then it is closed
        self.passed = passed  # part of an answer -> descriptors that go with it
        self.received: list[bytes] = []
        self.connections = 0
        self._closed = threading.Semaphore(0)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(5)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        for answers in self.script:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(5)
                self.connections += 1
                for answer in answers:
                    request = self._request(connection)
                    if not request:  # it has gone, and hears no more answers here
                        break
                    self.received.append(request)
                    for part in [answer] if isinstance(answer, bytes) else answer:
                        socket.send_fds(connection, [part[:1]], self.passed.get(part, []))
                        connection.sendall(part[1:])
            self._closed.release()
        self._listener.close()

    def wait_closed(self, connections):
        """Wait until so many connections more were played to their end and closed."""
        for _ in range(connections):
            assert self._closed.acquire(timeout=5)

    @staticmethod
    def _request(connection):
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return data
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def join(self):
        self._thread.join(5)
        assert not self._thread.is_alive()


@contextmanager
def peer(tmp_path, *script, passed=()) -> Iterator[Peer]:
    """A peer that plays the script, one list of answers a connection.

    passed: descriptors that go with a part of an answer, by what that part is.
    """
    served = Peer(tmp_path / "api.sock", script, dict(passed))
    yield served
    served.join()


def answer(status: str, body: object = None, *headers: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content
