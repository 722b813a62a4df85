"""What every adapter asks of names, sizes and beginnings, and how its readers keep topics aside, said once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from harmonywatch.stream.contract import (
    RECORD_BYTES_MAX,
    WHOLE_STREAM,
    Batch,
    PositionLost,
    RecordTooLarge,
    Start,
    Stream,
    StreamFull,
    TopicPartition,
)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", re.ASCII)


def matches(topic: str, topics: str | tuple[str, ...]) -> bool:
    """Whether a reader of `topics` (names, or prefixes that end in a dot) reads `topic`."""
    wanted = (topics,) if isinstance(topics, str) else topics
    return any(topic.startswith(name) if name.endswith(".") else topic == name for name in wanted)


def check_topic(topic: str, partitions: int) -> None:
    """Names that are legal on every engine, and safe as the name of a folder. Raises ValueError."""
    if not _NAME.fullmatch(topic):
        raise ValueError(f"{topic!r} is no name for a topic: 1 to 200 letters, digits, dots, hyphens, underscores")
    if partitions < 1:
        raise ValueError(f"a topic of {partitions} partitions")


def check_sizes(topic: str, records: Mapping[int, Sequence[bytes]]) -> None:
    """Raises RecordTooLarge."""
    for values in records.values():
        largest = max(map(len, values), default=0)
        if largest > RECORD_BYTES_MAX:
            raise RecordTooLarge(topic, largest)


def begin(stream: Stream, at: TopicPartition, group: str | None, start: Start | None) -> int:
    """The first position to read: the handler's truth, else the group's, else the earliest kept.

    Raises PositionLost if the truth lies outside the log: nothing is skipped in silence.
    """
    position = start(*at) if start else None
    if position is None and group is not None:
        position = stream.committed(group, at.topic).get(at.partition)
    bounds = stream.bounds(*at)
    if position is None:
        return bounds.earliest
    if not bounds.earliest <= position <= bounds.end:
        raise PositionLost(at.topic, at.partition, position, bounds)
    return position


def tail(batch: Batch, position: int) -> Batch:
    """The batch without what lies below `position`."""
    if batch.base_offset >= position:
        return batch
    values = batch.values[position - batch.base_offset :]
    return Batch(batch.topic, batch.partition, position, values, batch.appended_us)


class Aside:
    """The topics of one reader that are aside, and the errors that `poll` has yet to raise (contract, promise 7)."""

    def __init__(self) -> None:
        self._errors: dict[str, Exception | None] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._errors

    def add(self, topic: str) -> None:
        """Whoever puts a topic aside is not told again why."""
        self._errors[topic] = None

    def discard(self, topic: str) -> None:
        self._errors.pop(topic, None)

    @contextlib.contextmanager
    def contained(self, topic: str) -> Iterator[None]:
        """What goes wrong in here puts the topic aside, unless it concerns the whole stream."""
        try:
            yield
        except WHOLE_STREAM:
            raise
        except Exception as error:  # noqa: BLE001 also what a handler's `start` raises
            if isinstance(error, StreamFull):
                error.topic = topic
            self._errors[topic] = error

    def tell(self) -> None:
        """Raise what is not yet told, one at a time."""
        for topic, error in self._errors.items():
            if error is not None:
                self._errors[topic] = None
                raise error
