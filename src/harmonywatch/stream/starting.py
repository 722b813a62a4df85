"""Where a reader begins, said once for every adapter."""

from __future__ import annotations

from harmonywatch.stream.contract import Batch, PositionLost, Start, Stream, TopicPartition


def matches(topic: str, topics: str | tuple[str, ...]) -> bool:
    """Whether a reader of `topics` (names, or a prefix that ends in a dot) reads `topic`."""
    return topic.startswith(topics) if isinstance(topics, str) else topic in topics


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
