"""Three brokers, each killed in turn under load: nothing that was acknowledged is lost, and the rate is soon back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType, TopicDescription

from engines.kafka import Cluster
from engines.process import wait_until
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import Batch, OutcomeUnknown, PartitionsMoved, StreamFull, TopicPartition
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream

TOPIC, PARTITIONS = "reports.north", 6
BACK_S = 15.0
RECORDS, PACE_S = 10, 0.05
"""Each of six writers: 200 records a second, 1,200 together, what the first wave brings."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("three"), brokers=3) as cluster:
        yield cluster


class Writer(threading.Thread):
    """Appends to one partition at a pace. `acked`: the values in order, noted after the acknowledgement; `first`: the offset
    of a group by its first value, where it was told; `gap_s`: the longest time between two of them since `forget`."""

    def __init__(self, stream: KafkaStream, partition: int, stop: threading.Event) -> None:
        super().__init__()
        self._stream, self._partition, self._over = stream, partition, stop
        self.acked: list[bytes] = []
        self.first: dict[bytes, int] = {}
        self.failed = 0
        self.error: Exception | None = None
        self.forget()

    def forget(self) -> None:
        self._last, self.gap_s = time.monotonic(), 0.0

    def run(self) -> None:
        serial = 0
        while not self._over.wait(PACE_S):
            values = [f"{self._partition}:{serial}:{number}".encode() + b"." * 1500 for number in range(RECORDS)]
            serial += 1
            try:
                first = self._stream.append(TOPIC, {self._partition: values})[self._partition]
            except (OutcomeUnknown, StreamFull):
                self.failed += 1
                continue
            except Exception as error:  # noqa: BLE001 told by the test
                self.error = error
                return
            self.acked += values
            if first >= 0:
                self.first[values[0]] = first
            now = time.monotonic()
            self.gap_s = max(self.gap_s, now - self._last)
            self._last = now


class Follower(threading.Thread):
    """A durable reader that reads all along, and knows by itself how far it is."""

    def __init__(self, stream: KafkaStream, stop: threading.Event) -> None:
        super().__init__()
        self._stream, self._over = stream, stop
        self.read: dict[TopicPartition, list[bytes]] = {TopicPartition(TOPIC, p): [] for p in range(PARTITIONS)}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            reader = self._stream.reader("reports.", group="alerting", start=self._truth)
            while not self._over.is_set():
                try:
                    for batch in reader.poll(0.2):
                        self._take(batch)
                except PartitionsMoved as moved:  # the group's coordinator died, and its next one did not wait for us
                    reader.take_up(moved.topics)
        except Exception as error:  # noqa: BLE001 told by the test
            self.error = error

    def _truth(self, topic: str, partition: int) -> int:
        return len(self.read[TopicPartition(topic, partition)])

    def _take(self, batch: Batch) -> None:
        log = self.read[TopicPartition(batch.topic, batch.partition)]
        assert batch.base_offset == len(log)
        log += batch.values


def _further(writers: list[Writer], records: int) -> Callable[[], bool]:
    """Whether every writer has so many more acknowledged than now."""
    wanted = [len(writer.acked) + records for writer in writers]
    return lambda: all(len(writer.acked) >= least for writer, least in zip(writers, wanted, strict=True))


