"""The lake's tables: opened, appended to, rewritten. The only importer of deltalake.

A table belongs to one stream and one key: both stand in its description from the version that creates it. Positions in
the stream are stored with the rows, in the same commit, one `app_transaction` per partition of a topic.

An append, and what a crash after each step leaves:
1. read the table's newest version; its positions must be those we started from, else `WriterFenced`;
2. write the data files, fsync them                            files that no version names; vacuum takes them
3. commit the files and the new positions, against version 1's  all of it, or nothing. A writer that got in between with
   reading: any newer commit of these positions makes it fail    the same positions makes ours fail: no row twice
4. fsync the log entry and its folder                          a power failure may tear the entry: `_mend` takes it away
5. only now the caller may tell the stream (`settled`)
An error in step 3 leaves the outcome open: the positions are read again and decide.

Rewrites (compaction, erasure) hold the table's `REWRITE` mark: delta-rs does not notice two commits that remove the
same file, but it refuses two that move the same mark.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow.fs import PyFileSystem

from harmonywatch.archive.parquet import BOUNDED, DataFile, Shelf, by_day, local_filesystem
from harmonywatch.archive.schema import PARTITION_BY, TABLES
from harmonywatch.stream.contract import StreamReset, TopicPartition

REOPEN_COMMITS = 100
"""A table object slows with every commit it has seen; a checkpoint and a fresh one keep a commit at some 10 ms."""

REWRITE = "harmonywatch/rewrite"
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

Positions = Mapping[TopicPartition, int]


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    """Errors of delta-rs that mean the medium, as ours; a store far away fails with OSError."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise LakeUnavailable(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line: below it stands all that went over the wire."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class WriterFenced(Exception):
    """Another writer moved the positions. What is gathered is worthless: begin again at the stored positions."""

    def __init__(self, where: str, expected: Positions, found: Positions) -> None:
        super().__init__(f"{where}: another writer got on; expected {dict(expected)}, found {dict(found)}")
        self.where, self.expected, self.found = where, expected, found


class KeyChanged(Exception):
    """The lake was written with another key than the folder of keys holds."""

    def __init__(self, where: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{where} was written with key {expected}, but the folder of keys holds {actual}. "
            "Restore the keys from the backup: with another key, old and new tokens would never meet"
        )


class RewriteLost(Exception):
    """Another rewrite of the table was first; nothing was changed."""


class LakeUnavailable(Exception):
    """The lake's medium failed; nothing was committed. Try again."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a table belongs to."""

    stream_id: str
    key_check: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The files a question needs, in one snapshot."""

    files: list[str]
    bytes: int
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class Addition:
    """Rows to store in a table, and the positions they move: from `base` to `target`."""

    table: LakeTable
    rows: pa.Table
    base: Positions
    target: Positions


def append(additions: Sequence[Addition]) -> None:
    """Store all of them, each table in one commit; durable on return. Raises WriterFenced, LakeUnavailable: then the
    tables before the one at fault may hold their rows and positions, and the others do not. See the header."""
    written = [(each, each.table.write(each)) for each in additions]
    for each, files in written:
        each.table.keep(files)
    for each, files in written:
        each.table.commit(each, files)
    for each in additions:
        each.table.sync_log()


class Lake:
    """All tables under one folder or URL. `options`: storage options of deltalake (S3)."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self._remote = "://" in url
        self._url = url.rstrip("/") if self._remote else str(Path(url).absolute())
        self._options = dict(options or {})

    def where(self, force: str, table: str) -> str:
        return f"{self._url}/{force}/{table}"

    def open(self, force: str, table: str) -> LakeTable | None:
        """The table, or None if there is none yet."""
        where = self.where(force, table)
        if not self._remote and not Path(where, "_delta_log").is_dir():
            return None
        with _translated(where):
            try:
                return LakeTable(where, table, self._options, remote=self._remote)
            except TableNotFoundError:
                return None
            except DeltaError as error:
                log = Path(where, "_delta_log")
                if self._remote or (torn := _torn_entry(log)) is None:
                    raise
                if _is_birth(log, torn):
                    return None  # nothing was ever stored in it, and the archiver will make it again
                raise LakeUnavailable(
                    f"{where}: a power failure tore {torn.name}; start the archiver, which takes it away"
                ) from error

    def create(self, force: str, table: str, mark: Mark) -> LakeTable:
        """The table, made if it is not there. Raises StreamReset, KeyChanged if it belongs to another stream or key."""
        if not self._remote:
            _mend(Path(self.where(force, table), "_delta_log"))
        found = self.open(force, table)
        if found is None:
            self._make(self.where(force, table), table, mark)
            found = self.open(force, table)
            assert found is not None, "a table that was just made"
            found.sync_birth()
        stands = found.mark()
        if stands.stream_id != mark.stream_id:
            raise StreamReset(stands.stream_id, mark.stream_id, found.where)
        if stands.key_check != mark.key_check:
            raise KeyChanged(found.where, stands.key_check, mark.key_check)
        found.sync_log()  # who wrote the last entry may have died before
        return found

    def _make(self, where: str, table: str, mark: Mark) -> None:
        if not self._remote:
            Path(where).mkdir(parents=True, exist_ok=True)
        try:
            self._make_first(where, table, mark)
        except DeltaError as error:  # somebody may have been first: then theirs stands
            if not DeltaTable.is_deltatable(where, storage_options=self._options or None):
                raise LakeUnavailable(f"{where}: {_reason(error)}") from error

    def _make_first(self, where: str, table: str, mark: Mark) -> None:
        """Version 0 or nothing: with retries, delta-rs would make the loser version 1, and its mark would win."""
        DeltaTable.create(
            where,
            TABLES[table],
            mode="error",
            commit_properties=CommitProperties(max_commit_retries=0),
            partition_by=[PARTITION_BY],
            description=json.dumps({"stream_id": mark.stream_id, "key_check": mark.key_check}),
            configuration={
                "delta.dataSkippingStatsColumns": ",".join(n for n in BOUNDED if n in TABLES[table].names),
                "delta.logRetentionDuration": "interval 1 days",
            },
            storage_options=self._options or None,
        )

    def plan(self, force: str, table: str, first_day: date | None = None, last_day: date | None = None) -> Plan:
        """The files that may hold rows of these UTC days (both included; None = without bound)."""
        found = self.open(force, table)
        if found is None:
            return Plan([], 0, TABLES[table])
        files = found.files(first_day, last_day)
        return Plan([f"{found.where}/{file.path}" for file in files], sum(f.size_bytes for f in files), TABLES[table])


