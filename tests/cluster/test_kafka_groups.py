"""Several workers share a group: partitions move, nobody acts on what is another's, and a restarted worker goes on at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster_rig import SESSION_S, Connect

from harmonywatch.stream.contract import Batch, PartitionsMoved, Reader, Stream, TopicPartition

NORTH, SOUTH, PARTITIONS = "reports.north", "reports.south", 4
ALL = frozenset(TopicPartition(NORTH, partition) for partition in range(PARTITIONS))
DEADLINE_S = 20.0


def turn(*readers: Reader) -> tuple[list[Batch], list[set[str]]]:
    """One poll of each, what moved taken up at once: the batches, and what moved from or to whom."""
    batches: list[Batch] = []
    moved: list[set[str]] = []
    for reader in readers:
        moved.append(set())
        try:
            batches += reader.poll(0.05)
        except PartitionsMoved as error:
            moved[-1] |= error.topics
            reader.take_up(error.topics)
    return batches, moved


def wait_shared(*readers: Reader, each: int) -> list[set[str]]:
    """Until every reader owns `each` partitions; all that moved, by reader."""
    moves: list[set[str]] = [set() for _ in readers]
    until = time.monotonic() + DEADLINE_S
    while any(len(reader.assigned()) != each for reader in readers):
        assert time.monotonic() < until, [reader.assigned() for reader in readers]
        _, moved = turn(*readers)
        moves = [before | now for before, now in zip(moves, moved, strict=True)]
    _, moved = turn(*readers)  # what is lost is told with the next poll
    return [before | now for before, now in zip(moves, moved, strict=True)]


def wait_values(count: int, *readers: Reader) -> list[bytes]:
    found: list[bytes] = []
    until = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < until, found
        batches, _ = turn(*readers)
        found += [value for batch in batches for value in batch.values]
    return found


def test_a_second_worker_takes_over_half_and_the_first_is_told(stream: Stream) -> None:
    stream.create_topic(NORTH, PARTITIONS)
    first = stream.reader("reports.", group="archive")
    assert first.assigned() == ALL
    second = stream.reader("reports.", group="archive")
    told, _ = wait_shared(first, second, each=2)
    assert told == {NORTH}
    assert first.assigned() | second.assigned() == ALL
    stream.append(NORTH, {partition: [f"r{partition}".encode()] for partition in range(PARTITIONS)})
    assert sorted(wait_values(4, first, second)) == [b"r0", b"r1", b"r2", b"r3"]


def test_a_second_worker_takes_half_of_every_kind_of_topic(stream: Stream) -> None:
    kinds = ("alerts.", "rejects.", "reports.")
    for kind in kinds:
        stream.create_topic(f"{kind}north", PARTITIONS)
    first = stream.reader(kinds, group="archive")
    second = stream.reader(kinds, group="archive")
    wait_shared(first, second, each=6)
    for reader in (first, second):
        assert Counter(at.topic for at in reader.assigned()) == dict.fromkeys((f"{kind}north" for kind in kinds), 2)


def test_what_a_worker_read_and_did_not_commit_its_successor_reads_again(stream: Stream) -> None:
    stream.create_topic(NORTH, PARTITIONS)
    stream.append(NORTH, {partition: [b"one", b"two"] for partition in range(PARTITIONS)})
    first = stream.reader("reports.", group="archive")
    wait_values(8, first)
    first.commit(dict.fromkeys(ALL, 1))
    second = stream.reader("reports.", group="archive")
    wait_shared(first, second, each=2)
    first.close()
    until = time.monotonic() + DEADLINE_S
    found: list[Batch] = []
    while {TopicPartition(batch.topic, batch.partition) for batch in found} != ALL:
        assert time.monotonic() < until, found
        found += turn(second)[0]
    assert {value for batch in found for value in batch.values} == {b"two"}


def test_other_topics_flow_on_while_partitions_of_one_move(stream: Stream) -> None:
    stream.create_topic(NORTH, PARTITIONS)
    stream.create_topic("alerts.north", 1)
    first = stream.reader(("reports.", "alerts."), group="archive")
    second = stream.reader("reports.", group="archive")  # a worker that takes no alerts
    serial = 0
    read: list[bytes] = []
    until = time.monotonic() + DEADLINE_S
    while len(second.assigned()) < 2 or len(read) < serial:
        assert time.monotonic() < until
        if len(second.assigned()) < 2:
            stream.append("alerts.north", {0: [str(serial).encode()]})
            serial += 1
        batches, moved = turn(first, second)
        read += [value for batch in batches for value in batch.values]
        assert "alerts.north" not in moved[0]
    assert read == [str(number).encode() for number in range(serial)]


def test_who_lost_a_partition_commits_nothing(stream: Stream) -> None:
    stream.create_topic(NORTH, PARTITIONS)
    stream.append(NORTH, {partition: [b"one", b"two"] for partition in range(PARTITIONS)})
    first = stream.reader("reports.", group="archive")
    second = stream.reader("reports.", group="archive")
    wait_shared(first, second, each=2)
    first.commit(dict.fromkeys(ALL, 2))
    assert stream.committed("archive", NORTH) == {at.partition: 2 for at in first.assigned()}
    first.commit(dict.fromkeys(first.assigned(), 1))  # and who has it never lowers it
    assert stream.committed("archive", NORTH) == {at.partition: 2 for at in first.assigned()}


def test_a_force_that_comes_later_is_shared_too(stream: Stream) -> None:
    stream.create_topic(NORTH, 2)
    readers = [stream.reader("reports.", group="archive") for _ in range(2)]
    wait_shared(*readers, each=1)
    stream.create_topic(SOUTH, 2)
    stream.append(SOUTH, {0: [b"s0"], 1: [b"s1"]})
    assert sorted(wait_values(2, *readers)) == [b"s0", b"s1"]


@contextmanager
def follower(url: str, member: str, session_s: float) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("kafka_follower.py")
    command = [sys.executable, str(script), url, "alerting", member, str(session_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def silence_after_a_kill_s(url: str, stream: Stream, member: str, session_s: float = 6.0) -> float:
    """From kill -9 of the only worker to the first record that its successor gets."""
    stream.create_topic(NORTH, 2)
    with follower(url, member, session_s) as child:
        stream.append(NORTH, {0: [b"before"]})
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert child.stdout.readline() == "0 before\n"
    killed = time.monotonic()
    with follower(url, member, session_s) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert child.stdout.readline() == "0 before\n"
    return time.monotonic() - killed


def test_a_worker_with_a_name_goes_on_at_once_after_a_kill(url: str, connect: Connect) -> None:
    assert silence_after_a_kill_s(url, connect(), "worker-1") < 5.5


def test_without_a_name_the_group_waits_for_the_dead(url: str, connect: Connect) -> None:
    """Why the name is there; should Kafka get faster, it can go."""
    assert silence_after_a_kill_s(url, connect(), "") > 5.5


def test_a_shorter_session_shortens_the_wait(url: str, connect: Connect) -> None:
    assert silence_after_a_kill_s(url, connect(), "", SESSION_S) < 5.5
