# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI file, held against a real agent: every path, method, status and field of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.agent.api import Api
from lab.network import NETNS, Lab, run
from tests.api import (
    OPENAPI,
    Agent,
    faults,
    kill_slot_process,
    operations,
    path_of,
    resolved,
)
from tests.nodes import PREFIX, eventually

BLUE = {"vni": 100, "prefixes": ["10.0.0.0/16"]}
LOCAL = {"vpc": "blue", "prefix": "10.0.1.0/24", "kind": "local"}
REMOTE = {
    "vpc": "blue",
    "prefix": "10.0.2.0/24",
    "kind": "remote",
    "vtep": "192.0.2.9",
    "mac": "02:00:00:00:00:07",
}
BOTH = {"vni": 102, "prefixes": ["10.0.0.0/16", "fd00:1::/48"]}
LOCAL6 = {"vpc": "both", "prefix": "fd00:1:0:1::/64", "kind": "local"}
REMOTE6 = {"vpc": "both", "prefix": "fd00:1:0:2::/64", "kind": "remote", "vtep": "192.0.2.9"}
BAD = {"surprise": 1}
ASYNC = {"Prefer": "respond-async"}
# Two whole states, each right by itself: fill the map of VTEPs and one more.
FULL = {"vteps": [{"address": f"198.{i >> 16}.{i >> 8 & 255}.{i & 255}"} for i in range(65537)]}

