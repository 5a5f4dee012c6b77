# SPDX-License-Identifier: Apache-2.0
"""Where desired state is kept: one SQLite file a node, one writer.

Write-ahead log and `synchronous=NORMAL`: a killed agent loses nothing, a power
cut may lose the last transactions but never tears one. Changes go between
`begin` and `commit` or `rollback`; the revision is part of the transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from itertools import chain, islice
from pathlib import Path

from geneve_ebpf.control.state import DesiredState, Difference, Rules
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Route, RouteKind, Vpc, Vtep, parse_mac

FORMAT = 1
TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE vpcs (name TEXT PRIMARY KEY, vni INTEGER NOT NULL, prefixes TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE vteps (address TEXT PRIMARY KEY, mtu INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE routes (
    vpc TEXT NOT NULL, prefix TEXT NOT NULL, kind TEXT NOT NULL, vtep TEXT, mac TEXT,
    PRIMARY KEY (vpc, prefix)
) WITHOUT ROWID;
"""
# How many rows one statement call writes: a fraction of a millisecond's work.
CHUNK = 50


class Store:
    """The file. `fresh` says that it was made by this call to `Store(path)`.

    All methods raise STATE_STORE if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._refusals():
            # Root's alone: it names every tenant, and whoever can open the file can lock it.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            # The agent's one thread must not wait for a lock: only another agent could have it.
            self._db = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            # A checkpoint syncs, which may take long: `checkpoint` does it apart.
            self._db.execute("PRAGMA wal_autocheckpoint=0")
            tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            self.fresh = tables == 0
            if self.fresh:
                self._db.executescript(
                    f"BEGIN; {TABLES} INSERT INTO meta VALUES ('format', {FORMAT}),"
                    f" ('revision', 0); COMMIT"
                )
            found = self._db.execute("SELECT value FROM meta WHERE name='format'").fetchone()
        if found != (FORMAT,):
            raise GeneveError(
                Code.STATE_STORE,
                f"{path} has format {found and found[0]}, this version reads {FORMAT}",
                hint="run the version that wrote it, or move the file away and apply anew",
            )

    def load(self, rules: Rules) -> DesiredState:
        """The whole state. What the rules refuse by now raises as `check_*` does."""
        try:
            return self._load(rules)
        except GeneveError as error:
            if error.code is not Code.STATE_STORE:
                # There is no agent yet to take it back by.
                error.hint = (
                    f"{self.path} has it: undo the change of the configuration,"
                    " or move the file away and apply the state anew"
                )
            raise

    def _load(self, rules: Rules) -> DesiredState:
        with self._refusals():
            (revision,) = self._db.execute(
                "SELECT value FROM meta WHERE name='revision'"
            ).fetchone()
            state = DesiredState(rules, revision)
            for name, vni, prefixes in self._db.execute("SELECT * FROM vpcs"):
                vpc = Vpc(name, vni, tuple(ip_network(text) for text in json.loads(prefixes)))
                state.check_vpc(vpc)
                state.put_vpc(vpc)
            for address, mtu in self._db.execute("SELECT * FROM vteps"):
                vtep = Vtep(ip_address(address), mtu)
                state.check_vtep(vtep)
                state.put_vtep(vtep)
            for vpc_name, prefix, kind, to, mac in self._db.execute("SELECT * FROM routes"):
                route = Route(
                    vpc_name,
                    ip_network(prefix),
                    RouteKind(kind),
                    None if to is None else ip_address(to),
                    None if mac is None else parse_mac(mac),
                )
                state.check_route(route)
                state.put_route(route)
        return state

    def begin(self) -> None:
        """Start a transaction. One at a time: the agent's lock sees to it."""
        with self._refusals():
            self._db.execute("BEGIN IMMEDIATE")

    def steps_of_writing(self, difference: Difference, revision: int) -> Iterator[None]:
        """Write a difference and the revision it leads to; yields between pieces."""
        yield from self._many(
            "DELETE FROM routes WHERE vpc=? AND prefix=?",
            ((route.vpc, str(route.prefix)) for route in difference.routes_removed),
        )
        yield from self._many(
            "DELETE FROM vteps WHERE address=?",
            ((str(vtep.address),) for vtep in difference.vteps_removed),
        )
        yield from self._many(
            "DELETE FROM vpcs WHERE name=?", ((vpc.name,) for vpc in difference.vpcs_removed)
        )
        yield from self._many(
            "INSERT OR REPLACE INTO vpcs VALUES (?, ?, ?)",
            (
                (vpc.name, vpc.vni, json.dumps([str(prefix) for prefix in vpc.prefixes]))
                for vpc in chain(difference.vpcs_added, difference.vpcs_changed)
            ),
        )
        yield from self._many(
            "INSERT OR REPLACE INTO vteps VALUES (?, ?)",
            (
                (str(vtep.address), vtep.mtu)
                for vtep in chain(difference.vteps_added, difference.vteps_changed)
            ),
        )
        yield from self._many(
            "INSERT OR REPLACE INTO routes VALUES (?, ?, ?, ?, ?)",
            (
                (
                    route.vpc,
                    str(route.prefix),
                    route.kind.value,
                    None if route.vtep is None else str(route.vtep),
                    None if route.mac is None else str(route.mac),
                )
                for route in chain(difference.routes_added, difference.routes_changed)
            ),
        )
        yield from self._many("UPDATE meta SET value=? WHERE name='revision'", iter([(revision,)]))

    def commit(self) -> None:
        """Make the transaction last. May be called from another thread: it is all in C."""
        with self._refusals():
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        if self._db.in_transaction:
            with self._refusals():
                self._db.execute("ROLLBACK")

    def checkpoint(self) -> None:
        """Move the log into the file. Syncs to disk: for another thread, or a quiet moment."""
        with self._refusals():
            other = sqlite3.connect(self.path)
            try:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                other.close()

    def remove(self) -> None:
        """Close it, and delete the file: the node that it was made for did not come up."""
        self._db.close()
        for more in ("-wal", "-shm", ""):
            Path(f"{self.path}{more}").unlink(missing_ok=True)
        with suppress(OSError):  # others have files there, too
            self.path.parent.rmdir()

    def close(self) -> None:
        """Close the file; the last one out leaves no log behind."""
        self._db.close()

    def _many(self, statement: str, rows: Iterator[tuple[object, ...]]) -> Iterator[None]:
        while chunk := list(islice(rows, CHUNK)):
            with self._refusals():
                self._db.executemany(statement, chunk)
            yield

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise GeneveError(
                Code.STATE_STORE,
                f"{self.path}: {error}",
                hint="free or mend the disk; a damaged file can be moved away, then apply anew",
            ) from error
        except (ValueError, TypeError) as error:
            raise GeneveError(
                Code.STATE_STORE,
                f"{self.path} holds what this version would not write: {error}",
                hint="move the file away and apply the state anew",
            ) from error


def vpc_names(database: Path) -> dict[int, str]:
    """VNI -> name of every VPC that the agent keeps; {} before it ever ran.

    Opens the file read-only and for a moment. Raises sqlite3.Error.
    """
    if not database.exists():
        return {}
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)
    try:
        return dict(connection.execute("SELECT vni, name FROM vpcs"))
    finally:
        connection.close()
