# SPDX-License-Identifier: Apache-2.0
"""The wall clock jumps by days, in either direction: whatever has an end comes to it, in its time.

Stamps in answers, events and log follow the clock. Nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lab.network import Lab, Node
from tests.api import Agent, children
from tests.command import geneve, new_lab
from tests.nodes import eventually
from tests.patience import PATIENCE
from tests.wall_clock import DAY, WallClock

BLUE = {"vni": 42, "prefixes": ["10.0.0.0/16"]}
SLOTS = 3
LONG, SHORT = 600, 1  # seconds that an address rests
JUMPS = {"forwards": DAY, "backwards": -2 * DAY}


class Bench:
    """A node whose processes have the clock; and what a test asks of it."""

    def __init__(self, lab: Lab, clock: WallClock) -> None:
        self.lab = lab
        self.clock = clock
        self.node: Node = lab.nodes[0]
        self.agent = Agent(self.node.socket)
        self.ask, self.must, self.code = self.agent.ask, self.agent.must, self.agent.code

    def rest_for(self, seconds: int) -> None:
        """An agent after a crash, with that setting."""
        self.node.write_config()
        config = self.node.config.read_text()
        rest = f"address_rest = {seconds}\n\n[metrics]"
        self.node.config.write_text(config.replace("\n[metrics]", rest))
        self.again(signal.SIGKILL)

    def again(self, number: signal.Signals) -> None:
        self.agent.close()
        self.lab.stop_agent(self.node, number)
        self.start()

    def start(self) -> None:
        self.lab.start_agent(self.node)
        self.lab.wait_ready(self.node)

    def sandbox(self, name: str, **more: object) -> dict[str, Any]:
        """Attached, once there is a slot."""
        assert eventually(lambda: self.must("GET", "/v1/node")["slots"]["ready"], 30)
        found: dict[str, Any] = self.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue", **more})
        return found

    def rested(self, address: str) -> bool:
        """Whether somebody else can have the address, who gives it back in that case."""
        status, answer = self.ask("PUT", "/v1/sandboxes/heir", {"vpc": "blue", "address": address})
        if status == 201:
            self.must("DELETE", "/v1/sandboxes/heir")
            return True
        if answer["error"]["code"] == "address_resting":
            assert 0 < answer["error"]["details"]["retry_after_s"] <= LONG
        else:
            assert answer["error"]["code"] == "no_slot"  # for the moment
        return False

    @contextlib.contextmanager
    def dry(self) -> Iterator[Callable[[], None]]:
        """No slot is ready, and none becomes so before the function is called."""
        module = "geneve_ebpf.agent.slot_process"
        (maker,) = children(self.lab.agents[self.node.name], module)
        os.kill(maker, signal.SIGSTOP)
        taken = []
        try:
            while (answer := self.ask("POST", "/v1/slots:reserve"))[0] == 201:
                taken.append(answer[1]["slot"]["id"])
            yield lambda: os.kill(maker, signal.SIGCONT)
        finally:
            os.kill(maker, signal.SIGCONT)
            for slot in taken:
                self.must("DELETE", f"/v1/slots/{slot}")

    def waits(self) -> bool:
        return bool(self.must("GET", "/v1/node")["waiting"])


class Waiting:
    """An attach that waits for a slot, in a thread of its own."""

    def __init__(self, bench: Bench, name: str, seconds: float) -> None:
        self._answer: tuple[int, Any] | None = None

        def ask() -> None:
            agent = Agent(bench.node.socket)
            header = {"Request-Timeout": str(seconds)}
            body = {"vpc": "blue"}
            self._answer = agent.ask("PUT", f"/v1/sandboxes/{name}", body, header)
            agent.close()

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def answer(self) -> tuple[int, Any]:
        self._thread.join(60 * PATIENCE)
        assert self._answer is not None
        return self._answer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as environment, new_lab("clock") as lab:
        clock = WallClock(tmp_path_factory.mktemp("clock"), environment)
        lab.up(1, SLOTS, metrics=False)
        made = Bench(lab, clock)
        made.must("PUT", "/v1/vpcs/blue", BLUE)
        yield made
        made.agent.close()


@pytest.fixture(autouse=True)
def whole(bench: Bench) -> None:
    """Each test begins with a full pool."""
    assert eventually(lambda: bench.must("GET", "/v1/node")["slots"]["ready"] == SLOTS, 30)


@pytest.fixture(params=JUMPS.values(), ids=JUMPS)
def jump(bench: Bench, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Has the clock go wrong once."""
    return lambda: bench.clock.jump(request.param)


