# SPDX-License-Identifier: Apache-2.0
"""Desired state by an agent's API: all of a change is kept and in the maps, or nothing of it."""

from __future__ import annotations

import threading

import pytest

from tests.api import Agent
from tests.nodes import eventually
from tests.one_agent import ROUTES, STATE, VPCS, VTEPS


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
