# SPDX-License-Identifier: Apache-2.0
"""One agent a node: the lock that says so."""

from __future__ import annotations

import fcntl
from ipaddress import IPv4Address

import pytest

from geneve_ebpf.agent.run import _sole_agent
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import NodeSettings


@pytest.fixture
def settings(tmp_path):
    return NodeSettings("one", IPv4Address("192.0.2.1"), ("eth1",), run_root=tmp_path)


def test_the_second_is_refused_until_the_first_is_gone(settings):
    with _sole_agent(settings):
        with pytest.raises(GeneveError) as refused, _sole_agent(settings):
            pass
        assert refused.value.code is Code.AGENT_RUNNING
    with _sole_agent(settings):
        pass


def test_a_lock_that_was_removed_meanwhile_is_none(settings, monkeypatch):
    """`node down` removes the file; who had opened it before must not believe to be alone."""
    flock = fcntl.flock

    def as_the_file_goes(descriptor, operation):
        (settings.run_directory / "agent.lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_the_file_goes)

    with pytest.raises(GeneveError) as refused, _sole_agent(settings):
        pass

    assert refused.value.code is Code.AGENT_RUNNING
