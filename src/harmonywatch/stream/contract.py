"""The spine's contract: an ordered, durable, replayable log of records, in words first.

*Topic*: a named log of a fixed number of partitions, e.g. `reports.north`. *Record*: opaque bytes. *Offset*: the number
of this record in its partition, from 0, without a gap. *Position*: the offset next to read (one past the last read).
*Batch*: consecutive records of one partition. *Group*: a durable reader whose positions the stream remembers and whose
unread records retention never deletes. *Stream id*: drawn once when the stream is made; a stream with another id is
another stream, whatever its URL, and positions of one mean nothing in the other.

What every adapter promises, and the conformance suite (`tests/stream/`) checks:

1. When `append` returns, all its records are durable (fsynced, or acknowledged by all in-sync replicas) and readable,
   or none is. When it raises `OutcomeUnknown` or `StreamBroken`, they may be; on any other error, none is.
   An error of one topic hinders no append to another; after `StreamBroken` nothing more is appended to any.
2. Offsets of a partition are contiguous and follow the order of the appends; several processes may append at once.
3. A reader sees a partition's records in order, each exactly once between two seeks, and never one that is not durable.
4. `poll` wakes within 5 ms of an append by any process of the machine (embedded), and does not burn a core meanwhile.
5. Retention deletes whole segments, oldest first, never one that holds a record which a registered group has not read.
6. Committed positions are durable when `commit` returns, and never lower than the records they vouch for.
7. Topics do not hold one another up. What goes wrong with one topic of a reader (`PositionLost`, `TopicDamaged`, whatever
   `start` raised for it) is raised by `poll`, once, in the place of batches. From then on that topic is *aside*: it gives
   nothing until it is taken up again, and the others lose nothing.

Errors, by who must act: the caller has a bug (`UnknownTopic`, `RecordTooLarge`, `ClosedStream`), the operator
(`TopicMismatch`, `PositionLost`, `TopicDamaged`, `StreamReset`, `StreamBroken`), time (`StreamFull`, `OutcomeUnknown`).
By how far they reach: `StreamBroken`, `StreamReset`, `ClosedStream` concern the whole stream, and whoever meets one ends;
every other concerns the topic that it names.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

RECORD_BYTES_MAX = 4 << 20
"""A canonical record holds a report of at most 1 MiB; escaping at worst sextuples parts of it. 4 MiB is ample."""


class TopicPartition(NamedTuple):
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one partition. `appended_us`: when the first was appended, microseconds since 1970, by the
    clock of the machine that has the log and as exactly as it tells (Kafka: milliseconds)."""

    topic: str
    partition: int
    base_offset: int
    values: list[bytes]
    appended_us: int

    @property
    def position(self) -> int:
        """Next to read after this batch."""
        return self.base_offset + len(self.values)


class Bounds(NamedTuple):
    """`earliest`: the oldest offset still kept; `end`: the position after the newest record."""

    earliest: int
    end: int


class StreamError(Exception):
    """Anything the stream raises."""


class UnknownTopic(StreamError):
    def __init__(self, topic: str, partition: int | None = None) -> None:
        super().__init__(f"no topic {topic}" if partition is None else f"no partition {partition} in topic {topic}")
        self.topic, self.partition = topic, partition


class RecordTooLarge(StreamError):
    def __init__(self, topic: str, size_bytes: int) -> None:
        super().__init__(f"a record of {size_bytes} bytes for {topic}; the limit is {RECORD_BYTES_MAX}")
        self.topic, self.size_bytes = topic, size_bytes


class ClosedStream(StreamError):
    def __init__(self) -> None:
        super().__init__("the stream or reader was closed")


class TopicMismatch(StreamError):
    def __init__(self, topic: str, asked: int, actual: int) -> None:
        super().__init__(f"topic {topic} has {actual} partitions, not {asked}; growth is a new generation of the topic")
        self.topic, self.asked, self.actual = topic, asked, actual


class PositionLost(StreamError):
    """A reader's position is not in the log: retention or a reset took the records. Never skipped in silence."""

    def __init__(self, topic: str, partition: int, position: int, bounds: Bounds) -> None:
        super().__init__(
            f"{topic}[{partition}]: position {position} is outside the log [{bounds.earliest}, {bounds.end}]; "
            "the stream was reset or shortened. Restore it, or decide with `harmonywatch doctor` what was lost"
        )
        self.topic, self.partition, self.position, self.bounds = topic, partition, position, bounds


class StreamReset(StreamError):
    """The stream is not the one the caller's positions belong to."""

    def __init__(self, expected_id: str, actual_id: str, where: str) -> None:
        super().__init__(
            f"{where} was written from stream {expected_id}, but this stream is {actual_id}: it was reset or replaced. "
            "Restore the old stream, or archive into a new lake; nothing was skipped"
        )
        self.expected_id, self.actual_id, self.where = expected_id, actual_id, where


class TopicDamaged(StreamError):
    """What the medium holds of this topic is not what was written: changed, missing, shorter than acknowledged, or not to
    be read. Of other topics it says nothing. `reason` says what was found, and what to do."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"{topic} is damaged: {reason}")
        self.topic, self.reason = topic, reason


class StreamBroken(StreamError):
    """The disk or broker failed in a way after which acknowledging on would lie, in any topic: stop, restart from disk.
    `topic`: where it was noticed, "" if in none."""

    def __init__(self, reason: str, topic: str = "") -> None:
        super().__init__(reason)
        self.topic = topic


class StreamFull(StreamError):
    """No room for now: at the size limit with unread records, or the disk is full. Try again after `retry_after_s`.
    `topic`: whose records were refused, "" if it was no topic's."""

    def __init__(self, reason: str, retry_after_s: float = 5.0, topic: str = "") -> None:
        super().__init__(reason)
        self.retry_after_s, self.topic = retry_after_s, topic


