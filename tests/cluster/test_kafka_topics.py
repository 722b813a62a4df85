"""What Kafka does otherwise, and what can happen to a topic there: deleted, made anew, overtaken by retention."""

from __future__ import annotations

import random
import time

import pytest
from cluster_rig import Connect
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from engines.kafka import Cluster
from engines.process import wait_until
from harmonywatch.settings import BadSettings, StreamSettings
from harmonywatch.stream.contract import (
    Batch,
    OutcomeUnknown,
    PositionLost,
    Reader,
    Stream,
    StreamError,
    TopicDamaged,
    TopicPartition,
    UnknownTopic,
)
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream

NORTH, SOUTH = "reports.north", "reports.south"
DEADLINE_S = 20.0
MIB = 1 << 20


@pytest.fixture
def operator(broker: Cluster) -> AdminClient:
    """Who does to the cluster what the adapter never would."""
    return AdminClient({"bootstrap.servers": broker.url.removeprefix("kafka://"), "log_level": 0})


def outer(url: str, topic: str) -> str:
    return parse(url, "", {}).outer(topic)


def wait_values(reader: Reader, count: int) -> list[bytes]:
    found: list[bytes] = []
    until = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < until, found
        found += values(reader.poll(0.1))
    return found


def values(batches: list[Batch]) -> list[bytes]:
    return [value for batch in batches for value in batch.values]


def wait_error(reader: Reader) -> Exception:
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        try:
            reader.poll(0.1)
        except StreamError as error:
            return error
    raise AssertionError("no error came")


@pytest.mark.parametrize("group", [None, "archive"])
def test_a_topic_aside_gives_nothing_and_the_others_go_on(stream: Stream, group: str | None) -> None:
    for topic in (NORTH, SOUTH):
        stream.create_topic(topic, 2)
        stream.append(topic, {0: [b"1"], 1: [b"2"]})
    reader = stream.reader("reports.", group=group)
    wait_values(reader, 4)
    reader.set_aside([NORTH])
    for topic in (NORTH, SOUTH):
        stream.append(topic, {0: [b"3"]})
    assert wait_values(reader, 1) == [b"3"]
    assert reader.poll(0.3) == []
    assert TopicPartition(NORTH, 0) in reader.assigned()
    reader.take_up([NORTH])
    assert sorted(wait_values(reader, 3)) == [b"1", b"2", b"3"]
    reader.take_up([SOUTH])  # one that was not aside begins anew as well
    assert sorted(wait_values(reader, 3)) == [b"1", b"2", b"3"]


def test_what_start_raises_puts_the_topic_aside_until_it_is_taken_up(stream: Stream) -> None:
    for topic in (NORTH, SOUTH):
        stream.create_topic(topic, 1)
        stream.append(topic, {0: [b"1", b"2"]})
    troubles = [LookupError("no lake")]

    def start(topic: str, _partition: int) -> int | None:
        if topic == NORTH and troubles:
            raise troubles.pop()
        return 1

    reader = stream.reader("reports.", group="archive", start=start)
    found: list[bytes] = []
    with pytest.raises(LookupError, match="no lake"):
        while True:
            found += values(reader.poll(0.1))
    assert found + values(reader.poll(0.5)) == [b"2"]
    reader.take_up([NORTH])
    assert wait_values(reader, 1) == [b"2"]


@pytest.mark.parametrize("group", [None, "archive"])
def test_a_topic_made_anew_is_not_taken_for_the_old_one(
    stream: KafkaStream, operator: AdminClient, url: str, group: str | None
) -> None:
    """The new one has more records than the old: by their numbers the positions would still fit."""
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: [b"old"] * 3})
    stream.create_topic(SOUTH, 1)
    first = stream.id_of([NORTH, SOUTH])
    reader = stream.reader([NORTH], group=group, start=lambda _topic, _partition: 0)
    wait_values(reader, 3)
    operator.delete_topics([outer(url, NORTH)])[outer(url, NORTH)].result()
    wait_until(lambda: NORTH not in stream.topics(), DEADLINE_S, "the deletion")
    stream.create_topic(NORTH, 1)
    assert stream.id_of([NORTH, SOUTH]) != first
    stream.append(NORTH, {0: [b"new"] * 9})
    assert isinstance(wait_error(reader), StreamError)
    reader.take_up([NORTH])
    found: list[bytes] = []
    until = time.monotonic() + DEADLINE_S
    while len(found) < 9:
        assert time.monotonic() < until, found
        try:
            found += values(reader.poll(0.1))
        except StreamError:
            reader.take_up([NORTH])
    assert found == [b"new"] * 9


