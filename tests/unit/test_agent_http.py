# SPDX-License-Identifier: Apache-2.0
"""HTTP on a Unix socket, byte by byte: a real server on a real socket, with a handler that
says what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import threading
import time

import pytest
import uvloop

from geneve_ebpf.agent import http
from geneve_ebpf.agent.descriptor import Descriptor
from geneve_ebpf.agent.exchange import Answer
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.server import Server

LIMIT = 100_000


class Echo:
    """Answers with method, target and size of the body; /slow takes a moment, /gate until it
    is opened, others fail."""

    def handle(self, request):
        body = json.dumps([request.method, request.target, len(request.body)]).encode()
        if request.target == "/slow":
            return self.later(Answer(200, body))
        if request.target == "/gate":
            return self.through_the_gate(Answer(200, body))
        if request.target == "/fails":
            return self.failing()
        if request.target == "/stream-fails":
            return self.later(Answer(200, stream=self.parts()))
        if request.target == "/large":
            return Answer(200, json.dumps("x" * (4 << 20)).encode())
        if request.target in ("/pass", "/pass-now"):
            reading, writing = os.pipe()
            self.pipes.append(reading)
            wait = 0.05 if request.target == "/pass" else 0
            return self.later(Answer(200, body, descriptor=Descriptor(writing)), wait)
        if request.target == "/nothing":
            return Answer(204)
        if request.target == "/followed":
            self.done.append("answered")
            return Answer(200, body, then=lambda: self.done.append("followed"))
        if request.target == "/done":
            return Answer(200, json.dumps(self.done).encode())
        return Answer(200, body)

    def __init__(self):
        self.pipes = []  # the other ends of what was passed on
        self.done = []
        self.gate = asyncio.Event()

    async def later(self, answer, wait=0.05):
        if wait:
            await asyncio.sleep(wait)
        return answer

    async def through_the_gate(self, answer):
        await self.gate.wait()
        return answer

    async def failing(self):
        await asyncio.sleep(0.05)
        raise RuntimeError("this is a defect")

    async def parts(self):
        yield b"{}\n"
        raise RuntimeError("this is a defect")

    def body_limit(self, target):
        return LIMIT


class Running:
    """A server in a thread of its own."""

    def __init__(self, path, group):
        self.path = path
        self.group = group
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: uvloop.run(self.serve()))
        self.thread.start()
        assert self.ready.wait(10)

    async def serve(self):
        self.stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        with open(f"{self.path}.log", "w") as log:
            self.echo = Echo()
            self.server = Server(self.echo, Log(log.fileno()), self.group)
            listener = await self.loop.create_unix_server(self.server.connection, self.path)
            self.ready.set()
            await self.stop.wait()
            listener.close()
            await self.server.stop()

    def open_gate(self):
        """Have /gate answered."""
        self.loop.call_soon_threadsafe(self.echo.gate.set)

    def close(self):
        self.open_gate()
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)


@pytest.fixture
def running(tmp_path):
    server = Running(str(tmp_path / "s"), os.getgid())
    yield server
    server.close()


@pytest.fixture
def connect(running):
    with contextlib.ExitStack() as stack:

        def make():
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.settimeout(10)
            made.connect(running.path)
            return made

        yield make


def until_closed(connection):
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def bodies(data):
    """Status and JSON of each answer in a stream of them."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        size = int(fields.get(b"content-length", 0))
        found.append((status, json.loads(data[:size]) if size else None))
        data = data[size:]
    return found


CLOSE = b"Connection: close\r\n\r\n"


def test_a_request_is_answered_and_the_connection_kept(connect):
    connection = connect()
    for number in range(3):
        connection.sendall(b"PUT /%d HTTP/1.1\r\nContent-Length: 2\r\n\r\nab" % number)
        assert bodies(connection.recv(65536)) == [(200, ["PUT", f"/{number}", 2])]


def test_pipelined_requests_are_answered_in_their_order(connect):
    """Also where an earlier one takes longer than those after it."""
    connection = connect()
    connection.sendall(
        b"GET /slow HTTP/1.1\r\n\r\nGET /1 HTTP/1.1\r\n\r\nGET /slow HTTP/1.1\r\n\r\n"
        b"POST /2 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\n" + CLOSE
    )

    answers = bodies(until_closed(connection))
    assert [body[1] for _, body in answers] == ["/slow", "/1", "/slow", "/2", "/3"]


def test_a_request_may_come_in_single_bytes(connect):
    connection = connect()
    for byte in b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc":
        connection.sendall(bytes([byte]))

    assert bodies(connection.recv(65536)) == [(200, ["PUT", "/x", 3])]


