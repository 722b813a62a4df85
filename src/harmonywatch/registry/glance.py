"""The few verbs that a door or a judge needs of the registry, without the weight of it.

SQLAlchemy costs 0.2 s and 28 MB to import, in every process; the gateway must answer within a second of its start, also
when all services start at once on two cores. So these verbs go through the engine's own driver, on one kept connection
(`light_sqlite.py`, `light_postgres.py`); only a schema that must be brought forward first opens the registry itself. The
tests run every verb against both and want the same answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harmonywatch.clock import Clock, micros
from harmonywatch.registry.contract import AuditLog, Enrolment, RegistryBroken, RegistryBusy, Rule, RuleBook
from harmonywatch.registry.keyring import EMPTY, Keyring
from harmonywatch.registry.migrations import SCHEMA_HEAD
from harmonywatch.registry.near import not_found
from harmonywatch.registry.postgres import is_postgres
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

SQL_REVISION = "SELECT version_num FROM alembic_version"
SQL_VERSION = "SELECT version FROM state"
SQL_KEYS = "SELECT hash, revoked_us, key_id, kind, force, subject, role FROM keys WHERE version > ?"
SQL_FORCES = "SELECT name FROM forces ORDER BY name"
SQL_RULES = (
    "SELECT rule_id, force, threshold, confidence_least, area, words, hours, enabled, created_us "
    "FROM rules ORDER BY force, created_us, rule_id"
)
SQL_WATCHERS = "SELECT watcher_id FROM watchers WHERE force = ?"
SQL_AUDIT = "INSERT INTO audit (at_us, actor, action, force, target, detail, reason) VALUES (?, ?, ?, ?, ?, ?, ?)"
SQL_AUDIT_ID = "SELECT max(id) FROM audit"
"""Of the entry just written: there is one writer at a time, and ids rise."""
assert all(column in SQL_KEYS for column in KEY_COLUMNS) and all(column in SQL_RULES for column in RULE_COLUMNS)


class Door(Enrolment, RuleBook, AuditLog, Protocol):
    """What `open_glance` returns; verbs and errors as in the contract."""

    def keyring(self, since: Keyring | None = None) -> Keyring: ...

    def acting_as(self, actor: str) -> Door: ...

    def close(self) -> None: ...


class Cursor(Protocol):
    """What Python's database drivers agree about."""

    def execute(self, sql: Any, values: Sequence[Any] = (), /) -> Any: ...

    def fetchall(self) -> list[Any]: ...


class Link(Protocol):
    """One kept connection to a database; safe for several threads. `where` names it in errors; `mark` stands for a value in
    its SQL. Every verb raises RegistryBusy and RegistryBroken for whatever the engine does."""

    @property
    def where(self) -> str: ...

    @property
    def mark(self) -> str: ...

    def ask(self, sql: str) -> list[Any]:
        """One statement without values."""

    def reading(self) -> AbstractContextManager[Cursor]:
        """One snapshot."""

    def writing(self) -> AbstractContextManager[Cursor]:
        """A transaction of which there is one at a time over all processes, committed and durable when the block ends."""

    def insert_watchers(self, cursor: Any, rows: Sequence[Mapping[str, Any]]) -> int:
        """Rows of `watchers`, one at least; how many were new. In a transaction of `writing`."""

    def close(self) -> None: ...


def open_glance(url: str, clock: Clock) -> Door:
    """The light view of the registry at `url`, brought to this program's schema if need be.

    Raises SchemaTooNew, RegistryBusy, RegistryBroken.
    """
    link = _link(url)
    if not _is_current(link):
        try:
            _open_registry(url, clock).close()
        except BaseException:
            link.close()
            raise
    return Glance(link, clock)


def _link(url: str) -> Link:
    """Each driver is loaded by whom it serves only."""
    if is_postgres(url):
        from harmonywatch.registry.light_postgres import PostgresLink

        return PostgresLink(url)
    from harmonywatch.registry.light_sqlite import SqliteLink

    return SqliteLink(Path(url.removeprefix("sqlite:///")))


