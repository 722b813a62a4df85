"""Retention by age and size, upkeep of the write-ahead log, and what a stream holds open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harmonywatch.clock import ManualClock
from harmonywatch.stream import segment, topiclog
from harmonywatch.stream.contract import PositionLost, Stream, StreamFull, TopicPartition
from harmonywatch.stream.sqlite import SqliteStream

TOPIC = "reports.north"
DAY_S = 86_400
CHILD = Path(__file__).with_name("child.py")


def fill(stream: Stream, count: int, size_bytes: int = 4000) -> int:
    """Append incompressible records one by one, alternating over two partitions; the number appended."""
    for number in range(count):
        stream.append(TOPIC, {number % 2: [os.urandom(size_bytes)]})
    return count


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "stream" / "topics" / TOPIC).glob("*.db"))


def days(stream: SqliteStream, clock: ManualClock, count: int) -> None:
    """One segment a day, each with a record in both partitions."""
    for _ in range(count):
        stream.append(TOPIC, {0: [b"a"], 1: [b"b"]})
        clock.advance(DAY_S + 1)
    stream.append(TOPIC, {0: [b"a"], 1: [b"b"]})


def test_what_is_old_and_read_by_all_goes(tmp_path: Path, opened: Any, clock: ManualClock) -> None:
    stream = opened(clock, retention_s=3 * DAY_S)
    stream.create_topic(TOPIC, 2)
    days(stream, clock, 6)
    assert len(segments(tmp_path)) == 7
    assert stream.sweep() == 3  # those closed more than three days ago
    assert tuple(stream.bounds(TOPIC, 0)) == (3, 7)
    assert stream.sweep() == 0


def test_what_a_registered_group_has_not_read_stays(opened: Any, clock: ManualClock) -> None:
    stream = opened(clock, retention_s=DAY_S)
    stream.create_topic(TOPIC, 2)
    stream.register("archive", TOPIC)
    stream.register("alerting", TOPIC)
    days(stream, clock, 6)
    assert stream.sweep() == 0
    stream.commit("archive", {TopicPartition(TOPIC, 0): 7, TopicPartition(TOPIC, 1): 7})
    assert stream.sweep() == 0
    stream.commit("alerting", {TopicPartition(TOPIC, 0): 7, TopicPartition(TOPIC, 1): 2})
    assert stream.sweep() == 2
    assert stream.bounds(TOPIC, 0).earliest == 2
    stream.commit("alerting", {TopicPartition(TOPIC, 1): 7})
    assert stream.sweep() == 3


def test_a_partition_that_never_had_a_record_holds_nothing_back(opened: Any, clock: ManualClock) -> None:
    stream = opened(clock, retention_s=0.0, segment_bytes=1)
    stream.create_topic(TOPIC, 2)
    stream.register("archive", TOPIC)
    for _ in range(3):
        stream.append(TOPIC, {0: [b"a"]})
        clock.advance(2)
    stream.commit("archive", {TopicPartition(TOPIC, 0): 3})
    assert stream.sweep() == 2


def test_at_the_size_limit_what_is_read_makes_room_at_once(tmp_path: Path, opened: Any) -> None:
    stream = opened(retention_bytes=400_000, segment_bytes=80_000)
    stream.create_topic(TOPIC, 2)
    assert fill(stream, 100, 12_000) == 100
    assert stream.size_bytes(TOPIC) < 600_000
    assert len(segments(tmp_path)) > 1
    assert stream.bounds(TOPIC, 0).earliest > 0


def test_at_the_size_limit_the_unread_is_kept_and_appends_are_refused(opened: Any, clock: ManualClock) -> None:
    stream = opened(clock, retention_bytes=400_000, segment_bytes=80_000)
    stream.create_topic(TOPIC, 2)
    stream.register("archive", TOPIC)
    with pytest.raises(StreamFull) as caught:
        fill(stream, 100, 12_000)
    assert caught.value.retry_after_s > 0
    ends = {partition: stream.bounds(TOPIC, partition).end for partition in (0, 1)}
    assert stream.bounds(TOPIC, 0).earliest == 0
    clock.advance(2)
    with pytest.raises(StreamFull):
        fill(stream, 1)
    assert {partition: stream.bounds(TOPIC, partition).end for partition in (0, 1)} == ends
    stream.commit("archive", {TopicPartition(TOPIC, partition): end for partition, end in ends.items()})
    clock.advance(2)
    assert fill(stream, 10) == 10  # room again, with nobody's help


def test_a_reader_survives_a_sweep_of_what_it_is_reading(opened: Any, clock: ManualClock) -> None:
    stream = opened(clock, retention_s=3 * DAY_S)
    stream.create_topic(TOPIC, 2)
    reader = stream.reader([TOPIC])
    days(stream, clock, 6)
    first = reader.poll(0.0)
    assert [(batch.partition, batch.base_offset) for batch in first] == [(0, 0), (1, 0)]
    while reader.poll(0.0):
        pass
    assert stream.sweep() == 3
    stream.append(TOPIC, {0: [b"new"]})
    assert [batch.values for batch in reader.poll(5.0)] == [[b"new"]]


def test_a_reader_that_retention_overtook_says_so(opened: Any, clock: ManualClock) -> None:
    stream = opened(clock, retention_s=DAY_S)
    stream.create_topic(TOPIC, 2)
    reader = stream.reader([TOPIC])
    days(stream, clock, 6)
    assert stream.sweep() == 5
    with pytest.raises(PositionLost) as caught:
        while reader.poll(0.0):
            pass
    assert caught.value.bounds.earliest == 5
    with pytest.raises(PositionLost):
        stream.read(TOPIC, 0, 4)
    assert [batch.base_offset for batch in stream.reader([TOPIC]).poll(1.0)][:2] == [5, 5]


def test_a_reader_starts_where_its_partitions_stand_in_different_segments(opened: Any) -> None:
    stream = opened(segment_bytes=1)
    stream.create_topic(TOPIC, 3)
    for number in range(8):
        stream.append(TOPIC, {0: [b"a%d" % number], 2: [b"c%d" % number] if number < 2 else []})
    for start in ({0: 7, 1: 0, 2: 1}, {0: 0, 1: 0, 2: 2}, {0: 8, 1: 0, 2: 2}, {0: 8, 1: 0, 2: 0}):
        reader = stream.reader([TOPIC], start=lambda _topic, partition, start=start: start[partition])
        found: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
        while batches := reader.poll(0.0):
            for batch in batches:
                found[batch.partition] += batch.values
        reader.close()
        assert found == {
            0: [b"a%d" % number for number in range(start[0], 8)],
            1: [],
            2: [b"c%d" % number for number in range(start[2], 2)],
        }


def test_a_process_that_slept_through_rolls_and_sweeps_goes_on_at_the_end(
    tmp_path: Path, opened: Any, clock: ManualClock
) -> None:
    sleeper, awake = (opened(clock, segment_bytes=1, retention_s=0.0) for _ in range(2))
    sleeper.create_topic(TOPIC, 2)
    sleeper.append(TOPIC, {0: [b"a"]})
    for _ in range(5):
        awake.append(TOPIC, {0: [b"b"]})
        clock.advance(1)
    assert awake.sweep() > 0
    kept = segments(tmp_path)
    assert sleeper.append(TOPIC, {0: [b"c"]}) == {0: 6}
    assert segments(tmp_path)[: len(kept)] == kept
    assert awake.append(TOPIC, {0: [b"d"]}) == {0: 7}
    assert awake.bounds(TOPIC, 0) == sleeper.bounds(TOPIC, 0)


def test_a_segment_that_others_deleted_is_not_made_again(
    tmp_path: Path, opened: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process looks, finds segment 1 the newest and sealed, and sleeps; 2 is made, filled, and swept; it wakes."""
    sleeper, awake = (opened(clock, segment_bytes=1, retention_s=0.0) for _ in range(2))
    sleeper.create_topic(TOPIC, 2)
    sleeper.append(TOPIC, {0: [b"a"]})
    look, looks = topiclog.segment_paths, [0]
    sealing = segment.Segment(tmp_path / "stream" / "topics" / TOPIC / "0000000001.db")
    sealing.seal()
    sealing.close()

    def look_and_sleep(place: Path) -> list[Path]:
        found = look(place)
        looks[0] += 1
        if looks[0] == 1:
            monkeypatch.setattr(topiclog, "segment_paths", look)
            for _ in range(4):
                awake.append(TOPIC, {0: [b"b"]})
                clock.advance(1)
            awake.sweep()
        return found

    monkeypatch.setattr(topiclog, "segment_paths", look_and_sleep)
    assert sleeper.append(TOPIC, {0: [b"c"]}) == {0: 5}
    assert segments(tmp_path)[0] > "0000000002.db"
    assert sleeper.bounds(TOPIC, 0).earliest > 1


