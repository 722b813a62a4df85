"""The embedded stream: a folder of SQLite segment files that any number of processes append to and follow.

DIR/id           the stream's own id
DIR/bell         how processes wake one another (bell.py)
DIR/groups.db    registered groups and their positions
DIR/topics/T     one topic (topiclog.py appends and retires, cursor.py reads)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from harmonywatch.clock import Clock, micros
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.bell import ALL_KINDS, SAFETY_S, TOPICS_SLOT, Bell, kind_bit, rung, slot_of
from harmonywatch.stream.contract import (
    Batch,
    Bounds,
    ClosedStream,
    PositionLost,
    Start,
    StreamBroken,
    StreamError,
    TopicDamaged,
    TopicMismatch,
    TopicPartition,
    UnknownTopic,
)
from harmonywatch.stream.cursor import TAKE_BYTES_MAX, Cursor
from harmonywatch.stream.segment import Positions, check_engine, damage_of, sync_folder, translated
from harmonywatch.stream.starting import Aside, begin, check_sizes, check_topic, matches
from harmonywatch.stream.topiclog import DRAFT_S, Health, TopicLog, make_topic, partitions_of, remove_stale

BUSY_S = 1.0
"""A reader that had records less than this ago looks at the bell at the least interval."""

OVERTAKEN_TRIES = 20
"""How often a reader that begins at the earliest record starts over because retention took it meanwhile."""


class UpkeepFailed(StreamError):
    """`sweep` did what it could: these topics it could not tend. `deleted`: segments of the others."""

    def __init__(self, errors: Mapping[str, Exception], deleted: int) -> None:
        super().__init__("; ".join(str(error) for error in errors.values()))
        self.errors, self.deleted = dict(errors), deleted


class SqliteStream:
    """See `contract.Stream`. `folder` is made if it is missing; `futex=False`: readers look at the bell at intervals."""

    def __init__(self, folder: Path, settings: StreamSettings, clock: Clock, *, futex: bool = True) -> None:
        check_engine()
        self.folder, self.settings, self.clock = folder, settings, clock
        with translated(folder):
            (folder / "topics").mkdir(parents=True, exist_ok=True, mode=0o700)
            self.id = _stream_id(folder / "id")
            self.bell = Bell(folder / "bell", futex=futex)
        self._positions = Positions(folder / "groups.db")
        self._health = Health()
        self._logs: dict[str, TopicLog] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def id_of(self, topics: Iterable[str]) -> str:  # noqa: ARG002 nobody deletes a topic here
        self.check_open()
        return self.id

    def create_topic(self, topic: str, partitions: int) -> None:
        self.check_open()
        check_topic(topic, partitions)
        place = self.place(topic)
        new = not place.exists()
        actual = make_topic(place, partitions, micros(self.clock.now()))
        if new:
            self.bell.ring(TOPICS_SLOT)
        if actual != partitions:
            raise TopicMismatch(topic, partitions, actual)

    def topics(self) -> dict[str, int]:
        found = {}
        for topic in self.names():
            with contextlib.suppress(TopicDamaged):
                found[topic] = partitions_of(self.place(topic))
        return found

    def names(self) -> list[str]:
        """Every topic, the damaged ones too."""
        self.check_open()
        with translated(self.folder):
            return sorted(os.listdir(self.folder / "topics"))  # noqa: PTH208 asked every second: names are enough

    def register(self, group: str, topic: str) -> None:
        self.check_open()
        self._positions.register(group, topic)

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        check_sizes(topic, records)
        with self._opened(topic) as log:
            given = log.append(records)
        self.bell.ring(slot_of(topic), kind_bit(topic))
        return given

    def reader(self, topics: Iterable[str] | str, *, group: str | None = None, start: Start | None = None) -> _Reader:
        self.check_open()
        return _Reader(self, topics if isinstance(topics, str) else tuple(topics), group, start)

    def read(self, topic: str, partition: int, position: int, max_records: int = 10_000) -> list[Batch]:
        bounds = self.bounds(topic, partition)
        if not bounds.earliest <= position <= bounds.end:
            raise PositionLost(topic, partition, position, bounds)
        found: list[Batch] = []
        count = 0
        with damage_of(topic), contextlib.closing(Cursor(self.place(topic), {partition: position})) as cursor:
            while count < max_records and (batches := cursor.take(TAKE_BYTES_MAX if max_records > 1 else 1)):
                for batch in batches:
                    if count < max_records:
                        found.append(batch)
                        count += len(batch.values)
        if count < max_records and position + count < bounds.end:
            raise TopicDamaged(topic, f"[{partition}]: records {position + count} to {bounds.end} cannot be found")
        return found

    def bounds(self, topic: str, partition: int) -> Bounds:
        with self._opened(topic) as log:
            return log.bounds(partition)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        self.check_open()
        return self._positions.committed(group, topic)

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        self.check_open()
        self._positions.commit(group, positions)

    def size_bytes(self, topic: str) -> int:
        with self._opened(topic) as log:
            return log.size_bytes()

    def sweep(self) -> int:
        """Retention and upkeep of every topic, due every half minute in one process of the machine; may run in any,
        beside appends. Segments deleted. Raises UpkeepFailed, once all other topics are tended, and StreamBroken."""
        deleted = 0
        errors: dict[str, Exception] = {}
        for topic in self.names():
            try:
                with self._opened(topic) as log:
                    deleted += log.sweep()
            except (StreamBroken, ClosedStream):
                raise
            except Exception as error:  # noqa: BLE001 whatever one topic has, the others are tended
                errors[topic] = error
        with translated(self.folder):
            remove_stale(self.folder.glob("*.draft"), DRAFT_S)
        if errors:
            raise UpkeepFailed(errors, deleted)
        return deleted

    def close(self) -> None:
        with self._lock:
            if self._health.closed:
                return
            self._health.closed = True
            for log in self._logs.values():
                log.close()
            self._positions.close()
        self.bell.ring(TOPICS_SLOT)  # readers of other threads notice now

    def place(self, topic: str) -> Path:
        return self.folder / "topics" / topic

    def check_open(self) -> None:
        self._health.check_open()

    @contextlib.contextmanager
    def _opened(self, topic: str) -> Iterator[TopicLog]:
        """The topic's log. One that turns out damaged is forgotten: the next call opens it anew, and finds it as it was
        left, or restored."""
        log = self._log(topic)
        try:
            yield log
        except TopicDamaged:
            with self._lock:
                if self._logs.get(topic) is log:
                    del self._logs[topic]  # not closed: another thread may be at it
            raise

    def _log(self, topic: str) -> TopicLog:
        with self._lock:
            self._health.check_open()
            if topic in self._logs:
                return self._logs[topic]
            opening = self._opening.setdefault(topic, threading.Lock())
        with opening:  # and not under the lock of all: a topic that is slow to open holds up no other
            if (log := self._logs.get(topic)) is not None:
                return log
            if not self.place(topic).is_dir():
                raise UnknownTopic(topic)
            try:
                with damage_of(topic):
                    log = TopicLog(self.place(topic), self.settings, self.clock, self._positions, self._health)
            except UnknownTopic as error:
                raise TopicDamaged(topic, "its folder is there, and no segment in it") from error
            with self._lock:
                self._health.check_open()
                self._logs[topic] = log
            return log


class _Reader:
    """See `contract.Reader`. Everything of the topics is its own: the embedded profile has one worker a group."""

    def __init__(self, stream: SqliteStream, topics: str | tuple[str, ...], group: str | None, start: Start | None):
        self._stream, self._topics, self._group, self._start = stream, topics, group, start
        self._cursors: dict[str, Cursor] = {}
        self._partitions: dict[str, int] = {}
        self._aside = Aside()
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
        self._aside.tell()
        while True:
            self._check_open()
            now = time.monotonic()
            self._listen(now)
            found = self._take()
            if found:
                self._had_records_at = now
                return found
            self._aside.tell()
            if now >= deadline:
                return []
            left_s = min(deadline - now, self._safety_due - now)
            self._stream.bell.sleep(self._seen, self._kinds, interval_s, max(left_s, 0.0))
            if now - self._had_records_at > BUSY_S:
                interval_s = min(interval_s * 1.5, self._stream.settings.poll_most_s)

    def set_aside(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._aside.add(topic)
            self._drop(topic)

    def take_up(self, topics: Iterable[str]) -> None:
        self._check_open()
        for topic in topics:
            self._aside.discard(topic)
            self._drop(topic)
        self._adopt()

    def assigned(self) -> frozenset[TopicPartition]:
        self._check_open()
        self._adopt()
        return frozenset(
            TopicPartition(topic, partition) for topic, count in self._partitions.items() for partition in range(count)
        )

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._check_open()
        if self._group is not None:
            self._stream.commit(self._group, positions)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for cursor in self._cursors.values():
                cursor.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedStream
        self._stream.check_open()

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
            batches: list[Batch] = []
            with self._aside.contained(topic), damage_of(topic):
                batches = self._cursors[topic].take()
            if topic in self._aside:
                self._drop(topic)
            elif batches:
                found += batches
            else:
                self._ready.discard(topic)
        return found

    def _adopt(self) -> None:
        for topic in self._stream.names():
            if topic not in self._cursors and topic not in self._aside and matches(topic, self._topics):
                with self._aside.contained(topic):
                    self._begin(topic)

    def _begin(self, topic: str) -> None:
        if self._group is not None:
            self._stream.register(self._group, topic)
        self._partitions[topic] = partitions_of(self._stream.place(topic))
        self._cursors[topic] = self._cursor(topic, self._partitions[topic])
        self._ready.add(topic)

    def _drop(self, topic: str) -> None:
        self._ready.discard(topic)
        cursor = self._cursors.pop(topic, None)
        if cursor is not None:
            cursor.close()

    def _cursor(self, topic: str, partitions: int) -> Cursor:
        """From where the handler, the group or the log says. Raises PositionLost if one of the first two is lost."""
        tries = 0
        while True:
            positions = {
                partition: begin(self._stream, TopicPartition(topic, partition), self._group, self._start)
                for partition in range(partitions)
            }
            try:
                with damage_of(topic):
                    return Cursor(self._stream.place(topic), positions)
            except PositionLost:
                tries += 1
                if tries == OVERTAKEN_TRIES:
                    raise


def _kinds(topics: str | tuple[str, ...]) -> int:
    """Bits of the kinds of topics that a reader waits for."""
    names = (topics,) if isinstance(topics, str) else topics
    kinds = 0
    for name in names:
        kinds |= kind_bit(name)
    return kinds or ALL_KINDS


def _stream_id(path: Path) -> str:
    """Read the id, or draw it; of several processes that draw at once one wins."""
    if not path.exists():
        draft = path.with_name(f"id.{secrets.token_hex(8)}.draft")
        with draft.open("w") as file:
            file.write(secrets.token_hex(16))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        sync_folder(path.parent)
    return path.read_text().strip()
