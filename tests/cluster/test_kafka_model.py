"""The Kafka stream against plain lists: any order of appends, reads, polls, commits, topics put aside, and clients begun anew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engines.kafka import Cluster
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import PositionLost, Reader, TopicPartition
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream

TOPIC, PARTITIONS, GROUP = "reports.north", 3, "archive"
EXAMPLES, STEPS = 6, 15
POLLS_MOST = 200

partitions = st.integers(0, PARTITIONS - 1)
records = st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"", b"x" * 500]), max_size=5)
_names = count(1)


class KafkaAgainstLists(RuleBasedStateMachine):
    url = ""

    @initialize()
    def make(self) -> None:
        self.place = f"{self.url}/model{next(_names)}"
        self.logs: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.read_to = [0] * PARTITIONS
        self.committed: dict[int, int] = {}
        self.reader: Reader | None = None
        self.open()
        self.stream.create_topic(TOPIC, PARTITIONS)

    def open(self) -> None:
        self.stream = KafkaStream(parse(self.place, "", {}), StreamSettings(replicas=1))

    @rule(parts=st.dictionaries(partitions, records, max_size=PARTITIONS))
    def append(self, parts: dict[int, Sequence[bytes]]) -> None:
        given = self.stream.append(TOPIC, parts)
        assert given == {partition: len(self.logs[partition]) for partition in parts}
        for partition, values in parts.items():
            self.logs[partition] += values

    @rule(partition=partitions, back=st.integers(-1, 12), most=st.integers(1, 8))
    def read(self, partition: int, back: int, most: int) -> None:
        log = self.logs[partition]
        position = len(log) - back
        try:
            batches = self.stream.read(TOPIC, partition, position, most)
        except PositionLost:
            assert not 0 <= position <= len(log)
            return
        found = [value for batch in batches for value in batch.values]
        assert found == log[position : position + len(found)]
        assert len(found) >= min(most, back)

    @rule()
    def poll_to_the_end(self) -> None:
        if self.reader is None:
            self.reader = self.stream.reader("reports.", group=GROUP)
            self.read_to = [self.committed.get(partition, 0) for partition in range(PARTITIONS)]
        for _ in range(POLLS_MOST):
            if self.read_to == [len(log) for log in self.logs]:
                break
            for batch in self.reader.poll(0.1):
                assert batch.base_offset == self.read_to[batch.partition]
                assert batch.values == self.logs[batch.partition][batch.base_offset : batch.position]
                self.read_to[batch.partition] = batch.position
        assert self.read_to == [len(log) for log in self.logs]

    @rule(partition=partitions)
    def commit(self, partition: int) -> None:
        if self.reader is not None:
            position = self.read_to[partition]
            self.reader.commit({TopicPartition(TOPIC, partition): position})
            self.committed[partition] = max(position, self.committed.get(partition, 0))

    @rule()
    def put_aside_and_take_up(self) -> None:
        if self.reader is not None:
            self.reader.set_aside([TOPIC])
            assert self.reader.poll(0.0) == []
            self.reader.take_up([TOPIC])
            self.read_to = [self.committed.get(partition, 0) for partition in range(PARTITIONS)]

    @rule()
    def close_and_open(self) -> None:
        self.stream.close()
        self.reader = None
        self.open()

    @invariant()
    def what_the_brokers_know_is_right(self) -> None:
        if hasattr(self, "stream"):
            assert self.stream.committed(GROUP, TOPIC) == self.committed
            ends = [self.stream.bounds(TOPIC, partition).end for partition in range(PARTITIONS)]
            assert ends == [len(log) for log in self.logs]

    def teardown(self) -> None:
        if hasattr(self, "stream"):
            self.stream.close()


@pytest.mark.timeout(300)
def test_any_order_of_calls(broker: Cluster) -> None:
    made = type("KafkaAgainstListsHere", (KafkaAgainstLists,), {"url": broker.url})
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(made, settings=chosen)