class OutcomeUnknown(StreamError):
    """The append may or may not have happened; appending the same records again may repeat them."""


WHOLE_STREAM = (StreamBroken, StreamReset, ClosedStream)
"""Whoever meets one of these ends; every other error concerns one topic."""


class PartitionsMoved(StreamError):
    """No fault: raised by `poll` of a reader that shares a group with others when it lost partitions of these topics, or
    got more of them. What was gathered of them must be forgotten, not made durable: a new owner reads it again; and what
    is remembered of their positions may be older than what the former owner made durable. The topics are aside until they
    are taken up; what is ours of them then begins anew. The embedded adapters never raise it."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = frozenset(topics)
        super().__init__(f"partitions moved to another worker: {', '.join(sorted(self.topics))}")


def partition_of(key: bytes, partitions: int) -> int:
    """The one hash of both engines: CRC-32 of the key, modulo (librdkafka's `consistent`). Stable for ever."""
    return zlib.crc32(key) % partitions


Start = Callable[[str, int], int | None]
"""Where a reader begins in (topic, partition): a position that the handler holds as truth, or None = the group's
committed position, or for a reader without group (or a new group) the earliest kept record. Asked when
the reader is made or from within `poll`; what it raises concerns the topic, and comes out of `poll` as it is."""


class Reader(Protocol):
    """One consumer's view of the partitions that are its own. Used by one thread."""

    def poll(self, timeout_s: float) -> list[Batch]:
        """New batches of the assigned partitions, in order within each; [] after `timeout_s` without any.

        At most a few MiB at a time, fairly over partitions. Raises about the stream: StreamBroken, ClosedStream. Raises
        about one topic, which is then aside (promise 7): PositionLost, TopicDamaged, what `start` raises. About several:
        PartitionsMoved.
        """

    def set_aside(self, topics: Iterable[str]) -> None:
        """Give nothing more of these topics, nor ask `start` about them, until they are taken up. Twice is once."""

    def take_up(self, topics: Iterable[str]) -> None:
        """Begin these topics anew, where `start`, else the group, else the log says; errors come with the next `poll`.
        Those that are not aside are begun anew as well."""

    def assigned(self) -> frozenset[TopicPartition]:
        """What this reader owns now, aside or not (embedded: every partition of every matching topic, also later ones)."""

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Remember durably that the group has read up to these positions. Without a group: nothing happens."""

    def close(self) -> None:
        """Give the partitions back. Twice is once."""


class Stream(Protocol):
    """The log as a whole. Safe for several threads; each process opens its own."""

    @property
    def id(self) -> str:
        """The stream's own id, 32 hexadecimal digits, drawn when it was made."""

    def id_of(self, topics: Iterable[str]) -> str:
        """The stream's id as far as these topics are concerned, 32 hexadecimal digits: another one if the stream is another,
        or if one of them was deleted and made anew under its name, which Kafka lets happen to one topic alone. Whoever
        keeps positions keeps this beside them. Raises UnknownTopic, where topics have ids of their own."""

    def create_topic(self, topic: str, partitions: int) -> None:
        """Make the topic unless it is there. Raises TopicMismatch if it is, with another number of partitions; ValueError
        for a name that is not 1 to 200 letters, digits, dots, hyphens and underscores, or no partitions."""

    def topics(self) -> dict[str, int]:
        """Every topic with its number of partitions; not those too damaged to tell."""

    def register(self, group: str, topic: str) -> None:
        """From now on retention keeps what the group has not read of the topic. Twice is once."""

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        """Append records by partition, all durable together; returns the first offset given in each partition, or -1 where
        nobody can tell it any more (Kafka: a first try that came through, of which only a second try learns).

        Raises UnknownTopic, RecordTooLarge, StreamFull, TopicDamaged, StreamBroken, OutcomeUnknown, ClosedStream.
        """

    def reader(self, topics: Iterable[str] | str, *, group: str | None = None, start: Start | None = None) -> Reader:
        """A reader of the named topic or topics; a name that ends in `.` means every topic with that prefix, also
        those created later. With `group` it is durable (see the header). What is wrong with a topic is told by
        `poll`."""

    def read(self, topic: str, partition: int, position: int, max_records: int = 10_000) -> list[Batch]:
        """Without waiting: batches from `position` on, at most about `max_records`; [] at the end.

        Raises PositionLost below the earliest or beyond the end, TopicDamaged, StreamBroken.
        """

    def bounds(self, topic: str, partition: int) -> Bounds:
        """Earliest and end now."""

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """The group's positions in a topic, by partition; empty if it never committed there."""

    def size_bytes(self, topic: str) -> int:
        """Bytes that the topic takes on its medium, about."""

    def close(self) -> None:
        """Let go of files and connections. Twice is once."""


def partitions_in(stream: Stream, topic: str) -> int:
    """How many partitions a topic has, 0 if it was never made. Raises TopicDamaged where `topics` only leaves it out:
    a force whose records cannot be counted has not none."""
    count = stream.topics().get(topic)
    if count is None:
        try:
            stream.bounds(topic, 0)
        except UnknownTopic:
            return 0
        count = stream.topics().get(topic, 0)  # it was made just now
    return count
