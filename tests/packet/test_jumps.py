# SPDX-License-Identifier: Apache-2.0
"""Rare work is in programs of their own: where the jumps lead, and what if they lead nowhere."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet6 import ICMPv6ND_RS

from geneve_ebpf import dataplane
from geneve_ebpf.abi import JUMP_TABLE, JUMPS, bpf_directory
from geneve_ebpf.host import namespaces
from geneve_ebpf.loader import bpf
from tests import programs
from tests.packets import (
    ALICE,
    BOB,
    GUEST,
    ICMP,
    IP,
    NODE,
    PEER,
    REMOTE,
    UDP,
    Ether,
    Raw,
    arp_question,
    from_guest,
    icmp_error,
    on_wire,
)
from tests.programs import ROUTER_MAC, Node, Run, assert_passed_on


@contextmanager
def table_of(node: Node) -> Iterator[int]:
    """Its file descriptor."""
    fd = bpf.open_pin(node.pins.map(JUMP_TABLE))
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def no_jumps(node: Node) -> Iterator[None]:
    """The table is empty meanwhile, as after the loss of its last pin."""
    with table_of(node) as table:
        for place in range(len(JUMPS)):
            key = ctypes.c_uint32(place)
            bpf.call_packed(bpf.MAP_DELETE_ELEM, "<IIQQQ", table, 0, ctypes.addressof(key), 0, 0)
        try:
            yield
        finally:
            for place, name in enumerate(JUMPS):
                program = bpf.open_pin(node.pins.program(name))
                bpf.set_program(table, place, program)
                os.close(program)


def test_places_have_the_order_of_the_header():
    """Python fills the table by them, C jumps by them."""
    text = (bpf_directory() / "lib" / "jump.h").read_text()
    body = re.search(r"enum jump {(.*?)}", text, re.DOTALL)
    assert body is not None

    assert re.findall(r"JUMP_\w+", body[1]) == [f"JUMP_{name.upper()}" for name in JUMPS]


def test_every_jump_leads_to_its_program(node: Node):
    """By the kernel's number of it."""
    found = []
    with table_of(node) as table:
        for place in range(len(JUMPS)):
            key, value = ctypes.c_uint32(place), ctypes.c_uint32()
            at = (ctypes.addressof(key), ctypes.addressof(value))
            bpf.call_packed(bpf.MAP_LOOKUP_ELEM, "<IIQQQ", table, 0, *at, 0)
            found.append(value.value)

    assert found == [node.program_info(name).id for name in JUMPS]


def peers_question(node: Node) -> bytes:
    """ARP through the tunnel for a sandbox of this node."""
    return bytes(node.arriving(arp_question(BOB, sender=ALICE)))


@pytest.mark.parametrize(
    ("ask", "row"),
    [
        pytest.param(lambda node: node.sends(arp_question()), "tx no_program", id="arp"),
        pytest.param(
            lambda node: node.sends(from_guest(ICMPv6ND_RS(), "ff02::2", hlim=255)),
            "tx no_program",
            id="router",
        ),
        pytest.param(
            lambda node: node.sends(
                from_guest(UDP(dport=547) / Raw(b"\x0b\0\0\1"), "ff02::1:2")
            ),
            "tx no_program",
            id="dhcp6",
        ),
        pytest.param(
            lambda node: node.sends(from_guest(UDP() / Raw(bytes(1500)), REMOTE)),
            "tx no_program",
            id="too-big",
        ),
        pytest.param(
            lambda node: node.sends(from_guest(icmp_error(bytes(IP(src=REMOTE, dst=GUEST))))),
            "tx no_program",
            id="icmp-error",
        ),
        pytest.param(
            lambda node: node.receives(peers_question(node)), "rx no_program", id="peer"
        ),
    ],
)
def test_a_packet_that_cannot_go_on_is_dropped_and_counted(node: Node, ask, row):
    """Whoever it is from; and with the program there it is counted otherwise."""
    with no_jumps(node):
        run: Run = ask(node)

    assert run.counted == {row: 1}
    assert run.verdict == programs.SHOT
    assert row not in ask(node).counted


def test_what_is_the_hosts_is_passed_on_all_the_same(node: Node):
    """ICMP for the VTEP; nothing is learned of it then."""
    quote = bytes(on_wire(from_guest(UDP(), REMOTE), src=NODE, dst=PEER))[14 : 14 + 28]
    error = ICMP(type=3, code=4, nexthopmtu=1400) / Raw(quote)
    frame = bytes(Ether(src=ROUTER_MAC, dst=node.uplink_mac) / IP(src=PEER, dst=NODE) / error)
    with no_jumps(node):
        run = node.receives(frame)

    assert_passed_on(run, frame)
    assert run.counted == {}


def test_a_lost_table_is_made_anew_by_the_next_start():
    """With it every program, since those that are pinned jump by the one that is gone."""
    with programs.loaded(slot_count=1) as fresh:
        fresh.pins.map(JUMP_TABLE).unlink()
        dataplane.bring_up(fresh.settings).close()
        again = bpf.open_pin(fresh.pins.program("sandbox_tx"))
        try:
            with namespaces.entering(fresh.netns):
                frame = bytes(arp_question())
                ran = bpf.test_run(again, frame, ifindex=fresh.slots[0])
        finally:
            os.close(again)

    assert ran.verdict == programs.REDIRECT
