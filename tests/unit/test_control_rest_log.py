# SPDX-License-Identifier: Apache-2.0
"""Which addresses rest is known after a restart."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from geneve_ebpf.control import rest_log
from geneve_ebpf.control.line_file import AGAIN_AFTER
from geneve_ebpf.control.rest_log import Rest, RestLog


def rest(last, until, sandbox="a", network="10.0.0."):
    return Rest(100, ip_address(f"{network}{last}"), until, sandbox)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "resting"


def reopened(path, now):
    log = RestLog(path)
    found = log.open(now)
    log.close()
    return found


def test_a_rest_is_remembered_until_it_ends(path):
    log = RestLog(path)
    assert log.open(now=0.0) == []
    log.add(rest(2, 60.0))
    log.add(rest(3, 50.0, "b"))
    log.add(rest(3, 50.0, "b", "fd00::"))
    log.close()

    assert reopened(path, now=10.0) == [
        rest(3, 50.0, "b"), rest(3, 50.0, "b", "fd00::"), rest(2, 60.0)
    ]  # fmt: skip
    assert reopened(path, now=55.0) == [rest(2, 60.0)]
    assert path.read_text().count("\n") == 1


def test_the_last_rest_of_an_address_counts(path):
    log = RestLog(path)
    log.open(now=0.0)
    log.add(rest(2, 60.0))
    log.add(rest(2, 90.0, "b"))
    log.close()

    assert reopened(path, now=10.0) == [rest(2, 90.0, "b")]


def test_a_torn_line_is_passed_over(path):
    """The agent was killed while it wrote; what it had written before is good."""
    log = RestLog(path)
    log.open(now=0.0)
    log.add(rest(2, 60.0))
    log.close()
    with path.open("a") as torn:
        torn.write("100 10.0.")

    assert reopened(path, now=10.0) == [rest(2, 60.0)]


def test_a_file_of_very_many_is_not_written_anew_each_time(path, monkeypatch):
    """More may rest at once than lines are appended between two rewrites."""
    monkeypatch.setattr(rest_log, "LINES_MAX", 3)
    log = RestLog(path)
    log.open(0.0)
    log.rewrite([rest(number, 60.0) for number in range(10)])

    room = [log.add(rest(number, 60.0)) for number in range(10, 13)]

    log.close()
    assert room == [True, True, False]


def test_without_room_the_file_stays_and_nothing_is_left(path):
    """The new one is on a device that is always full: neither open nor lying about."""
    log = RestLog(path)
    log.open(0.0)
    log.rewrite([rest(2, 60.0)])
    new = path.with_suffix(".new")
    new.symlink_to("/dev/full")
    before = os.listdir("/proc/self/fd")

    log.rewrite([])

    assert os.listdir("/proc/self/fd") == before
    assert not new.is_symlink()
    log.close()
    assert reopened(path, now=10.0) == [rest(2, 60.0)]


def test_a_file_that_could_not_be_opened_is_tried_again_a_little_later(path):
    """Nothing is asked for meanwhile but that the rests are kept in memory."""
    path.with_suffix(".new").mkdir()
    log = RestLog(path)
    log.open(0.0)

    room = [log.add(rest(2, 60.0)) for _ in range(AGAIN_AFTER)]
    path.with_suffix(".new").rmdir()
    log.rewrite([rest(2, 60.0)])
    log.add(rest(3, 60.0))

    log.close()
    assert room == [True] * (AGAIN_AFTER - 1) + [False]
    assert reopened(path, now=10.0) == [rest(2, 60.0), rest(3, 60.0)]


def test_a_rest_that_had_no_room_is_written_anew_a_little_later(path):
    """Half a line too; what is appended next to it is lost with it till then."""
    log = RestLog(path)
    log.open(0.0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file._descriptor)
    os.close(full)

    assert all(log.add(rest(2, 60.0)) for _ in range(AGAIN_AFTER))
    assert not log.add(rest(2, 60.0))
    log.rewrite([rest(2, 60.0)])

    assert log.add(rest(3, 60.0))
    log.close()
    assert reopened(path, now=10.0) == [rest(2, 60.0), rest(3, 60.0)]
