"""One segment file of a topic: a SQLite database in which each row is a batch of records of one partition.

The only importer of apsw, whose wheel bundles a current SQLite: 3.7.0 to 3.51.2 can corrupt a write-ahead log with several
writers, so older ones are refused. `journal_mode=WAL`, `synchronous=FULL`: a commit is one fsync of the log. Copying the
log into the file (a checkpoint) is kept off the commit path: `tend` does it.

A segment is *sealed* when it takes no more records; `starts` are the positions at which its partitions began.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from harmonywatch.stream.contract import StreamBroken, StreamFull, TopicPartition

BUSY_MS = 5_000
WAL_TEND_BYTES = 8 << 20
"""The log is copied into the file once it is this long: rarely enough to be cheap, often enough to stay small."""

_SCHEMA = """
create table meta(key text primary key, value) without rowid;
create table starts(partition integer primary key, position integer not null);
create table batches(
    id integer primary key, partition integer not null, base_offset integer not null, count integer not null,
    appended_us integer not null, framing integer not null, data blob not null
);
create unique index by_offset on batches(partition, base_offset);
"""


class Row(NamedTuple):
    id: int
    partition: int
    base_offset: int
    records: int
    appended_us: int
    framing: int
    data: bytes


class Fragment(NamedTuple):
    """What is to be appended to one partition."""

    partition: int
    records: int
    framing: int
    data: bytes


class Sealed(Exception):
    """The segment takes no more records; the next one does."""


def check_engine() -> None:
    """Refuse a SQLite with the write-ahead-log bug."""
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < (3, 51, 3):
        raise StreamBroken(f"SQLite {apsw.sqlite_lib_version()} can corrupt the stream; 3.51.3 or newer is needed")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as the contract's, once. After an I/O error nothing more may be acknowledged (fsync lies)."""
    try:
        yield
    except apsw.FullError:
        raise StreamFull(f"no space left for {path.name}") from None
    except apsw.BusyError:
        raise StreamFull(f"{path.name} is held by another process", retry_after_s=1.0) from None
    except apsw.Error as error:
        raise StreamBroken(f"{path}: {type(error).__name__}: {error}") from error


def connect(path: Path, *, create: bool = False) -> apsw.Connection:
    """A connection that commits durably and never checkpoints by itself."""
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(BUSY_MS)
    for pragma in ("journal_mode=wal", "synchronous=full", "wal_autocheckpoint=0"):
        connection.execute(f"pragma {pragma}").fetchall()
    return connection


