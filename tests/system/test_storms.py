# SPDX-License-Identifier: Apache-2.0
"""More is asked for than there are slots: who waits, who is served, what is told of it.

The slot process is stopped where no slot may become ready, and goes on where they shall.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from lab.network import Lab
from tests.api import Agent, children
from tests.command import asked, geneve, new_lab, refused
from tests.nodes import eventually, ping

SLOTS = 3
VPCS = [
    {"name": name, "vni": vni, "prefixes": ["10.0.0.0/16"]}
    for name, vni in (("blue", 100), ("red", 101))
]
ASYNC = {"Prefer": "respond-async"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


class Bench:
    """One node, its agent, and a hand on its slot process."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = lab.nodes[0]
        self.agent = Agent(self.node.socket)

    def ask(self, *words, **more):
        return self.agent.ask(*words, **more)

    def must(self, *words):
        return self.agent.must(*words)

    def maker(self):
        found = []
        module = "geneve_ebpf.agent.slot_process"
        assert eventually(lambda: found.extend(children(self.lab.agents["node1"], module)) or found)
        return found[0]

    @contextlib.contextmanager
    def dry(self):
        """No slot is ready, and none becomes so before the end."""
        maker = self.maker()
        os.kill(maker, signal.SIGSTOP)
        try:
            while self.ask("POST", "/v1/slots:reserve")[0] == 201:
                pass
            yield lambda: os.kill(maker, signal.SIGCONT)
        finally:
            os.kill(maker, signal.SIGCONT)

    def waiting(self):
        return self.must("GET", "/v1/node")["waiting"]

    def attached(self):
        return {one["sandbox"] for one in self.must("GET", "/v1/sandboxes")["sandboxes"]}

    def settled(self):
        counts = self.must("GET", "/v1/slots")["counts"]
        return counts["ready"] == SLOTS and not counts["making"] and not counts["retiring"]

    def again(self, number):
        """Another agent, after this one's end by that signal."""
        self.agent.close()
        self.lab.stop_agent(self.node, number)
        self.lab.start_agent(self.node)
        self.lab.wait_ready(self.node)

    def reset(self):
        for one in self.attached():
            self.must("DELETE", f"/v1/sandboxes/{one}")
        for one in self.must("GET", "/v1/slots")["slots"]:
            if one["state"] == "reserved":
                self.must("DELETE", f"/v1/slots/{one['id']}")
        self.must("POST", "/v1/node:uncordon")
        self.must("POST", "/v1/operations:drop", {"failed": True})
        self.must("PUT", "/v1/state", {"vpcs": VPCS})
        assert eventually(self.settled, 30)


class Asking:
    """One request, asked from a thread of its own."""

    def __init__(self, bench, *words):
        self.agent = Agent(bench.node.socket)
        self.answer = None
        self.thread = threading.Thread(target=self._ask, args=words)
        self.thread.start()

    def _ask(self, *words):
        self.answer = self.agent.ask(*words)
        self.agent.close()

    def result(self):
        self.thread.join(60)
        assert self.answer is not None
        return self.answer


@pytest.fixture(scope="module")
def made():
    with new_lab("storm") as lab:
        lab.make_nodes(1, SLOTS, metrics=False)
        config = lab.nodes[0].config
        config.write_text(config.read_text().replace("[metrics]", "address_rest = 2\n[metrics]"))
        lab.start_agent(lab.nodes[0])
        lab.wait_ready(lab.nodes[0])
        bench = Bench(lab)
        yield bench
        bench.agent.close()


@pytest.fixture
def bench(made):
    made.reset()
    return made


def attach(bench, name, vpc="blue", seconds="60"):
    """An attach that waits; returns when it does."""
    before = bench.waiting()
    asking = Asking(
        bench, "PUT", f"/v1/sandboxes/{name}", {"vpc": vpc}, {"Request-Timeout": seconds}
    )
    assert eventually(lambda: bench.waiting() == before + 1)
    return asking


