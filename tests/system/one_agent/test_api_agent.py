# SPDX-License-Identifier: Apache-2.0
"""Sandboxes and slots by an agent's API: what is answered is in the maps, and nothing half-made."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.api import Agent, children, kill_slot_process
from tests.nodes import eventually
from tests.one_agent import SLOTS

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
                {"vpc": "red"},
            ],
            "detach": [{"sandbox": "old"}, {"sandbox": "absent"}],
        },
    )["results"]

    assert [(one["status"], one["sandbox"]) for one in results] == [
        (200, "old"), (204, "absent"), (201, "one"), (404, "two"), (400, "three"), (201, "four"),
        (400, None),
    ]  # fmt: skip
    assert results[4]["error"]["field"] == "attach[2].vpc"
    assert {name for name, *_ in bench.maps()[2]} == {"one", "four"}


def test_a_batch_takes_no_request_timeout(ask):
    """It would not wait, so nobody is to think that it does."""
    one = {"attach": [{"sandbox": "one", "vpc": "blue"}]}

    status, answer = ask.ask("POST", "/v1/sandboxes:batch", one, {"Request-Timeout": "5"})

    assert (status, answer["error"]["field"]) == (400, "Request-Timeout")
    assert ask.must("GET", "/v1/sandboxes")["sandboxes"] == []


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
