"""What contract.py promises, of every adapter alike. A new adapter joins by a parameter of the `stream` fixture."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from harmonywatch.stream.contract import (
    RECORD_BYTES_MAX,
    Batch,
    ClosedStream,
    PositionLost,
    Reader,
    RecordTooLarge,
    Stream,
    TopicMismatch,
    TopicPartition,
    UnknownTopic,
    partition_of,
)

NORTH, SOUTH = "reports.north", "reports.south"


def values(batches: list[Batch], topic: str = NORTH, partition: int = 0) -> list[bytes]:
    return [
        value for batch in batches if (batch.topic, batch.partition) == (topic, partition) for value in batch.values
    ]


def poll_until(reader: Reader, count: int, deadline_s: float = 10.0) -> list[Batch]:
    """Batches until `count` records came, and one more look for any too many."""
    found: list[Batch] = []
    until = time.monotonic() + deadline_s
    while sum(len(batch.values) for batch in found) < count:
        assert time.monotonic() < until, f"{found} after {deadline_s} s"
        found += reader.poll(0.1)
    return found + reader.poll(0.0)


def names(count: int, prefix: str = "r") -> list[bytes]:
    return [f"{prefix}{number}".encode() for number in range(count)]


# 1. append: all readable when it returns, or none


def test_an_append_gives_the_first_offset_of_each_partition(stream: Stream) -> None:
    stream.create_topic(NORTH, 3)
    assert stream.append(NORTH, {0: [b"a", b"b"], 2: [b"c"]}) == {0: 0, 2: 0}
    assert stream.append(NORTH, {0: [b"d"], 1: [b"e"], 2: [b"f", b"g"]}) == {0: 2, 1: 0, 2: 1}
    assert [tuple(stream.bounds(NORTH, partition)) for partition in range(3)] == [(0, 3), (0, 1), (0, 3)]


def test_what_was_appended_is_read_back_byte_for_byte(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    odd = [b"", b"\n", b"a\nb", b"\x00\xff" * 99, b"", b"x" * RECORD_BYTES_MAX, "Ünïcödé \u2028".encode(), b"\n\n"]
    for value in odd:
        stream.append(NORTH, {0: [value]})
    stream.append(NORTH, {0: odd})
    stream.append(NORTH, {0: [b""] * 5})
    assert values(stream.read(NORTH, 0, 0)) == odd + odd + [b""] * 5


def test_an_empty_append_changes_nothing_and_tells_the_end(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    stream.append(NORTH, {1: [b"a"]})
    assert stream.append(NORTH, {}) == {}
    assert stream.append(NORTH, {0: [], 1: []}) == {0: 0, 1: 1}
    assert stream.append(NORTH, {0: [b"b"], 1: []}) == {0: 0, 1: 1}
    assert tuple(stream.bounds(NORTH, 1)) == (0, 1)


@pytest.mark.parametrize("partition", [-1, 2, 99])
def test_an_append_with_one_unknown_partition_appends_nothing(stream: Stream, partition: int) -> None:
    stream.create_topic(NORTH, 2)
    with pytest.raises(UnknownTopic) as caught:
        stream.append(NORTH, {0: [b"a"], partition: [b"b"]})
    assert (caught.value.topic, caught.value.partition) == (NORTH, partition)
    assert stream.bounds(NORTH, 0).end == 0


def test_an_append_with_one_record_too_large_appends_nothing(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    with pytest.raises(RecordTooLarge) as caught:
        stream.append(NORTH, {0: [b"a"], 1: [b"b", b"x" * (RECORD_BYTES_MAX + 1)]})
    assert caught.value.size_bytes == RECORD_BYTES_MAX + 1
    assert [stream.bounds(NORTH, partition).end for partition in (0, 1)] == [0, 0]


# 2. offsets: contiguous, in the order of the appends


def test_threads_that_append_at_once_get_contiguous_offsets_in_their_own_order(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    stream.create_topic(SOUTH, 1)
    given: dict[bytes, tuple[str, int, int]] = {}

    def work(worker: int) -> None:
        for number in range(25):
            topic, partition = (NORTH, number % 2) if number % 3 else (SOUTH, 0)
            pair = [f"{worker}:{number}:{half}".encode() for half in "ab"]
            first = stream.append(topic, {partition: pair})[partition]
            given.update({value: (topic, partition, first + at) for at, value in enumerate(pair)})

    run_threads([lambda worker=worker: work(worker) for worker in range(4)])
    read = {
        (topic, partition): values(stream.read(topic, partition, 0), topic, partition)
        for topic, partition in ((NORTH, 0), (NORTH, 1), (SOUTH, 0))
    }
    assert sum(map(len, read.values())) == len(given) == 200
    assert all(read[topic, partition][offset] == value for value, (topic, partition, offset) in given.items())
    for log in read.values():
        for worker in range(4):
            own = [int(value.split(b":")[1]) for value in log if value.startswith(f"{worker}:".encode())]
            assert own == sorted(own)


def run_threads(works: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 told below, in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


# 3. reading: in order, each exactly once between two seeks


def test_a_reader_sees_each_record_once_and_in_order(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    stream.append(NORTH, {0: names(3), 1: names(2, "s")})
    reader = stream.reader([NORTH])
    found = poll_until(reader, 5)
    stream.append(NORTH, {0: [b"r3"]})
    found += poll_until(reader, 1)
    assert values(found) == names(4)
    assert values(found, NORTH, 1) == names(2, "s")
    position = {0: 0, 1: 0}
    for batch in found:
        assert batch.base_offset == position[batch.partition]
        position[batch.partition] = batch.position


def test_appended_us_is_the_time_of_the_append(stream: Stream, tick_us: int) -> None:
    stream.create_topic(NORTH, 1)
    before = time.time_ns() // 1000
    stream.append(NORTH, {0: [b"a"]})
    after = time.time_ns() // 1000
    (batch,) = stream.read(NORTH, 0, 0)
    assert before - tick_us <= batch.appended_us <= after


def test_read_starts_in_the_middle_of_a_batch_and_ends_empty(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: names(10)})
    stream.append(NORTH, {0: names(10, "s")})
    for position in range(20):
        found = stream.read(NORTH, 0, position)
        assert found[0].base_offset == position
        assert values(found) == (names(10) + names(10, "s"))[position:]
    assert stream.read(NORTH, 0, 20) == []


def test_read_gives_at_most_about_what_was_asked(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    for number in range(20):
        stream.append(NORTH, {0: names(10, f"{number}-")})
    assert 25 <= len(values(stream.read(NORTH, 0, 3, max_records=25))) < 45


@pytest.mark.parametrize("position", [-1, 4, 99])
def test_a_position_outside_the_log_is_lost_not_moved(stream: Stream, position: int) -> None:
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: names(3)})
    with pytest.raises(PositionLost) as caught:
        stream.read(NORTH, 0, position)
    assert (caught.value.position, tuple(caught.value.bounds)) == (position, (0, 3))
    with pytest.raises(PositionLost):
        stream.reader([NORTH], start=lambda _topic, _partition: position).poll(0.0)


def test_a_reader_by_prefix_takes_up_topics_made_later(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.create_topic("alerts.north", 1)
    stream.create_topic("reports", 1)
    reader = stream.reader("reports.", group="archive")
    stream.append(NORTH, {0: [b"n"]})
    stream.append("alerts.north", {0: [b"no"]})
    assert values(poll_until(reader, 1)) == [b"n"]
    stream.create_topic(SOUTH, 2)
    stream.append(SOUTH, {1: [b"s"]})
    assert values(poll_until(reader, 1), SOUTH, 1) == [b"s"]
    assert reader.assigned() == {TopicPartition(NORTH, 0), TopicPartition(SOUTH, 0), TopicPartition(SOUTH, 1)}


def test_a_text_without_the_dot_is_one_topic(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.create_topic(NORTH + "west", 1)
    stream.append(NORTH + "west", {0: [b"of another force"]})
    reader = stream.reader(NORTH)
    stream.append(NORTH, {0: [b"n"]})
    assert [batch.topic for batch in poll_until(reader, 1)] == [NORTH]


def test_a_reader_of_names_waits_for_a_topic_that_is_not_there_yet(stream: Stream) -> None:
    reader = stream.reader([NORTH])
    assert reader.poll(0.0) == []
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: [b"a"]})
    assert values(poll_until(reader, 1)) == [b"a"]


# 4. poll waits, and wakes


def test_poll_returns_nothing_after_its_time(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH])
    begun = time.monotonic()
    assert reader.poll(0.15) == []
    assert 0.14 <= time.monotonic() - begun < 2


def test_a_sleeping_reader_is_woken_by_an_append_of_another_thread(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH])
    reader.poll(0.0)
    timer = threading.Timer(0.1, lambda: stream.append(NORTH, {0: [b"a"]}))
    timer.start()
    begun = time.monotonic()
    assert values(reader.poll(20.0)) == [b"a"]
    assert time.monotonic() - begun < 5
    timer.join()


# 6. groups and their positions


def test_a_group_goes_on_where_it_committed(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    stream.append(NORTH, {0: names(5), 1: names(5, "s")})
    first = stream.reader([NORTH], group="archive")
    poll_until(first, 10)
    first.commit({TopicPartition(NORTH, 0): 3})
    first.close()
    assert stream.committed("archive", NORTH) == {0: 3}
    second = stream.reader([NORTH], group="archive")
    found = poll_until(second, 7)
    assert values(found) == names(5)[3:]
    assert values(found, NORTH, 1) == names(5, "s")


def test_a_commit_is_never_lowered(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: names(5)})
    stale, fresh = (stream.reader([NORTH], group="archive") for _ in range(2))
    fresh.commit({TopicPartition(NORTH, 0): 4})
    stale.commit({TopicPartition(NORTH, 0): 2})
    assert stream.committed("archive", NORTH) == {0: 4}


def test_groups_do_not_see_each_other(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: names(2)})
    stream.reader([NORTH], group="alerting").commit({TopicPartition(NORTH, 0): 2})
    assert stream.committed("archive", NORTH) == {}
    assert values(poll_until(stream.reader([NORTH], group="archive"), 2)) == names(2)


def test_a_commit_without_a_group_does_nothing(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: names(2)})
    reader = stream.reader([NORTH])
    reader.commit({TopicPartition(NORTH, 0): 2})
    assert values(poll_until(stream.reader([NORTH]), 2)) == names(2)


def test_the_handlers_truth_goes_over_the_groups_position(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    stream.append(NORTH, {0: names(5), 1: names(5, "s")})
    with contextlib.closing(stream.reader([NORTH], group="archive")) as earlier:
        earlier.commit({TopicPartition(NORTH, 0): 2, TopicPartition(NORTH, 1): 2})
    reader = stream.reader([NORTH], group="archive", start=lambda _topic, partition: 4 if partition == 0 else None)
    found = poll_until(reader, 4)
    assert values(found) == [b"r4"]
    assert values(found, NORTH, 1) == names(5, "s")[2:]


def test_a_truth_below_the_groups_position_is_believed(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.append(NORTH, {0: names(5)})
    with contextlib.closing(stream.reader([NORTH], group="archive")) as earlier:
        earlier.commit({TopicPartition(NORTH, 0): 5})
    reader = stream.reader([NORTH], group="archive", start=lambda _topic, _partition: 0)
    assert values(poll_until(reader, 5)) == names(5)


def test_registering_twice_is_once(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    stream.register("archive", NORTH)
    stream.register("archive", NORTH)
    assert stream.committed("archive", NORTH) == {}


# topics, names, misuse


def test_a_topic_is_made_once(stream: Stream) -> None:
    stream.create_topic(NORTH, 3)
    stream.append(NORTH, {2: [b"a"]})
    stream.create_topic(NORTH, 3)
    assert stream.topics() == {NORTH: 3}
    assert stream.bounds(NORTH, 2).end == 1
    with pytest.raises(TopicMismatch) as caught:
        stream.create_topic(NORTH, 4)
    assert (caught.value.asked, caught.value.actual) == (4, 3)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "a\n", "é", ".hidden", "x" * 201, "a\0"])
def test_a_name_that_is_none_is_refused(stream: Stream, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        stream.create_topic(name, 1)
    assert stream.topics() == {}


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_topic_without_partitions_is_refused(stream: Stream, partitions: int) -> None:
    with pytest.raises(ValueError, match="partitions"):
        stream.create_topic(NORTH, partitions)


def test_an_unknown_topic_is_named(stream: Stream) -> None:
    asks: list[Callable[[], object]] = [
        lambda: stream.append("nope", {0: [b"a"]}),
        lambda: stream.append("nope", {}),
        lambda: stream.read("nope", 0, 0),
        lambda: stream.bounds("nope", 0),
        lambda: stream.size_bytes("nope"),
    ]
    for ask in asks:
        with pytest.raises(UnknownTopic, match="nope"):
            ask()


@pytest.mark.parametrize("partition", [-1, 2])
def test_an_unknown_partition_is_named(stream: Stream, partition: int) -> None:
    stream.create_topic(NORTH, 2)
    with pytest.raises(UnknownTopic, match=str(partition)):
        stream.read(NORTH, partition, 0)
    with pytest.raises(UnknownTopic, match=str(partition)):
        stream.bounds(NORTH, partition)


def test_a_closed_stream_says_so_to_everything(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH], group="archive")
    stream.close()
    stream.close()
    asks: list[Callable[[], object]] = [
        lambda: stream.create_topic(SOUTH, 1),
        lambda: stream.topics(),
        lambda: stream.register("archive", NORTH),
        lambda: stream.append(NORTH, {0: [b"a"]}),
        lambda: stream.reader([NORTH]),
        lambda: stream.read(NORTH, 0, 0),
        lambda: stream.bounds(NORTH, 0),
        lambda: stream.committed("archive", NORTH),
        lambda: stream.size_bytes(NORTH),
        lambda: reader.poll(0.0),
        lambda: reader.commit({TopicPartition(NORTH, 0): 0}),
    ]
    for ask in asks:
        with pytest.raises(ClosedStream):
            ask()
    reader.close()


def test_a_closed_reader_says_so(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH], group="archive")
    reader.close()
    reader.close()
    with pytest.raises(ClosedStream):
        reader.poll(0.0)
    with pytest.raises(ClosedStream):
        reader.commit({TopicPartition(NORTH, 0): 0})


def test_closing_the_stream_ends_the_poll_of_another_thread(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    reader = stream.reader([NORTH])
    reader.poll(0.0)
    timer = threading.Timer(0.1, stream.close)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(ClosedStream):
        reader.poll(20.0)
    assert time.monotonic() - begun < 5
    timer.join()


def test_the_id_is_32_hexadecimal_digits(stream: Stream) -> None:
    assert len(stream.id) == 32
    int(stream.id, 16)


def test_the_id_of_topics_lasts(stream: Stream) -> None:
    for topic in (NORTH, SOUTH):
        stream.create_topic(topic, 1)
    first = stream.id_of([NORTH, SOUTH])
    stream.append(NORTH, {0: [b"a"]})
    stream.create_topic(NORTH, 1)
    stream.create_topic("reports.east", 1)
    assert stream.id_of([SOUTH, NORTH]) == first
    assert len(first) == 32 and int(first, 16)


def test_the_size_grows_with_what_is_kept(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    empty = stream.size_bytes(NORTH)
    stream.append(NORTH, {0: [bytes(range(256)) * 400]})
    assert stream.size_bytes(NORTH) > empty


def test_bounds_and_read_answer_while_others_append(stream: Stream) -> None:
    stream.create_topic(NORTH, 1)
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(100):
                stream.append(NORTH, {0: [str(number).encode()]})
        finally:
            done.set()

    def look() -> None:
        last = 0
        while not done.is_set():
            end = stream.bounds(NORTH, 0).end
            assert end >= last
            last = end
            assert len(values(stream.read(NORTH, 0, 0))) >= end

    run_threads([write, look, look])
    assert values(stream.read(NORTH, 0, 0)) == [str(number).encode() for number in range(100)]


def test_the_hash_is_the_documented_one() -> None:
    assert [partition_of(key, 4) for key in (b"", b"w-1", b"123456789")] == [0, 0xDF0BFD12 % 4, 0xCBF43926 % 4]
