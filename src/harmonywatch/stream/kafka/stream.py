"""The adapter: `contract.Stream` on a Kafka cluster. What differs from the embedded one stands in the package's header."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from harmonywatch.settings import BadSettings, StreamSettings
from harmonywatch.stream.contract import (
    Batch,
    Bounds,
    ClosedStream,
    PositionLost,
    Start,
    StreamFull,
    TopicDamaged,
    TopicMismatch,
    TopicPartition,
    UnknownTopic,
)
from harmonywatch.stream.kafka.address import Address
from harmonywatch.stream.kafka.client import (
    ASK_S,
    BATCH_BYTES_MAX,
    Admin,
    Appender,
    Fetched,
    Fetcher,
    Membership,
    NewTopicRefused,
)
from harmonywatch.stream.kafka.reader import KafkaReader
from harmonywatch.stream.starting import check_sizes, check_topic

READ_RECORDS_MAX = 2000

READ_WAIT_MS = 5
"""Whoever reads what is there does not wait for more."""

SAMPLE = 20
"""Records of a partition's end whose mean size stands for all: no client library tells what a log takes on disk."""


class KafkaStream:
    """See `contract.Stream`. `settings`: replicas and retention of topics that it makes, and this worker's name."""

    def __init__(self, address: Address, settings: StreamSettings) -> None:
        self._address, self._settings = address, settings
        self._admin = Admin(address)
        self.id = _digest(self._admin.cluster_id(), address.namespace)
        self._partitions: dict[str, int] = {}
        self._idle: list[Fetcher] = []
        self._readers: weakref.WeakSet[KafkaReader] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def id_of(self, topics: Iterable[str]) -> str:
        wanted = sorted(set(topics))
        found = self.topic_ids(wanted)
        for topic in wanted:
            if topic not in found:
                raise UnknownTopic(topic)
        return _digest(self.id, *(found[topic] for topic in wanted))

    def create_topic(self, topic: str, partitions: int) -> None:
        self.check_open()
        check_topic(topic, partitions)
        actual = self.topics().get(topic)
        if actual is None:
            try:
                self._admin.create(topic, partitions, self._settings.replicas, self._config())
            except NewTopicRefused as error:
                raise BadSettings(f"{error} (stream.replicas is {self._settings.replicas})") from error
            actual = self.topics().get(topic, partitions)
        if actual != partitions:
            raise TopicMismatch(topic, partitions, actual)

    def topics(self) -> dict[str, int]:
        self.check_open()
        self._partitions = self._admin.topics()
        return dict(self._partitions)

    def register(self, group: str, topic: str) -> None:  # noqa: ARG002
        """Nothing to note: retention here goes by age alone (see the package's header)."""
        self.check_open()

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        check_sizes(topic, records)
        self.check_open()
        for partition in (0, *records):
            self._check_partition(topic, partition)
        full = {partition: values for partition, values in records.items() if values}
        empty = [TopicPartition(topic, partition) for partition in records if partition not in full]
        given = self._appender.append(topic, full) if full else {}
        return given | {at.partition: bounds.end for at, bounds in self.bounds_of(empty).items()}

    def reader(
        self, topics: Iterable[str] | str, *, group: str | None = None, start: Start | None = None
    ) -> KafkaReader:
        self.check_open()
        made = KafkaReader(self, topics if isinstance(topics, str) else tuple(topics), group, start)
        with self._lock:
            self._readers.add(made)
        return made

    def read(self, topic: str, partition: int, position: int, max_records: int = 10_000) -> list[Batch]:
        bounds = self.bounds(topic, partition)
        if not bounds.earliest <= position <= bounds.end:
            raise PositionLost(topic, partition, position, bounds)
        end = min(bounds.end, position + max_records)
        values: list[bytes] = []
        appended_ms = 0
        with self._lent() as fetcher:
            for record in _records(fetcher, TopicPartition(topic, partition), position, end):
                if record.offset != position + len(values):
                    missing = f"[{partition}]: records {position + len(values)} to {record.offset} are missing"
                    raise TopicDamaged(topic, missing)
                appended_ms = appended_ms or record.appended_ms
                values.append(record.value)
        return [Batch(topic, partition, position, values, appended_ms * 1000)] if values else []

    def bounds(self, topic: str, partition: int) -> Bounds:
        at = TopicPartition(topic, partition)
        return self.bounds_of([at])[at]

    def bounds_of(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, Bounds]:
        """The bounds of many partitions for the price of one."""
        self.check_open()
        for at in places:
            self._check_partition(*at)
        return self._admin.bounds(places) if places else {}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        self.check_open()
        count = self._partitions.get(topic) or self.topics().get(topic, 0)
        places = [TopicPartition(topic, partition) for partition in range(count)]
        found = self._admin.committed(group, places)
        return {at.partition: position for at, position in found.items()}

    def size_bytes(self, topic: str) -> int:
        """Before compression, by the mean of the newest records; what the brokers' disks hold is less, times replicas."""
        self._check_partition(topic, 0)
        places = [TopicPartition(topic, partition) for partition in range(self._partitions[topic])]
        size = 0
        for at, bounds in self.bounds_of(places).items():
            newest = self.read(*at, max(bounds.earliest, bounds.end - SAMPLE))
            values = [value for batch in newest for value in batch.values]
            if values:
                size += (bounds.end - bounds.earliest) * sum(map(len, values)) // len(values)
        return size

    def topic_id(self, topic: str) -> str:
        """The id that the cluster drew when this topic was made, 32 hexadecimal digits. Raises UnknownTopic."""
        found = self.topic_ids([topic])
        if topic not in found:
            raise UnknownTopic(topic)
        return found[topic]

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """Of those that are there."""
        self.check_open()
        return self._admin.ids(topics)

    def fetcher(self, group: str | None, name: str) -> Fetcher:
        """A consumer of its own for a reader; in a group a member of it for topics of this name."""
        if group is None:
            return Fetcher(self._address)
        member = f"{self._settings.member}.{name}" if self._settings.member else ""
        return Fetcher(self._address, Membership(group, member, self._settings.session_s))

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
            readers = list(self._readers)
        if "_appender" in self.__dict__:
            self._appender.close()
        for fetcher in idle:
            fetcher.close()
        for reader in readers:
            reader.close()

    def check_open(self) -> None:
        if self._closed:
            raise ClosedStream

    @cached_property
    def _appender(self) -> Appender:
        """Made when first needed: most processes only read, or only ask."""
        with self._lock:
            return self.__dict__.get("_appender") or Appender(self._address)

    def _check_partition(self, topic: str, partition: int) -> None:
        """Raises UnknownTopic. Topics neither shrink nor grow: what is known of one stays true while it is there."""
        known = self._partitions.get(topic)
        if known is None or partition >= known:
            known = self.topics().get(topic)
        if known is None:
            raise UnknownTopic(topic)
        if not 0 <= partition < known:
            raise UnknownTopic(topic, partition)

    @contextlib.contextmanager
    def _lent(self) -> Iterator[Fetcher]:
        """A consumer that reads one partition by hand; connecting costs more than reading, so they are kept."""
        with self._lock:
            self.check_open()
            fetcher = self._idle.pop() if self._idle else None
        fetcher = fetcher or Fetcher(self._address, wait_ms=READ_WAIT_MS)
        try:
            yield fetcher
        except BaseException:
            fetcher.close()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(fetcher)
                return
        fetcher.close()

    def _config(self) -> dict[str, str]:
        """Of every topic. A record is acknowledged when all replicas in sync have it, and these are all but one at least;
        a replica that was not in sync never leads; the time of a record is the broker's."""
        return {
            "min.insync.replicas": str(max(1, self._settings.replicas - 1)),
            "unclean.leader.election.enable": "false",
            "cleanup.policy": "delete",
            "retention.ms": str(int(self._settings.retention_s * 1000)),
            "retention.bytes": "-1",
            "segment.ms": str(int(self._settings.segment_s * 1000)),
            "segment.bytes": str(min(self._settings.segment_bytes, (1 << 31) - 1)),
            "max.message.bytes": str(BATCH_BYTES_MAX),
            "message.timestamp.type": "LogAppendTime",
            "compression.type": "producer",
        }


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]


def _records(fetcher: Fetcher, at: TopicPartition, position: int, end: int) -> Iterator[Fetched]:
    """The records from `position` to `end`, which are there. Raises StreamFull if they do not come."""
    until = time.monotonic() + ASK_S
    fetcher.assign({at: position})
    while position < end:
        records, troubles = fetcher.take(min(READ_RECORDS_MAX, end - position), 0.2)
        for trouble in troubles:
            raise trouble.error
        for record in records:
            if (record.topic, record.partition) == at and position <= record.offset < end:
                position = record.offset + 1
                yield record
        if not records and time.monotonic() > until:
            raise StreamFull(f"{at.topic}[{at.partition}]: the brokers do not send what they have", topic=at.topic)
    fetcher.unassign([at])
