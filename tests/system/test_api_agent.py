# SPDX-License-Identifier: Apache-2.0
"""What an agent promises beyond single answers: nothing half-made, nothing lost when it dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from geneve_ebpf.dataplane import DataPlane
from lab.network import ROOT, Lab
from tests.api import Agent, children, kill_slot_process
from tests.nodes import PREFIX, eventually

SLOTS = 6
VPCS = [
    {"name": "blue", "vni": 100, "prefixes": ["10.0.0.0/16"]},
    {"name": "red", "vni": 101, "prefixes": ["10.0.0.0/16", "10.9.0.0/24"]},
]
VTEPS = [{"address": "192.0.2.8", "mtu": 0}, {"address": "192.0.2.9", "mtu": 1400}]
ROUTES = [
    {"vpc": "blue", "prefix": "10.0.128.0/17", "kind": "remote", "vtep": "192.0.2.8"},
    {"vpc": "blue", "prefix": "10.0.200.1/32", "kind": "blackhole"},
    {"vpc": "red", "prefix": "10.0.128.0/17", "kind": "remote", "vtep": "192.0.2.9"},
]
STATE = {"vpcs": VPCS, "vteps": VTEPS, "routes": ROUTES}


class Bench:
    """One node with an agent that tests may kill and start again."""

    def __init__(self, lab):
        self.lab = lab
        self.node = lab.nodes[0]
        self.agent = Agent(self.node.socket)

    @property
    def pid(self):
        return self.lab.agents[self.node.name]

    @property
    def run_directory(self):
        return Path(self.node.directory, "run", self.node.name)

    @property
    def database(self):
        return Path(self.node.directory, "state", self.node.name, "state.db")

    def start(self):
        self.lab.start_agent(self.node)
        self.lab.wait_ready(self.node)

    def stop(self, number):
        self.agent.close()
        self.lab.stop_agent(self.node, number)

    def restart(self, number=signal.SIGKILL):
        self.stop(number)
        self.start()

    def maps(self):
        """What the maps hold: routes, VTEPs, attachments."""
        plane = DataPlane.open(self.run_directory, writable=False)
        try:
            return (
                {(vni, str(r.prefix), r.kind, r.vtep, r.mac) for vni, r in plane.routes()},
                {(v.address, v.mtu) for v in plane.vteps()},
                {(a.sandbox, a.slot, a.endpoint, a.generation) for a in plane.attachments()},
            )
        finally:
            plane.close()

    def ready(self):
        counts = self.agent.must("GET", "/v1/slots")["counts"]
        return counts["ready"] == SLOTS and counts["retiring"] == counts["making"] == 0

    def log(self):
        return self.node.log.read_text()

    def reset(self):
        """Nobody attached, no slot reserved, the usual state."""
        if self.node.name not in self.lab.agents:
            self.start()
        for one in self.agent.must("GET", "/v1/sandboxes")["sandboxes"]:
            self.agent.must("DELETE", f"/v1/sandboxes/{one['sandbox']}")
        for one in self.agent.must("GET", "/v1/slots")["slots"]:
            if one["state"] == "reserved":
                self.agent.must("DELETE", f"/v1/slots/{one['id']}")
        self.agent.must("PUT", "/v1/state", STATE)
        assert eventually(self.ready, 30)


@pytest.fixture(scope="module")
def made():
    with Lab(Path(f"/run/{PREFIX}-agent"), f"{PREFIX}-agent") as lab:
        lab.make_nodes(1, SLOTS, metrics=False)
        config = lab.nodes[0].config
        config.write_text(config.read_text().replace("[metrics]", "address_rest = 30\n[metrics]"))
        bench = Bench(lab)
        bench.start()
        yield bench
        bench.agent.close()


@pytest.fixture
def bench(made):
    made.reset()
    return made


@pytest.fixture
def ask(bench):
    return bench.agent


# Attach and detach


def test_an_attach_is_in_the_maps_when_it_is_answered(bench, ask):
    body = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue", "address": "10.0.0.77"})

    ((sandbox, slot, endpoint, generation),) = bench.maps()[2]
    assert (sandbox, generation) == ("a", body["generation"])
    assert f"slot-{slot}" == body["slot"]["id"]
    assert (endpoint.vni, str(endpoint.address)) == (100, "10.0.0.77")
    assert str(endpoint.mac) == body["mac"]
    assert Path(body["slot"]["netns"]).exists()
    timing = body["timing_ns"]
    assert 0 < timing["validate"] + timing["write"] < timing["total"]


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("b", {"vpc": "green"}, "vpc_not_found"),
        ("b", {"vpc": "../blue"}, "bad_name"),
        ("b", {"vpc": "blue", "address": "10.0.0"}, "bad_address"),
        ("b", {"vpc": "blue", "address": "10.1.0.5"}, "address_outside_vpc"),
        ("b", {"vpc": "blue", "address": "10.0.0.1"}, "address_reserved"),
        ("b", {"vpc": "blue", "address": "10.0.0.9"}, "address_in_use"),
        ("b", {"vpc": "blue", "slot": "slot-0x1"}, "slot_not_found"),
        ("b", {"vpc": "blue", "slot": "slot-00"}, "slot_not_found"),
        ("b", {"vpc": "blue", "slot": "slot-9999"}, "slot_not_found"),
        ("b", {"vpc": "blue", "slot": "taken"}, "slot_taken"),
        ("taken", {"vpc": "red"}, "sandbox_exists"),
        ("B", {"vpc": "blue"}, "bad_name"),
        ("..%2f..%2fetc", {"vpc": "blue"}, "bad_name"),
        ("%2e%2e", {"vpc": "blue"}, "bad_name"),
        ("a%00b", {"vpc": "blue"}, "bad_name"),
        ("%ff", {"vpc": "blue"}, "bad_name"),
        ("a" * 64, {"vpc": "blue"}, "bad_name"),
        ("b?now=1", {"vpc": "blue"}, "bad_request"),
        ("b/c", {"vpc": "blue"}, "path_unknown"),
        ("", {"vpc": "blue"}, "bad_name"),
    ],
)
def test_an_attach_that_is_refused_changes_nothing(bench, ask, name, body, code):
    taken = ask.must("PUT", "/v1/sandboxes/taken", {"vpc": "blue", "address": "10.0.0.9"})
    if body.get("slot") == "taken":
        body = body | {"slot": taken["slot"]["id"]}
    assert eventually(bench.ready, 30)
    before = bench.maps(), ask.must("GET", "/v1/slots")

    assert ask.code("PUT", f"/v1/sandboxes/{name}", body) == code

    assert (bench.maps(), ask.must("GET", "/v1/slots")) == before


def test_one_name_attached_by_many_at_once_is_attached_once(bench):
    """Whoever comes second gets the same answer, or a conflict if it asked for something else."""
    start = threading.Barrier(8)
    answers = []

    def attach(number):
        agent = Agent(bench.node.socket)
        start.wait()
        for turn in range(10):
            body = {"vpc": "blue", "address": f"10.0.{turn}.{10 + number % 2}"}
            answers.append((turn, number % 2, agent.ask("PUT", f"/v1/sandboxes/r{turn}", body)[0]))
        agent.close()

    threads = [threading.Thread(target=attach, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    attached = bench.maps()[2]
    for turn in range(10):
        statuses = [(kind, status) for t, kind, status in answers if t == turn]
        winners = [kind for kind, status in statuses if status == 201]
        if not winners:  # more names than slots: nobody got one, then
            assert {status for _, status in statuses} == {503}
            continue
        (winner,) = winners
        assert {s for k, s in statuses if k == winner} <= {201, 200, 503}
        assert {s for k, s in statuses if k != winner} <= {409, 503}
        assert sum(1 for name, *_ in attached if name == f"r{turn}") == 1


def test_a_late_detach_does_not_hit_the_successor(bench, ask):
    first = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    ask.must("DELETE", "/v1/sandboxes/a")
    second = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})

    assert second["address"] == first["address"]
    assert second["generation"] > first["generation"]
    assert second["slot"]["id"] != first["slot"]["id"]
    late = f"/v1/sandboxes/a?generation={first['generation']}"
    assert ask.code("DELETE", late) == "generation_mismatch"
    assert ask.must("GET", "/v1/sandboxes/a")["generation"] == second["generation"]


def test_a_freed_address_rests_also_over_a_crash(bench, ask):
    ask.must("PUT", "/v1/sandboxes/rest1", {"vpc": "blue", "address": "10.0.50.50"})
    ask.must("DELETE", "/v1/sandboxes/rest1")
    again = {"vpc": "blue", "address": "10.0.50.50"}
    assert ask.code("PUT", "/v1/sandboxes/rest2", again) == "address_resting"

    bench.restart()

    assert ask.code("PUT", "/v1/sandboxes/rest2", again) == "address_resting"
    assert ask.must("PUT", "/v1/sandboxes/rest1", {"vpc": "blue"})["address"] == "10.0.50.50"


# Both families

BOTH = {"vni": 102, "prefixes": ["10.0.0.0/16", "fd00:1::/48"]}


@pytest.fixture
def dual(bench, ask):
    ask.must("PUT", "/v1/vpcs/both", BOTH)
    return ask


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ({}, ("10.0.0.2", "fd00:1::1")),
        ({"address6": "FD00:1:0::77"}, (None, "fd00:1::77")),
        ({"address": "10.0.0.77"}, ("10.0.0.77", None)),
        ({"address": "10.0.0.78", "address6": "fd00:1::78"}, ("10.0.0.78", "fd00:1::78")),
    ],
)
def test_a_sandbox_gets_one_address_of_each_family_or_those_it_names(bench, dual, wanted, got):
    """What is in the maps is what was answered, and the same request again is no other one."""
    body = {"vpc": "both"} | wanted
    answer = dual.must("PUT", "/v1/sandboxes/a", body)

    assert (answer["address"], answer["address6"]) == got
    assert answer["mac"].startswith("02:46:" if got[0] is None else "02:47:")
    ((_, _, endpoint, _),) = bench.maps()[2]
    assert tuple(map(str, endpoint.addresses)) == tuple(text for text in got if text)
    assert dual.ask("PUT", "/v1/sandboxes/a", body)[0] == 200
    for address in filter(None, got):
        found = dual.must("GET", f"/v1/routes?vpc=both&address={address}")
        assert found["sandbox"] == "a"
    assert dual.must("GET", "/v1/vpcs/both")["sandboxes"] == 1
    listed = {one["name"]: one["sandboxes"] for one in dual.must("GET", "/v1/vpcs")["vpcs"]}
    assert listed == {"blue": 0, "red": 0, "both": 1}


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"address": "fd00:1::9"}, "bad_address", "address"),
        ({"address6": "10.0.0.9"}, "bad_address", "address6"),
        ({"address6": "fe80::1%eth0"}, "bad_address", "address6"),
        ({"address6": "::ffff:10.0.0.9"}, "bad_address", "address6"),
        ({"address6": "fd00:2::9"}, "address_outside_vpc", "address6"),
        ({"address6": "fd00:1::"}, "address_reserved", "address6"),
        ({"address": "10.0.0.10", "address6": "fd00:1::9"}, "address_in_use", "address6"),
        ({"address": "10.0.0.9", "address6": "fd00:1::10"}, "address_in_use", "address"),
    ],
)
def test_of_two_addresses_either_both_are_had_or_none(bench, dual, body, code, field):
    both = {"address": "10.0.0.9", "address6": "fd00:1::9"}
    dual.must("PUT", "/v1/sandboxes/a", {"vpc": "both"} | both)
    before = bench.maps()

    status, answer = dual.ask("PUT", "/v1/sandboxes/b", {"vpc": "both"} | body)

    assert status >= 400
    assert (answer["error"]["code"], answer["error"]["field"]) == (code, field)
    assert bench.maps() == before


def test_both_addresses_rest_also_over_a_crash(bench, dual):
    """Found attached, and found resting: with either address."""
    first = dual.must("PUT", "/v1/sandboxes/a", {"vpc": "both"})
    bench.restart()
    found = bench.agent.must("GET", "/v1/sandboxes/a")
    assert (found["address"], found["address6"]) == (first["address"], first["address6"])
    bench.agent.must("DELETE", "/v1/sandboxes/a")
    bench.restart()

    for key in ("address", "address6"):
        again = {"vpc": "both", key: first[key]}
        assert bench.agent.code("PUT", "/v1/sandboxes/b", again) == "address_resting"
    same = bench.agent.must("PUT", "/v1/sandboxes/a", {"vpc": "both"})
    assert (same["address"], same["address6"]) == (first["address"], first["address6"])


def test_an_ipv6_address_in_use_keeps_its_prefix(bench, dual):
    """As an IPv4 one does."""
    dual.must("PUT", "/v1/sandboxes/a", {"vpc": "both", "address6": "fd00:1::9"})
    state = dual.must("GET", "/v1/state")
    (both,) = (vpc for vpc in state["vpcs"] if vpc["name"] == "both")
    both["prefixes"] = ["10.0.0.0/16", "fd00:1:1::/48"]

    assert dual.code("PUT", "/v1/state", state) == "vpc_in_use"
    both["prefixes"] = ["fd00:1::/64"]
    dual.must("PUT", "/v1/state", state)


def test_a_vtep_of_the_other_family_is_refused(bench, ask):
    status, answer = ask.ask("PUT", "/v1/vteps/2001:db8::2")

    assert (status, answer["error"]["code"]) == (400, "vtep_family")
    assert "IPv4" in answer["error"]["hint"]


def test_routes_of_both_families_come_back_from_disk(bench, dual):
    """In the maps, in the file, and in the answer, each as RFC 5952 writes it."""
    routes = [
        {"vpc": "both", "prefix": "FD00:1:0:2::/64", "kind": "remote", "vtep": "192.0.2.8"},
        {"vpc": "both", "prefix": "::/0", "kind": "blackhole"},
        {"vpc": "both", "prefix": "fd00:1:0:2::7/128", "kind": "local"},
    ]
    for route in routes:
        dual.must("POST", "/v1/routes", route)
    before = bench.maps()[0]

    bench.stop(signal.SIGKILL)
    bench.start()

    assert bench.maps()[0] == before
    listed = bench.agent.must("GET", "/v1/routes?vpc=both")["routes"]
    assert {route["prefix"] for route in listed} == {
        "fd00:1:0:2::/64", "::/0", "fd00:1:0:2::7/128"
    }  # fmt: skip
    found = bench.agent.must("GET", "/v1/routes?vpc=both&address=fd00:1:0:2::8")
    assert found["route"]["vtep"] == "192.0.2.8"


def test_items_of_a_batch_stand_each_on_its_own(bench, ask):
    ask.must("PUT", "/v1/sandboxes/old", {"vpc": "blue"})

    results = ask.must(
        "POST",
        "/v1/sandboxes:batch",
        {
            "attach": [
                {"sandbox": "one", "vpc": "blue"},
                {"sandbox": "two", "vpc": "nowhere"},
                {"sandbox": "three"},
                {"sandbox": "four", "vpc": "red"},
            ],
            "detach": [{"sandbox": "old"}, {"sandbox": "absent"}],
        },
    )["results"]

    assert [one["status"] for one in results] == [200, 204, 201, 404, 400, 201]
    assert results[4]["error"]["field"] == "attach[2].vpc"
    assert {name for name, *_ in bench.maps()[2]} == {"one", "four"}


def test_a_batch_that_runs_into_something_goes_on_behind_it(bench, ask):
    """Rows of plain attaches, cut by what is there already, by a name twice, by a bad one, by one
    with a wish and by the end of the slots: to each its own answer, and the maps have them all.
    """
    ask.must("PUT", "/v1/sandboxes/old", {"vpc": "blue"})
    assert eventually(lambda: ask.must("GET", "/v1/slots")["counts"]["ready"] == SLOTS, 30)
    (maker,) = children(bench.pid, "geneve_ebpf.agent.slot_process")
    plain = [{"sandbox": f"s{number}", "vpc": "blue"} for number in range(SLOTS + 1)]
    odd = [
        {"sandbox": "old", "vpc": "blue"},
        {"sandbox": "s0", "vpc": "blue"},
        {"sandbox": "No Name", "vpc": "blue"},
        {"sandbox": "wish", "vpc": "blue", "address": "10.0.88.9"},
    ]
    since = ask.must("GET", "/v1/node")["last_event"]

    os.kill(maker, signal.SIGSTOP)
    try:
        attach = [*plain[:3], *odd, *plain[3:]]
        answer = ask.must("POST", "/v1/sandboxes:batch", {"attach": attach})
    finally:
        os.kill(maker, signal.SIGCONT)

    results = answer["results"]
    statuses = [one["status"] for one in results]
    assert statuses == [201] * 3 + [200, 200, 400, 201] + [201] * (SLOTS - 4) + [503] * 2
    attached = [one for one in results if one["status"] in (200, 201)]
    slots = {one["sandbox"]: one["slot"]["id"] for one in attached}
    addresses = {one["sandbox"]: one["address"] for one in attached}
    assert results[4]["slot"]["id"] == results[0]["slot"]["id"]
    assert len(set(slots.values())) == len(set(addresses.values())) == len(slots) == SLOTS + 1
    assert {(name, f"slot-{slot}", str(one.address)) for name, slot, one, _ in bench.maps()[2]} == {
        (name, slot, addresses[name]) for name, slot in slots.items()
    }
    assert answer["guest"] == ask.must("GET", "/v1/sandboxes/s0")["guest"]
    told = ask.must("GET", f"/v1/events?since={since}")
    assert [one["sandbox"] for one in told] == [
        one["sandbox"] for one in results if one["status"] == 201
    ]


# Slots


def test_a_slot_is_never_used_twice_by_the_same_namespace(bench, ask):
    """A detached sandbox's namespace is gone before its index is used again."""
    body = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    inode = Path(body["slot"]["netns"]).stat().st_ino
    ask.must("DELETE", "/v1/sandboxes/a")
    assert eventually(bench.ready, 30)

    inodes = {Path(one["netns"]).stat().st_ino for one in ask.must("GET", "/v1/slots")["slots"]}
    assert len(inodes) == SLOTS
    assert inode not in inodes


