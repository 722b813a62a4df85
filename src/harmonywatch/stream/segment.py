"""One segment file of a topic: a SQLite database in which each row is a batch of records of one partition.

The only importer of apsw, whose wheel bundles a current SQLite: 3.7.0 to 3.51.2 can corrupt a write-ahead log with several
writers, so older ones are refused. `journal_mode=WAL`, `synchronous=FULL`: a commit is one fsync of the log. Copying the
log into the file (a checkpoint) is kept off the commit path: `tend` does it.

A segment is *sealed* when it takes no more records; `starts` are the positions at which its partitions began. SQLite does
not checksum its pages, so each row carries a `proof` that binds where it stands to what it holds (framing.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from harmonywatch.stream.contract import StreamBroken, StreamError, StreamFull, TopicDamaged, TopicPartition
from harmonywatch.stream.framing import proof_of, raw_bytes

SYNCHRONOUS = "full"
BUSY_TRIES, BUSY_FAST_TRIES = 1_200, 200
"""About 5 s: another process holds a segment for a commit, a millisecond, so first ask every half of one."""

WAL_TEND_BYTES = 8 << 20
"""The log is copied into the file once it is this long: rarely enough to be cheap, often enough to stay small."""

COPY_ROUNDS, NEARLY_NOTHING_PAGES = 5, 64
RESTART_PATIENCES_S, RESTART_AGAIN_S = (*[0.0] * 20, *[0.01] * 10), 0.001

_SCHEMA = """
create table meta(key text primary key, value) without rowid;
create table starts(partition integer primary key, position integer not null);
create table batches(
    id integer primary key, partition integer not null, base_offset integer not null, count integer not null,
    appended_us integer not null, framing integer not null, proof integer not null, data blob not null
);
create unique index by_offset on batches(partition, base_offset);
"""
_GROUPS = """
create table registered(grp text, topic text, primary key(grp, topic)) without rowid;
create table positions(
    grp text, topic text, partition integer, position integer not null, primary key(grp, topic, partition)
) without rowid;
"""
_INSERT = (
    "insert into batches(partition, base_offset, count, appended_us, framing, proof, data) values(?, ?, ?, ?, ?, ?, ?)"
)
_ROWS = (
    "select id, partition, base_offset, count, appended_us, framing, proof, data from batches where id > ? order by id"
)


class Row(NamedTuple):
    id: int
    partition: int
    base_offset: int
    records: int
    appended_us: int
    framing: int
    proof: int
    data: bytes


class Fragment(NamedTuple):
    """What is to be appended to one partition; a partition may have several, in order."""

    partition: int
    records: int
    framing: int
    data: bytes


class Sealed(Exception):
    """The segment takes no more records; the next one does."""


class Gone(Exception):
    """Retention deleted the segment before it was open."""


def check_engine() -> None:
    """Refuse a SQLite with the write-ahead-log bug."""
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < (3, 51, 3):
        raise StreamBroken(f"SQLite {apsw.sqlite_lib_version()} can corrupt the stream; 3.51.3 or newer is needed")


def translation(error: apsw.Error | OSError, path: Path, topic: str = "") -> StreamError:
    """A foreign error as the contract's. After a failed write nothing more may be acknowledged in any topic (fsync lies);
    a file of one `topic` that cannot be read or is no database says nothing about the others."""
    if isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return StreamFull(f"no space left for {path.name}", topic=topic)
    if isinstance(error, apsw.BusyError):
        return StreamFull(f"{path.name} is held by another process", retry_after_s=1.0, topic=topic)
    reason = f"{path}: {type(error).__name__}: {error}"
    if topic and _of_the_file(error):
        return TopicDamaged(topic, f"{reason}. Restore it, or let the operating system's user of this process read it")
    return StreamBroken(reason, topic)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_UNREADABLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
_DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.PermissionsError,
    apsw.ReadOnlyError,
    apsw.SQLError,
    apsw.MismatchError,
)
_READ_FAILED = (apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS)


def _of_the_file(error: apsw.Error | OSError) -> bool:
    """Whether the error tells of this file only. A failed read does: what was written elsewhere is as durable as before."""
    if isinstance(error, OSError):
        return error.errno in _UNREADABLE
    if isinstance(error, apsw.IOError):
        return getattr(error, "extendedresult", 0) in _READ_FAILED  # apsw sets it, its stubs do not know it
    return isinstance(error, _DAMAGE)


@contextlib.contextmanager
def translated(path: Path, topic: str = "") -> Iterator[None]:
    """`topic`: whose file it is, if it is one topic's."""
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise translation(error, path, topic) from error


