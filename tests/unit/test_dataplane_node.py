# SPDX-License-Identifier: Apache-2.0
"""What is said when a node cannot even be begun with."""

from __future__ import annotations

import os
import resource
from ipaddress import IPv4Address

import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import NodeSettings


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
