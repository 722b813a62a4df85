"""The one consumer loop, on every adapter: handled in order, settled before committed, finished on a clean stop."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from harmonywatch.clock import SystemClock
from harmonywatch.stream.contract import Batch, ClosedStream, Stream, TopicPartition
from harmonywatch.stream.follow import follow

TOPIC = "reports.north"
HERE = TopicPartition(TOPIC, 0)


class Gatherer:
    """Gathers and makes durable only on `finish`; stops the loop once it has `wanted` records."""

    def __init__(self, wanted: int, stop: threading.Event, truth: int | None = None) -> None:
        self.values: list[bytes] = []
        self.wanted, self.stop, self.truth = wanted, stop, truth
        self.position = 0
        self.finished = False

    def start(self, _topic: str, _partition: int) -> int | None:
        return self.truth

    def handle(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.values += batch.values
            self.position = batch.position
        if len(self.values) >= self.wanted:
            self.stop.set()

    def settled(self) -> Mapping[TopicPartition, int]:
        return {HERE: self.position} if self.finished else {}

    def finish(self) -> None:
        self.finished = True


def run(stream: Stream, handler: Gatherer) -> None:
    reader = stream.reader([TOPIC], group="archive", start=handler.start)
    follow(reader, handler, clock=SystemClock(), stop=handler.stop, commit_interval_s=0.0)
    with pytest.raises(ClosedStream):
        reader.poll(0.0)


def test_only_what_is_settled_is_committed_and_a_stop_finishes(stream: Stream) -> None:
    stream.create_topic(TOPIC, 1)
    stream.append(TOPIC, {0: [b"a", b"b", b"c"]})
    first = Gatherer(3, threading.Event())
    run(stream, first)
    assert (first.values, first.finished) == ([b"a", b"b", b"c"], True)
    assert stream.committed("archive", TOPIC) == {0: 3}
    stream.append(TOPIC, {0: [b"d"]})
    second = Gatherer(1, threading.Event())
    run(stream, second)
    assert second.values == [b"d"]


def test_a_handler_that_fails_ends_the_loop_and_commits_nothing(stream: Stream) -> None:
    class Failing(Gatherer):
        def handle(self, batches: list[Batch]) -> None:
            super().handle(batches)
            if self.values:
                raise RuntimeError("no")

    stream.create_topic(TOPIC, 1)
    stream.append(TOPIC, {0: [b"a", b"b"]})
    with pytest.raises(RuntimeError):
        run(stream, Failing(9, threading.Event()))
    assert stream.committed("archive", TOPIC) == {}
    again = Gatherer(2, threading.Event())
    run(stream, again)
    assert again.values == [b"a", b"b"]


def test_the_handlers_truth_decides_where_the_loop_begins(stream: Stream) -> None:
    stream.create_topic(TOPIC, 1)
    stream.append(TOPIC, {0: [b"a", b"b", b"c"]})
    handler = Gatherer(1, threading.Event(), truth=2)
    run(stream, handler)
    assert handler.values == [b"c"]