def asking(cluster: Cluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": cluster.url.removeprefix("kafka://"), "log_level": 0})


def described(cluster: Cluster, topic: str) -> TopicDescription:
    client = asking(cluster)  # it answers as long as somebody holds it
    return client.describe_topics(TopicCollection([topic]))[topic].result()


def in_sync(cluster: Cluster, topic: str) -> Callable[[], bool]:
    """Whether every replica of the topic is in sync again."""
    return lambda: all(len(partition.isr) == 3 for partition in described(cluster, topic).partitions)


def opened(cluster: Cluster) -> KafkaStream:
    return KafkaStream(parse(cluster.url, "", {}), StreamSettings())


def check(stream: KafkaStream, writers: list[Writer]) -> list[list[bytes]]:
    """Every acknowledged record is there, once, in its order, and where it was said to be; the logs."""
    logs = []
    for partition, writer in enumerate(writers):
        log = [value for batch in stream.read(TOPIC, partition, 0, 1 << 30) for value in batch.values]
        places = {value: offset for offset, value in enumerate(log)}
        assert len(places) == len(log), f"partition {partition}: {len(log) - len(places)} records are there twice"
        lost = [value for value in writer.acked if value not in places]
        assert lost == [], f"partition {partition}: {len(lost)} of {len(writer.acked)} acknowledged records lost"
        order = [places[value] for value in writer.acked]
        assert order == sorted(order)
        assert {value: places[value] for value in writer.first} == writer.first
        logs.append(log)
    return logs


def test_each_broker_killed_in_turn_loses_nothing_that_was_acknowledged(
    three: Cluster, tell: Callable[[str], None]
) -> None:
    stream, stop = opened(three), threading.Event()
    stream.create_topic(TOPIC, PARTITIONS)
    writers = [Writer(stream, partition, stop) for partition in range(PARTITIONS)]
    follower = Follower(stream, stop)
    for thread in (*writers, follower):
        thread.start()
    gaps: list[float] = []
    try:
        wait_until(lambda: all(len(writer.acked) > 200 for writer in writers), 30, "the load")
        for broker in three.brokers:
            for writer in writers:
                writer.forget()
            broker.server.kill()
            wait_until(_further(writers, 400), 60, "the rate")
            gaps.append(max(writer.gap_s for writer in writers))
            broker.restart()
            wait_until(in_sync(three, TOPIC), 60, "the replicas")
    finally:
        stop.set()
        for thread in (*writers, follower):
            thread.join()
    assert [writer.error for writer in writers] + [follower.error] == [None] * (PARTITIONS + 1)
    logs = check(stream, writers)
    acked, failed = sum(len(writer.acked) for writer in writers), sum(writer.failed for writer in writers)
    silences = ", ".join(f"{gap:.1f} s" for gap in gaps)
    tell(f"{acked} acknowledged, 0 lost, {failed} appends failed; longest silences after each kill {silences}")
    for at, read in follower.read.items():
        assert read == logs[at.partition][: len(read)] and read, "a reader saw all along what is there now"
    assert max(gaps) < BACK_S, gaps
    stream.close()


def test_without_a_majority_in_sync_nothing_is_acknowledged(three: Cluster) -> None:
    """Two of three are gone: the third, though it leads the partition, must not say that a record is durable."""
    stream = opened(three)
    stream.create_topic("reports.alone", 1)
    stream.append("reports.alone", {0: [b"before"]})
    leader = described(three, "reports.alone").partitions[0].leader.id
    others = [broker for broker in three.brokers if broker.node != leader]
    for broker in others:
        broker.server.kill()
    with pytest.raises((OutcomeUnknown, StreamFull)):
        stream.append("reports.alone", {0: [b"alone"]})
    for broker in others:
        broker.launch()
    for broker in others:
        broker.server.wait_ready()
    wait_until(in_sync(three, "reports.alone"), 60, "the replicas")
    stream.append("reports.alone", {0: [b"after"]})
    values = [value for batch in stream.read("reports.alone", 0, 0) for value in batch.values]
    assert (values[0], values[-1]) == (b"before", b"after")
    stream.close()


def test_a_topic_is_made_such_that_one_broker_can_be_missed(three: Cluster) -> None:
    stream = opened(three)
    stream.create_topic("reports.made", 1)
    client = asking(three)
    (answer,) = client.describe_configs([ConfigResource(ResourceType.TOPIC, "reports.made")]).values()
    config = {name: entry.value for name, entry in answer.result().items()}
    assert len(described(three, "reports.made").partitions[0].replicas) == 3
    assert (config["min.insync.replicas"], config["unclean.leader.election.enable"]) == ("2", "false")
    assert (config["cleanup.policy"], config["retention.ms"]) == ("delete", str(7 * 86_400_000))
    stream.close()
