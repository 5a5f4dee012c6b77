# SPDX-License-Identifier: Apache-2.0
"""The client against a socket that says exactly what a test wants it to say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

import geneve_ebpf.client
from geneve_ebpf.client import HOST_VARIABLE, AgentClient, error_from_json
from geneve_ebpf.errors import Code, GeneveError
from tests.peer import answer, peer


def test_a_request_is_plain_http_and_its_answer_comes_back_decoded(tmp_path):
    """One request line, the headers HTTP/1.1 wants, JSON both ways."""
    script = [answer("201 Created", {"sandbox": "a"})]
    with peer(tmp_path, script) as served, AgentClient(served.path) as client:
        result = client.request("PUT", "/v1/sandboxes/a", {"vpc": "blue"})

    assert result == (201, {"sandbox": "a"})
    head, _, body = served.received[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "PUT /v1/sandboxes/a HTTP/1.1"
    assert {"Host: agent", f"Content-Length: {len(body)}"} <= set(lines)
    assert json.loads(body) == {"vpc": "blue"}


def test_one_connection_serves_many_requests(tmp_path):
    """Keep-alive: the second request needs no second connection; no body is {}."""
    script = [answer("200 OK", {"n": 1}), answer("204 No Content")]
    with peer(tmp_path, script) as served, AgentClient(served.path) as client:
        assert client.request("GET", "/a") == (200, {"n": 1})
        assert client.request("DELETE", "/b") == (204, {})

    assert served.connections == 1


def test_an_answer_in_pieces_is_put_together(tmp_path):
    """Where the kernel cuts a stream is of no meaning, inside head and body."""
    whole = answer("200 OK", {"text": "x" * 200_000})
    pieces = [whole[:7], whole[7:40], whole[40:100_000], whole[100_000:]]
    with peer(tmp_path, [pieces]) as served, AgentClient(served.path) as client:
        _, body = client.request("GET", "/a")

    assert len(body["text"]) == 200_000


def test_a_connection_the_agent_closed_meanwhile_is_opened_anew(tmp_path):
    """After a restart of the agent the next request goes to the new one, once."""
    script = ([answer("200 OK", {"n": 1})], [answer("200 OK", {"n": 2})])
    with peer(tmp_path, *script) as served, AgentClient(served.path) as client:
        client.request("GET", "/a")
        served.wait_closed(1)

        assert client.request("POST", "/b", {}) == (200, {"n": 2})


class Answering:
    """A connection whose answers are there at once, or only for who sleeps; with its own clock.

    takes: nanoseconds that one is slept for. `looks` counts the answers that were looked for.
    """

    def __init__(self, late, takes=50_000):
        self.late = late
        self.takes = takes
        self.looks = 0
        self.now = 0
        self.looked = 0  # nanoseconds, of the last answer that was looked for
        self._since = None

    def clock(self):
        self.now += 1000
        return self.now

    def receive(self, _, flags):
        if flags & socket.MSG_DONTWAIT:
            if self._since is None:
                self.looks += 1
                self._since = self.now
            if self.late:
                raise BlockingIOError
        else:
            self.now += self.takes
        if self._since is not None:
            self.looked = self.now - self._since
        self._since = None
        return b"HTTP"


def ask(client, connection, times, monkeypatch, size=10):
    """How many of so many answers were looked for."""
    monkeypatch.setattr(geneve_ebpf.client, "perf_counter_ns", connection.clock)
    before = connection.looks
    for _ in range(times):
        assert client._first_bytes(connection, connection.receive, size) == b"HTTP"
    return connection.looks - before


def test_whose_answers_come_late_is_hardly_looked_for_any_more(monkeypatch):
    """Looking costs a CPU's time: in vain for a while, it is done for one answer in 256."""
    client = AgentClient("/nowhere")

    tried = ask(client, Answering(late=True), 3000, monkeypatch)

    assert 8 <= tried <= 8 + 3000 // 256 + 1
    assert ask(client, Answering(late=False), 3000, monkeypatch) > 2000


def test_the_answer_to_a_large_request_is_looked_for_longer(monkeypatch):
    """A batch takes the agent longer than an attach, and the caller has nothing else to do."""
    took = []
    for size in (10, 2500, 1 << 26):
        late = Answering(late=True, takes=0)
        ask(AgentClient("/nowhere"), late, 2, monkeypatch, size)
        took.append(round(late.looked / 100_000))

    assert took == [1, 7, 20]