# What is asked, in order, and the status that must come. "{slot}" is the slot reserved last.
# Header fields may follow. "{failed}" is the operation that failed last.
EXCHANGES: list[tuple[Any, ...]] = [
    (200, "GET", "/healthz", None),
    (200, "GET", "/readyz", None),
    (200, "GET", "/v1/version", None),
    (200, "GET", "/v1/node", None),
    (200, "GET", "/v1/drops", None),
    # VPCs
    (201, "PUT", "/v1/vpcs/blue", BLUE),
    (200, "PUT", "/v1/vpcs/blue", BLUE),
    (409, "PUT", "/v1/vpcs/blue", BLUE | {"vni": 101}),
    (400, "PUT", "/v1/vpcs/red", {"vni": 0, "prefixes": ["10.0.0.0/16"]}),
    (201, "POST", "/v1/vpcs", BLUE | {"name": "red", "vni": 101}),
    (200, "POST", "/v1/vpcs", BLUE | {"name": "red", "vni": 101}),
    (409, "POST", "/v1/vpcs", BLUE | {"name": "green"}),
    (400, "POST", "/v1/vpcs", BLUE | {"name": "No"}),
    (200, "GET", "/v1/vpcs", None),
    (200, "GET", "/v1/vpcs/blue", None),
    (404, "GET", "/v1/vpcs/green", None),
    (200, "DELETE", "/v1/vpcs/red", None),
    (404, "DELETE", "/v1/vpcs/red", None),
    # VTEPs
    (201, "PUT", "/v1/vteps/192.0.2.9", {"mtu": 1400}),
    (200, "PUT", "/v1/vteps/192.0.2.9", None),
    (400, "PUT", "/v1/vteps/192.0.2.9", {"mtu": 3}),
    (200, "GET", "/v1/vteps", None),
    # Routes
    (201, "POST", "/v1/routes", LOCAL),
    (200, "POST", "/v1/routes", LOCAL),
    (409, "POST", "/v1/routes", LOCAL | {"kind": "blackhole"}),
    (400, "POST", "/v1/routes", LOCAL | BAD),
    (404, "POST", "/v1/routes", LOCAL | {"vpc": "green"}),
    (201, "PUT", "/v1/routes", REMOTE),
    (200, "PUT", "/v1/routes", REMOTE),
    (400, "PUT", "/v1/routes", REMOTE | {"kind": "sideways"}),
    (404, "PUT", "/v1/routes", REMOTE | {"vtep": "192.0.2.77"}),
    (200, "GET", "/v1/routes", None),
    (200, "GET", "/v1/routes?vpc=blue", None),
    (200, "GET", "/v1/routes?vpc=blue&address=10.0.2.3", None),
    (400, "GET", "/v1/routes?address=10.0.2.3", None),
    (404, "GET", "/v1/routes?vpc=green", None),
    (409, "DELETE", "/v1/vpcs/blue", None),
    (409, "DELETE", "/v1/vteps/192.0.2.9", None),
    # Both families
    (201, "PUT", "/v1/vpcs/both", BOTH),
    (400, "PUT", "/v1/vpcs/six", {"vni": 103, "prefixes": ["fe80::/64"]}),
    (201, "POST", "/v1/routes", LOCAL6),
    (201, "POST", "/v1/routes", REMOTE6),
    (400, "PUT", "/v1/vteps/2001:db8::9", None),
    (200, "GET", "/v1/routes?vpc=both&address=fd00:1:0:2::3", None),
    (201, "PUT", "/v1/sandboxes/six", {"vpc": "both"}),
    (200, "PUT", "/v1/sandboxes/six", {"vpc": "both", "address6": "FD00:1:0:1::1"}),
    (409, "PUT", "/v1/sandboxes/six", {"vpc": "both", "address6": "fd00:1:0:1::2"}),
    (400, "PUT", "/v1/sandboxes/seven", {"vpc": "both", "address": "fd00:1:0:1::2"}),
    (200, "GET", "/v1/sandboxes/six", None),
    (200, "GET", "/v1/vpcs/both", None),
    (200, "DELETE", "/v1/sandboxes/six", None),
    (200, "DELETE", "/v1/routes?vpc=both&prefix=fd00:1:0:1::/64", None),
    (200, "DELETE", "/v1/routes?vpc=both&prefix=fd00:1:0:2::/64", None),
    (200, "DELETE", "/v1/vpcs/both", None),
    # Slots and sandboxes
    (200, "GET", "/v1/slots", None),
    (400, "POST", "/v1/slots:reserve", {"owner": 7}),
    (400, "POST", "/v1/slots:reserve", {"kind": "tap", "owner": 1 << 32}),
    (503, "POST", "/v1/slots:reserve", {"kind": "tap", "owner": 7}),
    (201, "POST", "/v1/slots", {"netns": "{box}"}),
    (200, "POST", "/v1/slots", {"netns": "{box}", "interface": "eth0"}),
    (200, "POST", "/v1/slots", {"netns": "{box}", "existing": True}),
    (400, "POST", "/v1/slots", {"netns": "{box}", "interface": "net9", "existing": True}),
    (400, "POST", "/v1/slots", {"netns": "/dev/null"}),
    (201, "PUT", "/v1/sandboxes/boxed", {"vpc": "blue", "slot": "{slot}", "mode": "native"}),
    (200, "DELETE", "/v1/sandboxes/boxed", None),
    (201, "POST", "/v1/slots:reserve", {"kind": "host-tap"}),
    (200, "POST", "/v1/taps/{slot}", None),
    (200, "DELETE", "/v1/slots/{slot}", None),
    (201, "POST", "/v1/slots:reserve", None),
    (400, "POST", "/v1/taps/{slot}", None),
    (404, "POST", "/v1/taps/slot-9999", None),
    (201, "PUT", "/v1/sandboxes/a", {"vpc": "blue", "address": "10.0.1.9", "slot": "{slot}"}),
    (409, "DELETE", "/v1/slots/{slot}", None),
    (201, "PUT", "/v1/sandboxes/behind", {"vpc": "blue", "address": "10.0.2.77"}),
    (200, "DELETE", "/v1/sandboxes/behind", None),
    (200, "PUT", "/v1/sandboxes/a", {"vpc": "blue"}),
    (409, "PUT", "/v1/sandboxes/a", {"vpc": "blue", "address": "10.0.1.8"}),
    (400, "PUT", "/v1/sandboxes/b", {"vpc": "blue"} | BAD),
    (404, "PUT", "/v1/sandboxes/b", {"vpc": "green"}),
    (200, "GET", "/v1/routes?vpc=blue&address=10.0.1.9", None),
    (200, "GET", "/v1/sandboxes", None),
    (200, "GET", "/v1/sandboxes/a", None),
    (404, "GET", "/v1/sandboxes/b", None),
    (400, "GET", "/v1/sandboxes/%2e%2e", None),
    (409, "POST", "/v1/node:down", {"force": False}),
    (412, "DELETE", "/v1/sandboxes/a?generation=99", None),
    (400, "DELETE", "/v1/sandboxes/a?generation=x", None),
    (200, "DELETE", "/v1/sandboxes/a", None),
    (204, "DELETE", "/v1/sandboxes/a", None),
    (201, "POST", "/v1/slots:reserve", {}),
    (200, "DELETE", "/v1/slots/{slot}", None),
    (404, "DELETE", "/v1/slots/slot-9999", None),
    (
        200,
        "POST",
        "/v1/sandboxes:batch",
        {
            "attach": [
                {"sandbox": "c", "vpc": "blue"},
                {"sandbox": "c", "vpc": "blue"},
                {"sandbox": "d", "vpc": "green"},
            ],
            "detach": [{"sandbox": "nobody"}],
        },
    ),
    (200, "POST", "/v1/sandboxes:batch", {"detach": [{"sandbox": "c"}]}),
    (400, "POST", "/v1/sandboxes:batch", BAD),
    # Asynchronously, once, and in time
    (202, "PUT", "/v1/sandboxes/e", {"vpc": "blue"}, ASYNC),
    (200, "GET", "/v1/operations", None),
    (400, "GET", "/v1/operations?state=odd", None),
    (202, "PUT", "/v1/sandboxes/f", {"vpc": "green"}, ASYNC),
    (200, "GET", "/v1/operations?state=failed", None),
    (200, "GET", "/v1/operations/{failed}?wait=1", None),
    (400, "GET", "/v1/operations/{failed}?wait=x", None),
    (404, "GET", "/v1/operations/op-0-0", None),
    (200, "POST", "/v1/operations:retry", "the one that failed"),
    (409, "POST", "/v1/operations:retry", "the one that is done"),
    (200, "GET", "/v1/operations/{failed}?wait=5", None),
    (400, "POST", "/v1/operations:retry", BAD),
    (404, "POST", "/v1/operations:retry", {"operations": ["op-0-0"]}),
    (200, "POST", "/v1/operations:drop", {"failed": True}),
    (400, "POST", "/v1/operations:drop", BAD),
    (404, "POST", "/v1/operations:drop", {"operations": ["op-0-0"]}),
    (409, "POST", "/v1/operations:drop", "the one that is done"),
    (200, "PUT", "/v1/sandboxes/e", {"vpc": "blue"}, {"Idempotency-Key": "k"}),
    (422, "PUT", "/v1/sandboxes/g", {"vpc": "blue"}, {"Idempotency-Key": "k"}),
    (504, "PUT", "/v1/sandboxes/g", {"vpc": "blue"}, {"Request-Timeout": "0"}),
    (200, "GET", "/v1/events", None),
    (400, "GET", "/v1/events?since=x", None),
    (410, "GET", "/v1/events?since=1", None),
    (200, "POST", "/v1/node:cordon", None),
    (400, "POST", "/v1/node:cordon", BAD),
    (503, "PUT", "/v1/sandboxes/g", {"vpc": "blue"}),
    (200, "POST", "/v1/node:uncordon", {}),
    (200, "DELETE", "/v1/sandboxes/e", None),
    (503, "POST", "/v1/slots:reserve", "until there is none"),
    (503, "PUT", "/v1/sandboxes/late", "when there is no slot"),
    # All at once
    (200, "PUT", "/v1/state?dry_run=true", {"vpcs": []}),
    (400, "PUT", "/v1/state?dry_run=maybe", {}),
    (200, "GET", "/v1/state", None),
    (200, "PUT", "/v1/state", {"vpcs": [BLUE | {"name": "blue"}], "routes": [LOCAL]}),
    (400, "PUT", "/v1/state", {"routes": [BAD]}),
    (404, "PUT", "/v1/state", {"routes": [LOCAL]}),
    (409, "PUT", "/v1/state", {"vpcs": [BLUE | {"name": n} for n in ("blue", "red")]}),
    (412, "PUT", "/v1/state", {"revision": 0}),
    (507, "PUT", "/v1/state", FULL),
    (200, "DELETE", "/v1/routes?vpc=blue&prefix=10.0.1.0/24", None),
    (404, "DELETE", "/v1/routes?vpc=blue&prefix=10.0.1.0/24", None),
    (400, "DELETE", "/v1/routes?vpc=blue", None),
    (404, "DELETE", "/v1/vteps/192.0.2.9", None),
    (201, "PUT", "/v1/vteps/192.0.2.9", {}),
    (200, "DELETE", "/v1/vteps/192.0.2.9", None),
    (503, "GET", "/readyz", "when the slot process is dead"),
    (200, "POST", "/v1/node:down", {"force": True}),
]