def test_a_poll_takes_little_memory_however_well_the_records_compress(opened: Any) -> None:
    stream = opened()
    stream.create_topic(TOPIC, 1)
    stream.append(TOPIC, {0: [b"x" * (3 << 20)] * 9})
    reader = stream.reader([TOPIC])
    polls = []
    while batches := reader.poll(0.0):
        polls.append(sum(len(value) for batch in batches for value in batch.values))
    assert sum(polls) == 9 * (3 << 20)
    assert max(polls) <= 16 << 20


def test_drafts_that_a_crash_left_are_cleared_away_when_old(tmp_path: Path, opened: Any) -> None:
    stream = opened()
    stream.create_topic(TOPIC, 2)
    place = tmp_path / "stream" / "topics" / TOPIC
    old, young = place / "0000000002.db.00.draft", place / "0000000002.db.01.draft"
    folder = tmp_path / "stream" / "reports.x.00.draft"
    folder.mkdir()
    for path in (old, young):
        path.write_bytes(b"x")
    for path in (old, folder):
        os.utime(path, (0, 0))
    stream.sweep()
    assert (old.exists(), folder.exists(), young.exists()) == (False, False, True)
    fill(stream, 3)


def test_the_log_stays_short_under_a_constant_reader(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "WAL_TEND_BYTES", 400_000)
    stream = opened()
    stream.create_topic(TOPIC, 2)
    command = [sys.executable, str(CHILD), "churn", str(tmp_path / "stream"), json.dumps({}), "5"]
    log = tmp_path / "stream" / "topics" / TOPIC / "0000000001.db-wal"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        longest = written = 0
        while child.poll() is None:
            fill(stream, 50)
            written += 50
            stream.sweep()
            longest = max(longest, log.stat().st_size)
        assert int(child.stdout.read().split()[1]) > written
    assert written * 4000 > 1_200_000
    assert longest < 1_200_000


