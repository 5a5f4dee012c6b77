# SPDX-License-Identifier: Apache-2.0
"""Which settings a node is adopted with, and what is said when it cannot even be begun with."""

from __future__ import annotations

import os
import resource
from dataclasses import fields, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.dataplane.node import fingerprint
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Guest, NodeSettings


def test_without_descriptors_a_node_is_refused_in_words(tmp_path):
    """The agent looks for this error alone where it looks after a node beside its work."""
    settings = NodeSettings("odd", IPv4Address("192.0.2.1"), ("gnv-none",), run_root=tmp_path)
    lowest = os.dup(0)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(GeneveError) as refused:
            dataplane.look_after(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert refused.value.code is Code.NODE_SETUP
    assert "Too many open files" in str(refused.value)
    assert refused.value.hint


SETTINGS = NodeSettings("node", IPv4Address("192.0.2.1"), ("lan0",))
MADE_WITH = {
    "name": "other",
    "vtep": IPv4Address("192.0.2.2"),
    "uplinks": ("lan0", "lan1"),
    "udp_port": 6082,
    "netns": Path("/run/netns/other"),
    "run_root": Path("/run/other"),
    "state_root": Path("/var/lib/other"),
    "guest": Guest(dns=(IPv4Address("192.0.2.53"),)),
}
MAY_CHANGE = {
    "slots": 17,
    "tap_slots": 1,
    "host_tap_slots": 1,
    "tap_owner": 1000,
    "metrics_listen": "",
    "address_rest": 1.0,
    "merge": "off",
}


def test_every_setting_is_one_that_a_node_is_made_with_or_that_may_change():
    """A new one belongs in either table above."""
    assert {one.name for one in fields(NodeSettings)} == MADE_WITH.keys() | MAY_CHANGE.keys()


@pytest.mark.parametrize("name", MADE_WITH)
def test_an_agent_with_another_of_these_brings_the_node_up_anew(name):
    """What was made may not be what it wants."""
    assert fingerprint(replace(SETTINGS, **{name: MADE_WITH[name]})) != fingerprint(SETTINGS)


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_an_agent_with_another_of_these_adopts_the_node_at_once(name):
    """They are its own and its slot process's matter, at every start."""
    assert fingerprint(replace(SETTINGS, **{name: MAY_CHANGE[name]})) == fingerprint(SETTINGS)