def test_a_reserved_slot_is_bound_later_or_given_back(bench, ask):
    kept = ask.must("POST", "/v1/slots:reserve")["slot"]
    given_back = ask.must("POST", "/v1/slots:reserve")["slot"]

    body = ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue", "slot": kept["id"]})
    ask.must("DELETE", f"/v1/slots/{given_back['id']}")

    assert body["slot"]["netns"] == kept["netns"]
    assert ask.code("DELETE", f"/v1/slots/{kept['id']}") == "slot_taken"
    again = {"vpc": "blue", "slot": given_back["id"]}
    assert ask.code("PUT", "/v1/sandboxes/b", again) in ("slot_taken", "slot_not_found")
    assert eventually(bench.ready, 30)


def test_a_reservation_outlives_the_agent(bench, ask):
    kept = ask.must("POST", "/v1/slots:reserve")["slot"]

    bench.restart()

    there = [one for one in ask.must("GET", "/v1/slots")["slots"] if one["id"] == kept["id"]]
    assert there == [kept]


def test_the_pool_fills_again_after_the_slot_process_died(bench, ask):
    """In the middle of making and destroying: what it left half-made is cleared."""
    for turn in range(3):
        for number in range(SLOTS):
            ask.must("PUT", f"/v1/sandboxes/t{turn}-{number}", {"vpc": "blue"})
        for number in range(SLOTS):
            ask.must("DELETE", f"/v1/sandboxes/t{turn}-{number}")
        time.sleep(0.01 * turn)
        kill_slot_process(bench.pid)
        assert eventually(bench.ready, 30)

    slots = ask.must("GET", "/v1/slots")["slots"]
    directory = bench.run_directory / "netns"
    assert {path.name for path in directory.iterdir()} == {one["id"] for one in slots}
    links = subprocess.run(
        ["ip", "-n", bench.node.namespace, "-o", "link"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    named = set(re.findall(r"^\d+: (gnv\d+)@", links, re.MULTILINE))
    assert named == {one["host_interface"] for one in slots}


# Desired state


def test_a_state_that_is_refused_changes_nothing(bench, ask):
    """Not even when its first thousands of routes were right."""
    before = ask.must("GET", "/v1/state"), bench.maps()
    routes = [
        {"vpc": "red", "prefix": f"10.0.{i >> 8}.{i & 255}/32", "kind": "blackhole"}
        for i in range(5000)
    ]
    bad = {"vpc": "red", "prefix": "10.0.0.1/24", "kind": "local"}

    status, answer = ask.ask("PUT", "/v1/state", STATE | {"routes": [*routes, bad]})

    assert (status, answer["error"]["code"]) == (400, "bad_prefix")
    assert answer["error"]["field"] == "routes[5000].prefix"
    assert (ask.must("GET", "/v1/state"), bench.maps()) == before


def test_a_state_that_does_not_fit_the_maps_is_taken_back(bench, ask):
    """The 65,537th VTEP finds no room; routes that were removed and changed are back."""
    before = ask.must("GET", "/v1/state"), bench.maps()
    vteps = [{"address": f"198.{i >> 16}.{i >> 8 & 255}.{i & 255}"} for i in range(65_537)]
    routes = [ROUTES[0] | {"vtep": "198.0.0.1"}]

    code = ask.code("PUT", "/v1/state", {"vpcs": VPCS, "vteps": vteps, "routes": routes})

    assert code == "map_full"
    assert (ask.must("GET", "/v1/state"), bench.maps()) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"vpcs": VPCS[1:], "routes": ROUTES[2:]}, "vpc_in_use"),
        ({"vpcs": [VPCS[0] | {"vni": 7}, VPCS[1]]}, "vpc_in_use"),
        ({"vpcs": [VPCS[0] | {"prefixes": ["10.0.0.0/24"]}, VPCS[1]]}, "vpc_in_use"),
        ({"vteps": VTEPS[1:]}, "vtep_not_found"),
        ({"vpcs": [*VPCS, VPCS[0] | {"name": "copy"}]}, "vni_taken"),
        ({"vpcs": [*VPCS, VPCS[0]]}, "bad_request"),
        ({"routes": [*ROUTES, ROUTES[0]]}, "bad_request"),
        ({"revision": 0}, "generation_mismatch"),
        ({"schema": "geneve-ebpf/state/2"}, "bad_request"),
    ],
)
def test_what_would_break_a_rule_is_refused(bench, ask, change, code):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue", "address": "10.0.1.9"})
    before = ask.must("GET", "/v1/state"), bench.maps()

    assert ask.code("PUT", "/v1/state", STATE | change) == code

    assert (ask.must("GET", "/v1/state"), bench.maps()) == before


