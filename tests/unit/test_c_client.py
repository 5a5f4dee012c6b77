# SPDX-License-Identifier: Apache-2.0
"""The C client: its list of codes, and what it makes of answers good and bad.

The answers come from a socket of the test's own, byte for byte as given. Built
with the sanitizers: a read beyond the buffer ends the program, and the test.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from geneve_ebpf.errors import Code

CLIENT = Path(__file__).parents[2] / "clients" / "c"
SLOT = {
    "schema": "geneve-ebpf/slot/1",
    "slot": {
        "id": "slot-7",
        "kind": "namespace",
        "netns": '/run/a "b" \\ \u00e9/slot-7',
        "host_interface": "gnv7",
        "host_ifindex": 4242,
        "state": "reserved",
    },
    "guest": {
        "interface": "eth0",
        "address": "169.254.77.2",
        "address6": "fd67:6e76:77::2",
        "gateway": "169.254.77.1",
        "gateway6": "fe80::1",
        "mac": "02:47:56:00:00:02",
        "gateway_mac": "02:47:56:00:00:01",
        "mtu": 1450,
    },
}


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """clients/c/example, with what finds a wrong read or write."""
    build = tmp_path_factory.mktemp("c")
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover"
    subprocess.run(
        ["make", "-s", "-C", CLIENT, f"BUILD={build}", f"CFLAGS={flags}"], check=True, timeout=120
    )
    return build / "example"


def answer(body: object, status: str = "200 OK", head: str = "") -> bytes:
    text = json.dumps(body, separators=(",", ":")).encode()
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


class Passing(bytes):
    """A piece of an answer that descriptors come with."""

    def __new__(cls, data: bytes, descriptors: list[int]) -> Passing:
        made = super().__new__(cls, data)
        made.descriptors = descriptors
        return made


class Canned:
    """Accepts one connection, keeps what it is asked, and says the pieces it was given."""

    def __init__(self, path: Path, pieces: list[bytes], then_close: bool) -> None:
        self.asked = b""
        self._pieces, self._then_close = pieces, then_close
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            while b"\r\n\r\n" not in self.asked:
                self.asked += connection.recv(4096)
            for piece in self._pieces:
                if isinstance(piece, Passing) and piece.descriptors:
                    socket.send_fds(connection, [piece], piece.descriptors)
                else:
                    connection.sendall(piece)
            if not self._then_close:
                connection.recv(1)  # until the client goes

    def close(self) -> None:
        self._listening.close()
        self._thread.join(30)


@pytest.fixture
def ask(example, tmp_path):
    """Runs the example against canned pieces; (finished process, what it asked)."""

    def run(*words: str, pieces: list[bytes], then_close: bool = False):
        path = tmp_path / "api.sock"
        canned = Canned(path, pieces, then_close)
        try:
            done = subprocess.run(
                [example, *words],
                env={**os.environ, "GENEVE_EBPF_HOST": f"unix://{path}"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            canned.close()
        return done, canned.asked

    return run


def test_it_knows_every_code_that_an_answer_can_hold():
    """The header's list is errors.py's, with what may be retried; numbers are never reused."""
    rows = re.findall(r"X\((\d+), (\w+), (\w+), ([01])\)", (CLIENT / "geneve_ebpf.h").read_text())

    assert {name: (slug, retry == "1") for _, name, slug, retry in rows} == {
        code.name: (code.slug, code.value.retryable) for code in Code
    }
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))


def test_an_answer_is_read_whatever_pieces_it_comes_in(ask):
    """Byte by byte, with escapes in it."""
    whole = answer(SLOT, "201 Created")
    pieces = [whole[i : i + 1] for i in range(len(whole))]
    done, asked = ask("reserve", "tap", "4294967294", pieces=pieces)

    assert done.stderr == ""
    said = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert said["slot"] == "slot-7"
    assert said["netns"] == SLOT["slot"]["netns"]
    assert (said["host_interface"], said["host_ifindex"]) == ("gnv7", "4242")
    assert (said["guest_gateway6"], said["guest_mtu"]) == ("fe80::1", "1450")
    assert asked.startswith(b"POST /v1/slots:reserve HTTP/1.1\r\n")
    assert asked.endswith(b'\r\n\r\n{"kind":"tap","owner":4294967294}')


@pytest.mark.parametrize(
    ("words", "status", "body", "existed"),
    [
        ((), "201 Created", b'{"netns":"/run/netns/w\xc3\xa9b"}', "0"),
        (("A_0.b-c",), "200 OK", b'{"netns":"/run/netns/w\xc3\xa9b","interface":"A_0.b-c"}', "1"),
    ],
)
def test_a_namespace_is_brought_and_it_is_said_whether_its_slot_is_new(
    ask, words, status, body, existed
):
    """The interface is named if it has another name than eth0."""
    done, asked = ask("add", "/run/netns/w\u00e9b", *words, pieces=[answer(SLOT, status)])

    assert done.stderr == ""
    said = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert (said["existed"], said["slot"], said["guest_mtu"]) == (existed, "slot-7", "1450")
    assert asked.startswith(b"POST /v1/slots HTTP/1.1\r\n")
    assert asked.endswith(b"\r\n\r\n" + body)


def test_a_refusal_keeps_its_code_its_words_and_its_hint(ask):
    """A code that may be retried says so."""
    error = {"code": "no_slot", "message": "no \u201cslot\u201d", "hint": "wait", "retryable": True}
    done, _ = ask(
        "attach", "a", "blue", pieces=[answer({"error": error}, "503 Busy", "Retry-After: 3\r\n")]
    )

    assert done.returncode == 1
    assert done.stderr == "no_slot: no \u201cslot\u201d (wait) - try again later\n"


def test_a_code_of_a_newer_agent_is_internal(ask):
    done, _ = ask("release", "slot-1", pieces=[answer({"error": {"code": "new"}}, "418 Other")])

    assert done.stderr.startswith("internal:")


HUGE = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + bytes(20_000)
BAD_ANSWERS = {
    "nothing": [],
    "half a head": [b"HTTP/1.1 200 OK\r\nContent-Le"],
    "half a body": [answer(SLOT)[:-5]],
    "too much": [answer(SLOT) + b"x"],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
    "chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
    "a huge body": [HUGE],
    "a negative length": [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"],
    "an endless head": [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 3000],
}


@pytest.mark.parametrize("pieces", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_what_is_no_answer_is_an_agent_that_cannot_be_reached(ask, pieces):
    """One line and the code; never a crash, never a read beyond the end."""
    done, _ = ask("reserve", pieces=pieces, then_close=True)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agent_unreachable: the agent at ")
    assert len(done.stderr.splitlines()) == 1


BODIES = {
    "empty": b"",
    "null": b"null",
    "no object": b"[1,2]",
    "unended": b'{"slot":{"id":"slot-1"',
    "unended string": b'{"slot":"\\',
    "half an escape": b'{"slot":{"id":"\\u12"}}',
    "too long": b'{"slot":{"id":"' + b"s" * 500 + b'"}}',
    "braces": b'{"slot":}}}}',
    "deep": b"[" * 7000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_not_what_was_asked_for_is_named_so(ask, body):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    done, _ = ask("reserve", pieces=[head + body])

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("internal: the agent's answer is not what this client reads")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("attach", "No/Name", "blue"), "bad_name"),
        (("attach", "a", 'blue","x":"'), "bad_name"),
        (("attach", "a", "blue", "-", "10.0.0.5\r\n"), "bad_address"),
        (("attach", "a", "blue", "slot 1"), "bad_name"),
        (("detach", "a" * 64), "bad_name"),
        (("release", ""), "bad_name"),
        (("reserve", "tap?"), "bad_name"),
        (("exec", "slot/1", "true"), "bad_name"),
        (("add", 'run/netns/web'), "bad_netns"),
        (("add", '/run/netns/"'), "bad_netns"),
        (("add", "/run/netns/\\"), "bad_netns"),
        (("add", "/run/netns/\n"), "bad_netns"),
        (("add", "/" + "a" * 256), "bad_netns"),
        (("add", "/run/netns/web", "eth/0"), "bad_request"),
    ],
)
def test_what_would_need_quoting_is_refused_before_it_is_sent(example, words, code):
    """No agent is needed to say so."""
    done = subprocess.run(
        [example, *words],
        env={**os.environ, "GENEVE_EBPF_HOST": "unix:///nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr.partition(":")[0]) == (1, code)


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("unix:///nowhere/api.sock", "agent_unreachable"),
        ("tcp://127.0.0.1:80", "bad_request"),
        ("unix://relative", "bad_request"),
        ("unix:///" + "x" * 200, "bad_request"),
    ],
)
def test_a_socket_that_is_not_there_is_named(example, host, code):
    """As the command does, with a hint."""
    done = subprocess.run(
        [example, "release", "slot-1"],
        env={**os.environ, "GENEVE_EBPF_HOST": host},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr.partition(":")[0]) == (1, code)
    assert "(" in done.stderr


TAP = answer({"schema": "geneve-ebpf/tap/1", "slot": "slot-1", "tap": "tap0", "vnet_header": 10})
SAYS = "import os; os.write(3, b'here'); print(sorted(map(int, os.listdir('/proc/self/fd'))))"


def passing(ask, *words, pieces, count=1):
    """Runs the example, which gets a pipe with the first piece; (process, what came out of it)."""
    reading, writing = os.pipe()
    try:
        first = Passing(pieces[0], [writing] * count)
        done, asked = ask(*words, pieces=[first, *pieces[1:]], then_close=True)
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        return done, asked, pipe.read()


def test_a_tap_comes_as_a_descriptor(ask):
    """Whatever pieces the answer comes in, and the command gets no other one of ours."""
    done, asked, said = passing(ask, "exec", "slot-1", sys.executable, "-c", SAYS,
                                pieces=[TAP[:1], TAP[1:40], TAP[40:]])  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[0, 1, 2, 3, 4]\n"  # 4 is the listing's own
    assert said == b"here"
    assert asked.startswith(b"POST /v1/taps/slot-1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("words", "pieces", "count", "code"),
    [
        (("exec", "slot-1", "true"), [TAP], 0, "internal"),
        (("exec", "slot-1", "true"), [answer({"error": {"code": "tap_busy"}}, "409 No")], 1,
         "tap_busy"),
        (("exec", "slot-1", "true"), [TAP[:50]], 1, "agent_unreachable"),
        (("release", "slot-1"), [answer({})], 1, ""),
    ],
)  # fmt: skip
def test_a_descriptor_that_is_of_no_use_is_closed(ask, words, pieces, count, code):
    """With a refusal, half an answer, or one to something else; and none is told so."""
    done, _, said = passing(ask, *words, pieces=pieces, count=count)

    assert done.stderr.partition(":")[0] == code
    assert said == b""


def test_a_tap_stays_when_the_agent_closes_the_connection(ask):
    """It has come by then, though there will be no other answer."""
    last = answer({"slot": "slot-1", "tap": "tap0"}, head="Connection: close\r\n")
    done, _, said = passing(ask, "exec", "slot-1", sys.executable, "-c", SAYS, pieces=[last])

    assert (done.returncode, done.stderr, said) == (0, "", b"here")


def test_all_descriptors_but_the_first_are_closed(ask):
    """An agent passes one."""
    done, _, said = passing(ask, "exec", "slot-1", sys.executable, "-c", SAYS, pieces=[TAP],
                            count=3)  # fmt: skip

    assert (done.stdout, said) == ("[0, 1, 2, 3, 4]\n", b"here")


TWICE = r"""
#include "geneve_ebpf.h"
#include <stdio.h>
int main(void)
{
	struct gnv_client client;
	int i, code;
	gnv_open(&client, NULL, 100);
	for (i = 0; i < 3; i++) {
		code = gnv_release(&client, "slot-1");
		client.timeout_ms = 60000; /* of the next connection */
		printf("%s %d\n", gnv_code_name(code), client.retry_after);
	}
	gnv_close(&client);
	return 0;
}
"""


def test_a_silent_agent_is_given_up_and_a_new_connection_is_kept(example, tmp_path):
    """What was asked of the silent one is not sent again; two calls share what follows it."""
    (tmp_path / "twice.c").write_text(TWICE)
    flags = ["-g", "-fsanitize=address,undefined", "-I", CLIENT]
    subprocess.run(
        ["cc", *flags, "-o", tmp_path / "twice", tmp_path / "twice.c",
         example.parent / "libgeneve_ebpf.a"],
        check=True,
    )  # fmt: skip
    path = tmp_path / "api.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    program = subprocess.Popen(
        [tmp_path / "twice"],
        env={**os.environ, "GENEVE_EBPF_HOST": f"unix://{path}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    silent, _ = listening.accept()
    silent_was_asked = silent.recv(4096)
    answering, _ = listening.accept()
    requests = []
    for reply in (answer({}), answer({"error": {}}, "429 Busy", "Retry-After: 2\r\n")):
        requests.append(answering.recv(4096))
        answering.sendall(reply)

    said, _ = program.communicate(timeout=60)
    assert said.splitlines() == ["agent_unreachable 0", "ok 0", "internal 2"]
    assert [silent_was_asked, *requests] == [silent_was_asked] * 3
    for one in (silent, answering, listening):
        one.close()
