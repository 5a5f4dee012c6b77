# SPDX-License-Identifier: Apache-2.0
"""What `geneve-ebpf doctor` makes of a node's settings, whatever the machine."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from geneve_ebpf.cli import checks
from geneve_ebpf.cli.checks import Check, Verdict
from geneve_ebpf.model import NodeSettings


def memory(**slots: int) -> Check:
    """What the check of memory says of a node with so many slots."""
    settings = NodeSettings("node", IPv4Address("192.0.2.1"), ("nosuch0",), **slots)
    return checks._memory(settings.targets)


@pytest.mark.parametrize("kind", ["slots", "tap_slots", "host_tap_slots"])
def test_slots_of_every_kind_need_memory(kind):
    """A node that keeps taps alone may want more than there is, too."""
    few = {"slots": 0, kind: 8}
    assert memory(**few).verdict is Verdict.OK
    assert memory(**few).detail.startswith("8 slots take about")

    many = memory(**{"slots": 0, kind: 10**9})
    assert (many.verdict, many.fix) == (Verdict.WARN, "keep fewer slots ready")


def test_one_with_a_tap_needs_more_and_a_tap_alone_less():
    """By what the bench has measured."""
    wanted = [
        int(memory(**{"slots": 0, kind: 10**6}).detail.split()[4])
        for kind in ("host_tap_slots", "slots", "tap_slots")
    ]
    assert wanted == sorted(set(wanted))