def test_vpcs_may_swap_their_vnis(bench, ask):
    """Routes follow their VPC to its new VNI, though the other's had the same prefixes."""
    swapped = [VPCS[0] | {"vni": 101}, VPCS[1] | {"vni": 100}]

    ask.must("PUT", "/v1/state", STATE | {"vpcs": swapped})

    routes = {(vni, prefix, vtep and str(vtep)) for vni, prefix, _, vtep, _ in bench.maps()[0]}
    assert routes == {
        (101, "10.0.128.0/17", "192.0.2.8"),
        (101, "10.0.200.1/32", None),
        (100, "10.0.128.0/17", "192.0.2.9"),
    }


def test_what_get_answers_can_be_put_back(bench, ask):
    state = ask.must("GET", "/v1/state")

    answer = ask.must("PUT", "/v1/state", state)

    assert answer["revision"] == state["revision"]
    assert all(not any(part.values()) for part in answer["changes"].values())


def test_attaches_go_on_while_a_hundred_thousand_routes_are_set(bench, ask):
    """In one call, and every one of them is in the maps when it is answered; and out again."""
    routes = [
        {"vpc": "red", "prefix": f"10.{64 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/32"}
        | {"kind": "remote", "vtep": f"192.0.2.{8 + i % 2}"}
        for i in range(100_000)
    ]
    other = Agent(bench.node.socket)
    answers = []

    def apply():
        answers.append(other.ask("PUT", "/v1/state", STATE | {"routes": ROUTES + routes}))

    thread = threading.Thread(target=apply)
    thread.start()
    turns = 0
    while thread.is_alive():
        ask.must("PUT", f"/v1/sandboxes/x{turns}", {"vpc": "blue"})
        ask.must("DELETE", f"/v1/sandboxes/x{turns}")
        turns += 1
        eventually(lambda: ask.must("GET", "/v1/slots")["counts"]["ready"] > 1)
    thread.join()
    other.close()

    ((status, answer),) = answers
    assert (status, answer["changes"]["routes"]["added"]) == (200, 100_000)
    assert turns > 10
    assert len(bench.maps()[0]) == 100_000 + len(ROUTES)
    ask.must("PUT", "/v1/state", STATE)
    assert len(bench.maps()[0]) == len(ROUTES)