def test_a_topic_that_was_deleted_says_so(stream: KafkaStream, operator: AdminClient, url: str) -> None:
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH])
    stream.append(NORTH, {0: [b"old"]})
    wait_values(reader, 1)
    operator.delete_topics([outer(url, NORTH)])[outer(url, NORTH)].result()
    assert isinstance(wait_error(reader), TopicDamaged)
    with pytest.raises(UnknownTopic):
        stream.topic_id(NORTH)
    with pytest.raises((UnknownTopic, OutcomeUnknown)):
        stream.append(NORTH, {0: [b"a"]})


def test_a_reader_that_retention_overtook_stops_at_the_gap(stream: Stream, operator: AdminClient, url: str) -> None:
    """Its own queue is full, so the rest is fetched when it has gone already."""
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH])
    body = random.Random(1).randbytes(4 * MIB - 64)  # nothing that compressing would make small
    count = 30
    for _ in range(count):
        stream.append(NORTH, {0: [body]})
    wait_until(lambda: bool(reader.assigned()), DEADLINE_S, "the assignment")
    got = len(wait_values(reader, 1))
    operator.delete_records([Place(outer(url, NORTH), 0, count)])
    wait_until(lambda: stream.bounds(NORTH, 0).earliest == count, DEADLINE_S, "the deletion")
    with pytest.raises(PositionLost) as caught:
        while got < count:
            got += len(values(reader.poll(0.2)))
    assert (caught.value.position, tuple(caught.value.bounds)) == (got, (count, count))


@pytest.mark.xfail(
    strict=True, reason="Kafka's retention goes by age alone; the gateway stops before (package's header)"
)
def test_retention_keeps_what_a_registered_group_has_not_read(connect: Connect) -> None:
    stream = connect(retention_s=0.1, segment_s=0.1)
    stream.create_topic(NORTH, 1)
    stream.register("archive", NORTH)
    stream.append(NORTH, {0: [b"unread"]})
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        assert stream.bounds(NORTH, 0).earliest == 0


def narrow(operator: AdminClient, topic: str, bytes_max: int) -> None:
    """From now on the topic takes no larger batch."""
    entry = ConfigEntry("max.message.bytes", str(bytes_max), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    operator.incremental_alter_configs([resource])[resource].result()


def half_failed(stream: KafkaStream, operator: AdminClient, url: str) -> None:
    """An append over two partitions of which the broker takes only one."""
    stream.create_topic(NORTH, 2)
    narrow(operator, outer(url, NORTH), 1000)
    with pytest.raises(OutcomeUnknown):
        stream.append(NORTH, {0: [b"small"], 1: [random.Random(1).randbytes(10_000)]})


def test_an_append_that_half_failed_is_never_told_as_done_nor_as_undone(
    stream: KafkaStream, operator: AdminClient, url: str
) -> None:
    half_failed(stream, operator, url)
    assert stream.bounds(NORTH, 1).end == 0


@pytest.mark.xfail(
    strict=True, reason="partitions of Kafka are written one by one; all or none would be transactions (ADR 0013)"
)
def test_an_append_over_partitions_is_whole_or_not_at_all(stream: KafkaStream, operator: AdminClient, url: str) -> None:
    half_failed(stream, operator, url)
    assert stream.bounds(NORTH, 0).end == stream.bounds(NORTH, 1).end


def test_namespaces_share_a_cluster_and_see_nothing_of_one_another(connect: Connect, url: str) -> None:
    ours = connect()
    ours.create_topic(NORTH, 1)
    ours.append(NORTH, {0: [b"ours"]})
    theirs = KafkaStream(parse(url + "0", "", {}), StreamSettings(replicas=1))
    assert theirs.topics() == {} and theirs.id != ours.id
    theirs.create_topic(NORTH, 2)
    assert ours.topics() == {NORTH: 1} and theirs.bounds(NORTH, 0).end == 0
    theirs.close()


def test_a_cluster_too_small_for_the_replicas_is_the_operators(url: str) -> None:
    stream = KafkaStream(parse(url, "", {}), StreamSettings())
    with pytest.raises(BadSettings, match=r"stream\.replicas is 3"):
        stream.create_topic(NORTH, 1)
    stream.close()
