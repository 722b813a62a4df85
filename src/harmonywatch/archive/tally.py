"""What a table holds, day by day: how many rows of which records of the stream, as intervals of offsets.

A file is never changed, only replaced by others of its day. So a day that was counted need not be read again while it
consists of the same files, all there and of the same length: its count is remembered (`Days`). Whatever touches a day
(an append, a merge, an erasure, a loss) makes it be read again.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from harmonywatch.archive.lake import LakeTable
from harmonywatch.archive.parquet import DataFile

Ints = npt.NDArray[np.int64]

COLUMNS = ["partition", "offset", "repeat", "topic"]
PARTS_MAX = 1_000
"""Intervals of so many pieces of files are united at once; only disorder makes them many."""


class Held(msgspec.Struct, frozen=True):
    """Records of one partition of a topic. `intervals`: disjoint [first, end) of their offsets, packed; `rows`: more than
    those hold if an offset is there twice."""

    rows: int
    intervals: bytes

    @property
    def offsets(self) -> Ints:
        return np.cumsum(np.frombuffer(zlib.decompress(self.intervals), np.int64)).reshape(-1, 2)


class Day(msgspec.Struct, frozen=True):
    """The rows of one day of a table. `files`: tells its files apart from any others; `held`: by topic and partition
    (`reports.north/0`); `repeats`: rows that are marked as such."""

    files: str
    repeats: int
    held: dict[str, Held]


@dataclass(frozen=True, slots=True)
class Count:
    """`days`: those that could be read whole; `held`: of those and of what could be read of others; `unreadable`: files."""

    days: dict[str, Day] = field(default_factory=dict)
    held: dict[str, list[Held]] = field(default_factory=dict)
    repeats: int = 0
    unreadable: int = 0


def count(table: LakeTable, topic: str | None, remembered: Mapping[str, Day]) -> Count:
    """Count a table. `topic`: of all its rows, None = the column says; `remembered`: days as an earlier count found
    them, by ISO date."""
    days: dict[str, Day] = {}
    held: dict[str, list[Held]] = {}
    repeats = unreadable = 0
    by_day = sorted(table.files(), key=lambda file: (file.day, file.path))
    for moment, group in itertools.groupby(by_day, key=lambda file: file.day):
        files = list(group)
        day, failed = _known(table, moment, files, remembered), 0
        if day is None:
            day, failed = _read(table, files, topic)
        if not failed:
            days[moment.isoformat()] = day
        for place, each in day.held.items():
            held.setdefault(place, []).append(each)
        repeats, unreadable = repeats + day.repeats, unreadable + failed
    return Count(days, held, repeats, unreadable)


def _known(table: LakeTable, moment: date, files: Sequence[DataFile], remembered: Mapping[str, Day]) -> Day | None:
    day = remembered.get(moment.isoformat())
    same = day is not None and day.files == _told_apart(files)
    return day if same and table.shelf.whole(files) else None


def _told_apart(files: Iterable[DataFile]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(f"{file.path} {file.size_bytes}" for file in files).encode())


def _read(table: LakeTable, files: Sequence[DataFile], topic: str | None) -> tuple[Day, int]:
    places: dict[str, _Place] = {}
    repeats = unreadable = 0
    for file in files:
        try:
            for batch in table.shelf.read(file.path, COLUMNS):
                rows = pa.table(batch)
                repeats += _take(rows, topic, places)
        except (OSError, pa.ArrowException):
            unreadable += 1
    return Day(_told_apart(files), repeats, {name: place.held() for name, place in places.items()}), unreadable


def _take(rows: pa.Table, topic: str | None, places: dict[str, _Place]) -> int:
    for name in [topic] if topic is not None else rows["topic"].unique().to_pylist():
        own = rows if topic is not None else rows.filter(pc.field("topic") == name)
        partition, offset = np.asarray(own["partition"]), np.asarray(own["offset"], dtype=np.int64)
        for number in np.unique(partition).tolist():
            places.setdefault(f"{name}/{number}", _Place()).add(np.sort(offset[partition == number]))
    return int(pc.sum(rows["repeat"]).as_py() or 0) if "repeat" in rows.column_names else 0


class _Place:
    """One partition of a topic while it is counted."""

    def __init__(self) -> None:
        self._rows = 0
        self._parts: list[Ints] = []

    def add(self, offsets: Ints) -> None:
        """Sorted offsets; equal ones are allowed."""
        breaks = np.flatnonzero(np.diff(offsets) > 1)
        firsts = offsets[np.concatenate(([0], breaks + 1))]
        ends = offsets[np.concatenate((breaks, [len(offsets) - 1]))] + 1
        self._rows += len(offsets)
        self._parts.append(np.stack([firsts, ends], axis=1))
        if len(self._parts) > PARTS_MAX:
            self._parts = [union(self._parts)]

    def held(self) -> Held:
        flat = union(self._parts).reshape(-1)
        return Held(self._rows, zlib.compress(np.diff(flat, prepend=0).tobytes()))


def union(found: Sequence[Ints]) -> Ints:
    """Disjoint intervals [first, end) that cover the same offsets."""
    intervals = np.concatenate(found) if found else np.empty((0, 2), np.int64)
    if not len(intervals):
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(intervals[:, 1])
    breaks = np.flatnonzero(intervals[1:, 0] > reach[:-1])
    firsts = intervals[np.concatenate(([0], breaks + 1)), 0]
    ends = reach[np.concatenate((breaks, [len(intervals) - 1]))]
    return np.stack([firsts, ends], axis=1)


def below(intervals: Ints, position: int) -> int:
    """How many offsets of disjoint intervals are below a position."""
    return int((np.minimum(intervals, position)[:, 1] - np.minimum(intervals, position)[:, 0]).sum())