def test_an_agent_that_has_had_time_to_sleep_is_slept_for(monkeypatch):
    """It takes longer then, which says nothing of the answers that follow."""
    client, late, in_time = AgentClient("/nowhere"), Answering(late=True), Answering(late=False)
    for _ in range(100):
        monkeypatch.setattr(geneve_ebpf.client, "_SOON", -1)
        client._first_bytes(late, late.receive, 10)
        monkeypatch.setattr(geneve_ebpf.client, "_SOON", 1 << 60)
        client._first_bytes(in_time, in_time.receive, 10)

    assert (late.looks, in_time.looks) == (0, 100)


def test_connection_close_is_heeded(tmp_path):
    """An agent that is about to close is not asked again on that connection."""
    script = ([answer("200 OK", {}, "Connection: close")], [answer("200 OK", {"n": 2})])
    with peer(tmp_path, *script) as served, AgentClient(served.path) as client:
        client.request("GET", "/a")
        assert client.request("GET", "/b") == (200, {"n": 2})


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["unread", "half-read"])
def test_after_an_interrupted_request_no_answer_of_its_is_read(tmp_path, begun):
    """The next request goes over a new connection, and gets its own answer."""

    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    script = ([begun, answer("200 OK", {"n": 1})], [answer("200 OK", {"n": 2})])
    before = signal.signal(signal.SIGALRM, interrupt)
    with peer(tmp_path, *script) as served, AgentClient(served.path) as client:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                client.request("POST", "/a", {})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

        assert client.request("GET", "/b") == (200, {"n": 2})


def test_a_tap_is_a_descriptor_that_nobody_inherits(tmp_path):
    """It comes with the first byte, however the answer is cut; more than one are closed."""
    reading, writing = os.pipe()
    whole = answer("200 OK", {"tap": "tap0"})
    script = [[whole[:1], whole[1:]], whole]
    passed = {whole[:1]: [writing, writing], whole: [writing]}
    with peer(tmp_path, script, passed=passed) as served, AgentClient(served.path) as client:
        taps = [client.open_tap("slot-3"), client.open_tap("slot-3")]
    os.close(writing)

    assert [served.received[n].split(b"\r\n")[0] for n in (0, 1)] == [
        b"POST /v1/taps/slot-3 HTTP/1.1"
    ] * 2
    for tap in taps:
        assert not os.get_inheritable(tap)
        os.write(tap, b"x")
        os.close(tap)
    assert os.read(reading, 3) == b"xx"
    assert os.read(reading, 3) == b""
    os.close(reading)


@pytest.mark.parametrize("status", ["409 Conflict", "200 OK"])
def test_a_tap_that_does_not_come_is_an_error(tmp_path, status):
    """An answer without a descriptor, and a refusal, which has none to keep."""
    reading, writing = os.pipe()
    refusal = status.startswith("409")
    body = GeneveError(Code.TAP_BUSY, "busy").as_json() if refusal else {"tap": "tap0"}
    script = [answer(status, body)]
    passed = {script[0]: [writing]} if refusal else {}
    with (
        peer(tmp_path, script, passed=passed) as served,
        AgentClient(served.path) as client,
        pytest.raises(GeneveError) as caught,
    ):
        client.open_tap("slot-3")
    os.close(writing)

    assert caught.value.code is (Code.TAP_BUSY if refusal else Code.INTERNAL)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_an_error_answer_is_raised_as_it_was_meant(tmp_path):
    """Code, message, hint, field and details survive the way over the socket."""
    sent = GeneveError(
        Code.SANDBOX_EXISTS,
        "web is attached with other settings",
        hint="detach it first",
        field="address",
        details={"address": {"have": "10.0.0.5", "want": "10.0.0.6"}},
    )
    script = [answer("409 Conflict", sent.as_json())]
    with (
        peer(tmp_path, script) as served,
        AgentClient(served.path) as client,
        pytest.raises(GeneveError) as caught,
    ):
        client.request("PUT", "/v1/sandboxes/web", {"vpc": "blue"})

    assert caught.value.as_json() == sent.as_json()


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_known_to_the_client(code):
    """A code of the closed list comes back as itself."""
    assert error_from_json(GeneveError(code, "text").as_json()).code is code


