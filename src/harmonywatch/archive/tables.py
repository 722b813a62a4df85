"""How the records of one topic come into its table: one `Intake` per kind of topic, the same steps in each.

`store` of a batch, and what a crash after each step leaves:
1. decode in columns; poison is set apart                          nothing happened
2. poison goes to `rejects`, with a position of its own there: the   the next try finds these records stored there and
   highest poison record of this topic that is stored                does not store them again
3. recognise repeats against what is committed                      nothing
4. rows and positions in one commit of the table                    all of it, or nothing
5. remember the rows for recognising                                rebuilt from the lake on start
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import xxhash

from harmonywatch.archive.columns import (
    ALERT,
    REJECT,
    REPORT,
    alert_rows,
    poison_rows,
    reject_rows,
    report_rows,
)
from harmonywatch.archive.decoding import Decoded, Form, decode
from harmonywatch.archive.lake import Lake, LakeTable, Mark
from harmonywatch.archive.repeats import Batch as Hashes
from harmonywatch.archive.repeats import RepeatIndex
from harmonywatch.archive.schema import ALERTS, REJECTS, REPORTS
from harmonywatch.archive.sealing import Sealer, open_sealer
from harmonywatch.report import topics
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import RejectRecord, force_of
from harmonywatch.settings import ArchiveSettings
from harmonywatch.stream.contract import Batch, TopicPartition

pc: Any = pyarrow.compute  # its stubs know too few of its overloads
Ints = npt.NDArray[np.int64]
POISON_SENDER = "archive"
REMEMBER_ALERTS_S = 2 * 86_400.0

TABLE_OF = {topics.REPORTS: REPORTS, topics.ALERTS: ALERTS, topics.REJECTS: REJECTS}


@dataclass(frozen=True, slots=True)
class Folders:
    """`keys`: the forces' keys. `index`: where big parts of the index of repeats may lie, None = in memory."""

    keys: Path
    index: Path | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a `store` did, in records."""

    rows: int
    repeats: int
    poison: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """The records of one topic, flat. `received_us`: when the stream took each."""

    values: list[bytes]
    partition: Ints
    offset: Ints
    appended_us: Ints

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Gathered:
        batches = sorted(batches, key=lambda batch: (batch.partition, batch.base_offset))
        sizes = [len(batch.values) for batch in batches]
        return cls(
            [value for batch in batches for value in batch.values],
            np.repeat(np.array([batch.partition for batch in batches], np.int64), sizes),
            np.concatenate([np.arange(batch.base_offset, batch.position) for batch in batches]),
            np.repeat(np.array([batch.appended_us for batch in batches], np.int64), sizes),
        )


class Intake:
    """From one topic to its table. Opens, or makes, the table and the force's key.

    Raises StreamReset, KeyChanged, LakeUnavailable, OSError.
    """

    def __init__(self, topic: str, lake: Lake, folders: Folders, stream_id: str) -> None:
        self.topic, self.force = topic, force_of(topic)
        self.sealer: Sealer = open_sealer(folders.keys, self.force)
        self._lake, self._mark = lake, Mark(stream_id, self.sealer.check_value())
        self.table: LakeTable = lake.create(self.force, TABLE_OF[topic.split(".")[0] + "."], self._mark)

    def position(self, partition: int) -> int:
        return self.table.position(TopicPartition(self.topic, partition))

    def store(self, batches: list[Batch], base: dict[TopicPartition, int]) -> Stored:
        """Store the batches, which begin at `base`, and move the positions. Raises WriterFenced, NewerRecord, and the
        errors of opening."""
        gathered = Gathered.of(batches)
        decoded = decode(gathered.values, self.force, self.form)
        if decoded.poison:
            self._store_poison(gathered, decoded.poison)
        target = dict(base)
        for batch in batches:
            at = TopicPartition(batch.topic, batch.partition)
            target[at] = max(target[at], batch.position)
        rows, repeats = self.rows(decoded, gathered)
        self.table.append(rows, base, target)
        self.remember()
        return Stored(decoded.table.num_rows, repeats, len(decoded.poison))

    form: Form

    def rows(self, decoded: Decoded, gathered: Gathered) -> tuple[pa.Table, int]:
        """The rows of the table, and how many are repeats."""
        raise NotImplementedError

    def remember(self) -> None:
        """What `rows` made is committed."""

    def _store_poison(self, gathered: Gathered, poison: list[int]) -> None:
        rejects = self._lake.create(self.force, REJECTS, self._mark)
        places = [TopicPartition(self.topic, int(gathered.partition[i])) for i in poison]
        base = {at: rejects.position(poison_place(at)) for at in places}
        fresh = [i for i, at in zip(poison, places, strict=True) if gathered.offset[i] >= base[at]]
        if not fresh:
            return
        target = dict(base)
        for i in fresh:
            at = TopicPartition(self.topic, int(gathered.partition[i]))
            target[at] = max(target[at], int(gathered.offset[i]) + 1)
        records = [self._poison_record(gathered, i) for i in fresh]
        rows = poison_rows(records, [gathered.values[i] for i in fresh], self.sealer)
        rejects.append(rows, _poison_places(base), _poison_places(target))

    def _poison_record(self, gathered: Gathered, i: int) -> RejectRecord:
        partition, offset = int(gathered.partition[i]), int(gathered.offset[i])
        return RejectRecord(
            v=VERSION,
            reject_id=f"poison-{self.topic}-{partition}-{offset}",
            force=self.force,
            source="stream",
            sender=POISON_SENDER,
            received_at=_whole_seconds(int(gathered.appended_us[i])),
            code="poison",
            pointer="",
            reason="the record on the stream is not in its canonical form",
            bytes="",
            topic=self.topic,
            partition=partition,
            offset=offset,
        )


def poison_place(at: TopicPartition) -> TopicPartition:
    """Under which name the rejects table keeps how far the poison of a topic's partition is stored. A name of its own,
    because the topic `rejects.<force>` has its own position in the same table."""
    return TopicPartition(f"poison/{at.topic}", at.partition)


def _poison_places(positions: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
    return {poison_place(at): position for at, position in positions.items()}


def _whole_seconds(moment_us: int) -> str:
    return str(np.datetime64(moment_us // 1_000_000, "s"))


class ReportIntake(Intake):
    """`reports.<force>`: repeats are recognised by identity and content."""

    form = REPORT

    def __init__(self, topic: str, lake: Lake, folders: Folders, stream_id: str, settings: ArchiveSettings) -> None:
        super().__init__(topic, lake, folders, stream_id)
        self._memory = _Memory(self.table, settings.repeat_window_s, _hashes_of_reports, folders.index)

    def rows(self, decoded: Decoded, gathered: Gathered) -> tuple[pa.Table, int]:
        partition, offset = gathered.partition[decoded.index], gathered.offset[decoded.index]
        marks = self._memory.judge(_hashes_of_reports(decoded.table, partition))
        return report_rows(decoded, partition, offset, marks, self.sealer), int(marks[0].sum())

    def remember(self) -> None:
        self._memory.commit()


class AlertIntake(Intake):
    """`alerts.<force>`: the topic may hold an alert twice; the later row is marked."""

    form = ALERT

    def __init__(self, topic: str, lake: Lake, folders: Folders, stream_id: str, settings: ArchiveSettings) -> None:
        super().__init__(topic, lake, folders, stream_id)
        self._memory = _Memory(
            self.table, max(settings.repeat_window_s, REMEMBER_ALERTS_S), _hashes_of_alerts, folders.index
        )

    def rows(self, decoded: Decoded, gathered: Gathered) -> tuple[pa.Table, int]:
        partition, offset = gathered.partition[decoded.index], gathered.offset[decoded.index]
        repeat, _ = self._memory.judge(_hashes_of_alerts(decoded.table, partition))
        return alert_rows(decoded, partition, offset, repeat, self.sealer), int(repeat.sum())

    def remember(self) -> None:
        self._memory.commit()


class RejectIntake(Intake):
    """`rejects.<force>`: kept as they come."""

    form = REJECT

    def rows(self, decoded: Decoded, gathered: Gathered) -> tuple[pa.Table, int]:
        partition, offset = gathered.partition[decoded.index], gathered.offset[decoded.index]
        return reject_rows(decoded, self.topic, partition, offset, self.sealer), 0


class _Memory:
    """A RepeatIndex that is filled from the table when it is first asked, and takes in only what was committed."""

    def __init__(
        self, table: LakeTable, window_s: float, hashes: Callable[[pa.Table, Ints], Hashes], folder: Path | None
    ) -> None:
        self._table, self._window_s, self._hashes, self._folder = table, window_s, hashes, folder
        self._index: RepeatIndex | None = None
        self._waiting: Hashes | None = None

    def judge(self, batch: Hashes) -> tuple[Any, Any]:
        if not len(batch.received_us):
            nothing = np.zeros(0, np.bool_)
            return nothing, nothing
        if self._index is None:
            self._index = self._rebuilt(batch.received_us)
        repeat, conflict = self._index.judge(batch)
        self._waiting = batch.take(~repeat)
        return repeat, conflict

    def commit(self) -> None:
        if self._index is not None and self._waiting is not None:
            self._index.add(self._waiting)
        self._waiting = None

    def _rebuilt(self, received_us: Ints) -> RepeatIndex:
        """From the rows of the window that are no repeats themselves, as of the version the positions were read from."""
        index = RepeatIndex(self._window_s, self._folder)
        window_us = int(self._window_s * 1_000_000)
        since_us = max(int(received_us.min()), int(np.median(received_us)) - window_us) - window_us
        columns = ["alert_id", "identity", "content", "partition", "received_at", "repeat"]
        for file in self._table.files():
            if file.received_max_us is not None and file.received_max_us < since_us:
                continue
            for rows in self._table.shelf.read(file.path, columns):
                recent = pc.and_(
                    pc.greater_equal(rows["received_at"].cast(pa.int64()), since_us), pc.invert(rows["repeat"])
                )
                kept = pa.table(rows).filter(recent)
                index.add(self._hashes(kept, np.asarray(kept["partition"], dtype=np.int64)))
        return index


def _hashes_of_reports(table: pa.Table, partition: Ints) -> Hashes:
    return Hashes(
        np.asarray(pc.fill_null(table["identity"], 0), dtype=np.int64),
        np.asarray(table["content"], dtype=np.int64),
        np.asarray(pc.is_valid(table["identity"])).astype(np.bool_),
        partition,
        np.asarray(table["received_at"].cast(pa.int64())),
    )


def _hashes_of_alerts(table: pa.Table, partition: Ints) -> Hashes:
    """An alert is its id: same id, same alert. Few enough to be hashed one by one."""
    identifiers: list[Any] = table["alert_id"].to_pylist()
    ids = [xxhash.xxh3_64_intdigest(each.encode()) for each in identifiers]
    return Hashes(
        np.array(ids, np.uint64).view(np.int64),
        np.zeros(len(ids), np.int64),
        np.ones(len(ids), np.bool_),
        partition,
        np.asarray(table["received_at"].cast(pa.int64())),
    )


def open_intake(topic: str, lake: Lake, folders: Folders, stream_id: str, settings: ArchiveSettings) -> Intake:
    """The intake of a topic, by its kind."""
    if topic.startswith(topics.REPORTS):
        return ReportIntake(topic, lake, folders, stream_id, settings)
    if topic.startswith(topics.ALERTS):
        return AlertIntake(topic, lake, folders, stream_id, settings)
    assert topic.startswith(topics.REJECTS), topic
    return RejectIntake(topic, lake, folders, stream_id)