@pytest.fixture(scope="module")
def answers():
    """All exchanges with one agent: (wanted status, method, target, body, status, answer)."""
    found = []
    box = f"{PREFIX}openapi-box"
    with (
        Lab(Path(f"/run/{PREFIX}-openapi"), f"{PREFIX}-openapi") as lab,
        contextlib.ExitStack() as stack,
    ):
        run("ip", "netns", "add", box)
        stack.callback(run, "ip", "netns", "delete", box)
        lab.make_nodes(1, slots=12, metrics=False)  # nobody waits for one unless told to
        config = lab.nodes[0].config
        config.write_text(config.read_text().replace("slots =", "host_tap_slots = 1\nslots ="))
        lab.start_agent(lab.nodes[0])
        lab.wait_ready(lab.nodes[0])
        agent = Agent(lab.nodes[0].socket)
        slot = failed = done = ""
        for wanted, method, raw, body, *headers in EXCHANGES:
            target = raw.replace("{slot}", slot).replace("{failed}", failed)
            if isinstance(body, dict) and body.get("netns") == "{box}":
                body = body | {"netns": str(NETNS / box)}
            if isinstance(body, dict) and body.get("slot"):
                body = body | {"slot": slot}
            if body == "until there is none":
                while agent.ask(method, target)[0] == 201:
                    pass
                body = None
            elif body == "when there is no slot":
                body = {"vpc": "blue"}
                while agent.ask(method, target, body)[0] == 201:  # one became ready just now
                    agent.ask("DELETE", target)
                    while agent.ask("POST", "/v1/slots:reserve")[0] == 201:
                        pass
            elif body == "when the slot process is dead":
                # The agent starts another after 0.2 s; until then it says what is wrong.
                kill_slot_process(lab.agents["node1"])
                assert eventually(lambda: agent.ask("GET", "/readyz")[0] == 503)
                body = None
            if body == "the one that failed":
                body = {"operations": [failed]}
            elif body == "the one that is done":
                body = {"operations": [done]}
            status, answer = agent.ask(method, target, body, *headers)
            if status == 202:
                done = done or answer["operation"]
            if raw == "/v1/operations?state=failed" and answer["operations"]:
                failed = answer["operations"][-1]["operation"]
            if raw.startswith("/v1/slots") and method == "POST" and status == 201:
                slot = answer["slot"]["id"]
            found.append((wanted, method, target, body, status, answer))
        agent.close()
    return found


