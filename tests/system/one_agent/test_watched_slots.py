# SPDX-License-Identifier: Apache-2.0
"""Slots' interfaces that others delete, set down or take our programs from, on a node in use."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys

import pytest

from geneve_ebpf.host import links, messages, namespaces
from geneve_ebpf.host.netlink import RouteSocket
from lab.network import run
from tests.nodes import Bed, eventually, inside
from tests.one_agent import SLOTS

HARMS = {
    "down": ("ip", "link", "set", "{}", "down"),
    "clsact": ("tc", "qdisc", "delete", "dev", "{}", "clsact"),
}


def spoil(bench, name, *words):
    """Run a command in the node's namespace; {} in it is the interface."""
    run("ip", "netns", "exec", bench.node.namespace, *(word.format(name) for word in words))


def told(ask, since, kind):
    """Events of a kind after that number; None is all that this agent has."""
    after = "" if since is None else f"?since={since}"
    return [one for one in ask.must("GET", f"/v1/events{after}") if one["event"] == kind]


def is_gone(ask, ident, ifindex):
    """Whether there is no such slot any more, or another one of its number."""
    slots = ask.must("GET", "/v1/slots")["slots"]
    return all(one["id"] != ident or one["host_ifindex"] != ifindex for one in slots)


@pytest.mark.parametrize("harm", ["delete", *HARMS])
def test_a_ready_slot_that_others_spoil_is_given_to_nobody(bench, ask, harm):
    """It is retired at once, however much happens on the node, and replaced."""
    first = ask.must("GET", "/v1/slots")["slots"][0]
    words = HARMS.get(harm, ("ip", "link", "delete", "{}"))

    spoil(bench, first["host_interface"], *words)

    assert eventually(lambda: is_gone(ask, first["id"], first["host_ifindex"]), 30)
    assert eventually(bench.ready, 30)
    assert ask.must("GET", "/v1/node")["problems"] == []
    assert len(ask.must("GET", "/v1/slots")["slots"]) == SLOTS


def test_a_sandbox_whose_interface_others_delete_is_told_as_lost(bench, ask):
    """It is detached: an event, a name in the node's status until somebody sees to it."""
    since = ask.must("GET", "/v1/node")["last_event"]
    own = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})

    spoil(bench, own["slot"]["host_interface"], "ip", "link", "delete", "{}")

    assert eventually(lambda: ask.must("GET", "/v1/node")["lost"] == ["a"], 30)
    (lost,) = told(ask, since, "sandbox-lost")
    assert (lost["sandbox"], lost["slot"]) == ("a", own["slot"]["id"])
    assert ask.code("GET", "/v1/sandboxes/a") == "sandbox_not_found"
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    assert ask.must("GET", "/v1/node")["lost"] == []


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("holder", ["attached", "reserved"])
def test_the_node_is_not_ready_while_somebodys_slot_is_spoiled(bench, ask, harm, holder):
    """Nobody's slot is taken from him: it is said which, by events too, until it is undone, and
    by the next agent as well."""
    since = ask.must("GET", "/v1/node")["last_event"]
    if holder == "attached":
        slot = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})["slot"]
    else:
        slot = ask.must("POST", "/v1/slots:reserve", {})["slot"]
    name = slot["host_interface"]

    def problems():
        return ask.must("GET", "/v1/node")["problems"]

    def is_said():
        return any(name in one for one in problems())

    def is_said_again():
        try:
            return is_said()
        except OSError:  # it does not answer yet
            ask.close()
            return False

    spoil(bench, name, *HARMS[harm])

    assert eventually(is_said, 30)
    assert ask.ask("GET", "/readyz")[0] == 503
    (event,) = told(ask, since, "slot-faulty")
    assert event["slot"] == slot["id"]
    assert event.get("sandbox") == ("a" if holder == "attached" else None)
    if holder == "attached":
        again = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue", "verify": True})
        assert not again["verified"]["passed"]
        assert name in again["verified"]["probes"][0]["saw"]
    bench.stop(signal.SIGKILL)
    bench.lab.start_agent(bench.node)
    assert eventually(is_said_again, 30)
    if harm == "down":
        spoil(bench, name, "ip", "link", "set", "{}", "up")
        assert eventually(lambda: not problems(), 30)
        assert told(ask, None, "slot-mended")
    elif holder == "attached":
        ask.must("DELETE", "/v1/sandboxes/a")
    else:
        ask.must("DELETE", f"/v1/slots/{slot['id']}")
    assert eventually(lambda: not problems(), 30)


SLOT_PROCESS = """
import os, sys
from geneve_ebpf.agent import slot_process
os.dup2(int(sys.argv[1]), 3)
slot_process._ROUND = 1.0
slot_process.main()
"""


def test_the_slot_process_looks_at_everything_however_much_it_hears():
    """What the kernel has not told is found though interfaces change without a pause."""
    ours, theirs = socket.socketpair()
    with Bed("look") as bed, ours, theirs:
        netns, other = bed.namespace("a"), bed.namespace("b")
        bed.wire(netns, "uplink0", other, "uplink0")
        bed.address(netns, "192.0.2.1/24", "uplink0")
        node = bed.node(netns, "192.0.2.1")
        node.run("ip", "link", "add", "noise0", "type", "veth", "peer", "name", "noise1")
        words = (sys.executable, "-c", SLOT_PROCESS, theirs.fileno(),
                 "--settings-json", node.settings.as_json())  # fmt: skip
        watcher = subprocess.Popen(inside(node.netns, *words), pass_fds=[theirs.fileno()])
        try:
            with namespaces.entering(node.netns), RouteSocket() as door:
                noise = links.index_by_name(door, "noise0")

                def heard():
                    for number in range(10):
                        door.tell_all([messages.link_mtu(noise, 1400 + number)])
                        if select.select([ours], [], [], 0.01)[0]:
                            return ours.recv(1 << 16)
                    return b""

                assert eventually(lambda: b'"uplinks"' in heard(), 30)
                node.plane.add_slot(7, 0x7FFFFFFF)  # there never was such an interface

                lost = json.dumps({"event": "lost", "index": 7}).encode()
                assert eventually(lambda: lost in heard(), 30)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            assert watcher.wait(30) == 0
            node.plane.remove_slot(7)
        bed.clear()