def test_what_follows_an_answer_is_done_before_anything_else(connect):
    """Also where requests wait behind a slow one, and for who has gone."""
    followed, done = ask_for(b"/followed"), b"GET /done HTTP/1.1\r\n" + CLOSE
    pair = ["answered", "followed"]

    one, two, three = connect(), connect(), connect()
    one.sendall(followed + done)
    assert bodies(until_closed(one))[1] == (200, pair)
    two.sendall(ask_for(b"/slow") + followed + done)
    assert bodies(until_closed(two))[2] == (200, pair * 2)
    three.sendall(followed)
    three.close()
    four = connect()
    four.sendall(done)

    assert bodies(until_closed(four)) == [(200, pair * 3)]


def test_head_is_get_without_the_body(connect):
    connection = connect()
    connection.sendall(b"HEAD /x HTTP/1.1\r\n" + CLOSE)

    head, _, rest = until_closed(connection).partition(b"\r\n\r\n")
    assert b"Content-Length: 17" in head
    assert rest == b""


def test_a_204_has_neither_body_nor_length(connect):
    connection = connect()
    connection.sendall(b"GET /nothing HTTP/1.1\r\n" + CLOSE)

    data = until_closed(connection)
    assert data.startswith(b"HTTP/1.1 204 ")
    assert b"Content-Length" not in data
    assert data.endswith(b"\r\n\r\n")


def test_http_1_0_is_answered_and_closed(connect):
    connection = connect()
    connection.sendall(b"GET /x HTTP/1.0\r\n\r\n")

    assert bodies(until_closed(connection)) == [(200, ["GET", "/x", 0])]


def test_a_chunked_body_is_put_together(connect):
    connection = connect()
    connection.sendall(
        b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )

    assert bodies(connection.recv(65536)) == [(200, ["PUT", "/x", 5])]


def test_who_waits_for_100_continue_gets_it(connect):
    connection = connect()
    connection.sendall(b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"abc")

    assert bodies(connection.recv(65536)) == [(200, ["PUT", "/x", 3])]


def test_a_body_that_is_announced_too_large_is_refused_unread(connect):
    connection = connect()
    connection.sendall(
        b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1)
    )

    ((status, body),) = bodies(until_closed(connection))
    assert (status, body["error"]["code"]) == (413, "too_large")


