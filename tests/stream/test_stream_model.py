"""The SQLite stream against plain lists: any order of appends, reads, commits, crashes, rolls and sweeps.

A crash is a copy of the folder as it lies on the disk, opened while the old one was never closed: what a kill -9 leaves.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from harmonywatch.clock import ManualClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import PositionLost, Reader, TopicPartition
from harmonywatch.stream.sqlite import SqliteStream

TOPIC, PARTITIONS, GROUP = "reports.north", 3, "archive"
RETENTION_S = 100.0

partitions = st.integers(0, PARTITIONS - 1)
records = st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"a\nb", b"x" * 500]), max_size=5)


class StreamAgainstLists(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="stream-model-"))
        self.lives = 0
        self.clock = ManualClock(datetime(2026, 11, 23, tzinfo=UTC))
        self.logs: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.earliest = [0] * PARTITIONS
        self.committed: dict[int, int] = {}
        self.read_to = [0] * PARTITIONS
        self.registered = False
        self.reader: Reader | None = None

    @initialize(segment_bytes=st.sampled_from([1, 400, 1 << 30]))
    def make(self, segment_bytes: int) -> None:
        self.settings = StreamSettings(segment_bytes=segment_bytes, retention_s=RETENTION_S, segment_s=60)
        self.open()
        self.stream.create_topic(TOPIC, PARTITIONS)

    def open(self) -> None:
        self.stream = SqliteStream(self.root / str(self.lives), self.settings, self.clock)
        self.reader = None

    @rule(parts=st.dictionaries(partitions, records, max_size=PARTITIONS))
    def append(self, parts: dict[int, Sequence[bytes]]) -> None:
        given = self.stream.append(TOPIC, parts)
        assert given == {partition: len(self.logs[partition]) for partition in parts}
        for partition, values in parts.items():
            self.logs[partition] += values

    @rule(partition=partitions, back=st.integers(0, 12), most=st.integers(1, 8))
    def read(self, partition: int, back: int, most: int) -> None:
        log = self.logs[partition]
        position = len(log) - back
        try:
            batches = self.stream.read(TOPIC, partition, position, most)
        except PositionLost:
            assert position < self.earliest[partition]
            return
        assert position >= self.earliest[partition]
        found = [value for batch in batches for value in batch.values]
        assert found == log[position : position + len(found)]
        assert len(found) >= min(most, back)

    @rule()
    def poll(self) -> None:
        if self.reader is None:
            self.reader = self.stream.reader("reports.", group=GROUP)
            self.registered = True
            self.read_to = [self.committed.get(partition, self.earliest[partition]) for partition in range(PARTITIONS)]
        for batch in self.reader.poll(0.0):
            assert batch.base_offset == self.read_to[batch.partition]
            assert batch.values == self.logs[batch.partition][batch.base_offset : batch.position]
            self.read_to[batch.partition] = batch.position

    @rule()
    def poll_to_the_end(self) -> None:
        self.poll()
        before = None
        while before != self.read_to:
            before = list(self.read_to)
            self.poll()
        assert self.read_to == [len(log) for log in self.logs]

    @rule(partition=partitions)
    def commit(self, partition: int) -> None:
        if self.reader is not None:
            position = self.read_to[partition]
            self.reader.commit({TopicPartition(TOPIC, partition): position})
            self.committed[partition] = max(position, self.committed.get(partition, 0))

    @rule(seconds=st.sampled_from([1.5, 61.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        self.stream.sweep()
        for partition in range(PARTITIONS):
            earliest = self.stream.bounds(TOPIC, partition).earliest
            assert earliest >= self.earliest[partition]
            if self.registered:
                unread_from = max(self.committed.get(partition, 0), self.earliest[partition])
                assert earliest <= unread_from
            self.earliest[partition] = earliest

    @rule()
    def crash(self) -> None:
        dying = self.root / str(self.lives)
        self.lives += 1
        shutil.copytree(dying, self.root / str(self.lives))
        self.stream.close()
        shutil.rmtree(dying)
        self.open()

    @rule()
    def close_and_open(self) -> None:
        self.stream.close()
        self.open()

    @invariant()
    def committed_is_kept(self) -> None:
        if hasattr(self, "stream"):
            assert self.stream.committed(GROUP, TOPIC) == self.committed

    @invariant()
    def bounds_are_right(self) -> None:
        if hasattr(self, "stream"):
            for partition, log in enumerate(self.logs):
                assert tuple(self.stream.bounds(TOPIC, partition)) == (self.earliest[partition], len(log))

    def teardown(self) -> None:
        if hasattr(self, "stream"):
            for partition, log in enumerate(self.logs):
                earliest = self.earliest[partition]
                batches = self.stream.read(TOPIC, partition, earliest, 1 << 30)
                assert [value for batch in batches for value in batch.values] == log[earliest:]
            self.stream.close()
        shutil.rmtree(self.root)


StreamAgainstLists.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
test_any_order_of_calls_and_crashes = StreamAgainstLists.TestCase