def test_each_request_gets_the_status_it_should(answers):
    wrong = [(w, m, t, s, a) for w, m, t, _, s, a in answers if w != s]

    assert wrong == []


def test_each_answer_is_what_the_file_says(answers):
    """Status listed, body as its schema: no field more, none less."""
    wrong = []
    for _, method, target, _, status, answer in answers:
        responses = operations()[path_of(target), method]["responses"]
        content = resolved(responses[str(status)]).get("content")
        if content is None:
            wrong += [(method, target, status, answer)] if answer is not None else []
            continue
        found = []
        for kind, inside in content.items():
            items = answer if kind == "application/x-ndjson" else [answer]
            found += [fault for item in items for fault in faults(item, inside["schema"])]
        wrong += [(method, target, status, fault) for fault in found]

    assert wrong == []


def test_each_status_of_the_file_was_seen(answers):
    """Nothing is promised that no agent answers."""
    promised = {
        (path, method, status)
        for (path, method), operation in operations().items()
        for status in operation["responses"]
        if status != "default"
    }

    assert promised == {(path_of(t), m, str(s)) for _, m, t, _, s, _ in answers}


def test_each_body_that_was_taken_is_one_the_file_allows(answers):
    """And what was refused as malformed is not."""
    wrong = []
    for _, method, target, body, status, _ in answers:
        request = operations()[path_of(target), method].get("requestBody")
        if body is None:
            wrong += [(method, target)] if request and request["required"] else []
        elif request is None:
            wrong.append((method, target))
        elif status < 400:
            found = faults(body, request["content"]["application/json"]["schema"])
            wrong += [(method, target, fault) for fault in found]
    wrong = [one for one in wrong if one[:2] != ("POST", "/v1/slots:reserve")]

    assert wrong == []


def test_every_schema_of_the_file_is_used():
    text = json.dumps(OPENAPI)
    unused = [
        name
        for name in OPENAPI["components"]["schemas"]
        if f'"#/components/schemas/{name}"' not in text
    ]

    assert unused == []


def test_the_server_has_no_path_or_method_beside_the_file():
    """The server's own table, which is what it answers from."""
    served = {(path, frozenset(methods)) for path, methods in Api(_Anything()).table.items()}
    in_file = {}
    for path, method in operations():
        in_file.setdefault(_plain(path), set()).add(method)

    assert served == {(path, frozenset(methods)) for path, methods in in_file.items()}


def _plain(path):
    return path.partition("{")[0] + "{name}" if "{" in path else path


class _Anything:
    """Has whatever attribute is asked for."""

    def __getattr__(self, name):
        return self