def test_an_agent_has_the_clock_that_jumps(bench: Bench, jump: Callable[[], None]) -> None:
    """Else nothing here would prove anything. Events keep their order."""
    first = bench.sandbox("one")
    jump()
    second = bench.sandbox("two")
    stamps = [datetime.fromisoformat(s["attached_at"]) for s in (first, second)]
    assert abs((stamps[1] - stamps[0]).total_seconds()) > DAY / 2
    assert second["generation"] > first["generation"]
    numbers = [one["seq"] for one in bench.must("GET", "/v1/events")]
    assert numbers == sorted(numbers)
    for name in ("one", "two"):
        bench.must("DELETE", f"/v1/sandboxes/{name}")


def test_a_freed_address_rests_its_time(bench: Bench, jump: Callable[[], None]) -> None:
    """No jump frees it, nor a crash on top; none keeps it, and it rests no longer than is set."""
    bench.rest_for(LONG)
    address = bench.sandbox("one")["address"]
    bench.must("DELETE", "/v1/sandboxes/one")
    jump()
    assert not bench.rested(address)
    bench.again(signal.SIGKILL)
    assert not bench.rested(address)
    jump()
    assert not bench.rested(address)

    bench.rest_for(SHORT)
    assert eventually(lambda: bench.rested(address), 30)
    jump()
    assert eventually(lambda: bench.rested(address), 30)


def test_an_answer_is_kept_for_its_key(bench: Bench, jump: Callable[[], None]) -> None:
    """What is repeated is not done again."""
    key = {"Idempotency-Key": os.urandom(8).hex()}
    request = ("PUT", "/v1/sandboxes/one", {"vpc": "blue"}, key)
    answer = bench.ask(*request)
    assert answer[0] == 201
    bench.must("DELETE", "/v1/sandboxes/one")
    jump()

    assert bench.ask(*request) == answer
    assert bench.code("GET", "/v1/sandboxes/one") == "sandbox_not_found"


def test_who_waits_waits_on(bench: Bench, jump: Callable[[], None]) -> None:
    """Until there is a slot, or its own time is over."""
    with bench.dry() as pour:
        patient = Waiting(bench, "patient", 60)
        assert eventually(bench.waits)
        jump()
        assert bench.waits()
        hasty = Waiting(bench, "hasty", 0.3)
        jump()
        assert hasty.answer()[1]["error"]["code"] == "deadline_exceeded"
        assert bench.waits()
        pour()
        assert patient.answer()[0] == 201
    bench.must("DELETE", "/v1/sandboxes/patient")


def test_an_operation_is_pending_until_it_is_done_and_told_then(
    bench: Bench, jump: Callable[[], None]
) -> None:
    """And no other agent's has its id."""
    later = {"Prefer": "respond-async", "Request-Timeout": "60"}

    with bench.dry() as pour:
        status, _ = bench.ask("PUT", "/v1/sandboxes/one", {"vpc": "blue"}, later)
        where = bench.agent.head["Location"]
        jump()
        assert (status, bench.must("GET", where)["state"]) == (202, "pending")
        pour()
        assert eventually(lambda: bench.must("GET", where)["state"] == "done", 30)
    jump()
    assert bench.must("GET", where)["state"] == "done"
    bench.must("DELETE", "/v1/sandboxes/one")

    bench.again(signal.SIGTERM)
    bench.ask("PUT", "/v1/sandboxes/one", {"vpc": "blue"}, later)
    assert bench.agent.head["Location"] != where
    assert bench.code("GET", where) == "operation_not_found"
    assert eventually(lambda: not bench.code("DELETE", "/v1/sandboxes/one"), 30)


@pytest.mark.parametrize("by_agent", [True, False], ids=["by-the-agent", "without-it"])
def test_generations_go_on_though_the_maps_are_new(
    bench: Bench, jump: Callable[[], None], by_agent: bool
) -> None:
    """After `node down`, which leaves nothing else; and events of before are known to be gone."""
    before = bench.sandbox("one")["generation"]
    last = bench.must("GET", "/v1/node")["last_event"]
    if by_agent:
        bench.must("POST", "/v1/node:down", {"force": True})
        bench.agent.close()
        bench.lab.wait_gone(bench.node)
    else:
        bench.agent.close()
        bench.lab.stop_agent(bench.node)
        down = geneve(bench.node, "node", "down", "--force", "--config", bench.node.config)
        assert down.returncode == 0, down.stderr
    assert not Path(bench.node.directory, "run", bench.node.name).exists()
    jump()
    bench.start()

    after = bench.sandbox("two")["generation"]

    assert after > before
    assert bench.must("GET", "/v1/node")["lost"] == []
    assert bench.code("GET", f"/v1/events?since={last}") == "events_gone"
    bench.must("DELETE", "/v1/sandboxes/two")