@contextlib.contextmanager
def damage_of(topic: str) -> Iterator[None]:
    """What reading a changed file may end in besides, whatever it is, concerns the topic."""
    try:
        yield
    except (StreamError, Gone):
        raise
    except Exception as error:
        raise TopicDamaged(topic, f"{type(error).__name__}: {error}") from error


def connect(path: Path) -> apsw.Connection:
    """A connection that commits durably, checkpoints only when told, and waits for other processes about 5 s."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_handler(_wait_again)
    connection.execute(f"pragma synchronous={SYNCHRONOUS}").fetchall()
    connection.execute("pragma wal_autocheckpoint=0").fetchall()
    connection.execute(f"pragma journal_size_limit={WAL_TEND_BYTES // 2}").fetchall()
    return connection


def _wait_again(tries: int) -> bool:
    time.sleep(0.0005 if tries < BUSY_FAST_TRIES else 0.005)
    return tries < BUSY_TRIES


def _patient(patience_s: float) -> Callable[[int], bool]:
    """A busy handler that gives up soon."""
    until = time.monotonic() + patience_s

    def again(_tries: int) -> bool:
        if time.monotonic() >= until:
            return False
        time.sleep(0.0005)
        return True

    return again


def _make(path: Path, schema: str, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
    """Create a database whole or not at all; if another process was first, its own stands."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.draft")
    with translated(path):
        try:
            db = apsw.Connection(str(draft))
            try:
                db.execute("pragma journal_mode=wal").fetchall()  # once, here: changing it later needs everybody out
                with db:
                    db.execute(schema)
                    for statement, values in rows.items():
                        db.executemany(statement, values)
            finally:
                db.close()
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{draft}{suffix}").unlink(missing_ok=True)
        sync_folder(path.parent)


OPEN_TRIES, OPEN_AGAIN_S = 20, 0.005


