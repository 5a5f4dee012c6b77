# SPDX-License-Identifier: Apache-2.0
"""How a command fails: one line and a hint on stderr, and an exit status to branch on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from geneve_ebpf.cli.app import run
from geneve_ebpf.client import HOST_VARIABLE
from geneve_ebpf.errors import Code, Exit, GeneveError
from tests.peer import answer, peer

pytestmark = pytest.mark.usefixtures("one_process_many_commands")


@pytest.mark.parametrize("code", list(Code))
def test_every_error_of_the_agent_has_its_exit_status(ask, code):
    """One line that says what, one that says the mend; stdout stays empty."""
    error = GeneveError(code, "what happened", hint="what to do")
    reply = answer(f"{code.value.status} Something", error.as_json())
    status, out, err, _ = ask(["vpc", "delete", "blue"], reply)

    assert status == code.value.exit.value != 0
    assert out == ""
    assert err == f"error: what happened ({code.slug})\nhint: what to do\n"


def test_an_error_is_json_on_stderr_after_j(ask):
    """stdout is only ever the result, so a program never mistakes an error for one."""
    error = GeneveError(Code.VPC_NOT_FOUND, "no VPC blue", hint="vpc list", field="vpc")
    _, out, err, _ = ask(["-j", "vpc", "show", "blue"], answer("404 Not Found", error.as_json()))

    assert out == ""
    assert json.loads(err) == {"schema": "geneve-ebpf/error/1", **error.as_json()}


def test_a_conflict_says_what_differs(ask):
    """Each differing field with what is there and what was asked for."""
    error = GeneveError(
        Code.SANDBOX_EXISTS, "web differs", details={"vpc": {"have": "red", "want": "blue"}}
    )
    status, _, err, _ = ask(
        ["attach", "web", "--vpc", "blue"], answer("409 Conflict", error.as_json())
    )

    assert status == Exit.CONFLICT.value
    assert "vpc: it has red, asked for blue" in err


def test_an_error_in_a_file_says_where(ask, tmp_path):
    """Which of 100,000 routes it is; a command's own words need no such line."""
    file = tmp_path / "state.json"
    file.write_text('{"routes": []}')
    error = GeneveError(Code.VPC_NOT_FOUND, "no VPC a", field="routes[7].vpc")
    status, _, err, _ = ask(["apply", "-f", str(file)], answer("404 No", error.as_json()))

    assert status == Exit.NOT_FOUND.value
    assert err == "error: no VPC a (vpc_not_found)\n  at routes[7].vpc\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.toml", 'vpcs = [{name = "a", vni = 2024-05-06, prefixes = []}]'),
        ("state.toml", f"vpcs = [{'9' * 5000}]"),
        ("state.json", f'{{"vpcs": [{"9" * 5000}]}}'),
        ("state", f'{{"vpcs": [{"9" * 5000}]}}'),
        ("state.json", "[" * 100_000),
    ],
)
def test_a_file_with_values_that_no_state_has_is_refused(ask, tmp_path, name, text):
    """What a reader of JSON or TOML gives up on, and what JSON cannot say, is a usage error."""
    file = tmp_path / name
    file.write_text(text)

    status, out, err, _ = ask(["apply", "-f", str(file)])

    assert (status, out) == (Exit.USAGE.value, "")
    assert err.startswith(f"error: {file}")
    assert "(bad_request)" in err