# Lives and deaths


def test_a_killed_agent_is_followed_by_one_that_knows_everything(bench, ask):
    for name, vpc in (("a", "blue"), ("b", "red")):
        ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": vpc})
    ask.must("PUT", "/v1/vteps/192.0.2.77", {"mtu": 1300})
    assert eventually(bench.ready, 30)
    maps = bench.maps()
    asked = ("/v1/state", "/v1/sandboxes", "/v1/slots")
    before = [ask.must("GET", target) for target in asked]

    bench.restart(signal.SIGKILL)

    assert ask.must("GET", "/v1/node")["boot"] == "adopted"
    assert eventually(bench.ready, 30)
    assert [ask.must("GET", target) for target in asked] == before
    assert bench.maps() == maps
    assert ask.ask("PUT", "/v1/sandboxes/a", {"vpc": "blue"})[0] == 200


@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.5])
def test_an_agent_killed_while_it_applies_leaves_one_of_the_two_states(bench, ask, after):
    """Store and maps say the same afterwards: all of the change, or nothing of it."""
    before = ask.must("GET", "/v1/state")["revision"]
    routes = [
        {"vpc": "red", "prefix": f"10.0.{i >> 8}.{i & 255}/32", "kind": "blackhole"}
        for i in range(20_000)
    ]
    other = Agent(bench.node.socket)

    def apply():
        with contextlib.suppress(OSError, AssertionError):
            other.ask("PUT", "/v1/state", STATE | {"routes": routes})

    thread = threading.Thread(target=apply)
    thread.start()
    time.sleep(after)
    bench.stop(signal.SIGKILL)
    thread.join()
    other.close()
    bench.start()

    state = ask.must("GET", "/v1/state")
    assert len(state["routes"]) in (len(ROUTES), len(routes))
    assert (state["revision"] > before) == (len(state["routes"]) == len(routes))
    assert len(bench.maps()[0]) == len(state["routes"])


