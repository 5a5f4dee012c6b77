# SPDX-License-Identifier: Apache-2.0
"""Who was attached is known after a reboot, unless there was no room to write it down."""

from __future__ import annotations

import os
from ipaddress import IPv4Address

import pytest

from geneve_ebpf.control.attached_log import AttachedLog, Lost
from geneve_ebpf.control.line_file import AGAIN_AFTER
from geneve_ebpf.model import Attachment, Endpoint, endpoint_mac

ADDRESS = IPv4Address("10.0.0.2")
ONE = Attachment("one", 3, Endpoint(100, ADDRESS, endpoint_mac(ADDRESS)), 7, 0.0)
WRITTEN = Lost("one", 100, ("10.0.0.2",), 3, 7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attached"


def test_those_who_were_attached_are_known_after_a_reboot(path, tmp_path):
    """Whoever was detached is not among them, and the boot is told apart."""
    log = AttachedLog(path)
    log.rewrite([ONE], [], 7)
    for note, one in ((log.attached, ONE._replace(sandbox="two")), (log.detached, "two")):
        note(one)
    log.close()
    other = tmp_path / "boot"
    other.write_text("another\n")

    assert AttachedLog(path).read() == (True, [WRITTEN], [])
    assert AttachedLog(path, other).read() == (False, [WRITTEN], [])


def test_without_room_the_file_stays_and_nothing_stays_open(path):
    """The new one is on a device that is always full."""
    log = AttachedLog(path)
    log.rewrite([ONE], [], 7)
    path.with_suffix(".new").symlink_to("/dev/full")
    before = os.listdir("/proc/self/fd")

    log.rewrite([], [], 7)

    assert os.listdir("/proc/self/fd") == before
    log.close()
    assert AttachedLog(path).read() == (True, [WRITTEN], [])


def test_the_highest_generation_is_known_though_its_sandbox_is_detached(path):
    """By its line, and when the file has been written anew without it."""
    log = AttachedLog(path)
    log.rewrite([ONE], [], 8)
    log.attached(ONE._replace(sandbox="two", generation=12))
    log.detached("two")
    log.close()
    again = AttachedLog(path)
    again.read()
    assert again.generation == 12

    again.rewrite([ONE], [], 12)
    again.close()
    last = AttachedLog(path)
    assert last.read() == (True, [WRITTEN], [])
    assert last.generation == 12


def test_who_was_lost_stays_in_the_file_until_seen_to(path):
    """However often it is read and written; an attach or a detach of the name is seeing to it."""
    lost = [WRITTEN._replace(sandbox=name) for name in ("two", "three", "four")]
    log = AttachedLog(path)
    log.rewrite([ONE], lost, 7)
    log.close()

    again = AttachedLog(path)
    found = again.read()
    assert found == (True, [WRITTEN], lost)
    again.rewrite([ONE], found.lost, 7)
    again.attached(ONE._replace(sandbox="two"))
    again.detached("two")
    again.detached("three")
    again.close()

    assert AttachedLog(path).read() == (True, [WRITTEN], lost[2:])


def test_a_torn_line_is_nobody(path):
    """A power cut took its end, or what was in its place."""
    log = AttachedLog(path)
    log.rewrite([ONE], [], 7)
    log.close()
    with path.open("a") as file:
        file.write("+ two 100 10.0.0.3 x 8\n? three 100\n+ four 100 10.0")

    assert AttachedLog(path).read() == (True, [WRITTEN], [])


def test_what_had_no_room_is_written_anew_a_little_later(path):
    """And that tried again a little later, where there is still none."""
    log = AttachedLog(path)
    log.rewrite([ONE], [], 7)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file._descriptor)
    os.close(full)

    def until_it_is_time():
        for number in range(1, 10 * AGAIN_AFTER):
            log.attached(ONE._replace(sandbox="two"))
            log.flush()
            if log.full:
                return number
        return 0

    assert 0 < until_it_is_time() <= AGAIN_AFTER + 1
    path.with_suffix(".new").symlink_to("/dev/full")
    log.rewrite([ONE, ONE._replace(sandbox="two")], [], 7)
    assert not log.full
    path.with_suffix(".new").unlink(missing_ok=True)
    assert 0 < until_it_is_time() <= AGAIN_AFTER + 1
    log.rewrite([ONE, ONE._replace(sandbox="two")], [], 7)
    assert not until_it_is_time()
    log.close()

    assert [one.sandbox for one in AttachedLog(path).read().attached] == ["one", "two"]


def test_who_is_lost_while_the_node_runs_is_known_to_the_next_agent(path):
    """Until somebody has seen to it."""
    log = AttachedLog(path)
    log.rewrite([ONE], [], 7)
    log.detached("one")
    log.lost(WRITTEN)
    log.close()
    assert AttachedLog(path).read() == (True, [], [WRITTEN])

    log = AttachedLog(path)
    log.rewrite([], [WRITTEN], 7)
    log.detached("one")
    log.close()
    assert AttachedLog(path).read() == (True, [], [])
