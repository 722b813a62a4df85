"""Small files become big ones: the same rows in the same order, fewer and better compressed files.

Files of a day are merged with others of like size, once there are `MERGE_LEAST` of them, so that a row is rewritten some
three times on its way into a file of `compact_bytes`; `everything` merges whatever is small, on demand. A merge reads
and writes one row group at a time. It commits against the version it read: appends do not disturb it, another rewrite
makes it fail, and the next round finds the table as it is.

Files out of use stay for queries that still read them and are deleted by `vacuum` later.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from harmonywatch.archive.lake import Lake, LakeTable, RewriteLost
from harmonywatch.archive.parquet import ROW_GROUP_ROWS, DataFile, Shelf
from harmonywatch.archive.schema import TABLES
from harmonywatch.settings import ArchiveSettings

MERGE_LEAST = 8
TIER = 8
SMALLEST_BYTES = 16 << 10
VACUUM_INTERVAL_S = 3600.0


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a round did to one table."""

    force: str
    table: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    deleted: int


def compact(lake: Lake, force: str, settings: ArchiveSettings, *, everything: bool, vacuum: bool) -> list[Compacted]:
    """Merge the small files of a force's tables; may run beside the archiver. Raises LakeUnavailable, OSError."""
    done = []
    for name in TABLES:
        table = lake.open(force, name)
        if table is None:
            continue
        before = table.files()
        for group in _groups(before, settings.compact_bytes, everything):
            _merge(table, group)
        deleted = table.vacuum(settings.vacuum_s) if vacuum else 0
        table.refresh()
        if vacuum:
            table.checkpoint()
        after = table.files()
        done.append(Compacted(force, name, len(before), len(after), _bytes(before), _bytes(after), deleted))
    return done


def _bytes(files: Iterable[DataFile]) -> int:
    return sum(file.size_bytes for file in files)


def _groups(files: Sequence[DataFile], target_bytes: int, everything: bool) -> Iterator[list[DataFile]]:
    """Files to merge with one another: of one day, in the order they were received."""

    def tier(file: DataFile) -> int:
        return 0 if everything else int(math.log(max(file.size_bytes, SMALLEST_BYTES) / SMALLEST_BYTES, TIER))

    small = [file for file in files if file.size_bytes < target_bytes // 2]
    small.sort(key=lambda file: (file.day, tier(file), file.received_min_us or 0, file.path))
    for _, alike in itertools.groupby(small, key=lambda file: (file.day, tier(file))):
        group = list(alike)
        if everything or len(group) >= MERGE_LEAST:
            yield from _bins(group, target_bytes)


def _bins(files: Iterable[DataFile], target_bytes: int) -> Iterator[list[DataFile]]:
    taken: list[DataFile] = []
    for file in files:
        taken.append(file)
        if sum(each.size_bytes for each in taken) >= target_bytes:
            yield taken
            taken = []
    if len(taken) > 1:
        yield taken


def _merge(table: LakeTable, old: list[DataFile]) -> bool:
    """Rewrite files as one, if they still stand. False if another rewrite was first."""
    table.refresh()
    standing = {file.path for file in table.files()}
    if not all(file.path in standing for file in old):
        return False
    schema = TABLES[table.name]
    new = table.shelf.write(old[0].day, _row_groups(table.shelf, old, schema))
    table.shelf.keep([new])
    pa.default_memory_pool().release_unused()
    if new.rows != sum(file.rows for file in old):
        table.shelf.remove(new.path)
        raise AssertionError(f"{table.where}: merged {new.rows} rows of {sum(file.rows for file in old)}")
    try:
        table.replace(old, [new])
    except RewriteLost:
        return False  # the new file stays for vacuum: deleting after a commit that may have happened would lose rows
    return True


def _row_groups(shelf: Shelf, files: Sequence[DataFile], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of the files in groups of ROW_GROUP_ROWS; a column that an older file lacks is null."""
    stored = [field for field in schema if field.name != "day"]
    gathered: list[pa.Table] = []
    rows = 0
    for file in files:
        for batch in shelf.read(file.path, [field.name for field in stored]):
            gathered.append(_with_all(pa.table(batch), stored))
            rows += batch.num_rows
            if rows >= ROW_GROUP_ROWS:
                whole = pa.concat_tables(gathered)
                yield whole.slice(0, ROW_GROUP_ROWS)
                gathered, rows = [whole.slice(ROW_GROUP_ROWS)], rows - ROW_GROUP_ROWS
    if rows:
        yield pa.concat_tables(gathered)


def _with_all(table: pa.Table, fields: Sequence[pa.Field[Any]]) -> pa.Table:
    columns: list[Any] = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in fields
    ]
    return pa.table(columns, schema=pa.schema(fields))


def keep_compact(
    lake: Lake,
    forces: Callable[[], Iterable[str]],
    settings: ArchiveSettings,
    stop: threading.Event,
    failed: Callable[[Exception], None],
) -> None:
    """Merge now and then until `stop`; meant for a thread of the archiver's process. `forces`: who there is now;
    `failed`: told what went wrong with a force, or with asking who there is. Whatever it is, the others are merged, and
    the next round tries again: compaction is never urgent, but a thread that ended unseen would be missed after months."""
    if settings.compact_interval_s <= 0:
        return
    since_vacuum_s = 0.0
    while not stop.wait(settings.compact_interval_s):
        since_vacuum_s += settings.compact_interval_s
        vacuum = since_vacuum_s >= VACUUM_INTERVAL_S
        for force in _forces(forces, failed):
            if stop.is_set():
                return
            try:
                compact(lake, force, settings, everything=False, vacuum=vacuum)
            except Exception as error:  # noqa: BLE001 see above
                failed(error)
        if vacuum:
            since_vacuum_s = 0.0


def _forces(forces: Callable[[], Iterable[str]], failed: Callable[[Exception], None]) -> list[str]:
    try:
        return list(forces())
    except Exception as error:  # noqa: BLE001 see keep_compact
        failed(error)
        return []
