# SPDX-License-Identifier: Apache-2.0
"""What a probe of an attachment says: the programs' word, good and bad."""

from __future__ import annotations

import os
import resource

import pytest

from geneve_ebpf.abi import Address as PackedAddress
from geneve_ebpf.abi import EndpointKey
from geneve_ebpf.dataplane.probe import Prober
from geneve_ebpf.host import namespaces
from geneve_ebpf.model import Attachment
from tests.packets import BLUE
from tests.programs import Node


@pytest.fixture
def probe(any_node: Node):
    """Probes the attachment of a slot; (program, family, passed, saw) of each."""
    prober = Prober(any_node.plane, any_node.settings.run_directory)

    def run(attachment: Attachment, ifindex: int):
        with namespaces.entering(any_node.netns):
            return prober.probe(attachment, ifindex)

    yield run
    prober.close()


def attachment_of(node: Node, slot: int) -> Attachment:
    (found,) = [one for one in node.plane.attachments() if one.slot == slot]
    return found


@pytest.mark.parametrize(("slot", "families"), [(0, [4, 6]), (4, [4]), (5, [6])])
def test_what_is_attached_passes_in_each_of_its_families(any_node, probe, slot, families):
    """From the guest and from the wire; both count, as any packet does, and nothing is dropped."""
    before, dropped = any_node.plane.counters(slot), any_node.counted()

    found = probe(attachment_of(any_node, slot), any_node.slots[slot])

    assert [(one.program, one.family) for one in found] == [
        (program, family) for family in families for program in ("sandbox_tx", "uplink_rx")
    ]
    assert [one.saw for one in found if not one.passed] == []
    after = any_node.plane.counters(slot)
    assert after.tx_local.packets - before.tx_local.packets == len(families)
    assert after.rx_remote.packets - before.rx_remote.packets == len(families)
    assert any_node.counted() == dropped


def test_an_endpoint_that_is_gone_is_named_by_its_drop_reason(any_node, probe):
    """Both programs look it up; without a route to it neither finds another way."""
    alice = attachment_of(any_node, 0)
    key = EndpointKey(BLUE, PackedAddress.of(alice.endpoint.address))
    value = any_node.plane._endpoints.get(key)
    only4 = alice._replace(endpoint=alice.endpoint._replace(address6=None))
    any_node.plane._endpoints.remove(key)
    try:
        found = probe(only4, any_node.slots[0])
    finally:
        any_node.plane._endpoints.set(key, value)

    assert [one.passed for one in found] == [False, False]
    assert [one.saw for one in found] == ["dropped: no_endpoint"] * 2


def test_another_slots_interface_is_not_the_sandboxs(any_node, probe):
    """slot_by_ifindex leads to bob there, whose packets are not alice's."""
    found = probe(attachment_of(any_node, 0), any_node.slots[3])

    assert {one.program: (one.passed, one.saw) for one in found}["sandbox_tx"] == (
        False,
        "dropped: unbound",
    )


def test_an_interface_that_is_gone_is_said_so(any_node, probe):
    """The kernel has no such interface to come from."""
    found = probe(attachment_of(any_node, 4), 999_999)

    assert found[0].saw == "the kernel does not run sandbox_tx: No such device"
    assert [one.passed for one in found] == [False, True]


def test_a_prober_that_cannot_be_made_leaves_no_descriptor(any_node):
    """There is one for the first program, and none for the second."""
    free = [os.dup(0), os.dup(0)]
    for descriptor in free:
        os.close(descriptor)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[1], before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Prober(any_node.plane, any_node.settings.run_directory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    lowest = os.dup(0)
    os.close(lowest)
    assert lowest == free[0]
