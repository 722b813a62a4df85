"""Reads the topics of one kind for all live streams, from the end of the log on.

A topic that cannot be read is its force's misfortune: it is told, left aside for a while, and tried again; the live streams
of the other forces go on. Taken up, it goes on where it was; one that could not be read from the start, at its end.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from harmonywatch.clock import Clock
from harmonywatch.console.positions import Vector
from harmonywatch.stream.contract import WHOLE_STREAM, Batch, Stream, StreamError, TopicPartition
from harmonywatch.telemetry import Telemetry

TAKE_UP_S = 5.0
_LOG = structlog.get_logger(__name__)


def ends_of(stream: Stream, kinds: tuple[str, ...]) -> tuple[Vector, set[str]]:
    """Where the topics of these kinds end now, and those of which that cannot be told. Raises WHOLE_STREAM's errors."""
    ends, unread = Vector(), set[str]()
    for topic, partitions in stream.topics().items():
        if not topic.startswith(kinds):
            continue
        try:
            found = [stream.bounds(topic, partition).end for partition in range(partitions)]
        except WHOLE_STREAM:
            raise
        except StreamError:  # the reader will tell
            unread.add(topic)
            continue
        for partition, end in enumerate(found):
            ends.advance(TopicPartition(topic, partition), end)
    return ends, unread


class KindReading:
    """Used by one thread. `on_found`: told where a topic begins that could not be read from the start."""

    def __init__(
        self,
        stream: Stream,
        kind: str,
        begins: tuple[Vector, set[str]],
        on_found: Callable[[TopicPartition, int], None],
    ) -> None:
        ends, self._unread = begins
        self._stream, self._on_found = stream, on_found
        self._reached = {at: ends.get(at) for at in ends.partitions() if at.topic.startswith(kind)}
        self._aside: set[str] = set()
        self._due = 0.0
        self._reader = stream.reader(kind, start=self._start)

    def poll(self, timeout_s: float, clock: Clock, telemetry: Telemetry) -> list[Batch]:
        """New batches, in the order they were appended. Raises WHOLE_STREAM's errors."""
        if self._aside and clock.monotonic() >= self._due:
            self._reader.take_up(self._aside)
            self._aside = set()
        try:
            batches = self._reader.poll(timeout_s)
        except WHOLE_STREAM:
            raise
        except StreamError as error:
            topic = str(getattr(error, "topic", ""))
            if not topic:
                raise
            self._aside.add(topic)
            self._due = clock.monotonic() + TAKE_UP_S
            telemetry.failed.labels("topic-aside").inc()
            _LOG.error("live streams miss a topic, it is tried again", topic=topic, reason=str(error))
            return []
        self._reached |= {TopicPartition(batch.topic, batch.partition): batch.position for batch in batches}
        return sorted(batches, key=lambda batch: batch.appended_us)

    def close(self) -> None:
        self._reader.close()

    def _start(self, topic: str, partition: int) -> int | None:
        """Where we are; a topic made later is new from its first record on."""
        at = TopicPartition(topic, partition)
        if at not in self._reached and topic in self._unread:
            self._reached[at] = self._stream.bounds(topic, partition).end
            self._on_found(at, self._reached[at])
        return self._reached.get(at)