class Segment:
    """An open segment. Used by one thread at a time. Raises Gone if retention was faster."""

    def __init__(self, path: Path) -> None:
        self.path, self.topic = path, path.parent.name
        self.number = int(path.stem)
        self._heads: dict[int, int] = {}
        self._version = -1
        self._log_named = False
        try:
            self._open()
        except apsw.Error as error:
            if not path.exists():
                raise Gone from None
            raise translation(error, path, self.topic) from error
        if not path.exists():  # deleted meanwhile, and perhaps the log that we opened is not the one that it had
            self._db.close()
            raise Gone

    def _open(self) -> None:
        """Again for a moment if it cannot be opened: who closes a segment last removes its log, under the feet of who
        opens it just then."""
        for left in reversed(range(OPEN_TRIES)):
            try:
                self._db = connect(self.path)
                self.starts = _pairs(self._db.execute("select partition, position from starts"))
                self.created_us = self._number("select value from meta where key = 'created_us'") or 0
                return
            except (apsw.CantOpenError, apsw.IOError):
                if not left or not self.path.exists():
                    raise
                time.sleep(OPEN_AGAIN_S)

    @staticmethod
    def make(path: Path, starts: Mapping[int, int], created_us: int) -> None:
        """Create the segment whole or not at all; if it is there, it stands."""
        rows: dict[str, list[tuple[Any, ...]]] = {
            "insert into starts values(?, ?)": list(starts.items()),
            "insert into meta values(?, ?)": [("created_us", created_us), ("sealed", 0)],
        }
        _make(path, _SCHEMA, rows)

    def append(self, fragments: Sequence[Fragment], appended_us: int) -> dict[int, int]:
        """Commit the fragments together; the first offset of each partition. Raises Sealed."""
        db = self._db
        given: dict[int, int] = {}
        try:
            db.execute("begin immediate")
            heads = dict(self._current_heads())
            for partition, records, framing, data in fragments:
                base = heads[partition]
                given.setdefault(partition, base)
                heads[partition] = base + records
                proof = proof_of(partition, base, records, appended_us, framing, data)
                db.execute(_INSERT, (partition, base, records, appended_us, framing, proof, data))
            db.execute("commit")
            self._name_log()
        except BaseException as error:
            self._roll_back()
            if isinstance(error, apsw.Error | OSError):
                raise translation(error, self.path, self.topic) from error
            raise
        self._heads, self._version = heads, db.data_version()
        return given

    def heads(self) -> dict[int, int]:
        """By partition, the position after its newest record here."""
        with translated(self.path, self.topic):
            return self._read_heads()

    @property
    def known_heads(self) -> Mapping[int, int]:
        """`heads` as of this process's last append here, without a look at the file."""
        return self._heads

    def sealed(self) -> bool:
        with translated(self.path, self.topic):
            return bool(self._number("select value from meta where key = 'sealed'"))

    def seal(self) -> None:
        """Take no more records. Twice is once."""
        with self.held():
            self._db.execute("update meta set value = 1 where key = 'sealed' and value = 0")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else appends, seals or makes the next segment meanwhile."""
        with translated(self.path, self.topic):
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                self._roll_back()
                raise

    def row_before(self, positions: Mapping[int, int]) -> int:
        """The id of a row with nothing wanted before or in it: what follows it holds all from the positions on."""
        with translated(self.path, self.topic):
            # the newest row is asked for first, or a record that comes between the questions would be passed over
            last = self._number("select max(id) from batches") or 0
            found = [self._first_row(partition, position) for partition, position in positions.items()]
        return min([last, *(row - 1 for row in found if row is not None)])

    def rows_after(self, row_id: int, bytes_max: int) -> list[Row]:
        """Rows in the order of their commits, about `bytes_max` of unpacked records."""
        found: list[Row] = []
        size = 0
        with translated(self.path, self.topic):
            cursor = self._db.execute(_ROWS, (row_id,))
            for values in cursor:
                found.append(Row(*values))
                size += raw_bytes(found[-1].data)
                if size >= bytes_max:
                    break
            cursor.close()
        return found

    def size_bytes(self) -> int:
        """Bytes of the file and its log."""
        return _size(self.path) + _size(wal_of(self.path))

    def checkpoint(self) -> bool:
        """Copy the log into the file, so that it begins anew; False if somebody was always in the way.

        1. It is copied while appenders go on, then what came meanwhile, until that is nearly nothing.
        2. Only when nothing at all is left, and nobody reads in it, can the log begin anew. That much is done while
           appenders wait, some 5 ms; for readers it is waited with little patience, and only after many tries with
           none: SQLite's own way would hold up appenders for as long as the slowest reader takes.
        """
        with translated(self.path, self.topic):
            copied = 0
            for _ in range(COPY_ROUNDS):
                before, copied = copied, self._checkpoint("passive")[1]
                if copied - before <= NEARLY_NOTHING_PAGES:
                    break
            try:
                for patience_s in RESTART_PATIENCES_S:
                    self._db.set_busy_handler(_patient(patience_s))
                    if not self._checkpoint("restart")[0]:
                        return True
                    time.sleep(RESTART_AGAIN_S)
            finally:
                self._db.set_busy_handler(_wait_again)
        return False

    def _checkpoint(self, mode: str) -> tuple[bool, int]:
        """Whether somebody was in the way, and the pages of the log."""
        row: Any = self._db.execute(f"pragma wal_checkpoint({mode})").fetchone()
        return bool(row[0]), int(row[1])

    def close(self) -> None:
        self._db.close()

    def _current_heads(self) -> dict[int, int]:
        """Inside a transaction: heads, read only if another connection committed since. Raises Sealed."""
        if self._db.data_version() != self._version:
            if self._number("select value from meta where key = 'sealed'"):
                raise Sealed
            heads = self._read_heads()
            if any(heads[partition] < head for partition, head in self._heads.items()):
                raise TopicDamaged(
                    self.topic, f"{self.path} ended at {self._heads} and now at {heads}: its log lost records"
                )
            self._heads = heads
        return self._heads

    def _read_heads(self) -> dict[int, int]:
        newest = "select base_offset + count from batches where partition = ? order by base_offset desc limit 1"
        return {partition: self._number(newest, partition) or start for partition, start in self.starts.items()}

    def _first_row(self, partition: int, position: int) -> int | None:
        return self._number(
            "select id from batches where partition = ?1 and base_offset + count > ?2 and base_offset >= coalesce("
            "(select max(base_offset) from batches where partition = ?1 and base_offset <= ?2), 0)"
            " order by base_offset limit 1",
            partition,
            position,
        )

    def _name_log(self) -> None:
        """The first commit may have made the log's file, whose name must last too; SQLite lets that fail in silence."""
        if not self._log_named:
            try:
                sync_folder(self.path.parent)
            except OSError as error:  # whatever it is: the records are committed, so it cannot be "none is"
                raise StreamBroken(f"{self.path.parent}: {error}", self.topic) from error
            self._log_named = True

    def _roll_back(self) -> None:
        self._version = -1
        with contextlib.suppress(apsw.Error):  # the first error is the one to tell
            if self._db.in_transaction:
                self._db.execute("rollback")

    def _number(self, statement: str, *values: int) -> int | None:
        """The statement's one integer, None without a row."""
        row: Any = self._db.execute(statement, values).fetchone()
        return None if row is None or row[0] is None else int(row[0])


