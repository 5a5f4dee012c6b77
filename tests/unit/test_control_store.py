# SPDX-License-Identifier: Apache-2.0
"""The file of desired state: what was written is read, and nothing is half written."""

from __future__ import annotations

import contextlib
import sqlite3
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest

from geneve_ebpf.control.state import Difference, Rules
from geneve_ebpf.control.store import Store
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Guest, Route, RouteKind, Vpc, Vtep, parse_mac

RULES = Rules(Guest(), IPv4Address("192.0.2.1"))
BLUE = Vpc("blue", 100, (IPv4Network("10.0.0.0/16"), IPv6Network("fd00:1::/48")))
FAR = Vtep(IPv4Address("192.0.2.2"), 1400)
ROUTES = [
    Route("blue", IPv4Network("10.0.1.0/24"), RouteKind.LOCAL),
    Route("blue", IPv4Network("10.0.2.0/24"), RouteKind.BLACKHOLE),
    Route("blue", IPv6Network("fd00:1:0:7::/64"), RouteKind.REMOTE, FAR.address),
    Route("blue", IPv6Network("::/0"), RouteKind.BLACKHOLE),
    Route("blue", IPv4Network("10.0.3.0/24"), RouteKind.REMOTE, FAR.address),
    Route(
        "blue",
        IPv4Network("10.0.4.1/32"),
        RouteKind.REMOTE,
        FAR.address,
        parse_mac("02:00:00:00:00:07"),
    ),
]
ALL = Difference(vpcs_added=[BLUE], vteps_added=[FAR], routes_added=ROUTES)


def write(store, difference, revision):
    store.begin()
    for _ in store.steps_of_writing(difference, revision):
        pass
    store.commit()


def contents(path):
    store = Store(path)
    try:
        state = store.load(RULES)
    finally:
        store.close()
    return state.revision, state.vpcs, state.vteps, {r.prefix: r for r in state.routes()}


WHOLE = (1, {"blue": BLUE}, {FAR.address: FAR}, {r.prefix: r for r in ROUTES})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node" / "state.db"


@pytest.fixture
def store(path):
    store = Store(path)
    write(store, ALL, 1)
    yield store
    store.close()


def test_what_was_written_is_read(store, path):
    """Every kind of value survives, and the file is fresh once only."""
    assert store.fresh
    store.close()

    assert contents(path) == WHOLE
    again = Store(path)
    assert not again.fresh
    again.close()


def test_a_state_that_the_configuration_now_forbids_names_its_file(store, path):
    """The agent does not start, so nobody can take it back but by hand."""
    with pytest.raises(GeneveError) as refused:
        store.load(Rules(Guest(), ip_address("2001:db8::1")))

    assert refused.value.code is Code.VTEP_FAMILY
    assert str(path) in refused.value.hint


def test_a_change_replaces_and_removes(store, path):
    moved = Route("blue", ROUTES[0].prefix, RouteKind.REMOTE, FAR.address)
    write(store, Difference(routes_changed=[moved], routes_removed=ROUTES[1:]), 2)

    assert contents(path) == (2, WHOLE[1], WHOLE[2], {moved.prefix: moved})


def test_a_transaction_that_is_not_committed_leaves_nothing(store, path):
    """As after a crash: neither its values nor its revision are there."""
    store.begin()
    for _ in store.steps_of_writing(Difference(routes_removed=ROUTES), 2):
        pass

    assert contents(path) == WHOLE
    store.rollback()
    assert contents(path) == WHOLE


def test_a_checkpoint_changes_nothing(store, path):
    store.checkpoint()

    assert contents(path) == WHOLE


def test_a_file_that_is_no_database_is_refused(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database, whatever its name says" * 100)

    with pytest.raises(GeneveError) as refused:
        Store(path)

    assert refused.value.code is Code.STATE_STORE


def test_a_file_of_another_format_is_refused(store, path):
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value=99 WHERE name='format'")
    db.close()

    with pytest.raises(GeneveError) as refused:
        Store(path)

    assert refused.value.code is Code.STATE_STORE
    assert "99" in refused.value.message


def test_a_damaged_row_is_refused(store, path):
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE routes SET kind='sideways'")
    db.close()

    with pytest.raises(GeneveError) as refused:
        contents(path)

    assert refused.value.code is Code.STATE_STORE


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(GeneveError) as refused:
        Store(tmp_path / "file" / "state.db")

    assert refused.value.code is Code.STATE_STORE


def test_only_root_reaches_the_file(tmp_path):
    """It names every tenant, and a lock on it would stop the agent."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)

    with contextlib.closing(Store(directory / "state.db")):
        assert directory.stat().st_mode & 0o077 == 0