def test_sigterm_ends_the_agent_and_nothing_else(bench, ask):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    maps = bench.maps()

    bench.stop(signal.SIGTERM)

    assert not bench.node.socket.exists()
    assert bench.maps() == maps
    assert bench.log().rstrip().endswith("event=stopped node=node1")
    bench.start()
    assert ask.must("GET", "/v1/sandboxes/a")["state"] == "attached"


def test_a_lost_state_file_costs_no_sandbox_its_network(bench, ask):
    """Maps are kept, the node says that something is wrong, and applying anew mends it."""
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    maps = bench.maps()
    bench.stop(signal.SIGKILL)
    for path in bench.database.parent.glob("state.db*"):
        path.unlink()
    bench.lab.start_agent(bench.node)
    assert eventually(lambda: _answers(ask), 30)

    assert bench.maps() == maps
    assert ask.code("GET", "/readyz") == "degraded"
    assert ask.must("GET", "/v1/node")["state"] == "degraded"
    assert ask.must("GET", "/v1/sandboxes/a")["vpc"] == ""
    ask.must("PUT", "/v1/state", STATE)
    assert ask.must("GET", "/v1/sandboxes/a")["vpc"] == "blue"
    assert bench.maps() == maps
    assert eventually(lambda: ask.ask("GET", "/readyz")[0] == 200, 30)  # it looks at hooks, too


