"""The light way to a registry in PostgreSQL: psycopg on one kept connection, of which threads take turns.

What has been read is a snapshot (REPEATABLE READ), so that a version and the keys at that version belong together without
a lock; who writes locks the row of the version first, as `change.py` does, so that writers come one after the other and
the ids of the audit rise in the order of commits. A connection that the server closed while nobody used it is noticed
without a round trip and made anew; one that breaks in use is `RegistryBroken`, and the next use connects again.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harmonywatch.registry.contract import RegistryBroken, RegistryBusy
from harmonywatch.registry.postgres import (
    BUSY_STATES,
    CONNECT,
    MISSING_DRIVER,
    MISSING_STATES,
    SESSION,
    where_of,
    without_driver,
)

try:
    import psycopg
    from psycopg.rows import TupleRow
except ImportError as error:
    raise RegistryBroken("postgresql", MISSING_DRIVER) from error

_SQL_WATCHERS = (
    b"INSERT INTO watchers (force, watcher_id, via, enrolled_us) "
    b"SELECT %s::text, unnest(%s::text[]), %s::text, %s::bigint "
    b"ON CONFLICT DO NOTHING"
)
"""One statement for all, not one each: a tenth of the time."""

_SQL_ALONE = "SELECT version FROM state FOR UPDATE"

Cursor = psycopg.Cursor[TupleRow]


class PostgresLink:
    """A `Link`. Raises RegistryBusy and RegistryBroken for whatever the server and the network do."""

    mark = "%s"

    def __init__(self, url: str) -> None:
        self.where = where_of(url)
        self._address = without_driver(url)
        self._turn = threading.Lock()
        self._connection: psycopg.Connection[TupleRow] | None = None
        self._is_closed = False

    def ask(self, sql: str) -> list[Any]:
        with self._turn, self._translated():
            return self._open().execute(sql.encode()).fetchall()

    @contextmanager
    def reading(self) -> Iterator[Cursor]:
        with self._transaction("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY") as cursor:
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[Cursor]:
        with self._transaction(_SQL_ALONE) as cursor:
            yield cursor

    def insert_watchers(self, cursor: Cursor, rows: Sequence[Mapping[str, Any]]) -> int:
        first = rows[0]
        ids = [row["watcher_id"] for row in rows]
        cursor.execute(_SQL_WATCHERS, (first["force"], ids, first["via"], first["enrolled_us"]))
        return cursor.rowcount

    def close(self) -> None:
        with self._turn:
            self._is_closed = True
            self._let_go()

    @contextmanager
    def _transaction(self, first: str) -> Iterator[Cursor]:
        with self._turn, self._translated():
            connection = self._open()
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(first.encode())
                yield cursor

    def _open(self) -> psycopg.Connection[TupleRow]:
        if self._is_closed:
            raise RegistryBroken(self.where, "was closed")
        if self._connection is not None and _is_stale(self._connection):
            self._let_go()
        if self._connection is None:
            self._connection = psycopg.connect(self._address, autocommit=True, prepare_threshold=None, **CONNECT)  # type: ignore[arg-type]
            self._connection.execute(SESSION.encode())
        return self._connection

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """A broken constraint and a misused driver stay what they are: bugs."""
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate in BUSY_STATES:
                raise RegistryBusy(self.where) from error
            if isinstance(error, psycopg.IntegrityError | psycopg.ProgrammingError | psycopg.DataError):
                if error.sqlstate not in MISSING_STATES:
                    raise
            else:
                self._let_go()
            raise RegistryBroken(self.where, str(error)) from error


def _is_stale(connection: psycopg.Connection[TupleRow]) -> bool:
    """Closed, or with something to read although nothing was asked: the server's farewell."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
