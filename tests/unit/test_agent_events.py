# SPDX-License-Identifier: Apache-2.0
"""The numbered history of events, and the ids that requests are traced by."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from geneve_ebpf.agent.events import Events, Said
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.trace import Traces
from geneve_ebpf.errors import Code, GeneveError

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def events():
    with open(os.devnull, "w") as nowhere:
        yield Events(Log(nowhere.fileno()), lambda: 5.0, first=100, kept=3)


def add(events, count):
    for number in range(count):
        events.add("attach", Said({"sandbox": f"s{number}"}))


def test_events_are_numbered_on_from_the_first(events):
    assert events.last == 99
    assert events.since(99, 10) == events.since(None, 10) == []

    add(events, 2)

    assert [one.number for one in events.since(99, 10)] == [100, 101]
    assert [one.number for one in events.since(100, 10)] == [101]
    assert [one.number for one in events.since(None, 1)] == [100]
    assert [one.number for one in events.since(0, 1)] == [100]
    assert events.since(events.last, 10) == []


@pytest.mark.parametrize("number", [1, 98, 101, 105])
def test_who_has_missed_some_is_told(events, number):
    """So is one who read another agent's; 104 is the last, 102 the oldest."""
    add(events, 5)

    if number == 101:
        assert [one.number for one in events.since(number, 10)] == [102, 103, 104]
        return
    with pytest.raises(GeneveError) as gone:
        events.since(number, 10)
    assert gone.value.code is Code.EVENTS_GONE
    assert gone.value.details == {"oldest": 102, "last": 104}
    early = "there is no event 105 yet: the last is 104"
    late = f"events after {number} are not kept: the oldest is 102"
    assert gone.value.message == (early if number == 105 else late)


def test_who_waits_is_woken_by_the_next_event_and_by_the_end(events):
    async def both():
        first, second = (asyncio.ensure_future(events.news()) for _ in range(2))
        await asyncio.sleep(0)
        assert not first.done()
        add(events, 1)
        await asyncio.wait_for(asyncio.gather(first, second), 10)
        third = asyncio.ensure_future(events.news())
        await asyncio.sleep(0)
        assert not third.done()
        events.close()
        await asyncio.wait_for(third, 10)
        await asyncio.wait_for(events.news(), 10)

    asyncio.run(both())


def test_an_event_is_a_line_of_the_log_with_who_asked():
    reader, writer = os.pipe()
    events = Events(Log(writer), lambda: 5.0, first=1)

    events.add("vpc-added", Said({"name": "a b", "prefixes": ["x", "y"]}), trace="t", uid=7, pid=9)

    line = os.read(reader, 1000).decode()
    assert re.search(r' event=vpc-added name="a b" prefixes=x,y uid=7 pid=9 trace=t\n', line)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (PARENT, True),
        ("cc" + PARENT[2:], True),  # a version to come
        ("cc" + PARENT[2:] + "-more", True),
        (PARENT + "-more", False),
        ("ff" + PARENT[2:], False),
        (PARENT.upper(), False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", False),
        ("", False),
    ],
)
def test_the_callers_trace_is_taken_if_it_is_one(header, taken):
    traces = Traces()

    assert (traces.of(header) == PARENT[3:35]) is taken
    assert re.fullmatch("[0-9a-f]{32}", traces.of(header))
    assert traces.next() != traces.next()