def test_without_its_state_a_sandbox_can_still_be_detached(bench, ask):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    bench.stop(signal.SIGKILL)
    for path in bench.database.parent.glob("state.db*"):
        path.unlink()
    bench.lab.start_agent(bench.node)
    assert eventually(lambda: _answers(ask), 30)

    assert ask.must("DELETE", "/v1/sandboxes/a")["sandbox"] == "a"
    assert bench.maps()[2] == set()
    ask.must("PUT", "/v1/state", {})
    assert bench.maps() == (set(), set(), set())


def _answers(agent):
    try:
        return agent.ask("GET", "/healthz")[0] == 200
    except OSError:
        agent.close()
        return False


def _run_agent(bench, *before):
    done = subprocess.run(
        [*before, sys.executable, "-m", "geneve_ebpf", "-j", "agent", "run",
         "--config", str(bench.node.config)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_second_agent_for_a_node_is_refused(bench, ask):
    status, said = _run_agent(bench)

    assert status == 4
    assert '"agent_running"' in said
    assert str(bench.pid) in said
    assert ask.must("GET", "/v1/node")["state"] == "ready"


def test_an_agent_in_a_mount_namespace_of_its_own_is_refused(bench):
    """Whatever it pinned or mounted there would vanish with it."""
    bench.stop(signal.SIGTERM)

    status, said = _run_agent(bench, "unshare", "--mount")

    assert status == 1
    assert '"mount_namespace"' in said


def test_an_agent_that_is_not_root_is_refused(bench):
    bench.stop(signal.SIGTERM)
    bench.node.config.parent.chmod(0o755)

    status, said = _run_agent(bench, "setpriv", "--reuid=65534", "--clear-groups")
    bench.node.config.parent.chmod(0o700)

    assert status == 7
    assert '"not_permitted"' in said


def test_a_damaged_state_file_is_refused_and_nothing_is_cut(bench, ask):
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    maps = bench.maps()
    bench.stop(signal.SIGTERM)
    good = bench.database.read_bytes()
    bench.database.write_bytes(b"x" * len(good))

    status, said = _run_agent(bench)
    bench.database.write_bytes(good)

    assert status == 1
    assert '"state_store"' in said
    assert bench.maps() == maps
    bench.start()


def test_the_service_manager_is_told(bench, monkeypatch, tmp_path):
    """READY=1 when it serves, WATCHDOG=1 while it does, STOPPING=1 when it ends."""
    bench.stop(signal.SIGTERM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        bench.start()

        told = [manager.recv(100), manager.recv(100)]
        bench.stop(signal.SIGTERM)
        while told[-1] != b"STOPPING=1":
            told.append(manager.recv(100))

    assert told[0] == b"READY=1"
    assert set(told[1:-1]) == {b"WATCHDOG=1"}


def test_children_end_with_an_agent_that_is_killed(bench):
    (child,) = children(bench.pid, "geneve_ebpf.agent.slot_process")

    bench.stop(signal.SIGKILL)

    assert eventually(lambda: not Path(f"/proc/{child}/cmdline").exists() or _is_zombie(child))


def _is_zombie(pid):
    with contextlib.suppress(OSError):
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


def test_processes_stay_on_the_cpus_they_are_given(bench):
    """And one that is not placed off the agent's, where there is another."""
    bench.stop(signal.SIGTERM)
    config = bench.node.config.read_text()
    last = max(os.sched_getaffinity(0))
    bench.node.config.write_text(f"{config}\n[placement]\nagent_cpu = {last}\n")
    bench.start()
    bench.node.config.write_text(config)

    (child,) = children(bench.pid, "geneve_ebpf.agent.slot_process")
    assert os.sched_getaffinity(bench.pid) == {last}
    others = os.sched_getaffinity(0) - {last}
    assert os.sched_getaffinity(child) == {max(others or {last})}


def test_each_change_is_logged_with_its_caller_and_what_came_of_it(bench, ask):
    ask.must("PUT", "/v1/sandboxes/logged", {"vpc": "blue"})
    ask.code("PUT", "/v1/sandboxes/logged", {"vpc": "red"})
    ask.must("DELETE", "/v1/sandboxes/logged")
    ask.must("POST", "/v1/slots:reserve")
    ask.must("PUT", "/v1/vteps/192.0.2.80", {})

    assert eventually(lambda: "address=192.0.2.80" in bench.log())
    who = f"uid=0 pid={os.getpid()}"
    lines = [line for line in bench.log().splitlines() if who in line]
    for wanted in (
        r"event=attach sandbox=logged vpc=blue vni=100 address=\S+ slot=\S+ generation=\d+"
        r" status=201",
        r"event=change method=PUT target=/v1/sandboxes/logged status=409 .*code=sandbox_exists",
        r"event=detach sandbox=logged .*status=200",
        r"event=reserve slot=slot-\d+ status=201",
        r"event=vtep-added address=192.0.2.80 mtu=0 status=201",
    ):
        assert any(re.search(wanted, line) for line in lines), wanted


def test_a_node_that_is_taken_down_leaves_its_state_file_only(bench, ask):
    """Refused while somebody is attached; forced, everything goes and the agent with it."""
    ask.must("PUT", "/v1/sandboxes/a", {"vpc": "blue"})
    assert ask.code("POST", "/v1/node:down", {}) == "node_in_use"
    assert ask.must("GET", "/v1/sandboxes/a")["state"] == "attached"
    pid = bench.pid

    answer = ask.must("POST", "/v1/node:down", {"force": True})
    ask.close()
    bench.lab.stop_agent(bench.node)

    assert answer["sandboxes"] == 1
    assert not Path(f"/proc/{pid}").exists()
    assert not bench.run_directory.exists()
    links = subprocess.run(
        ["ip", "-n", bench.node.namespace, "-o", "link"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "gnv" not in links.replace(PREFIX, "")
    bench.start()
    assert ask.must("GET", "/v1/node")["boot"] == "kept"
    assert {one["name"] for one in ask.must("GET", "/v1/vpcs")["vpcs"]} == {"blue", "red"}
    assert len(bench.maps()[0]) == len(ROUTES)


def test_an_agent_that_comes_back_serves_by_its_maps_and_mends_what_hangs_no_more(bench):
    """Nothing but pins and maps is read before it serves; it is ready when all hangs again."""
    bench.agent.must("PUT", "/v1/sandboxes/stays", {"vpc": "blue"})
    bench.stop(signal.SIGKILL)
    (hook,) = bench.run_directory.glob("bpf/*/uplink-*")
    hook.unlink()
    before = len(bench.log())

    bench.start()

    said = bench.log()[before:]
    assert said.index("event=serving") < said.index('child="slot process"')
    assert hook.exists()
    assert bench.agent.must("GET", "/v1/sandboxes/stays")["state"] == "attached"
    assert eventually(bench.ready, 30)