def test_who_sends_too_much_all_the_same_comes_to_read_why(connect):
    """The answer is not lost in a reset connection."""
    connection = connect()
    connection.sendall(b"PUT /x HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000)

    ((status, _),) = bodies(until_closed(connection))
    assert status == 413


def test_a_chunked_body_cannot_pass_the_limit(connect):
    connection = connect()
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    connection.sendall(b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 8)

    ((status, _),) = bodies(until_closed(connection))
    assert status == 413


def test_a_head_without_end_is_refused(connect):
    connection = connect()
    connection.sendall(b"GET /x HTTP/1.1\r\n" + b"A: b\r\n" * 20_000)

    ((status, _),) = bodies(until_closed(connection))
    assert status == 413


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /x HTTP/9.9\r\n\r\n",
        b"FLY /x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /x HTTP/1.1\r\nbad header\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /x HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_one_error_and_the_connection_is_closed(connect, data):
    connection = connect()
    connection.sendall(data)

    ((status, body),) = bodies(until_closed(connection))
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert set(body["error"]) == {"code", "message", "hint", "retryable", "field"}


@pytest.mark.parametrize(
    "data",
    [b"GET /x HT", b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", b"GET /x HTTP/1.1\r\nA: b"],
)
def test_a_request_that_ends_half_way_is_refused(connect, data):
    connection = connect()
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)

    ((status, body),) = bodies(until_closed(connection))
    assert (status, body["error"]["code"]) == (400, "bad_request")


def test_what_came_whole_before_the_half_request_is_answered(connect):
    connection = connect()
    connection.sendall(b"GET /slow HTTP/1.1\r\n\r\nGET /1 HTTP/1.1\r\n\r\nGET /2 HT")
    connection.shutdown(socket.SHUT_WR)

    statuses = [status for status, _ in bodies(until_closed(connection))]
    assert statuses == [200, 200, 400]


def test_a_request_that_stays_half_sent_is_refused(running, connect, monkeypatch):
    monkeypatch.setattr(http, "PART_TIMEOUT", 0.0)
    connection = connect()
    connection.sendall(b"GET /x HTTP/1.1\r\n")
    idle = connect()
    idle.sendall(b"GET /x HTTP/1.1\r\n\r\n\r\n")
    idle.recv(65536)
    running.loop.call_soon_threadsafe(running.server.sweep)

    ((status, _),) = bodies(until_closed(connection))
    assert status == 400
    idle.sendall(b"GET /y HTTP/1.1\r\n\r\n")
    assert bodies(idle.recv(65536)) == [(200, ["GET", "/y", 0])]


def test_a_peer_that_never_reads_is_not_read_from(connect, running):
    """Answers that nobody takes do not pile up without end, and others are served meanwhile."""
    greedy = connect()
    greedy.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        for _ in range(100_000):
            sent += greedy.send(b"GET /slow HTTP/1.1\r\n\r\n" * 100)
    connection = connect()
    connection.sendall(b"GET /x HTTP/1.1\r\n\r\n")

    assert sent < 10_000_000
    assert bodies(connection.recv(65536)) == [(200, ["GET", "/x", 0])]


def put(target, size):
    return b"PUT %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (target, size, bytes(size))


def settles(running, value):
    """Does what large bodies take come to be so much?"""
    deadline = time.monotonic() + 10
    while running.server.large_bytes != value and time.monotonic() < deadline:
        time.sleep(0.001)
    return running.server.large_bytes == value


def test_large_bodies_of_all_connections_have_room_together(running, connect, monkeypatch):
    """Read, waiting or in work. Who comes when it is full is to come again; small ones pass."""
    monkeypatch.setattr(http, "LARGE", 1000)
    monkeypatch.setattr(http, "LARGE_BYTES_MAX", 10_000)
    half, working, late, small = connect(), connect(), connect(), connect()
    half.sendall(put(b"/x", 4000)[:-1000])
    assert settles(running, 3000)
    working.sendall(put(b"/gate", 4000) + put(b"/x", 2000))
    assert settles(running, 9000)

    late.sendall(put(b"/x", 2000))
    refused = bodies(until_closed(late))
    assert [(status, body["error"]["code"]) for status, body in refused] == [(429, "busy")]
    small.sendall(put(b"/x", 900) + put(b"/x", 1000) + b"GET /y HTTP/1.1\r\n" + CLOSE)
    assert [status for status, _ in bodies(until_closed(small))] == [200, 200, 200]

    running.open_gate()
    half.close()
    assert settles(running, 0)
    working.sendall(b"GET /y HTTP/1.1\r\n" + CLOSE)
    assert [body for _, body in bodies(until_closed(working))] == [
        ["PUT", "/gate", 4000], ["PUT", "/x", 2000], ["GET", "/y", 0]
    ]  # fmt: skip


def test_a_large_body_takes_its_room_until_it_is_answered(running, connect, monkeypatch):
    """Also when whoever sent it has gone, or what it asked for has failed."""
    monkeypatch.setattr(http, "LARGE", 1000)
    gone = connect()
    gone.sendall(put(b"/gate", 4000) + put(b"/x", 2000))
    assert settles(running, 6000)
    gone.close()
    running.open_gate()
    assert settles(running, 0)

    last = connect()
    last.sendall(put(b"/slow", 4000).replace(b"\r\n\r\n", b"\r\n" + CLOSE) + put(b"/x", 2000))
    assert len(bodies(until_closed(last))) == 1
    assert settles(running, 0)

    failing = connect()
    failing.sendall(put(b"/fails", 4000) + put(b"/x", 2000))
    assert until_closed(failing) == b""
    assert settles(running, 0)


def test_bodies_that_wait_stop_the_reading(running, connect, monkeypatch):
    """A few bytes of them, and what came in the same piece; nothing of it is lost."""
    monkeypatch.setattr(http, "WAITING_BYTES_MAX", 1000)
    connection = connect()
    connection.sendall(put(b"/gate", 0))
    sent = b"".join(put(b"/%d" % number, 50_000) for number in range(100))
    sent += b"GET / HTTP/1.1\r\n" + CLOSE
    sender = threading.Thread(target=connection.sendall, args=(sent,))
    sender.start()
    sender.join(0.3)
    held = sum(one._waiting_bytes for one in list(running.server.connections))

    assert sender.is_alive()
    assert 1000 <= held < 2_000_000
    running.open_gate()
    answers = bodies(until_closed(connection))
    sender.join(10)
    assert [body[1] for _, body in answers] == ["/gate", *(f"/{n}" for n in range(100)), "/"]


def test_who_is_not_read_from_is_not_slow(running, connect, monkeypatch):
    """Its request is half-sent because the ones before it wait for their answers."""
    monkeypatch.setattr(http, "WAITING_BYTES_MAX", 1000)
    connection = connect()
    connection.sendall(put(b"/gate", 0) + put(b"/x", 2000) + put(b"/y", 2000)[:-1])
    while not any(one._paused_by_us for one in list(running.server.connections)):
        time.sleep(0.001)
    monkeypatch.setattr(http, "PART_TIMEOUT", 0)
    running.loop.call_soon_threadsafe(running.server.sweep)
    monkeypatch.setattr(http, "PART_TIMEOUT", 30)

    running.open_gate()
    connection.sendall(b"\0" + b"GET / HTTP/1.1\r\n" + CLOSE)
    assert [status for status, _ in bodies(until_closed(connection))] == [200] * 4


def test_a_body_in_the_smallest_pieces_takes_no_more_than_its_size(connect):
    """Chunks of two bytes."""
    connection = connect()
    connection.sendall(
        b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        + CLOSE.replace(b"\r\n\r\n", b"\r\n\r\n" + b"2\r\nab\r\n" * 40_000 + b"0\r\n\r\n")
    )

    assert bodies(until_closed(connection)) == [(200, ["PUT", "/x", 80_000])]


def test_others_than_root_and_the_group_are_refused(tmp_path):
    """The kernel says who connected; this process is neither when it has given both up."""
    if os.geteuid():
        pytest.skip("needs root, to give it up")
    server = Running(str(tmp_path / "s"), group=54321)
    os.chmod(tmp_path, 0o755)
    os.chmod(server.path, 0o777)
    try:
        groups = [(1, 1), (54321, 1), (1, 54321)]
        answers = {pair: _status_as(server.path, *pair) for pair in groups}
    finally:
        server.close()

    assert answers == {(1, 1): 403, (54321, 1): 200, (1, 54321): 200}


def _status_as(path, gid, other_group):
    """The status that uid 65534 with these groups gets, from a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([other_group])
            os.setresgid(gid, gid, gid)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                directory = os.open(os.path.dirname(path), os.O_RDONLY)
                os.fchdir(directory)
                os.setresuid(65534, 65534, 65534)
                connection.connect(os.path.basename(path))
                connection.sendall(b"GET /x HTTP/1.1\r\n" + CLOSE)
                os.write(writer, until_closed(connection).split()[1])
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    status = os.read(reader, 100)
    os.close(reader)
    return int(status or 0)


@pytest.mark.parametrize("target", ["fails", "stream-fails"])
def test_an_answer_that_fails_closes_its_connection_and_is_logged(running, connect, target):
    """With what was asked after it; nothing waits for it when the server stops."""
    connection = connect()
    connection.sendall(b"GET /%b HTTP/1.1\r\n\r\nGET /after HTTP/1.1\r\n\r\n" % target.encode())

    data = until_closed(connection)

    assert data.endswith(b"3\r\n{}\n\r\n") if target == "stream-fails" else data == b""
    with open(f"{running.path}.log") as log:
        (line,) = log
    assert f"level=error event=defect method=GET target=/{target}" in line
    assert "RuntimeError: this is a defect" in line
    assert not any(one.busy for one in list(running.server.connections))
    assert bodies(ask_once(connect())) == [(200, ["GET", "/", 0])]


def ask_once(connection):
    connection.sendall(b"GET / HTTP/1.1\r\n" + CLOSE)
    return until_closed(connection)


def ask_for(target, body=b""):
    return b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (target, len(body), body)


def test_a_descriptor_comes_with_the_first_byte_of_its_own_answer(running, connect):
    """Not with the answers before it and after it, which were asked for at once; and when the
    answer is whole, the server has closed its own."""
    connection = connect()
    connection.sendall(
        ask_for(b"/slow") + ask_for(b"/large") + ask_for(b"/pass-now") + ask_for(b"/pass")
    )
    text, passed = bytearray(), {}
    while text.count(b"/pass") < 2 or not text.endswith(b"]"):
        data, descriptors, _, _ = socket.recv_fds(connection, 65536, 8)
        assert data
        text += data
        if descriptors:  # with the last byte of what is read at once
            passed[len(text) - 1] = descriptors

    answers = [body if len(body) < 9 else body[1] for _, body in bodies(bytes(text))]
    assert answers == [["POST", "/slow", 0], "x", ["POST", "/pass-now", 0], ["POST", "/pass", 0]]
    starts = [found.start() for found in re.finditer(b"HTTP/1.1", text)]
    assert list(passed) == starts[2:]
    for (writing,), reading in zip(passed.values(), running.echo.pipes, strict=True):
        os.write(writing, b"mine")
        os.close(writing)
        assert os.read(reading, 8) == b"mine"
        assert os.read(reading, 8) == b""
        os.close(reading)


def test_a_descriptor_for_who_has_gone_is_closed(running, connect):
    """Before its answer was there."""
    connection = connect()
    connection.sendall(ask_for(b"/pass"))
    connection.close()
    while not running.echo.pipes:
        time.sleep(0.001)

    (reading,) = running.echo.pipes
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_descriptor_for_who_does_not_read_is_closed(running, connect, monkeypatch):
    """Its answer cannot be sent; the connection is closed after a moment."""
    monkeypatch.setattr(http, "PASS_TIMEOUT", 0.2)
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(ask_for(b"/large") + ask_for(b"/pass"))
    while not running.echo.pipes:
        time.sleep(0.001)

    (reading,) = running.echo.pipes
    assert os.read(reading, 1) == b""
    os.close(reading)
