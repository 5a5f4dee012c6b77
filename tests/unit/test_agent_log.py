# SPDX-License-Identifier: Apache-2.0
"""A record is one line, whatever is in it."""

from __future__ import annotations

import os
import re

import pytest

from geneve_ebpf.agent.log import AT_ONCE, Log


@pytest.fixture
def lines():
    reader, writer = os.pipe()
    yield writer, lambda: os.read(reader, 1 << 20).decode()
    os.close(reader)
    os.close(writer)


def test_a_record_has_time_level_and_event(lines):
    writer, read = lines

    Log(writer).info("started", node="a", slots=3)

    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info event=started node=a slots=3\n",
        read(),
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/v1/vpcs/blue", "/v1/vpcs/blue"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("line\nlevel=info event=forged", '"line\\nlevel=info event=forged"'),
        ("tab\there", '"tab\\there"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("é\u2028", '"\\u00e9\\u2028"'),
        ("\U0001f600", '"\\ud83d\\ude00"'),
        (None, "None"),
    ],
)
def test_a_value_cannot_break_out_of_its_field(lines, value, text):
    """A caller chooses paths: none may forge a record or a field."""
    writer, read = lines

    Log(writer).warning("seen", value=value)

    assert read().endswith(f" value={text}\n")


def test_changes_wait_for_the_loop(lines):
    """Records of one turn are written together, in their order, when it is time."""
    writer, read = lines
    log = Log(writer)
    later = []
    log.deferred_by(later.append)

    log.change("attach", "sandbox=a")
    log.change("change", status=200)
    log.info("now")
    (flush,) = later
    flush()

    events = re.findall(r"event=(\w+)", read())
    assert events == ["now", "attach", "change"]


def test_many_changes_are_written_a_few_at_a_time(lines):
    """Whoever comes in between does not wait for all of them."""
    writer, read = lines
    log = Log(writer)
    later = []
    log.deferred_by(later.append)
    log.changes("attach", [("a", number) for number in range(2 * AT_ONCE)])
    log.change("detach")

    (step,) = later
    written = []
    while step() is True:
        written.append(read().count("\n"))

    assert written == [AT_ONCE, AT_ONCE]
    assert read().endswith("event=detach\n")
    log.change("attach")
    assert later == [step, step]


def test_a_defect_has_its_traceback_in_one_line(lines):
    writer, read = lines
    try:
        raise KeyError("x")
    except KeyError as error:
        Log(writer).defect("defect", error, target="/v1")

    (line,) = read().splitlines()
    assert "KeyError: 'x'" in line
    assert "test_agent_log.py" in line


def test_a_log_that_nobody_reads_stops_nothing():
    reader, writer = os.pipe()
    os.close(reader)

    Log(writer).info("into the void")

    os.close(writer)