def test_an_agent_cannot_move_the_terminal(ask):
    """Control characters in what the agent says are not printed."""
    error = GeneveError(Code.INTERNAL, "a\x1b[2Jb\nc", hint="d\re")
    _, _, err, _ = ask(["vpc", "show", "blue"], answer("500 No", error.as_json()))

    assert "\x1b" not in err
    assert "\r" not in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["attach", "../../etc", "--vpc", "blue"], "bad_name"),
        (["attach", "Web", "--vpc", "blue"], "bad_name"),
        (["attach", "x" * 64, "--vpc", "blue"], "bad_name"),
        (["attach", "", "--vpc", "blue"], "bad_name"),
        (["attach", "web", "--vpc", "a/b"], "bad_name"),
        (["attach", "web", "--vpc", "blue", "--address", "10.0.0"], "bad_address"),
        (["attach", "web", "--vpc", "blue", "--address", "224.0.0.1"], "bad_address"),
        (["attach", "web", "--vpc", "blue", "--ip", "fe80::1%eth0"], "bad_address"),
        (["attach", "web", "--vpc", "blue", "--ip", "10.0.0.5", "--ip", "10.0.0.6"], "bad_request"),
        (["attach", "web", "--vpc", "blue", "--slot", "3"], "bad_name"),
        (["attach", "web"], "bad_request"),
        (["detach", "web", "--generation", "x"], "bad_request"),
        (["vpc", "create", "blue", "--vni", "0", "--prefix", "10.0.0.0/8"], "bad_vni"),
        (["vpc", "create", "blue", "--vni", "16777216", "--prefix", "10.0.0.0/8"], "bad_vni"),
        (["vpc", "create", "blue", "--vni", "9", "--prefix", "10.0.0.1/8"], "bad_prefix"),
        (["vpc", "create", "blue", "--vni", "9"], "bad_request"),
        (["vtep", "add", "::1"], "bad_address"),
        (["vtep", "add", "192.0.2.1", "--mtu", "70"], "bad_mtu"),
        (["route", "add", "10.0.0.0/8", "--vpc", "blue"], "bad_request"),
        (["route", "add", "10.0.0.0/8", "--vpc", "b", "--local", "--blackhole"], "bad_request"),
        (["route", "add", "10.0.0.0/8", "--vpc", "b", "--local", "--mac", "02::"], "bad_request"),
        (
            ["route", "add", "10.0.0.0/8", "--vpc", "b", "--via", "192.0.2.2", "--mac", "0a:0b"],
            "bad_mac",
        ),
        (["slot", "release", "slot-01"], "bad_name"),
        (["netns-exec", "web", "--"], "bad_request"),
        (["slot", "exec", "slot-1", "--fd", "9", "--", "true"], "bad_request"),
        (["attach", "web", "--vpc", "blue", "--slot", ""], "bad_request"),
        (["attach", "web", "--vpc", "blue", "--netns", ""], "bad_request"),
        (["attach", "web", "--vpc", "blue", "--interface", "eth1"], "bad_request"),
        (["attach", "web", "--vpc", "blue", "--timeout", "nan"], "bad_request"),
        (["drops", "--watch", "--interval", "nan"], "bad_request"),
        (["node", "status", "--wait", "inf"], "bad_request"),
        (["node", "drain", "--timeout", "nan"], "bad_request"),
        (["operations", "show", "op-1", "--wait", "nan"], "bad_request"),
        (["operations", "retry"], "bad_request"),
        (["frobnicate"], "bad_request"),
        (["vpc", "frobnicate"], "bad_request"),
        (["list", "--frobnicate"], "bad_request"),
        (["--host", "tcp://1.2.3.4", "list"], "bad_request"),
        (["agent", "run"], "bad_request"),
        (["apply"], "bad_request"),
    ],
)
def test_a_mistake_in_the_command_ends_before_anything_is_asked(
    words, code, monkeypatch, capsys, tmp_path
):
    """Exit 2, one line, a hint; no agent is needed to find out."""
    monkeypatch.setenv(HOST_VARIABLE, f"unix://{tmp_path}/none.sock")

    assert run(words) == Exit.USAGE.value
    out, err = capsys.readouterr()
    assert out == ""
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert error.endswith(f"({code})")
    assert hint.startswith("hint: ")


def test_no_agent_exits_5(monkeypatch, capsys, tmp_path):
    """With what to do about it."""
    monkeypatch.setenv(HOST_VARIABLE, f"unix://{tmp_path}/none.sock")

    assert run(["list"]) == Exit.UNREACHABLE.value
    assert "agent run" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["vpc"], ["route"]])
def test_nothing_to_do_shows_the_help_on_stderr(words, capsys):
    """Exit 2 as for any incomplete command."""
    assert run(words) == Exit.USAGE.value
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: geneve-ebpf")


def spawn(*words, environment=None, **options):
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "geneve_ebpf", *words],
        env={**os.environ, **(environment or {})},
        text=True,
        **options,
    )


@pytest.mark.parametrize("words", [["version"], ["-j", "version"]], ids=["text", "json"])
def test_a_closed_stdout_is_said_in_one_line(words):
    """`geneve-ebpf version >&-`"""
    process = spawn(*words, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    _, err = process.communicate(timeout=60)

    assert process.returncode == Exit.FAILED.value
    assert err == "error: the answer could not be written: Bad file descriptor\n"


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    """`geneve-ebpf list | head -0` leaves no traceback."""
    vpc = {"vni": 4097, "prefixes": ["10.0.0.0/16"], "sandboxes": 0}
    rows = {"vpcs": [{"name": f"vpc{n}", **vpc} for n in range(5000)]}
    reader, writer = os.pipe()
    os.close(reader)
    with peer(tmp_path, [answer("200 OK", rows)]) as served:
        host = {HOST_VARIABLE: f"unix://{served.path}"}
        process = spawn(
            "vpc", "list", environment=host, stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        _, err = process.communicate(timeout=20)

    assert err == ""
    assert process.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE)


def test_an_interrupt_ends_the_command_quietly(tmp_path):
    """^C while the agent is silent: no traceback, and the status of a signal."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen()
    listener.settimeout(20)
    host = {HOST_VARIABLE: f"unix://{tmp_path}/api.sock"}
    with listener:
        process = spawn("list", environment=host, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(100)  # so it is waiting for an answer now
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)

    assert (out, err.strip(), process.returncode) == ("", "", 130)
