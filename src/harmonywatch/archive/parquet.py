"""One data file of the lake: how it is written, durable before anyone hears of it, and how it is read back.

Encodings were measured on the fleet's reports: numbers that rise are stored as differences, hashes and coordinates
plain, all else by dictionary. Parquet's dictionary page stops at 1 MB by default and falls back to plain: then every
row pays for whole tokens, so it is raised. A file pays once for each citizen in it, so bigger is smaller: 9,000 reports
a file are 6 times smaller than their JSON, 90,000 are 13 times.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from harmonywatch.archive.schema import PARTITION_BY

DICTIONARY_BYTES = 32 << 20
ROW_GROUP_ROWS = 65_536
"""About 150 MB in memory; a bigger group would be only a few percent smaller."""

_RISING = {"time", "device_time", "received_at", "judged_at", "offset", "sequence", "line"}
_SCATTERED = {"identity", "content", "lat", "lon", "bytes"}
_WITH_STATISTICS = ("time", "received_at", "partition", "offset", "lat", "lon", "watcher_id", "h3", "code", "rule")
BOUNDED = ("time", "received_at", "partition", "offset")
"""Columns whose least and greatest values stand in the table's log."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a table. `path`: within the table; `received_max_us`: greatest received_at, None if not known."""

    path: str
    size_bytes: int
    rows: int
    day: date
    received_min_us: int | None = None
    received_max_us: int | None = None
    stats: str = ""


class Shelf:
    """The folder of one table, on any filesystem. `local`: its path where fsync means something, else None."""

    def __init__(self, filesystem: Any, local: str | None) -> None:
        self._filesystem, self._local = filesystem, local
        self._kept_folders: set[str] = set()

    def write(self, day: date, groups: Iterable[pa.Table]) -> DataFile:
        """Write row groups (all of one day, of one schema) as one file, not durable before `keep`. Raises OSError."""
        folder = f"{PARTITION_BY}={day.isoformat()}"
        path = f"{folder}/part-{uuid4()}.zstd.parquet"
        self._filesystem.create_dir(folder, recursive=True)
        bounds = _Bounds()
        try:
            with self._filesystem.open_output_stream(path) as sink:
                self._write_groups(sink, groups, bounds)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong is worth more than that its rest stays for vacuum
                self._filesystem.delete_file(path)
            raise
        size = self._filesystem.get_file_info(path).size
        return DataFile(path, size, bounds.rows, day, stats=bounds.as_json())

    def _write_groups(self, sink: Any, groups: Iterable[pa.Table], bounds: _Bounds) -> None:
        groups = iter(groups)
        first = next(groups)
        names = [name for name in first.column_names if name != PARTITION_BY]
        schema = first.select(names).schema
        with pq.ParquetWriter(sink, schema, store_schema=False, **_properties(schema)) as writer:
            for group in itertools.chain([first], groups):
                writer.write_table(group.select(names), row_group_size=ROW_GROUP_ROWS)
                bounds.add(group)

    def keep(self, files: Iterable[DataFile]) -> None:
        """Make files that were written, and their names, survive a power failure. One round for many is cheaper: the first
        fsync writes the file system's journal for all."""
        files = list(files)
        for file in files:
            self.sync(file.path)
        for folder in {str(PurePosixPath(file.path).parent) for file in files}:
            self.sync(folder)
            if folder not in self._kept_folders:
                self.sync(".")
                self._kept_folders.add(folder)

    def sync(self, path: str) -> None:
        """Make a file, or the names in a folder, survive a power failure."""
        if self._local is None:
            return
        handle = os.open(PurePosixPath(self._local) / path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def whole(self, files: Sequence[DataFile]) -> bool:
        """Whether all these files are there, as long as they were written."""
        found = self._filesystem.get_file_info([file.path for file in files])
        return all(info.size == file.size_bytes for info, file in zip(found, files, strict=True))

    def remove(self, path: str) -> None:
        """Delete a file that no version names."""
        self._filesystem.delete_file(path)

    def read(self, path: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns of a file, some rows at a time. Raises OSError, pa.ArrowException."""
        with self._filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
            wanted = [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(ROW_GROUP_ROWS, columns=wanted, use_threads=False)


def _properties(schema: pa.Schema) -> dict[str, Any]:
    encodings = {name: "DELTA_BINARY_PACKED" for name in schema.names if name in _RISING}
    encodings |= {name: "DELTA_BYTE_ARRAY" for name in schema.names if name in ("report_id", "alert_id", "reject_id")}
    by_dictionary = [
        leaf
        for field in schema
        if field.name not in encodings and field.name not in _SCATTERED
        for leaf in _leaves(field.name, field.type)
    ]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": by_dictionary,
        "column_encoding": encodings,
        "dictionary_pagesize_limit": DICTIONARY_BYTES,
        "write_statistics": [name for name in _WITH_STATISTICS if name in schema.names],
    }


def _leaves(path: str, kind: Any) -> list[str]:
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return [path]


class _Bounds:
    """Least and greatest values of the BOUNDED columns, as the table's log writes them."""

    def __init__(self) -> None:
        self._least: dict[str, Any] = {}
        self._most: dict[str, Any] = {}
        self.rows = 0

    def add(self, group: pa.Table) -> None:
        self.rows += len(group)
        for name in BOUNDED:
            if name not in group.column_names:
                continue
            found = pc.min_max(group[name])
            least, most = found["min"].as_py(), found["max"].as_py()
            if least is not None:
                self._least[name] = min(least, self._least.get(name, least))
                self._most[name] = max(most, self._most.get(name, most))

    def as_json(self) -> str:
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": _wired(self._least),
                "maxValues": _wired(self._most),
                "nullCount": {},
            }
        )


def _wired(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
        if isinstance(value, datetime)
        else value
        for name, value in values.items()
    }


def by_day(rows: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """The rows of each day; nearly always there is one, or one and a few strays."""
    days = np.asarray(rows[PARTITION_BY].cast(pa.int32()))
    found = np.unique(days).tolist()
    for number in found:
        day = pa.scalar(number, pa.int32()).cast(pa.date32()).as_py()
        yield day, rows if len(found) == 1 else _spelt_out(rows.filter(pa.array(days == number)))


def _spelt_out(rows: pa.Table) -> pa.Table:
    """Without dictionaries: those of a filtered table still hold every value of the whole, and a file of a few strays
    would carry a megabyte of other rows' tokens. The writer finds the few that are there."""
    return rows.cast(pa.schema([field.with_type(_plain(field.type)) for field in rows.schema]))


def _plain(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def local_filesystem(folder: str) -> Any:
    return pafs.SubTreeFileSystem(folder, pafs.LocalFileSystem())
