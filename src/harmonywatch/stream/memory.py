"""The stream in one process's memory: for tests and as the plainest reading of the contract. Durable = in the list."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence

from harmonywatch.stream.contract import (
    Batch,
    Bounds,
    ClosedStream,
    PositionLost,
    Start,
    TopicMismatch,
    TopicPartition,
    UnknownTopic,
)
from harmonywatch.stream.starting import Aside, begin, check_sizes, check_topic, matches, tail


class MemoryStream:
    """See `contract.Stream`. `trim` stands in for retention."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._batches: dict[str, list[list[Batch]]] = {}
        self._earliest: dict[TopicPartition, int] = {}
        self._groups: dict[tuple[str, str], dict[int, int]] = {}
        self._closed = False

    def id_of(self, topics: Iterable[str]) -> str:  # noqa: ARG002 nobody deletes a topic here
        with self._changed:
            self._check()
        return self.id

    def create_topic(self, topic: str, partitions: int) -> None:
        check_topic(topic, partitions)
        with self._changed:
            self._check()
            actual = len(self._batches.setdefault(topic, [[] for _ in range(partitions)]))
            self._changed.notify_all()
        if actual != partitions:
            raise TopicMismatch(topic, partitions, actual)

    def topics(self) -> dict[str, int]:
        with self._changed:
            self._check()
            return {topic: len(partitions) for topic, partitions in self._batches.items()}

    def register(self, group: str, topic: str) -> None:
        with self._changed:
            self._check()
            self._groups.setdefault((group, topic), {})

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        check_sizes(topic, records)
        with self._changed:
            self._check()
            for partition in (*records, 0):
                self._log(topic, partition)
            given = {}
            for partition, values in records.items():
                log = self._log(topic, partition)
                given[partition] = log[-1].position if log else 0
                if values:
                    log.append(Batch(topic, partition, given[partition], list(values), time.time_ns() // 1000))
            self._changed.notify_all()
        return given

    def reader(self, topics: Iterable[str] | str, *, group: str | None = None, start: Start | None = None) -> _Reader:
        with self._changed:
            self._check()
        return _Reader(self, topics if isinstance(topics, str) else tuple(topics), group, start)

    def read(self, topic: str, partition: int, position: int, max_records: int = 10_000) -> list[Batch]:
        with self._changed:
            self._check()
            bounds = self._bounds(topic, partition)
            if not bounds.earliest <= position <= bounds.end:
                raise PositionLost(topic, partition, position, bounds)
            found: list[Batch] = []
            for batch in self._log(topic, partition):
                if batch.position > position and sum(len(each.values) for each in found) < max_records:
                    found.append(tail(batch, position))
            return found

    def bounds(self, topic: str, partition: int) -> Bounds:
        with self._changed:
            self._check()
            return self._bounds(topic, partition)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        with self._changed:
            self._check()
            return dict(self._groups.get((group, topic), {}))

    def size_bytes(self, topic: str) -> int:
        with self._changed:
            self._check()
            self._log(topic, 0)
            return sum(len(value) for log in self._batches[topic] for batch in log for value in batch.values)

    def trim(self, topic: str, partition: int, earliest: int) -> None:
        """Forget what lies below `earliest`, as retention would."""
        with self._changed:
            self._earliest[TopicPartition(topic, partition)] = earliest

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._closed:
            raise ClosedStream

    def _log(self, topic: str, partition: int) -> list[Batch]:
        if topic not in self._batches:
            raise UnknownTopic(topic)
        if not 0 <= partition < len(self._batches[topic]):
            raise UnknownTopic(topic, partition)
        return self._batches[topic][partition]

    def _bounds(self, topic: str, partition: int) -> Bounds:
        log = self._log(topic, partition)
        return Bounds(self._earliest.get(TopicPartition(topic, partition), 0), log[-1].position if log else 0)


class _Reader:
    def __init__(self, stream: MemoryStream, topics: str | tuple[str, ...], group: str | None, start: Start | None):
        self._stream, self._topics, self._group, self._start = stream, topics, group, start
        self._positions: dict[TopicPartition, int] = {}
        self._assigned: set[TopicPartition] = set()
        self._aside = Aside()
        self._closed = False
        self._adopt()

    def poll(self, timeout_s: float) -> list[Batch]:
        deadline = time.monotonic() + timeout_s
        self._aside.tell()
        while True:
            if self._closed:
                raise ClosedStream
            self._adopt()
            found = self._take()
            if found:
                return found
            self._aside.tell()
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            with self._stream._changed:
                self._stream._changed.wait(min(left, 0.005))

    def set_aside(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._aside.add(topic)
            self._drop(topic)

    def take_up(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._aside.discard(topic)
            self._drop(topic)
        self._adopt()

    def assigned(self) -> frozenset[TopicPartition]:
        self._adopt()
        return frozenset(self._assigned)

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        with self._stream._changed:
            if self._closed:
                raise ClosedStream
            self._stream._check()
            if self._group is None:
                return
            for at, position in positions.items():
                kept = self._stream._groups.setdefault((self._group, at.topic), {})
                kept[at.partition] = max(position, kept.get(at.partition, 0))

    def close(self) -> None:
        self._closed = True

    def _take(self) -> list[Batch]:
        found: list[Batch] = []
        for at, position in list(self._positions.items()):
            batches: list[Batch] = []
            with self._aside.contained(at.topic):
                batches = self._stream.read(at.topic, at.partition, position, 1000)
            if at.topic in self._aside:
                self._drop(at.topic)
            elif batches:
                self._positions[at] = batches[-1].position
                found += batches
        return found

    def _adopt(self) -> None:
        for topic, partitions in self._stream.topics().items():
            if not matches(topic, self._topics):
                continue
            self._assigned |= {TopicPartition(topic, partition) for partition in range(partitions)}
            if topic not in self._aside and TopicPartition(topic, 0) not in self._positions:
                with self._aside.contained(topic):
                    self._begin(topic, partitions)

    def _begin(self, topic: str, partitions: int) -> None:
        if self._group is not None:
            self._stream.register(self._group, topic)
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._positions |= {at: begin(self._stream, at, self._group, self._start) for at in places}

    def _drop(self, topic: str) -> None:
        self._positions = {at: position for at, position in self._positions.items() if at.topic != topic}
