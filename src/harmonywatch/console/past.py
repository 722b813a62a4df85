"""What a live stream missed, read again from the stream: in the order it was appended, up to where the live part begins.

Called in threads; reads a little at a time, so that a client which was away for days costs no memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime

from harmonywatch.clock import micros
from harmonywatch.console.events import LiveEvent, Recent, events_of, silence_repeats
from harmonywatch.console.positions import Vector
from harmonywatch.stream.contract import Batch, Bounds, Stream, TopicPartition

READ_RECORDS = 500
BEFORE_RECORDS = 500
"""Records before a position that are looked at, so that a repeat of what was told before is known as one."""


def past_events(stream: Stream, start: Vector, end: Vector) -> Iterator[list[LiveEvent]]:
    """The events between two vectors, in portions, repeats silenced. Raises PositionLost, RecordTooNew."""
    recent = Recent()
    spans = [(at, start.get(at), end.get(at)) for at in end.partitions() if start.get(at) < end.get(at)]
    for at, position, _ in spans:
        remember(stream, at, position, recent)
    parts = [_batches(stream, at, first, last) for at, first, last in spans]
    for batch in heapq.merge(*parts, key=lambda batch: batch.appended_us):
        events = events_of(batch)
        silence_repeats(events, recent)
        yield events


def remember(stream: Stream, at: TopicPartition, position: int, recent: Recent) -> None:
    """Know what lies just before a position as told."""
    first = max(stream.bounds(*at).earliest, position - BEFORE_RECORDS)
    for batch in _batches(stream, at, first, position):
        silence_repeats(events_of(batch), recent)


def bounds_of(stream: Stream, ats: list[TopicPartition]) -> dict[TopicPartition, Bounds]:
    return {at: stream.bounds(*at) for at in ats}


def vector_since(stream: Stream, end: Vector, since: datetime) -> Vector:
    """Where the records appended at or after `since` begin, within the log."""
    start = Vector()
    for at in end.partitions():
        start.advance(at, _first_since(stream, at, end.get(at), micros(since)))
    return start


def _first_since(stream: Stream, at: TopicPartition, end: int, since_us: int) -> int:
    """By halving: records lie in the order they were appended."""
    low, high = min(stream.bounds(*at).earliest, end), end
    while low < high:
        middle = (low + high) // 2
        batches = stream.read(at.topic, at.partition, middle, 1)
        if batches and batches[0].appended_us < since_us:
            low = min(batches[0].position, high)
        else:
            high = middle
    return low


def _batches(stream: Stream, at: TopicPartition, first: int, last: int) -> Iterator[Batch]:
    while first < last and (batches := stream.read(at.topic, at.partition, first, READ_RECORDS)):
        for batch in batches:
            if batch.base_offset < last:
                yield _cut(batch, last)
        first = batches[-1].position


def _cut(batch: Batch, last: int) -> Batch:
    """The batch without what lies at or above `last`."""
    if batch.position <= last:
        return batch
    values = batch.values[: last - batch.base_offset]
    return Batch(batch.topic, batch.partition, batch.base_offset, values, batch.appended_us)
