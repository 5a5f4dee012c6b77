# SPDX-License-Identifier: Apache-2.0
"""For the tests of the command: it runs in their process, against an agent that is made up."""

from __future__ import annotations

import json
import signal

import pytest

from geneve_ebpf.cli import output
from geneve_ebpf.cli.app import run
from geneve_ebpf.client import HOST_VARIABLE
from tests.peer import peer


@pytest.fixture
def one_process_many_commands():
    """`run` sets what belongs to a process: put it back for the other tests."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)
    output.want_json(False)


@pytest.fixture
def ask(one_process_many_commands, tmp_path, monkeypatch, capsys):
    """Run one command against an agent that gives these answers; (status, out, err, requests)."""

    def ask(words, *answers):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        with peer(directory, *([one] for one in answers)) as served:
            monkeypatch.setenv(HOST_VARIABLE, f"unix://{served.path}")
            status = run(words)
        out, err = capsys.readouterr()
        requests = []
        for raw in served.received:
            head, _, body = raw.partition(b"\r\n\r\n")
            method, path, _ = head.decode().split("\r\n")[0].split(" ")
            requests.append((method, path, json.loads(body) if body else None))
        return status, out, err, requests

    return ask