def test_who_waits_is_served_in_turns_that_go_round_the_vpcs(bench):
    """The storm of one VPC does not keep another one waiting. Generations tell the order."""
    with bench.dry() as pour:
        storm = [attach(bench, f"storm{number}") for number in range(4)]
        calm = attach(bench, "calm", "red")
        pour()
        order = [one.result()[1]["generation"] for one in [storm[0], calm, *storm[1:]]]

    assert order == sorted(order)
    assert bench.attached() == {"calm", *(f"storm{number}" for number in range(4))}


def test_what_is_late_is_not_done(bench):
    with bench.dry() as pour:
        late = attach(bench, "late", seconds="0.2")
        status, answer = late.result()
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        patient = attach(bench, "patient")
        pour()
        assert patient.result()[0] == 201

    assert bench.attached() == {"patient"}


@pytest.mark.parametrize("mode", ["clone", "native"])
def test_who_hangs_up_while_waiting_gets_nothing(bench, mode):
    body = json.dumps({"vpc": "blue", "mode": mode}).encode()
    with bench.dry() as pour:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(str(bench.node.socket))
            gone.sendall(
                b"PUT /v1/sandboxes/gone HTTP/1.1\r\nRequest-Timeout: 60\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert eventually(lambda: bench.waiting() == 1)
        assert eventually(lambda: bench.waiting() == 0)
        stays = attach(bench, "stays")
        pour()
        assert stays.result()[0] == 201

    assert bench.attached() == {"stays"}


def test_who_does_not_wait_does_not_go_first(bench):
    """Not even when a slot is ready: the answer says when to come back."""
    with bench.dry() as pour:
        first = attach(bench, "first")
        status, answer = bench.ask("PUT", "/v1/sandboxes/other", {"vpc": "red"})
        assert (status, answer["error"]["code"]) == (503, "no_slot")
        assert int(bench.agent.head["Retry-After"]) >= 1
        assert answer["error"]["details"]["retry_after_s"] > 0
        status, _ = bench.ask("POST", "/v1/slots:reserve")
        assert status == 503
        pour()
        assert first.result()[0] == 201


def test_a_reservation_can_wait_too(bench):
    with bench.dry() as pour:
        before = bench.waiting()
        asking = Asking(bench, "POST", "/v1/slots:reserve", None, {"Request-Timeout": "60"})
        assert eventually(lambda: bench.waiting() == before + 1)
        pour()
        status, answer = asking.result()

    assert (status, answer["slot"]["state"]) == (201, "reserved")


def test_cordoning_sends_those_away_that_wait(bench):
    with bench.dry():
        asking = attach(bench, "late")
        bench.must("POST", "/v1/node:cordon")
        status, answer = asking.result()

    assert (status, answer["error"]["code"]) == (503, "node_cordoned")


def test_an_asynchronous_attach_is_carried_out_and_told(bench):
    with bench.dry() as pour:
        status, operation = bench.ask("PUT", "/v1/sandboxes/web", {"vpc": "blue"}, ASYNC)
        where = bench.agent.head["Location"]
        assert (status, where) == (202, f"/v1/operations/{operation['operation']}")
        assert bench.agent.head["Preference-Applied"] == "respond-async"
        assert bench.must("GET", where)["state"] == "pending"
        pour()
        done = bench.must("GET", f"{where}?wait=60")

    assert done["state"] == "done"
    assert [step["what"] for step in done["history"]] == ["accepted", "waits", "done"]
    shown = bench.must("GET", "/v1/sandboxes/web")
    assert done["result"]["generation"] == shown["generation"]


def test_what_fails_in_the_end_stays_until_it_is_looked_at(bench):
    """It is told as an event, can be tried again, and dropped."""
    last = bench.must("GET", "/v1/node")["last_event"]
    _, operation = bench.ask("PUT", "/v1/sandboxes/web", {"vpc": "green"}, {**ASYNC, **PARENT})
    name = operation["operation"]
    failed = bench.must("GET", f"/v1/operations/{name}?wait=60")
    assert (failed["state"], failed["error"]["code"]) == ("failed", "vpc_not_found")
    assert failed["attempts"] == 1  # trying again cannot help
    (event,) = bench.must("GET", f"/v1/events?since={last}")
    assert (event["event"], event["operation"], event["trace"]) == ("operation-failed", name, TRACE)

    bench.must("PUT", "/v1/vpcs/green", {"vni": 102, "prefixes": ["10.0.0.0/16"]})
    bench.must("POST", "/v1/operations:retry", {"operations": [name]})
    assert bench.must("GET", f"/v1/operations/{name}?wait=60")["state"] == "done"
    assert bench.attached() == {"web"}


def test_an_attach_is_tried_again_where_that_can_help(bench):
    """A resting address is waited for, but not for longer than the operation may take."""
    body = {"vpc": "blue", "address": "10.0.77.9"}
    bench.must("PUT", "/v1/sandboxes/first", body)
    bench.must("DELETE", "/v1/sandboxes/first")

    hasty = {**ASYNC, "Request-Timeout": "0.1"}
    _, one = bench.ask("PUT", "/v1/sandboxes/hasty", body, hasty)
    _, other = bench.ask("PUT", "/v1/sandboxes/second", body, ASYNC)
    failed = bench.must("GET", f"/v1/operations/{one['operation']}?wait=60")
    done = bench.must("GET", f"/v1/operations/{other['operation']}?wait=60")

    assert failed["error"]["code"] == "address_resting"
    assert "no time is left" in failed["history"][-1]["message"]
    assert [step["what"] for step in done["history"]] == ["accepted", "again", "done"]
    assert done["result"]["address"] == "10.0.77.9"


def test_a_request_with_a_key_is_carried_out_once(bench):
    key = {"Idempotency-Key": '"one"'}
    _, first = bench.ask("POST", "/v1/slots:reserve", None, key)
    assert "Idempotency-Replayed" not in bench.agent.head
    _, again = bench.ask("POST", "/v1/slots:reserve", None, key)

    assert again == first
    assert bench.agent.head["Idempotency-Replayed"] == "true"
    assert bench.must("GET", "/v1/slots")["counts"]["reserved"] == 1
    last = bench.must("GET", "/v1/node")["last_event"]
    for _ in range(2):
        bench.ask("PUT", "/v1/sandboxes/once", {"vpc": "blue"}, {"Idempotency-Key": "attach"})
    events = bench.must("GET", f"/v1/events?since={last}")
    assert [(one["event"], one["sandbox"]) for one in events] == [("attach", "once")]
    status, answer = bench.ask("POST", "/v1/vpcs", VPCS[0], key)
    assert (status, answer["error"]["code"]) == (422, "key_reused")


def test_a_whole_state_with_a_key_is_applied_once(bench):
    """Of more than a mebibyte: told apart by all of its body, the last octet too."""
    state = json.dumps({"vpcs": VPCS}).encode().ljust(2 << 20)
    revisions = []
    for body, status, replayed in (
        (state, 200, None), (state, 200, "true"), (state + b" ", 422, None)
    ):  # fmt: skip
        connection = bench.agent._connection
        connection.request("PUT", "/v1/state", body, {"Idempotency-Key": "state"})
        answer = connection.getresponse()
        revisions.append(json.loads(answer.read()).get("revision"))
        assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (status, replayed)

    assert revisions[0] == revisions[1] == bench.must("GET", "/v1/state")["revision"]


def test_a_request_with_a_key_that_is_under_way_is_not_done_twice(bench):
    key = {"Idempotency-Key": "two", "Request-Timeout": "60"}
    with bench.dry() as pour:
        asking = Asking(bench, "PUT", "/v1/sandboxes/once", {"vpc": "blue"}, key)
        assert eventually(lambda: bench.waiting() == 1)
        status, answer = bench.ask("PUT", "/v1/sandboxes/once", {"vpc": "blue"}, key)
        assert (status, answer["error"]["code"]) == (409, "key_in_use")
        pour()
        assert asking.result()[0] == 201

    status, answer = bench.ask("PUT", "/v1/sandboxes/once", {"vpc": "blue"}, key)
    assert (status, answer) == (201, asking.answer[1])


def test_events_are_followed_as_they_happen_with_the_callers_trace(bench):
    """The line of the log has the trace as well; nothing is lost between list and follow."""
    last = bench.must("GET", "/v1/node")["last_event"]
    heard = []
    following = socket.socket(socket.AF_UNIX)
    following.settimeout(60)
    following.connect(str(bench.node.socket))
    following.sendall(f"GET /v1/events?since={last}&follow=true HTTP/1.1\r\n\r\n".encode())

    status, web = bench.ask("PUT", "/v1/sandboxes/web", {"vpc": "blue"}, PARENT)
    assert (status, bench.agent.head["Trace-Id"]) == (201, TRACE)
    bench.must("DELETE", "/v1/sandboxes/web")

    received = b""
    while len(heard) < 2:
        received += following.recv(65536)
        heard = [json.loads(line) for line in received.splitlines() if line.startswith(b"{")]
    following.close()
    attached, detached = heard
    assert (attached["event"], attached["trace"], attached["uid"]) == ("attach", TRACE, 0)
    assert attached["seq"] == last + 1
    for one in heard:
        assert (one["sandbox"], one["vpc"], one["vni"]) == ("web", "blue", 100)
        assert one["address"] == [web["address"]]
        assert (one["slot"], one["generation"]) == (web["slot"]["id"], web["generation"])
    assert re.fullmatch("[0-9a-f]{32}", detached["trace"])
    assert eventually(lambda: f"trace={TRACE}" in bench.node.log.read_text())


def test_each_change_is_an_event_that_names_it(bench):
    last = bench.must("GET", "/v1/node")["last_event"]
    bench.must("PUT", "/v1/vteps/192.0.2.9", {})
    bench.must("PUT", "/v1/vteps/192.0.2.9", {"mtu": 1400})
    bench.must("PUT", "/v1/vteps/192.0.2.9", {"mtu": 1400})  # nothing new
    route = {"vpc": "blue", "prefix": "10.0.9.0/24", "kind": "remote", "vtep": "192.0.2.9"}
    bench.must("POST", "/v1/routes", route)
    bench.must("DELETE", "/v1/routes?vpc=blue&prefix=10.0.9.0/24")
    bench.must("PUT", "/v1/state", {"vpcs": VPCS[:1]})

    events = bench.must("GET", f"/v1/events?since={last}")
    assert [one["event"] for one in events] == [
        "vtep-added", "vtep-changed", "route-added", "route-removed",
        "vpc-removed", "vtep-removed", "state-applied",
    ]  # fmt: skip
    assert (events[2]["prefix"], events[2]["vni"]) == ("10.0.9.0/24", 100)
    assert (events[4]["name"], events[6]["vpcs_removed"]) == ("red", 1)


def test_an_address_behind_a_remote_route_is_taken_with_a_warning(bench):
    """In the answer, and on stderr of the command; not for one that is this node's."""
    bench.must("PUT", "/v1/vteps/192.0.2.9", {})
    remote = {"vpc": "blue", "prefix": "10.0.9.0/24", "kind": "remote", "vtep": "192.0.2.9"}
    bench.must("POST", "/v1/routes", remote)

    behind = bench.must("PUT", "/v1/sandboxes/one", {"vpc": "blue", "address": "10.0.9.9"})
    clear = bench.must("PUT", "/v1/sandboxes/two", {"vpc": "blue", "address": "10.0.88.9"})

    assert ["remote route covers 10.0.9.9" in text for text in behind["warnings"]] == [True]
    assert "warnings" not in clear
    many = {"attach": [{"sandbox": "many", "vpc": "blue", "address": "10.0.9.11"}]}
    (item,) = bench.must("POST", "/v1/sandboxes:batch", many)["results"]
    assert "remote route covers 10.0.9.11" in item["warnings"][0]
    bench.must("DELETE", "/v1/sandboxes/many")
    words = ("three", "--vpc", "blue", "--ip", "10.0.9.10", "--timeout", "60")
    typed = geneve(bench.node, "attach", *words)
    assert typed.returncode == 0
    assert typed.stderr.startswith("warning: a remote route covers 10.0.9.10")


def test_the_last_activity_is_when_packets_passed(bench):
    """Its guest asks the gateway, and another sandbox of its VPC."""
    one = bench.must("PUT", "/v1/sandboxes/one", {"vpc": "blue"})
    two = bench.must("PUT", "/v1/sandboxes/two", {"vpc": "blue"})
    assert bench.must("GET", "/v1/sandboxes/two")["last_activity"] is None

    assert ping(Path(one["slot"]["netns"]), two["address"]) > 0

    shown = bench.must("GET", "/v1/sandboxes/two")
    assert shown["last_activity"] >= shown["attached_at"]
    listed = bench.must("GET", "/v1/sandboxes")["sandboxes"]
    assert {one["sandbox"]: one["last_activity"] for one in listed}["two"] == shown["last_activity"]


def test_another_vtep_is_refused_while_somebody_is_attached(bench):
    """By an agent that is started with it; then it may change, though slots are there."""
    bench.must("PUT", "/v1/sandboxes/one", {"vpc": "blue"})
    node = bench.node
    vtep = bench.must("GET", "/v1/node")["vtep"]
    other = Path(node.directory, "other.toml")
    other.write_text(node.config.read_text().replace(f'"{vtep}"', '"192.0.2.77"'))
    bench.agent.close()
    bench.lab.stop_agent(node, signal.SIGTERM)

    refusal = geneve(node, "agent", "run", "--config", other)

    assert refusal.returncode == 4
    assert f"the node is up with another vtep ({vtep})" in refusal.stderr
    bench.lab.start_agent(node)
    bench.lab.wait_ready(node)
    assert bench.attached() == {"one"}


def test_a_cordoned_node_takes_what_was_reserved_and_stays_so(bench):
    """Over an agent that is killed, too."""
    slot = bench.must("POST", "/v1/slots:reserve")["slot"]["id"]
    bench.must("POST", "/v1/node:cordon")
    bench.agent.close()
    bench.lab.stop_agent(bench.node, signal.SIGKILL)
    bench.lab.start_agent(bench.node)
    bench.lab.wait_ready(bench.node)

    assert bench.must("GET", "/v1/node")["cordoned"] is True
    assert bench.agent.code("PUT", "/v1/sandboxes/new", {"vpc": "blue"}) == "node_cordoned"
    assert bench.agent.code("POST", "/v1/slots:reserve") == "node_cordoned"
    bench.must("PUT", "/v1/sandboxes/old", {"vpc": "blue", "slot": slot})
    bench.must("PUT", "/v1/sandboxes/old", {"vpc": "blue"})
    bench.must("POST", "/v1/node:uncordon")
    bench.must("PUT", "/v1/sandboxes/new", {"vpc": "blue"})


def test_what_a_reboot_ends_is_named_and_the_node_starts_clean(bench):
    """As after a reboot: another boot id, and nothing of the node in the kernel."""
    for name in ("one", "two", "gone"):
        known = bench.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})["generation"]
    bench.must("DELETE", "/v1/sandboxes/gone")
    last = bench.must("GET", "/v1/node")["last_event"]
    record = Path(bench.node.directory, "state", "node1", "attached")
    assert eventually(lambda: "- gone\n" in record.read_text())  # written after the answer
    bench.agent.close()
    bench.lab.stop_agent(bench.node, signal.SIGKILL)
    before = record.read_text().splitlines()
    down = geneve(bench.node, "node", "down", "--force", "--config", bench.node.config)
    assert down.returncode == 0
    record.write_text("\n".join(["another-boot", *before[1:]]) + "\n")
    # The first agent does not come so far as to tell anybody.
    in_the_way = Path(bench.node.directory, "run", "node1", "api.sock")
    in_the_way.mkdir(parents=True)
    assert geneve(bench.node, "agent", "run", "--config", bench.node.config).returncode != 0
    in_the_way.rmdir()

    bench.lab.start_agent(bench.node)
    bench.lab.wait_ready(bench.node)

    node = bench.must("GET", "/v1/node")
    assert (sorted(node["lost"]), node["sandboxes"]) == (["one", "two"], 0)
    assert bench.attached() == set()
    events = bench.must("GET", "/v1/events")
    lost = [one for one in events if one["event"] == "sandbox-lost"]
    assert {(one["sandbox"], one["vpc"], one["vni"]) for one in lost} == {
        ("one", "blue", 100), ("two", "blue", 100),
    }  # fmt: skip
    assert "2 sandboxes, not detached: one, two" in geneve(bench.node, "node", "status").stdout
    # A reader of the last agent's events is told that it has missed some.
    assert bench.agent.code("GET", f"/v1/events?since={last}") == "events_gone"
    # They are not forgotten with the agent that has told of them.
    bench.again(signal.SIGKILL)
    assert sorted(bench.must("GET", "/v1/node")["lost"]) == ["one", "two"]
    assert bench.must("PUT", "/v1/sandboxes/one", {"vpc": "blue"})["generation"] > known
    assert bench.must("GET", "/v1/node")["lost"] == ["two"]
    assert eventually(lambda: "+ one " in record.read_text())  # behind the answer
    bench.again(signal.SIGKILL)
    assert bench.must("GET", "/v1/node")["lost"] == ["two"]
    assert bench.must("DELETE", "/v1/sandboxes/two") is None
    assert bench.must("GET", "/v1/node")["lost"] == []

    bench.again(signal.SIGTERM)
    assert bench.must("GET", "/v1/node")["lost"] == []