def test_a_thousand_readers_and_reads_leave_no_descriptor_open(opened: Any) -> None:
    stream = opened(segment_bytes=20_000)
    stream.create_topic(TOPIC, 2)
    fill(stream, 3)

    def use(times: int) -> int:
        for number in range(times):
            reader = stream.reader([TOPIC])
            reader.poll(0.0)
            reader.close()
            stream.read(TOPIC, 0, number % 2)
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 counted, not read

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors are counted in /proc")
    before = use(20)
    assert use(500) <= before + 5


def test_upkeep_waits_for_no_reader_and_lets_appenders_on(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that stands still in the log keeps it from beginning anew: then it grows, and nobody waits."""
    monkeypatch.setattr(segment, "WAL_TEND_BYTES", 100_000)
    stream = opened()
    stream.create_topic(TOPIC, 2)
    fill(stream, 50)
    reader = segment.connect(tmp_path / "stream" / "topics" / TOPIC / "0000000001.db")
    reader.execute("begin")
    reader.execute("select count(*) from batches").fetchall()
    fill(stream, 50)
    sweeping = threading.Thread(target=opened().sweep)
    began = time.monotonic()
    sweeping.start()
    slowest = 0.0
    while sweeping.is_alive():
        each = time.monotonic()
        fill(stream, 1)
        slowest = max(slowest, time.monotonic() - each)
    assert time.monotonic() - began < 3, "upkeep waited for the reader"
    assert slowest < 1.5, "an append waited for upkeep"
    log = tmp_path / "stream" / "topics" / TOPIC / "0000000001.db-wal"
    before = log.stat().st_size
    reader.close()
    stream.sweep()
    fill(stream, 2)
    assert log.stat().st_size <= before
    assert stream.bounds(TOPIC, 0).end + stream.bounds(TOPIC, 1).end > 100
