"""How the records of one topic come into its table: one `Intake` per kind of topic, the same steps in each.

What happens to records, and what a crash after each step leaves:
1. `add`: decode them in columns, a piece at a time as they come, so       nothing happened
   that a commit finds most of its work done; poison is set apart
2. `store`: poison goes to `rejects`, with a position of its own there:    the next try finds these records stored there
   the highest poison record of this topic that is stored                  and does not store them again
3. recognise repeats against what is committed                            nothing
4. rows and positions in one commit of the table                          all of it, or nothing
5. `forget`; remember the rows for recognising                            rebuilt from the lake on start
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import xxhash

from harmonywatch.archive.columns import Forms, alert_rows, poison_rows, reject_rows, report_rows
from harmonywatch.archive.decoding import Decoder, Form
from harmonywatch.archive.lake import Addition, Lake, LakeTable, Mark
from harmonywatch.archive.repeats import Batch as Hashes
from harmonywatch.archive.repeats import RepeatIndex
from harmonywatch.archive.schema import ALERTS, REJECTS, REPORTS
from harmonywatch.archive.sealing import Sealer, open_sealer
from harmonywatch.archive.tokens import Tokens
from harmonywatch.report import topics
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import RejectRecord, force_of
from harmonywatch.settings import ArchiveSettings
from harmonywatch.stream.contract import Batch, TopicPartition

pc: Any = pyarrow.compute  # its stubs know too few of its overloads
Ints = npt.NDArray[np.int64]
PIECE_RECORDS = 1024
"""Records decoded at a time, some 25 ms of work. Half as many cost a tenth more each, because whoever ran meanwhile left the
processor's cache cold; four times as many save a tenth, and would be felt."""

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
class _Poison:
    """A record that is none: where it stands, when the stream took it, its bytes."""

    at: TopicPartition
    offset: int
    appended_us: int
    value: bytes


class Intake:
    """From one topic to its table. Opens, or makes, the table and the force's key.

    Raises StreamReset, KeyChanged, LakeUnavailable, OSError.
    """

    def __init__(self, topic: str, lake: Lake, folders: Folders, stream_id: str) -> None:
        self.topic, self.force = topic, force_of(topic)
        self.sealer: Sealer = open_sealer(folders.keys, self.force)
        self.tokens = Tokens(self.sealer)
        self._decoder = Decoder(self.force, self.form(Forms(self.sealer, self.tokens)))
        self._lake, self._mark = lake, Mark(stream_id, self.sealer.check_value())
        self.table: LakeTable = lake.create(self.force, TABLE_OF[topic.split(".")[0] + "."], self._mark)
        self.forget()

    def position(self, partition: int) -> int:
        return self.table.position(TopicPartition(self.topic, partition))

    def forget(self) -> None:
        """What was added is stored: begin again with nothing."""
        self._pieces: list[pa.Table] = []
        self._waiting: list[Batch] = []
        self._poison: list[_Poison] = []
        self.records = self._decoded = 0
        self.tokens.forget()

    def add(self, batch: Batch) -> None:
        """Take records in; now and then they are decoded. Raises NewerRecord."""
        self._waiting.append(batch)
        self.records += len(batch.values)
        if self.records - self._decoded >= PIECE_RECORDS:
            self._decode()

    def _decode(self) -> None:
        batches, self._waiting = sorted(self._waiting, key=lambda batch: (batch.partition, batch.base_offset)), []
        sizes = [len(batch.values) for batch in batches]
        values = [value for batch in batches for value in batch.values]
        partition = np.repeat(np.array([batch.partition for batch in batches], np.int32), sizes)
        offset = np.concatenate([np.arange(batch.base_offset, batch.position) for batch in batches])
        decoded = self._decoder.decode(values)
        self._decoded += len(values)
        piece = decoded.table.append_column("partition", pa.array(partition[decoded.index]))
        self._pieces.append(piece.append_column("offset", pa.array(offset[decoded.index])))
        if decoded.poison:
            appended_us = np.repeat(np.array([batch.appended_us for batch in batches], np.int64), sizes)
            self._poison += [
                _Poison(TopicPartition(self.topic, int(partition[i])), int(offset[i]), int(appended_us[i]), values[i])
                for i in decoded.poison
            ]

    def addition(self, base: dict[TopicPartition, int], target: dict[TopicPartition, int]) -> tuple[Addition, Stored]:
        """What was added, ready to be stored; poison is stored already on return. Raises WriterFenced, NewerRecord, and
        the errors of opening."""
        if self._waiting:
            self._decode()
        if self._poison:
            self._store_poison(sorted(self._poison, key=lambda each: (each.at, each.offset)))
        rows, repeats = self.rows(pa.concat_tables(self._pieces))
        return Addition(self.table, rows, base, target), Stored(len(rows), repeats, len(self._poison))

    def form(self, forms: Forms) -> Form:
        """How the topic's records become columns."""
        raise NotImplementedError

    def rows(self, table: pa.Table) -> tuple[pa.Table, int]:
        """The rows of the table, and how many are repeats."""
        raise NotImplementedError

    def remember(self) -> None:
        """What `rows` made is committed."""

    def _store_poison(self, poison: list[_Poison]) -> None:
        rejects = self._lake.create(self.force, REJECTS, self._mark)
        base = {each.at: rejects.position(poison_place(each.at)) for each in poison}
        fresh = [each for each in poison if each.offset >= base[each.at]]
        if not fresh:
            return
        target = base | {each.at: each.offset + 1 for each in fresh}
        rows = poison_rows([self._reject(each) for each in fresh], [each.value for each in fresh], self.sealer)
        rejects.append(rows, _poison_places(base), _poison_places(target))

    def _reject(self, poison: _Poison) -> RejectRecord:
        topic, partition = poison.at
        return RejectRecord(
            v=VERSION,
            reject_id=f"poison-{topic}-{partition}-{poison.offset}",
            force=self.force,
            source="stream",
            sender=POISON_SENDER,
            received_at=_whole_seconds(poison.appended_us),
            code="poison",
            pointer="",
            reason="the record on the stream is not in its canonical form",
            bytes="",
            topic=topic,
            partition=partition,
            offset=poison.offset,
        )


def poison_place(at: TopicPartition) -> TopicPartition:
    """Under which name the rejects table keeps how far the poison of a topic's partition is stored. A name of its own,
    because the topic `rejects.<force>` has its own position in the same table."""
    return TopicPartition(f"poison/{at.topic}", at.partition)


def _poison_places(positions: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
    return {poison_place(at): position for at, position in positions.items()}


def _whole_seconds(moment_us: int) -> str:
    return f"{np.datetime64(moment_us // 1_000_000, 's')}Z"


class ReportIntake(Intake):
    """`reports.<force>`: repeats are recognised by identity and content."""

    def form(self, forms: Forms) -> Form:
        return forms.report

    def __init__(self, topic: str, lake: Lake, folders: Folders, stream_id: str, settings: ArchiveSettings) -> None:
        super().__init__(topic, lake, folders, stream_id)
        self._memory = _Memory(self.table, settings.repeat_window_s, _hashes_of_reports, folders.index)

    def rows(self, table: pa.Table) -> tuple[pa.Table, int]:
        marks = self._memory.judge(_hashes_of_reports(table))
        return report_rows(table, marks, self.tokens), int(marks[0].sum())

    def remember(self) -> None:
        self._memory.commit()


class AlertIntake(Intake):
    """`alerts.<force>`: the topic may hold an alert twice; the later row is marked."""

    def form(self, forms: Forms) -> Form:
        return forms.alert

    def __init__(self, topic: str, lake: Lake, folders: Folders, stream_id: str, settings: ArchiveSettings) -> None:
        super().__init__(topic, lake, folders, stream_id)
        self._memory = _Memory(
            self.table, max(settings.repeat_window_s, REMEMBER_ALERTS_S), _hashes_of_alerts, folders.index
        )

    def rows(self, table: pa.Table) -> tuple[pa.Table, int]:
        repeat, _ = self._memory.judge(_hashes_of_alerts(table))
        return alert_rows(table, repeat, self.tokens), int(repeat.sum())

    def remember(self) -> None:
        self._memory.commit()


class RejectIntake(Intake):
    """`rejects.<force>`: kept as they come."""

    def form(self, forms: Forms) -> Form:
        return forms.reject

    def rows(self, table: pa.Table) -> tuple[pa.Table, int]:
        return reject_rows(table, self.topic), 0


class _Memory:
    """A RepeatIndex that is filled from the table when it is first asked, and takes in only what was committed."""

    def __init__(
        self, table: LakeTable, window_s: float, hashes: Callable[[pa.Table], Hashes], folder: Path | None
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
                index.add(self._hashes(kept))
        return index


def _hashes_of_reports(table: pa.Table) -> Hashes:
    return Hashes(
        np.asarray(pc.fill_null(table["identity"], 0), dtype=np.int64),
        np.asarray(table["content"], dtype=np.int64),
        np.asarray(pc.is_valid(table["identity"])).astype(np.bool_),
        np.asarray(table["partition"]).astype(np.int64),
        np.asarray(table["received_at"].cast(pa.int64())),
    )


def _hashes_of_alerts(table: pa.Table) -> Hashes:
    """An alert is its id: same id, same alert. Few enough to be hashed one by one."""
    identifiers: list[Any] = table["alert_id"].to_pylist()
    ids = [xxhash.xxh3_64_intdigest(each.encode()) for each in identifiers]
    return Hashes(
        np.array(ids, np.uint64).view(np.int64),
        np.zeros(len(ids), np.int64),
        np.ones(len(ids), np.bool_),
        np.asarray(table["partition"]).astype(np.int64),
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