def test_an_agent_that_was_killed_has_lost_nobody(bench):
    bench.must("PUT", "/v1/sandboxes/one", {"vpc": "blue"})
    bench.again(signal.SIGKILL)

    assert bench.must("GET", "/v1/node")["lost"] == []
    assert bench.attached() == {"one"}


def test_the_commands_as_typed(bench):
    """attach --async and --timeout, operations, events, cordon, drain."""
    node = bench.node
    last = bench.must("GET", "/v1/node")["last_event"]
    failing = asked(node, "attach", "lost", "--vpc", "green", "--async")["operation"]
    asked(node, "operations", "show", failing, "--wait", "30")
    listed = geneve(node, "operations", "list", "--failed").stdout
    assert re.search(rf"^{failing} +failed +lost +green +1 .*vpc_not_found", listed, re.MULTILINE)
    asked(node, "operations", "retry", failing)
    asked(node, "operations", "show", failing, "--wait", "30")
    assert geneve(node, "operations", "drop", "--failed").stdout == f"{failing} dropped\n"
    assert refused(node, "operations", "show", failing) == (3, "operation_not_found")
    assert refused(node, "operations", "drop") == (2, "bad_request")

    with bench.dry():
        assert refused(node, "attach", "web", "--vpc", "blue", "--timeout", "0.1") == (
            6, "deadline_exceeded",
        )  # fmt: skip
    asked(node, "attach", "web", "--vpc", "blue", "--timeout", "30")

    assert asked(node, "node", "cordon")["cordoned"] is True
    assert refused(node, "attach", "more", "--vpc", "blue") == (6, "node_cordoned")
    assert refused(node, "node", "drain", "--timeout", "0") == (4, "node_in_use")
    for one in bench.must("GET", "/v1/slots")["slots"]:
        if one["state"] == "reserved":
            asked(node, "slot", "release", one["id"])
    asked(node, "detach", "web")
    assert geneve(node, "node", "drain", "--timeout", "30").stdout == "node is drained\n"
    assert asked(node, "node", "uncordon")["cordoned"] is False

    told = geneve(node, "events", "--since", last).stdout
    for words in ("operation-failed", "attach  sandbox=web", "node-cordoned", "node-uncordoned"):
        assert words in told
    done = geneve(node, "-j", "events", "--since", last)
    assert next(json.loads(line)["seq"] for line in done.stdout.splitlines()) == last + 1
    assert refused(node, "events", "--since", "1") == (3, "events_gone")