def _pairs(cursor: apsw.Cursor) -> dict[int, int]:
    rows: Any = cursor.fetchall()
    return dict(rows)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def tend(path: Path) -> None:
    """Copy a write-ahead log that has grown long into its file."""
    if _size(wal_of(path)) < WAL_TEND_BYTES:
        return
    with contextlib.suppress(Gone):
        segment = Segment(path)
        try:
            segment.checkpoint()
        finally:
            segment.close()


def withdraw(path: Path) -> Path:
    """Take a segment out of its topic, at once however large it is, unless somebody has; `delete` does the rest."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.draft")
    with translated(path, path.parent.name), contextlib.suppress(FileNotFoundError):
        path.rename(draft)
    return draft


def delete(path: Path, draft: Path) -> None:
    """Remove the files of a segment that was withdrawn. Its log stayed until now: who finds the file after opening the log
    has the true log."""
    with translated(path, path.parent.name):
        for each in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm"), draft):
            each.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Positions:
    """`groups.db`: who reads durably, and how far. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not path.exists():
            _make(path, _GROUPS, {})
        with translated(path):
            self._db = connect(path)
            self._db.execute("pragma wal_autocheckpoint=1000").fetchall()

    def register(self, group: str, topic: str) -> None:
        with self._lock, translated(self.path):
            known = self._db.execute("select 1 from registered where grp = ? and topic = ?", (group, topic)).fetchone()
            if known is None:
                self._db.execute("insert or ignore into registered values(?, ?)", (group, topic))

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Never lowered: a stale reader's commit changes nothing."""
        rows = [(group, topic, partition, position) for (topic, partition), position in positions.items()]
        with self._lock, translated(self.path), self._db:
            self._db.executemany(
                "insert into positions values(?, ?, ?, ?) on conflict do update"
                " set position = max(position, excluded.position)",
                rows,
            )

    def committed(self, group: str, topic: str) -> dict[int, int]:
        with self._lock, translated(self.path):
            return _pairs(
                self._db.execute(
                    "select partition, position from positions where grp = ? and topic = ?", (group, topic)
                )
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No group registers meanwhile: what nobody needs now, nobody needs at the end."""
        with self._lock, translated(self.path):
            self._db.execute("begin immediate")
            try:
                yield
            finally:
                self._db.execute("rollback")

    def needed_from(self, topic: str) -> dict[int, int] | None:
        """Per partition, the least position that a registered group has yet to read (0 if it is not here); None without
        any group."""
        with self._lock, translated(self.path):
            rows: Any = self._db.execute(
                "select partition, min(position), count(*) from positions where topic = ?1"
                " and grp in (select grp from registered where topic = ?1) group by partition",
                (topic,),
            ).fetchall()
            groups: Any = self._db.execute("select count(*) from registered where topic = ?", (topic,)).fetchone()
        if not groups[0]:
            return None
        return {partition: position for partition, position, readers in rows if readers == groups[0]}

    def close(self) -> None:
        with self._lock:
            self._db.close()
