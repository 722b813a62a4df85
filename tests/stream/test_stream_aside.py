"""One topic's damage is that topic's: readers, appends, upkeep and listings of the others go on. And damage can be mended."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harmonywatch.clock import SystemClock
from harmonywatch.stream.contract import (
    Batch,
    PositionLost,
    Reader,
    Stream,
    StreamBroken,
    StreamError,
    StreamReset,
    TopicDamaged,
    TopicPartition,
    partitions_in,
)
from harmonywatch.stream.follow import follow
from harmonywatch.stream.forces import Forces
from harmonywatch.stream.sqlite import SqliteStream, UpkeepFailed
from harmonywatch.telemetry import Telemetry

NORTH, SOUTH = "reports.north", "reports.south"
Damage = Callable[[Path], object]


def values(batches: list[Batch]) -> list[bytes]:
    return [value for batch in batches for value in batch.values]


def drained(reader: Reader) -> tuple[list[bytes], list[Exception]]:
    """All that the reader has to give and to tell, until it is silent."""
    found: list[bytes] = []
    errors: list[Exception] = []
    silent = 0
    while silent < 2:
        try:
            batches = reader.poll(0.0)
        except Exception as error:  # noqa: BLE001 each is looked at by the test
            errors.append(error)
            continue
        silent = 0 if batches else silent + 1
        found += values(batches)
    return sorted(found), errors


def topic_in(error: Exception) -> str:
    return str(getattr(error, "topic", ""))


def both(stream: Stream) -> None:
    for topic in (NORTH, SOUTH):
        stream.create_topic(topic, 1)
        stream.append(topic, {0: [topic.encode()]})


# every adapter


def test_a_start_that_fails_puts_its_topic_aside_and_no_other(stream: Stream) -> None:
    def start(topic: str, _partition: int) -> int | None:
        if topic == NORTH:
            raise RuntimeError("the lake is elsewhere")
        return None

    both(stream)
    reader = stream.reader("reports.", group="archive", start=start)
    found, errors = drained(reader)
    assert (found, [str(error) for error in errors]) == ([SOUTH.encode()], ["the lake is elsewhere"])
    stream.append(NORTH, {0: [b"n"]})
    stream.append(SOUTH, {0: [b"s"]})
    assert drained(reader) == ([b"s"], [])
    assert TopicPartition(NORTH, 0) in reader.assigned()


def test_a_lost_position_is_told_once_and_taken_up_when_there_is_another(stream: Stream) -> None:
    truth = {NORTH: 7, SOUTH: 0}
    both(stream)
    reader = stream.reader("reports.", start=lambda topic, _: truth[topic])
    found, errors = drained(reader)
    assert (found, [(type(e), topic_in(e)) for e in errors]) == ([SOUTH.encode()], [(PositionLost, NORTH)])
    reader.take_up([NORTH])
    assert [type(error) for error in drained(reader)[1]] == [PositionLost]
    truth[NORTH] = 0
    reader.take_up([NORTH])
    assert drained(reader) == ([NORTH.encode()], [])


def test_what_is_set_aside_gives_nothing_and_begins_anew(stream: Stream) -> None:
    both(stream)
    reader = stream.reader("reports.", group="archive")
    assert drained(reader) == ([NORTH.encode(), SOUTH.encode()], [])
    reader.commit({TopicPartition(SOUTH, 0): 1})
    reader.set_aside([NORTH, SOUTH, "reports.nowhere"])
    stream.append(NORTH, {0: [b"n"]})
    stream.append(SOUTH, {0: [b"s"]})
    assert reader.poll(0.0) == []
    reader.take_up([NORTH, SOUTH])  # at the group's position, or the earliest record
    assert drained(reader) == ([b"n", NORTH.encode(), b"s"], [])


def test_a_topic_set_aside_before_it_is_made_is_not_asked_about(stream: Stream) -> None:
    asked: list[str] = []
    reader = stream.reader("reports.", start=lambda topic, _: asked.append(topic))
    reader.set_aside([NORTH])
    both(stream)
    assert drained(reader) == ([SOUTH.encode()], [])
    assert asked == [SOUTH]
    reader.take_up([NORTH])
    assert drained(reader) == ([NORTH.encode()], [])


def test_a_reset_is_the_whole_streams(stream: Stream) -> None:
    def start(_topic: str, _partition: int) -> int | None:
        raise StreamReset("a", "b", "the lake")

    both(stream)
    with pytest.raises(StreamReset):
        stream.reader("reports.", start=start).poll(0.0)


# damage on disk


def no_partitions(place: Path) -> None:
    (place / "partitions").write_text("four")


def no_database(place: Path) -> None:
    place.joinpath("0000000001.db").write_bytes(b"not a database" * 1000)
    for suffix in ("-wal", "-shm"):
        place.joinpath(f"0000000001.db{suffix}").unlink(missing_ok=True)


def emptied(place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()


def not_to_be_opened(place: Path) -> None:
    emptied(place)
    (place / "partitions").write_text("1")
    (place / "0000000001.db").mkdir()


def shorter_than_acknowledged(place: Path) -> None:
    path = place / "ends"
    path.write_bytes((99).to_bytes(8, "little") + path.read_bytes()[8:])


DAMAGES = [no_partitions, no_database, emptied, not_to_be_opened, shorter_than_acknowledged]


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(request: pytest.FixtureRequest, opened: Any, tmp_path: Path) -> SqliteStream:
    """A stream whose topic of the north is damaged, opened by a process that has just been started."""
    first = opened()
    both(first)
    first.close()
    place = tmp_path / "stream" / "topics" / NORTH
    shutil.copytree(place, tmp_path / "backup")
    request.param(place)
    stream: SqliteStream = opened()
    return stream


def test_a_damaged_topic_holds_up_no_other(damaged: SqliteStream) -> None:
    reader = damaged.reader("reports.", group="archive")
    found, errors = drained(reader)
    assert (found, [topic_in(error) for error in errors]) == ([SOUTH.encode()], [NORTH])
    for _ in range(2):
        with pytest.raises(StreamError) as caught:
            damaged.append(NORTH, {0: [b"n"]})
        assert topic_in(caught.value) == NORTH and not isinstance(caught.value, StreamBroken)
    assert damaged.append(SOUTH, {0: [b"s"]}) == {0: 1}
    assert drained(reader) == ([b"s"], [])
    assert damaged.topics()[SOUTH] == 1
    assert values(damaged.read(SOUTH, 0, 0)) == [SOUTH.encode(), b"s"]


def test_upkeep_tends_the_others_and_tells(damaged: SqliteStream, tmp_path: Path) -> None:
    old = tmp_path / "stream" / "topics" / SOUTH / "0000000002.db.00.draft"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    with pytest.raises(UpkeepFailed) as caught:
        damaged.sweep()
    assert list(caught.value.errors) == [NORTH]
    assert not old.exists()


def test_what_is_restored_is_taken_up_by_the_same_process(damaged: SqliteStream, tmp_path: Path) -> None:
    reader = damaged.reader("reports.", group="archive")
    drained(reader)
    with pytest.raises(StreamError):
        damaged.append(NORTH, {0: [b"n"]})
    place = tmp_path / "stream" / "topics" / NORTH
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "backup", place)
    assert damaged.append(NORTH, {0: [b"n"]}) == {0: 1}
    reader.take_up([NORTH])
    assert drained(reader) == ([b"n", NORTH.encode()], [])


@pytest.mark.parametrize("change", ["data = 'text'", "data = null", "count = 9", "base_offset = 7", "proof = 'x'"])
def test_a_row_that_was_changed_is_its_topics_damage(opened: Any, tmp_path: Path, change: str) -> None:
    writer = opened()
    both(writer)
    for number in range(3):
        writer.append(NORTH, {0: [b"%d" % number]})
    writer.close()
    db = sqlite3.connect(tmp_path / "stream" / "topics" / NORTH / "0000000001.db")
    db.execute("pragma writable_schema=1")
    db.execute("update sqlite_master set sql = replace(sql, 'data blob not null', 'data blob') where name = 'batches'")
    db.commit()
    db.close()
    db = sqlite3.connect(tmp_path / "stream" / "topics" / NORTH / "0000000001.db")
    db.execute(f"update batches set {change} where base_offset = 2")  # noqa: S608 from the list above
    db.commit()
    db.close()
    stream = opened()
    reader = stream.reader("reports.")
    found, errors = drained(reader)
    assert found == [SOUTH.encode()]
    assert [(type(error), topic_in(error)) for error in errors] == [(TopicDamaged, NORTH)]
    stream.append(SOUTH, {0: [b"s"]})
    assert drained(reader) == ([b"s"], [])


def test_a_force_whose_topic_could_not_even_be_begun_is_served_once_it_is_mended(
    damaged: SqliteStream, tmp_path: Path
) -> None:
    """Through the loop: what the reader never began must be taken up again too."""
    seen: list[bytes] = []
    clock, stop = SystemClock(), threading.Event()

    class Noting:
        def start(self, _topic: str, _partition: int) -> int | None:
            return None

        def handle(self, batches: list[Batch]) -> None:
            seen.extend(value for batch in batches for value in batch.values)

        def settled(self) -> dict[TopicPartition, int]:
            return {}

        def finish(self) -> None:
            pass

    forces = Forces(lambda _force: Noting(), clock, Telemetry("test"))
    reader = damaged.reader("reports.", group="archive", start=forces.start)
    thread = threading.Thread(target=follow, args=(reader, forces), kwargs={"clock": clock, "stop": stop})
    thread.start()
    try:
        wait_until(lambda: forces.degraded() and seen == [SOUTH.encode()])
        place = tmp_path / "stream" / "topics" / NORTH
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "backup", place)
        wait_until(lambda: NORTH.encode() in seen)
    finally:
        stop.set()
        thread.join()
    assert sorted(seen) == sorted([NORTH.encode(), SOUTH.encode()])


def wait_until(condition: Callable[[], object], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def test_a_damaged_topic_has_not_no_records(damaged: SqliteStream) -> None:
    with pytest.raises(TopicDamaged):
        [damaged.bounds(NORTH, partition) for partition in range(partitions_in(damaged, NORTH))]
    assert partitions_in(damaged, SOUTH) == 1
    assert partitions_in(damaged, "reports.nowhere") == 0
