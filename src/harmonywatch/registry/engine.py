"""How a state database is opened: everything that depends on the engine behind the URL, in this one file.

Serves `registry.db` and `incidents.db` alike. The rules it keeps, for SQLite:

- rollback journal in TRUNCATE mode: Python's own SQLite may be older than 3.51.3, before which the write-ahead log can
  be corrupted by several writers; the rollback journal is not touched by that. `synchronous=FULL` then fsyncs the
  journal, the database and again the truncated journal; EXTRA would only add the fsync of a folder after an unlink,
  which TRUNCATE does not do.
- The driver never begins a transaction by itself (`isolation_level=None`): `reading` begins with plain BEGIN, `writing`
  with BEGIN IMMEDIATE, so a writer waits at its start (up to the busy timeout) and can never fail half-way for a lock.
- Foreign keys are checked. A new file is readable by its owner only (0600); SQLite gives its journal the same mode.

For PostgreSQL (`postgres.py`): `reading` is one snapshot (REPEATABLE READ), as it is in SQLite by nature; `writing` is READ
COMMITTED, in which a statement that waited for a row sees what it waited for, so callers lock what they decide by first.
The caller's models use portable types.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, DisconnectionError, NoResultFound
from sqlalchemy.pool import ConnectionPoolEntry

from harmonywatch.registry.contract import RegistryBroken, RegistryBusy
from harmonywatch.registry.postgres import (
    BUSY_STATES,
    BUSY_TIMEOUT_S,
    CONNECT,
    MISSING_DRIVER,
    MISSING_STATES,
    SESSION,
    is_postgres,
    where_of,
    with_driver,
)

_BEGIN = "harmonywatch_begin"
_FILE = "harmonywatch_file"
_OPERATIONAL = ("OperationalError", "InternalError", "DatabaseError")
_MIGRATION_LOCK = 0x68617277
"""Any fixed number: the key of PostgreSQL's advisory lock under which schemas change."""


def open_engine(url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql+psycopg://...`; makes the file and its folders if need be.

    Nothing is read yet. Use `reading` and `writing` for every transaction; `engine.dispose()` lets go.
    """
    if is_postgres(url):
        return _open_postgres(url)
    address = make_url(url)
    if address.get_backend_name() != "sqlite":
        raise RegistryBroken(
            address.get_backend_name(), "a state database is sqlite:///PATH or postgresql+psycopg://..."
        )
    if not address.database or address.database == ":memory:":
        raise RegistryBroken(url, "a state database needs a file: sqlite:///PATH")
    _make_private_file(Path(address.database))
    engine = create_engine(
        address,
        connect_args={"timeout": busy_timeout_s, "isolation_level": None, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "checkout", _on_sqlite_checkout)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _open_postgres(url: str) -> Engine:
    try:
        engine = create_engine(with_driver(url), pool_pre_ping=True, connect_args=CONNECT)
    except ImportError as error:
        raise RegistryBroken(where_of(url), MISSING_DRIVER) from error
    event.listen(engine, "connect", _on_postgres_connect)
    return engine


def _on_postgres_connect(connection: Any, _record: object) -> None:
    connection.execute(SESSION)
    connection.commit()


def _make_private_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise RegistryBroken(str(path), error.strerror or str(error)) from error


def _on_sqlite_connect(connection: Any, record: ConnectionPoolEntry) -> None:
    for pragma in ("journal_mode=TRUNCATE", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    (_, _, path) = connection.execute("PRAGMA database_list").fetchone()
    record.info[_FILE] = (path, _identity(path))


def _on_sqlite_checkout(_connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
    """A file that was put in the place of ours (a backup restored) is opened instead: ours is on no path any more."""
    path, identity = record.info[_FILE]
    if _identity(path) != identity:
        raise DisconnectionError(f"{path} was replaced")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _on_sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN IMMEDIATE"))


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A read transaction. Fetch everything inside; the lock is gone when the block ends.

    Raises RegistryBusy, RegistryBroken for what the engine raises.
    """
    options: dict[str, Any] = {_BEGIN: "BEGIN"}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _translated(engine), engine.connect() as connection:
        yield connection.execution_options(**options)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A write transaction: all of the block is committed and durable when it ends, or, if it raises, none of it.

    Raises RegistryBusy, RegistryBroken for what the engine raises.
    """
    with _translated(engine), engine.begin() as connection:
        yield connection


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """A write transaction of which there is one at a time over all processes, also on PostgreSQL."""
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        yield connection


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose keys are not there yet; how many were new.

    Both engines know ON CONFLICT, each its own. What is new is counted as it is returned: the number of changed rows
    that drivers report for many rows at once is -1 in one of them.
    """
    if not rows:
        return 0
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(table).on_conflict_do_nothing().returning(table.primary_key.columns[0])
    return len(connection.execute(insert, rows).all())


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    """The engine's own exceptions as the contract's, once, here. A broken constraint stays what it is: a bug."""
    try:
        yield
    except DBAPIError as error:
        where, reason, state = _where(engine), str(error.orig), getattr(error.orig, "sqlstate", None)
        is_sqlite = engine.dialect.name == "sqlite"
        if state in BUSY_STATES or (is_sqlite and ("locked" in reason or "busy" in reason)):
            raise RegistryBusy(where) from error
        if error.connection_invalidated or state in MISSING_STATES or type(error).__name__ in _OPERATIONAL:
            raise RegistryBroken(where, reason) from error
        raise
    except NoResultFound as error:
        raise RegistryBroken(_where(engine), f"holds what no registry wrote: {error}") from error


def _where(engine: Engine) -> str:
    """Without user and password."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return where_of(engine.url.render_as_string())
