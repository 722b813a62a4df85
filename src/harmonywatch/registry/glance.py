"""The few verbs that a door or a judge needs of the registry, without the weight of it.

SQLAlchemy costs 0.2 s and 28 MB to import, in every process; the gateway must answer within a second of its start, also
when all services start at once on two cores. So for a SQLite URL these verbs go through Python's own `sqlite3`, on one
kept connection; for any other URL, or a schema that must be brought forward first, the registry itself is opened. The
tests run every verb against both and want the same answers.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harmonywatch.clock import Clock, micros
from harmonywatch.registry.contract import RegistryBroken, RegistryBusy, Rule
from harmonywatch.registry.keyring import EMPTY, Keyring
from harmonywatch.registry.migrations import SCHEMA_HEAD
from harmonywatch.registry.near import not_found
from harmonywatch.registry.rows import (
    KEY_COLUMNS,
    RULE_COLUMNS,
    enrolment_rows,
    json_text,
    key_changes,
    rules_by_force,
    storable,
)

if TYPE_CHECKING:
    from harmonywatch.registry.store import Registry

BUSY_TIMEOUT_S = 5.0

SQL_REVISION = "SELECT version_num FROM alembic_version"
SQL_VERSION = "SELECT version FROM state"
SQL_KEYS = "SELECT hash, revoked_us, key_id, kind, force, subject, role FROM keys WHERE version > ?"
SQL_FORCES = "SELECT name FROM forces ORDER BY name"
SQL_RULES = (
    "SELECT rule_id, force, threshold, confidence_least, area, words, hours, enabled, created_us "
    "FROM rules ORDER BY force, created_us, rule_id"
)
SQL_WATCHERS = "SELECT watcher_id FROM watchers WHERE force = ?"
SQL_ENROL = (
    "INSERT INTO watchers (force, watcher_id, via, enrolled_us) VALUES (:force, :watcher_id, :via, :enrolled_us) "
    "ON CONFLICT DO NOTHING"
)
SQL_AUDIT = (
    "INSERT INTO audit (at_us, actor, action, force, target, detail, reason) "
    "VALUES (?, ?, 'watchers.enrol', ?, ?, ?, '')"
)
assert all(column in SQL_KEYS for column in KEY_COLUMNS) and all(column in SQL_RULES for column in RULE_COLUMNS)


class Door(Protocol):
    """What `open_glance` returns; verbs and errors as in the contract."""

    def version(self) -> int: ...

    def keyring(self, since: Keyring | None = None) -> Keyring: ...

    def all_rules(self) -> dict[str, list[Rule]]: ...

    def known_watchers(self, force: str) -> set[str]: ...

    def enrol(self, force: str, watcher_ids: Collection[str], via: str) -> int: ...

    def close(self) -> None: ...


def open_glance(url: str, clock: Clock) -> Door:
    """The light view of the registry at `url`, brought to this program's schema if need be.

    Raises SchemaTooNew, RegistryBusy, RegistryBroken.
    """
    if not url.startswith("sqlite:///"):
        return _open_registry(url, clock)
    path = Path(url.removeprefix("sqlite:///"))
    if not _is_current(path):
        _open_registry(url, clock).close()
    return Glance(_connect(path), path, clock)


def _open_registry(url: str, clock: Clock) -> Registry:
    from harmonywatch.registry.store import open_registry  # heavy: only when it cannot be avoided

    return open_registry(url, clock=clock, actor="service")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=TRUNCATE", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def _is_current(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    connection = _connect(path)
    try:
        return connection.execute(SQL_REVISION).fetchall() == [(SCHEMA_HEAD,)]
    except sqlite3.OperationalError:
        return False  # whatever it is, opening the registry names it
    finally:
        connection.close()


class Glance:
    """A `Door` to a SQLite registry; safe for several threads, which take turns."""

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Clock) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock
        self._turn = threading.Lock()

    def version(self) -> int:
        return int(self._read(SQL_VERSION)[0][0])

    def keyring(self, since: Keyring | None = None) -> Keyring:
        older = since or EMPTY
        with self._transaction("BEGIN") as connection:
            version = int(connection.execute(SQL_VERSION).fetchall()[0][0])
            rows = connection.execute(SQL_KEYS, (older.version,)).fetchall()
        return older.changed(version, key_changes(rows))

    def all_rules(self) -> dict[str, list[Rule]]:
        with self._transaction("BEGIN") as connection:
            forces = [row[0] for row in connection.execute(SQL_FORCES).fetchall()]
            rows = connection.execute(SQL_RULES).fetchall()
        return rules_by_force(forces, rows)

    def known_watchers(self, force: str) -> set[str]:
        with self._transaction("BEGIN") as connection:
            self._require_force(connection, force)
            return {row[0] for row in connection.execute(SQL_WATCHERS, (force,)).fetchall()}

    def enrol(self, force: str, watcher_ids: Collection[str], via: str) -> int:
        now_us = micros(self._clock.now())
        rows = enrolment_rows(force, list(watcher_ids), via, now_us)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            self._require_force(connection, force)
            new = connection.executemany(SQL_ENROL, rows).rowcount
            if new > 0:
                detail = json_text({"new": new})
                connection.execute(SQL_AUDIT, (now_us, storable(f"relay:{via}"), force, storable(via), detail))
            return max(new, 0)

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def _require_force(self, connection: sqlite3.Connection, force: str) -> None:
        names = [row[0] for row in connection.execute(SQL_FORCES).fetchall()]
        if force not in names:
            raise not_found("force", force, names)

    def _read(self, sql: str) -> list[Any]:
        with self._turn, self._translated():
            return self._connection.execute(sql).fetchall()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._turn, self._translated():
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise RegistryBusy(str(self._path)) from error
            raise RegistryBroken(str(self._path), str(error)) from error