def _is_current(link: Link) -> bool:
    """Whether the database is there, with the schema of this program."""
    try:
        return link.ask(SQL_REVISION) == [(SCHEMA_HEAD,)]
    except (RegistryBroken, RegistryBusy):
        return False  # whatever it is, opening the registry names it


def _open_registry(url: str, clock: Clock) -> Registry:
    from harmonywatch.registry.store import open_registry  # heavy: only when it cannot be avoided

    return open_registry(url, clock=clock, actor="service")


class Glance:
    """A `Door` over a `Link`; safe for several threads, which take turns."""

    def __init__(self, link: Link, clock: Clock, actor: str = "service") -> None:
        self._link = link
        self._clock = clock
        self._actor = actor

    def acting_as(self, actor: str) -> Glance:
        """The same view; what it writes is audited under `actor`. Closing one closes both."""
        return Glance(self._link, self._clock, actor)

    def version(self) -> int:
        with self._understood():
            return int(self._link.ask(SQL_VERSION)[0][0])

    def keyring(self, since: Keyring | None = None) -> Keyring:
        older = since or EMPTY
        with self._understood(), self._link.reading() as cursor:
            version = int(self._rows(cursor, SQL_VERSION)[0][0])
            changes = key_changes(self._rows(cursor, SQL_KEYS, older.version))
        return older.changed(version, changes)

    def all_rules(self) -> dict[str, list[Rule]]:
        with self._understood(), self._link.reading() as cursor:
            forces = [row[0] for row in self._rows(cursor, SQL_FORCES)]
            return rules_by_force(forces, self._rows(cursor, SQL_RULES))

    def known_watchers(self, force: str) -> set[str]:
        with self._link.reading() as cursor:
            self._require_force(cursor, force)
            return {row[0] for row in self._rows(cursor, SQL_WATCHERS, force)}

    def enrol(self, force: str, watcher_ids: Collection[str], via: str) -> int:
        now_us = micros(self._clock.now())
        rows = enrolment_rows(force, list(watcher_ids), via, now_us)
        with self._link.writing() as cursor:
            self._require_force(cursor, force)
            if not rows:
                return 0
            new = self._link.insert_watchers(cursor, rows)
            if new > 0:
                entry = (storable(f"relay:{via}"), "watchers.enrol", force, storable(via), json_text({"new": new}), "")
                cursor.execute(self._sql(SQL_AUDIT), (now_us, *entry))
            return new

    def record_audit(
        self,
        action: str,
        force: str | None = None,
        target: str = "",
        detail: Mapping[str, object] | None = None,
        reason: str = "",
    ) -> int:
        owner = None if force is None else storable(force)
        entry = (storable(self._actor), action, owner, storable(target), json_text(detail or {}), storable(reason))
        with self._link.writing() as cursor:
            cursor.execute(self._sql(SQL_AUDIT), (micros(self._clock.now()), *entry))
            return int(self._rows(cursor, SQL_AUDIT_ID)[0][0])

    def close(self) -> None:
        self._link.close()

    def _require_force(self, cursor: Cursor, force: str) -> None:
        names = [row[0] for row in self._rows(cursor, SQL_FORCES)]
        if force not in names:
            raise not_found("force", force, names)

    def _rows(self, cursor: Cursor, sql: str, *values: object) -> list[Any]:
        cursor.execute(self._sql(sql), values)
        return cursor.fetchall()

    def _sql(self, sql: str) -> str:
        return sql.replace("?", self._link.mark)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """A database that was restored by half has tables without the rows that belong there."""
        try:
            yield
        except (LookupError, TypeError, ValueError) as error:
            raise RegistryBroken(self._link.where, f"holds what no registry wrote: {error!r}") from error