def test_a_code_of_a_newer_agent_becomes_internal_and_is_named():
    """The text still tells the user what it was."""
    error = error_from_json({"error": {"code": "solar_flare", "message": "too bright"}}, 503)

    assert (error.code, error.message) == (Code.INTERNAL, "too bright (solar_flare)")


@pytest.mark.parametrize("body", [{}, {"error": "no"}, {"error": None}])
def test_an_error_without_words_still_is_one(body):
    """A status of 400 or more never passes for success."""
    assert error_from_json(body, 502).code is Code.INTERNAL


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff",
        b"x" * 20_000,
    ],
    ids=[
        "nothing", "half-head", "half-body", "ssh", "no-status", "list", "not-json", "too-much",
        "bad-length", "chunked", "not-utf8", "endless-head",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_agent_unreachable(tmp_path, said):
    """Whoever listens there, the caller gets one kind of error and no traceback."""
    with (
        peer(tmp_path, [said]) as served,
        AgentClient(served.path) as client,
        pytest.raises(GeneveError) as caught,
    ):
        client.request("GET", "/a")

    assert caught.value.code is Code.AGENT_UNREACHABLE


def test_a_silent_agent_is_waited_for_no_longer_than_asked(tmp_path):
    """The timeout is the client's own; the error says that the outcome is unknown."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen()
    with (
        listener,
        AgentClient(tmp_path / "api.sock", timeout=0.05) as client,
        pytest.raises(GeneveError) as caught,
    ):
        client.request("POST", "/v1/slots:reserve", {})

    assert caught.value.code is Code.AGENT_UNREACHABLE
    assert "not known" in caught.value.hint


def test_no_socket_no_agent(tmp_path):
    """A missing socket, a socket nobody listens on, and a plain file are all no agent."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead.sock"))
    dead.close()
    (tmp_path / "file").touch()

    for name in ("missing.sock", "dead.sock", "file", "x" * 200):
        with pytest.raises(GeneveError) as caught:
            AgentClient(tmp_path / name).request("GET", "/healthz")
        assert caught.value.code is Code.AGENT_UNREACHABLE
        assert "agent run" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to stop being root")
def test_a_socket_of_roots_is_not_permitted(tmp_path):
    """Somebody else than root is told so, rather than that no agent runs."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen()
    os.chmod(tmp_path / "api.sock", 0o660)
    program = (
        "import os, sys\nos.setuid(65534)\n"
        "from geneve_ebpf.client import AgentClient\n"
        "from geneve_ebpf.errors import GeneveError\n"
        "try: AgentClient(sys.argv[1]).request('GET', '/healthz')\n"
        "except GeneveError as error: print(error.code.slug)\n"
    )
    with listener:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "api.sock")],
            capture_output=True,
            text=True,
            check=True,
        )

    assert done.stdout.strip() == "not_permitted"


@pytest.mark.parametrize("host", ["", "/run/api.sock", "tcp://127.0.0.1:1", "unix://relative"])
def test_a_host_that_is_no_socket_is_refused(host):
    """Only unix:///path names an agent."""
    with pytest.raises(GeneveError) as caught:
        AgentClient.from_host(host)

    assert caught.value.code is Code.BAD_REQUEST
    assert caught.value.field == HOST_VARIABLE


def test_the_environment_names_the_agent(monkeypatch):
    """GENEVE_EBPF_HOST, and without it the agent of node `default`."""
    monkeypatch.setenv(HOST_VARIABLE, "unix:///run/x/api.sock")
    assert AgentClient.from_environment().path == "/run/x/api.sock"

    monkeypatch.delenv(HOST_VARIABLE)
    assert AgentClient.from_environment().path == "/run/geneve-ebpf/default/api.sock"


def test_the_client_imports_nothing_heavy():
    """A caller that attaches on its hot path gets json, socket and our errors, no more."""
    program = (
        "from __future__ import annotations\n"
        "import sys, json, socket, struct, typing, dataclasses, enum; before = set(sys.modules)\n"
        "import geneve_ebpf.client; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["geneve_ebpf", "geneve_ebpf.client", "geneve_ebpf.errors"]