class LakeTable:
    """One table as of the version it last read. Used by one thread."""

    def __init__(self, where: str, name: str, options: dict[str, str], *, remote: bool) -> None:
        self.where, self.name = where, name
        self._options, self._remote = options, remote
        self._schema = DeltaSchema.from_arrow(TABLES[name])
        self._table = self._opened()
        self._synced = max(self.version - 1, 0)
        self._stream_id: str | None = None
        self._marks: dict[str, int] = {}
        self._marks_at = self.version
        self.shelf = Shelf(self._filesystem(), None if remote else where)

    def _opened(self) -> DeltaTable:
        return DeltaTable(self.where, storage_options=self._options or None)

    def _filesystem(self) -> Any:
        if self._remote:
            handler: Any = DeltaStorageHandler.from_table(self._table._table)
            return PyFileSystem(handler)
        return local_filesystem(self.where)

    @property
    def version(self) -> int:
        return self._table.version()

    def refresh(self) -> None:
        """Read the newest version."""
        with _translated(self.where):
            self._table.update_incremental()

    def mark(self) -> Mark:
        text = json.loads(self._table.metadata().description or "{}")
        return Mark(text.get("stream_id", ""), text.get("key_check", ""))

    def position(self, at: TopicPartition) -> int:
        """Next to store of a partition of the stream; 0 before the first."""
        return self._mark_of(self._app_id(at))

    def _mark_of(self, app_id: str) -> int:
        """What the version last read holds; asking delta-rs reads the log again, from far away if that is where it is."""
        if self._marks_at != self.version:
            self._marks, self._marks_at = {}, self.version
        if app_id not in self._marks:
            with _translated(self.where):
                self._marks[app_id] = self._table.transaction_version(app_id) or 0
        return self._marks[app_id]

    def _app_id(self, at: TopicPartition) -> str:
        if self._stream_id is None:  # it never changes
            self._stream_id = self.mark().stream_id
        return f"harmonywatch/{self._stream_id}/{at.topic}/{at.partition}"

    def append(self, rows: pa.Table, base: Positions, target: Positions) -> None:
        """`append` to this table alone."""
        append([Addition(self, rows, base, target)])

    def write(self, addition: Addition) -> list[DataFile]:
        """Steps 1 and 2 of `append`, but for the fsyncs."""
        base, target = addition.base, addition.target
        assert base.keys() == target.keys() and all(target[at] >= base[at] for at in base), "positions never go back"
        self._expect(base)
        with _translated(self.where):
            return [self.shelf.write(day, [rows]) for day, rows in by_day(addition.rows)]

    def keep(self, files: Iterable[DataFile]) -> None:
        """The fsyncs of step 2."""
        with _translated(self.where):
            self.shelf.keep(files)

    def commit(self, addition: Addition, files: Iterable[DataFile]) -> None:
        """Step 3 of `append`."""
        marks = {self._app_id(at): position for at, position in addition.target.items()}
        try:
            self._commit([_added(file) for file in files], marks)
        except (DeltaError, OSError) as error:
            self._decide(addition.base, addition.target, error)

    def _expect(self, base: Positions) -> None:
        found = {at: self.position(at) for at in base}
        if found != dict(base):
            raise WriterFenced(self.where, base, found)

    def _decide(self, base: Positions, target: Positions, error: Exception) -> None:
        """A commit whose outcome is open: what the table says now is what happened."""
        with contextlib.suppress(DeltaError, OSError):
            self._table = self._opened()
            found = {at: self.position(at) for at in base}
            if found == dict(target) and found != dict(base):
                return
            if found != dict(base):
                raise WriterFenced(self.where, base, found) from error
        raise LakeUnavailable(f"{self.where}: {_reason(error)}") from error

    def replace(self, old: Iterable[DataFile], new: Iterable[DataFile]) -> None:
        """Put files holding the same rows in the place of others, all of which this version names. Raises RewriteLost."""
        now_ms = time.time_ns() // 1_000_000
        removed = [RemoveAction(f.path, False, now_ms, f.size_bytes, {PARTITION_BY: f.day.isoformat()}) for f in old]
        added = [_added(file, data_change=False) for file in new]
        try:
            with _translated(self.where):
                self._commit([*added, *removed], {REWRITE: self._mark_of(REWRITE) + 1})
                self.sync_log()
        except LakeUnavailable as error:
            if isinstance(error.__cause__, CommitFailedError):
                raise RewriteLost(str(error)) from error
            raise

    def _commit(self, actions: list[AddAction | RemoveAction], marks: dict[str, int]) -> None:
        """Commit against what was last read, and read on: the newest version is known then."""
        seen = self.version
        self._table.create_write_transaction(
            actions,
            "append",
            self._schema,
            partition_by=[PARTITION_BY],
            commit_properties=CommitProperties(app_transactions=[Transaction(k, v) for k, v in marks.items()]),
            post_commithook_properties=_NO_HOOKS,
        )
        self._table.update_incremental()
        if self.version == seen + 1 == self._marks_at + 1:
            self._marks, self._marks_at = self._marks | marks, self.version

    def sync_birth(self) -> None:
        """The table's first entry, and the names of its folders, survive a power failure."""
        for path in (f"_delta_log/{0:020}.json", "_delta_log", ".", "..", "../.."):
            self.shelf.sync(path)

    def sync_log(self) -> None:
        """Every entry up to the version that was read, ours among them, survives a power failure."""
        since, self._synced = self._synced, self.version
        for version in range(since + 1, self.version + 1):
            self.shelf.sync(f"_delta_log/{version:020}.json")
        self.shelf.sync("_delta_log")
        if self.version // REOPEN_COMMITS > since // REOPEN_COMMITS:
            self.checkpoint()
            self._table = self._opened()

    def checkpoint(self) -> None:
        """Sum up the log so far, and drop what is older than its retention."""
        with _translated(self.where):
            self._table.create_checkpoint()
            self._table.cleanup_metadata()
        self.shelf.sync("_delta_log")

    def vacuum(self, older_than_s: float) -> int:
        """Delete files that no version of the last `older_than_s` uses (an hour at least: a file that is being committed
        is young); returns how many."""
        hours = max(1, int(older_than_s // 3600))
        with _translated(self.where):
            return len(self._table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True))

    def files(self, first_day: date | None = None, last_day: date | None = None) -> list[DataFile]:
        """The files of this version, of some UTC days."""
        listed = pa.table(self._table.get_add_actions(flatten=True))
        if first_day is not None:
            listed = listed.filter(pc.field("partition.day") >= pa.scalar(first_day))
        if last_day is not None:
            listed = listed.filter(pc.field("partition.day") <= pa.scalar(last_day))
        bounds = [
            listed[name].cast(pa.int64()).to_pylist() if name in listed.column_names else [None] * len(listed)
            for name in ("min.received_at", "max.received_at")
        ]
        plain = [listed[name].to_pylist() for name in ("path", "size_bytes", "num_records", "partition.day")]
        return [DataFile(*values) for values in zip(*plain, *bounds, strict=True)]


def _added(file: DataFile, *, data_change: bool = True) -> AddAction:
    partition: dict[str, str | None] = {PARTITION_BY: file.day.isoformat()}
    return AddAction(file.path, file.size_bytes, partition, time.time_ns() // 1_000_000, data_change, file.stats)


def _mend(log: Path) -> None:
    """Take away a last entry that a power failure tore: it was never vouched for (step 4 comes before step 5)."""
    if (torn := _torn_entry(log)) is not None:
        torn.unlink(missing_ok=True)


def _torn_entry(log: Path) -> Path | None:
    """The last entry, if it is not whole. The first one makes the table, and is whole only if it does."""
    entries = sorted(path for path in log.glob("*.json") if path.stem.isdigit())
    if not entries:
        return None
    try:
        actions = [json.loads(line) for line in entries[-1].read_text("utf-8").splitlines() or [""]]
    except ValueError:
        return entries[-1]
    said = {name for action in actions for name in action}
    return entries[-1] if _is_birth(log, entries[-1]) and not {"protocol", "metaData"} <= said else None


def _is_birth(log: Path, entry: Path) -> bool:
    return int(entry.stem) == 0 and not any(log.glob("*.checkpoint*.parquet"))
