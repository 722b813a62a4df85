"""The light way to a registry in a SQLite file: Python's own `sqlite3` on one kept connection, of which threads take turns.

The same settings as `engine.py`, for the same reasons. A file that was put in the place of the one that is open (a backup
restored while services run) is noticed at the next use and opened instead: the old one is on no path any more, so no
revocation would ever show in it. The file is never made here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmonywatch.registry.contract import RegistryBroken, RegistryBusy

BUSY_TIMEOUT_S = 5.0

_SQL_WATCHERS = (
    "INSERT INTO watchers (force, watcher_id, via, enrolled_us) VALUES (:force, :watcher_id, :via, :enrolled_us) "
    "ON CONFLICT DO NOTHING"
)


class SqliteLink:
    """A `Link`. Raises RegistryBusy and RegistryBroken for whatever SQLite and the disk do."""

    mark = "?"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._is_closed = False

    def ask(self, sql: str) -> list[Any]:
        with self._turn, self._translated():
            return self._open().execute(sql).fetchall()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        with self._transaction("BEGIN") as cursor:
            yield cursor

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        with self._transaction("BEGIN IMMEDIATE") as cursor:
            yield cursor

    def insert_watchers(self, cursor: sqlite3.Cursor, rows: Sequence[Mapping[str, Any]]) -> int:
        cursor.executemany(_SQL_WATCHERS, rows)
        return cursor.rowcount

    def close(self) -> None:
        with self._turn:
            self._is_closed = True
            self._let_go()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Cursor]:
        with self._turn, self._translated():
            connection = self._open()
            connection.execute(begin)
            try:
                yield connection.cursor()
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        if self._is_closed:
            raise RegistryBroken(self.where, "was closed")
        found = self._path.stat()
        file = (found.st_dev, found.st_ino)
        if self._connection is None or file != self._file:
            self._let_go()
            self._connection, self._file = _connect(self._path), file
        return self._connection

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """A broken constraint and a misused driver stay what they are: bugs. A connection that failed is not used again:
        it may be left within a transaction that it could not roll back."""
        try:
            yield
        except OSError as error:
            raise RegistryBroken(self.where, error.strerror or str(error)) from error
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise RegistryBusy(self.where) from error
            self._let_go()
            raise RegistryBroken(self.where, str(error)) from error


def _connect(path: Path) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(
        address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        for pragma in ("journal_mode=TRUNCATE", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection
