"""The embedded stream: a folder of SQLite segment files that any number of processes append to and follow.

    DIR/id                      the stream's own id
    DIR/bell                    see bell.py
    DIR/groups.db               registered groups and their positions
    DIR/topics/T/partitions     how many partitions topic T has
    DIR/topics/T/N.db           segment N, the highest takes the records (segment.py)

Rolling, and what a crash between two steps leaves:
1. the full segment is sealed, in a transaction of its own.            crash: the next appender finds it sealed, goes to 2
2. the next one is made aside, from the sealed one's heads, and linked  crash: a draft that nobody reads
   to its name; if the name is taken, that one stands.
Retention deletes whole sealed segments, oldest first (`sweep`), and only what every registered group has read.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harmonywatch.clock import Clock, micros
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.bell import ALL_KINDS, SAFETY_S, TOPICS_SLOT, Bell, kind_bit, rung, slot_of
from harmonywatch.stream.contract import (
    RECORD_BYTES_MAX,
    Batch,
    Bounds,
    ClosedStream,
    PositionLost,
    RecordTooLarge,
    Start,
    StreamBroken,
    StreamFull,
    TopicMismatch,
    TopicPartition,
    UnknownTopic,
)
from harmonywatch.stream.framing import CorruptBlob, Packer
from harmonywatch.stream.segment import (
    Fragment,
    Positions,
    Row,
    Sealed,
    Segment,
    check_engine,
    delete,
    sync_folder,
)
from harmonywatch.stream.starting import begin, matches, tail

POLL_BYTES_MAX = 2 << 20
"""Compressed bytes that a poll takes from one topic: some 10 MB of reports, enough to drain fast, too little to hurt."""

SIZE_INTERVAL_S = 1.0
BUSY_S = 1.0
"""A reader that had records less than this ago looks at the bell at the least interval."""


class SqliteStream:
    """See `contract.Stream`. `folder` is made if it is missing."""

    def __init__(self, folder: Path, settings: StreamSettings, clock: Clock) -> None:
        check_engine()
        self.folder, self.settings, self.clock = folder, settings, clock
        (folder / "topics").mkdir(parents=True, exist_ok=True, mode=0o700)
        self.id = _stream_id(folder / "id")
        self.bell = Bell(folder / "bell")
        self._positions = Positions(folder / "groups.db")
        self._positions_lock = threading.Lock()
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()
        self._closed = False

    def create_topic(self, topic: str, partitions: int) -> None:
        self._check()
        place = self.folder / "topics" / topic
        if not place.exists():
            draft = self.folder / f"{topic}.{os.getpid()}.{threading.get_ident()}.draft"
            draft.mkdir()
            (draft / "partitions").write_text(str(partitions))
            Segment.make(draft / "0000000001.db", dict.fromkeys(range(partitions), 0), micros(self.clock.now()))
            try:
                draft.rename(place)
            except OSError:  # another process was first
                shutil.rmtree(draft)
            sync_folder(place.parent)
            self.bell.ring(TOPICS_SLOT)
        actual = int((place / "partitions").read_text())
        if actual != partitions:
            raise TopicMismatch(topic, partitions, actual)

    def topics(self) -> dict[str, int]:
        self._check()
        return {
            place.name: int((place / "partitions").read_text()) for place in sorted((self.folder / "topics").iterdir())
        }

    def register(self, group: str, topic: str) -> None:
        self._check()
        with self._positions_lock:
            self._positions.register(group, topic)

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        for value in (value for values in records.values() for value in values):
            if len(value) > RECORD_BYTES_MAX:
                raise RecordTooLarge(topic, len(value))
        given = self._log(topic).append(records)
        self.bell.ring(slot_of(topic), kind_bit(topic))
        return given

    def reader(self, topics: Iterable[str] | str, *, group: str | None = None, start: Start | None = None) -> _Reader:
        self._check()
        return _Reader(self, topics if isinstance(topics, str) else tuple(topics), group, start)

    def read(self, topic: str, partition: int, position: int, max_records: int = 10_000) -> list[Batch]:
        log = self._log(topic)
        bounds = log.bounds(partition)
        if not bounds.earliest <= position <= bounds.end:
            raise PositionLost(topic, partition, position, bounds)
        cursor = _Cursor(self, topic, {partition: position})
        found: list[Batch] = []
        try:
            while sum(len(batch.values) for batch in found) < max_records and (batches := cursor.take()):
                found += batches
        finally:
            cursor.close()
        return found

    def bounds(self, topic: str, partition: int) -> Bounds:
        return self._log(topic).bounds(partition)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        self._check()
        with self._positions_lock:
            return self._positions.committed(group, topic)

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        self._check()
        with self._positions_lock:
            self._positions.commit(group, positions)

    def size_bytes(self, topic: str) -> int:
        return self._log(topic).size_bytes()

    def sweep(self) -> int:
        """Retention and upkeep of every topic: delete what may go, copy write-ahead logs. Segments deleted."""
        return sum(self._log(topic).sweep(self._read_by_all(topic)) for topic in self.topics())

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for log in self._logs.values():
                log.close()
            self._positions.close()
            self.bell.close()

    def segment_paths(self, topic: str) -> list[Path]:
        """The topic's segments, oldest first."""
        place = self.folder / "topics" / topic
        paths = sorted(path for path in place.glob("*.db")) if place.is_dir() else []
        if not paths:
            raise UnknownTopic(topic)
        return paths

    def _read_by_all(self, topic: str) -> dict[int, int]:
        """Per partition, the position below which every registered group has read."""
        with self._positions_lock:
            groups = self._positions.groups(topic)
            each = [self._positions.committed(group, topic) for group in groups]
        if not each:
            return dict.fromkeys(range(self.topics()[topic]), 1 << 62)
        return {
            partition: min(positions.get(partition, 0) for positions in each)
            for partition in range(self.topics()[topic])
        }

    def _log(self, topic: str) -> _Log:
        with self._lock:
            self._check()
            if topic not in self._logs:
                self._logs[topic] = _Log(self, topic)
            return self._logs[topic]

    def _check(self) -> None:
        if self._closed:
            raise ClosedStream


class _Log:
    """A topic as this process appends to it and asks about it. One lock: appends of one process follow one another."""

    def __init__(self, stream: SqliteStream, topic: str) -> None:
        self._stream, self.topic = stream, topic
        self._lock = threading.Lock()
        self._packer = Packer()
        self._segment = Segment(stream.segment_paths(topic)[-1])
        self._partitions = len(self._segment.starts())
        self._broken = ""
        self._full = ""
        self._size_due = 0.0

    def append(self, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        for partition in records:
            self._check_partition(partition)
        with self._lock:
            if self._broken:
                raise StreamBroken(self._broken)
            self._measure()
            fragments = [
                Fragment(partition, len(values), *self._packer.pack(values))
                for partition, values in records.items()
                if values
            ]
            try:
                given = self._commit(fragments)
            except StreamBroken as error:
                self._broken = str(error)
                raise
            return given | {partition: self._segment.head(partition) for partition in records if partition not in given}

    def bounds(self, partition: int) -> Bounds:
        self._check_partition(partition)
        while True:
            with self._lock:
                self._advance()
                end = self._segment.head(partition)
            with contextlib.suppress(FileNotFoundError, StreamBroken):
                oldest = Segment(self._stream.segment_paths(self.topic)[0])
                try:
                    return Bounds(oldest.starts()[partition], end)
                finally:
                    oldest.close()

    def size_bytes(self) -> int:
        place = self._stream.folder / "topics" / self.topic
        size = 0
        for path in place.glob("*.db*"):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def sweep(self, read_by_all: Mapping[int, int]) -> int:
        """Delete sealed segments, oldest first, that are read by all and over age or, together, over size."""
        with self._lock:
            self._advance()
            self._segment.tend()
        deleted = 0
        settings = self._stream.settings
        paths = self._stream.segment_paths(self.topic)
        for path, following in itertools.pairwise(paths):
            ends, sealed_us = _starts(following)
            aged = micros(self._stream.clock.now()) - sealed_us > settings.retention_s * 1e6
            if not (aged or self.size_bytes() > settings.retention_bytes):
                break
            if any(read_by_all[partition] < end for partition, end in ends.items()):
                break
            delete(path)
            deleted += 1
        return deleted

    def close(self) -> None:
        with self._lock:
            self._segment.close()

    def _commit(self, fragments: Sequence[Fragment]) -> dict[int, int]:
        while True:
            now_us = micros(self._stream.clock.now())
            try:
                return self._segment.append(fragments, now_us) if fragments else {}
            except Sealed:
                self._advance()

    def _measure(self) -> None:
        """Now and then: is there room, and is the segment due to be closed?"""
        now = time.monotonic()
        if now >= self._size_due:
            self._size_due = now + SIZE_INTERVAL_S
            settings = self._stream.settings
            full = self.size_bytes() > settings.retention_bytes
            self._full = f"{self.topic} is at its limit of {settings.retention_bytes} bytes, unread" if full else ""
            age_s = (micros(self._stream.clock.now()) - self._segment.created_us()) / 1e6
            grown = self._segment.size_bytes() >= settings.segment_bytes
            heads = self._segment.starts()
            used = any(self._segment.head(partition) > start for partition, start in heads.items())
            if used and (grown or age_s >= settings.segment_s):
                self._segment.seal()
                self._advance()
        if self._full:
            raise StreamFull(self._full)

    def _advance(self) -> None:
        """Go to the newest segment; make it if the newest is sealed."""
        while True:
            newest = self._stream.segment_paths(self.topic)[-1]
            if newest != self._segment.path:
                self._segment.close()
                self._segment = Segment(newest)
            if not self._segment.sealed():
                return
            following = newest.with_name(f"{self._segment.number + 1:010}.db")
            Segment.make(following, self._segment.seal(), micros(self._stream.clock.now()))

    def _check_partition(self, partition: int) -> None:
        if not 0 <= partition < self._partitions:
            raise UnknownTopic(self.topic, partition)


class _Cursor:
    """Reads a topic's segments in the order of their commits, from given positions by partition."""

    def __init__(self, stream: SqliteStream, topic: str, positions: dict[int, int]) -> None:
        self._stream, self._topic, self._positions = stream, topic, positions
        self._packer = Packer()
        self._segment, self._row = self._find()

    def take(self) -> list[Batch]:
        """The next batches, at most about POLL_BYTES_MAX compressed; [] at the end."""
        while True:
            sealed = self._segment.sealed()  # asked before the rows: what is read after a seal is all there is
            rows = self._segment.rows_after(self._row, POLL_BYTES_MAX)
            if rows:
                self._row = rows[-1].id
                batches = [batch for row in rows if (batch := self._batch(row)) is not None]
                if batches:
                    return batches
            elif not sealed or not self._step():
                return []

    def close(self) -> None:
        self._segment.close()

    def _batch(self, row: Row) -> Batch | None:
        wanted = self._positions.get(row.partition)
        end = row.base_offset + row.records
        if wanted is None or end <= wanted:
            return None
        if row.base_offset > wanted:
            raise StreamBroken(f"{self._topic}[{row.partition}]: records {wanted} to {row.base_offset} are missing")
        try:
            values = self._packer.unpack(row.framing, row.data, row.records)
        except CorruptBlob as error:
            raise StreamBroken(f"{self._topic}[{row.partition}] at {row.base_offset}: {error}") from None
        self._positions[row.partition] = end
        return tail(Batch(self._topic, row.partition, row.base_offset, values, row.appended_us), wanted)

    def _step(self) -> bool:
        following = self._segment.path.with_name(f"{self._segment.number + 1:010}.db")
        if not following.exists():
            return False
        self._segment.close()
        self._segment, self._row = Segment(following), 0
        return True

    def _find(self) -> tuple[Segment, int]:
        """The oldest segment that holds a wanted record, and the row before it."""
        for path in reversed(self._stream.segment_paths(self._topic)):
            segment = Segment(path)
            starts = segment.starts()
            if all(starts[partition] <= position for partition, position in self._positions.items()):
                rows = [segment.first_row(partition, position) for partition, position in self._positions.items()]
                wanted = [row for row in rows if row is not None]
                return segment, min(wanted) - 1 if wanted else segment.last_row()
            segment.close()
        raise StreamBroken(f"{self._topic}: no segment holds positions {self._positions}")


class _Reader:
    """See `contract.Reader`. Everything of the topics is its own: the embedded profile has one worker a group."""

    def __init__(self, stream: SqliteStream, topics: str | tuple[str, ...], group: str | None, start: Start | None):
        self._stream, self._topics, self._group, self._start = stream, topics, group, start
        self._cursors: dict[str, _Cursor] = {}
        self._partitions: dict[str, int] = {}
        self._ready: set[str] = set()
        self._kinds = _kinds(self._topics)
        self._seen = stream.bell.look()
        self._safety_due = 0.0
        self._had_records_at = 0.0
        self._closed = False
        self._adopt()

    def poll(self, timeout_s: float) -> list[Batch]:
        deadline = time.monotonic() + timeout_s
        interval_s = self._stream.settings.poll_least_s
        while True:
            if self._closed or self._stream._closed:
                raise ClosedStream
            now = time.monotonic()
            self._listen(now)
            found = self._take()
            if found:
                self._had_records_at = now
                return found
            if now >= deadline:
                return []
            left_s = min(deadline - now, self._safety_due - now)
            self._stream.bell.sleep(self._seen, self._kinds, interval_s, max(left_s, 0.0))
            if now - self._had_records_at > BUSY_S:
                interval_s = min(interval_s * 1.5, self._stream.settings.poll_most_s)

    def assigned(self) -> frozenset[TopicPartition]:
        self._adopt()
        return frozenset(
            TopicPartition(topic, partition) for topic, count in self._partitions.items() for partition in range(count)
        )

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        if self._closed:
            raise ClosedStream
        if self._group is not None:
            self._stream.commit(self._group, positions)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for cursor in self._cursors.values():
                cursor.close()

    def _listen(self, now: float) -> None:
        """Which topics may have something new?"""
        page = self._stream.bell.look()
        if now >= self._safety_due:
            self._safety_due = now + SAFETY_S
            self._adopt()
            self._ready.update(self._cursors)
        elif page != self._seen:
            if rung(TOPICS_SLOT, self._seen, page):
                self._adopt()
            self._ready.update(topic for topic in self._cursors if rung(slot_of(topic), self._seen, page))
        self._seen = page

    def _take(self) -> list[Batch]:
        """What the ready topics hold; a topic stays ready until it gives nothing."""
        found: list[Batch] = []
        for topic in list(self._ready):
            batches = self._cursors[topic].take()
            if batches:
                found += batches
            else:
                self._ready.discard(topic)
        return found

    def _adopt(self) -> None:
        for topic, partitions in self._stream.topics().items():
            if topic in self._cursors or not matches(topic, self._topics):
                continue
            if self._group is not None:
                self._stream.register(self._group, topic)
            positions = {
                partition: begin(self._stream, TopicPartition(topic, partition), self._group, self._start)
                for partition in range(partitions)
            }
            self._cursors[topic] = _Cursor(self._stream, topic, positions)
            self._partitions[topic] = partitions
            self._ready.add(topic)


def _kinds(topics: str | tuple[str, ...]) -> int:
    """Bits of the kinds of topics that a reader waits for."""
    if isinstance(topics, str):
        return kind_bit(topics) if "." in topics else ALL_KINDS
    kinds = 0
    for topic in topics:
        kinds |= kind_bit(topic)
    return kinds or ALL_KINDS


def _starts(path: Path) -> tuple[dict[int, int], int]:
    segment = Segment(path)
    try:
        return segment.starts(), segment.created_us()
    finally:
        segment.close()


def _stream_id(path: Path) -> str:
    """Read the id, or draw it; of several processes that draw at once one wins."""
    if not path.exists():
        draft = path.with_name(f"id.{os.getpid()}.{threading.get_ident()}.draft")
        with draft.open("w") as file:
            file.write(secrets.token_hex(16))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        sync_folder(path.parent)
    return path.read_text().strip()