class Segment:
    """An open segment. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.stem)
        with translated(path):
            self._db = connect(path)

    @staticmethod
    def make(path: Path, starts: Mapping[int, int], created_us: int) -> None:
        """Create the segment whole or not at all; if another process was first, that one stands."""
        draft = path.with_suffix(f".{os.getpid()}.draft")
        with translated(path):
            db = apsw.Connection(str(draft))
            try:
                with db:
                    db.execute(_SCHEMA)
                    db.executemany("insert into starts values(?, ?)", list(starts.items()))
                    db.execute("insert into meta values('created_us', ?), ('sealed', 0)", (created_us,))
            finally:
                db.close()
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        sync_folder(path.parent)

    def append(self, fragments: Sequence[Fragment], appended_us: int) -> dict[int, int]:
        """Commit the fragments together; the first offset of each. Raises Sealed."""
        with translated(self.path):
            try:
                self._db.execute("begin immediate")
                if self._meta("sealed"):
                    raise Sealed
                given = {}
                for partition, records, framing, data in fragments:
                    given[partition] = base = self.head(partition)
                    self._db.execute(
                        "insert into batches(partition, base_offset, count, appended_us, framing, data)"
                        " values(?, ?, ?, ?, ?, ?)",
                        (partition, base, records, appended_us, framing, data),
                    )
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
        return given

    def head(self, partition: int) -> int:
        """The position after the partition's newest record here."""
        with translated(self.path):
            newest = self._number(
                "select base_offset + count from batches where partition = ? order by base_offset desc limit 1",
                partition,
            )
            if newest is not None:
                return newest
            start = self._number("select position from starts where partition = ?", partition)
        assert start is not None, "a partition that the segment was made without"
        return start

    def starts(self) -> dict[int, int]:
        with translated(self.path):
            return _pairs(self._db.execute("select partition, position from starts"))

    def sealed(self) -> bool:
        with translated(self.path):
            return bool(self._meta("sealed"))

    def created_us(self) -> int:
        with translated(self.path):
            return int(self._meta("created_us"))

    def seal(self) -> dict[int, int]:
        """Take no more records; the positions at which the next segment starts. Twice is once."""
        with translated(self.path):
            self._db.execute("begin immediate")
            try:
                heads = {partition: self.head(partition) for partition in self.starts()}
                self._db.execute("update meta set value = 1 where key = 'sealed'")
                self._db.execute("commit")
            except BaseException:
                self._db.execute("rollback")
                raise
        return heads

    def first_row(self, partition: int, position: int) -> int | None:
        """The id of the row that holds the position, or of the next one of the partition; None past the end."""
        with translated(self.path):
            return self._number(
                "select id from batches where partition = ?1 and base_offset + count > ?2 and base_offset >= coalesce("
                "(select max(base_offset) from batches where partition = ?1 and base_offset <= ?2), 0)"
                " order by base_offset limit 1",
                partition,
                position,
            )

    def last_row(self) -> int:
        """The id of the newest row, 0 without any."""
        with translated(self.path):
            return self._number("select max(id) from batches") or 0

    def rows_after(self, row_id: int, bytes_max: int) -> list[Row]:
        """Rows in the order of their commits, about `bytes_max` of them."""
        found: list[Row] = []
        size = 0
        with translated(self.path):
            cursor = self._db.execute(
                "select id, partition, base_offset, count, appended_us, framing, data from batches where id > ?"
                " order by id",
                (row_id,),
            )
            for values in cursor:
                found.append(Row(*values))
                size += len(found[-1].data)
                if size >= bytes_max:
                    break
            cursor.close()
        return found

    def size_bytes(self) -> int:
        """Bytes of the file and its log."""
        log = self.path.with_name(self.path.name + "-wal")
        return sum(each.stat().st_size for each in (self.path, log) if each.exists())

    def tend(self) -> None:
        """Copy the log into the file without making an appender wait."""
        log = self.path.with_name(self.path.name + "-wal")
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size >= WAL_TEND_BYTES:
                with translated(self.path):
                    self._db.execute("pragma wal_checkpoint(passive)").fetchall()

    def close(self) -> None:
        self._db.close()

    def _meta(self, key: str) -> int:
        return self._number("select value from meta where key = ?", key) or 0

    def _number(self, statement: str, *values: int | str) -> int | None:
        """The statement's one integer, None without a row."""
        row: Any = self._db.execute(statement, values).fetchone()
        return None if row is None or row[0] is None else int(row[0])


def _pairs(cursor: apsw.Cursor) -> dict[int, int]:
    rows: Any = cursor.fetchall()
    return dict(rows)


def delete(path: Path) -> None:
    """Remove a segment's files."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Positions:
    """`groups.db`: who reads durably, and how far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated(path):
            self._db = connect(path, create=True)
            self._db.execute("pragma wal_autocheckpoint=1000").fetchall()
            self._db.execute(
                "create table if not exists registered(grp text, topic text, primary key(grp, topic)) without rowid;"
                "create table if not exists positions(grp text, topic text, partition integer,"
                " position integer not null, primary key(grp, topic, partition)) without rowid"
            )

    def register(self, group: str, topic: str) -> None:
        with translated(self.path):
            known = self._db.execute("select 1 from registered where grp = ? and topic = ?", (group, topic)).fetchone()
            if known is None:
                self._db.execute("insert or ignore into registered values(?, ?)", (group, topic))

    def groups(self, topic: str) -> list[str]:
        with translated(self.path):
            return [row[0] for row in self._db.execute("select grp from registered where topic = ?", (topic,))]

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Never lowered: a stale reader's commit changes nothing."""
        rows = [(group, topic, partition, position) for (topic, partition), position in positions.items()]
        with translated(self.path), self._db:
            self._db.executemany(
                "insert into positions values(?, ?, ?, ?) on conflict do update"
                " set position = max(position, excluded.position)",
                rows,
            )

    def committed(self, group: str, topic: str) -> dict[int, int]:
        with translated(self.path):
            return _pairs(
                self._db.execute(
                    "select partition, position from positions where grp = ? and topic = ?", (group, topic)
                )
            )

    def close(self) -> None:
        self._db.close()
