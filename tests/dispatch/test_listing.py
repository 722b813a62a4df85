"""What `alerts` prints: every row, each once, oldest judged first, over partitions and forces, then live."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from dispatch_parts import PARTITIONS, alert, later, make_topics, put

from harmonywatch.clock import ManualClock, SystemClock, to_wire
from harmonywatch.dispatch.listing import ListedAlert, follow_alerts, list_alerts
from harmonywatch.report.topics import DeliveryRecord, encode
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import Batch, Stream, partition_of
from harmonywatch.stream.memory import MemoryStream
from harmonywatch.stream.sqlite import SqliteStream


@pytest.fixture(params=["memory", "sqlite"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stream]:
    made: Stream = MemoryStream()
    if request.param == "sqlite":
        made = SqliteStream(tmp_path / "stream", StreamSettings(), SystemClock())
    make_topics(made)
    yield made
    made.close()


def deliver(stream: Stream, number: int, seconds: float, force: str = "north") -> None:
    alert_id = alert(number, force=force).alert_id
    record = encode(DeliveryRecord(1, alert_id, to_wire(later(seconds)), "c1"))
    stream.append(f"deliveries.{force}", {partition_of(alert_id.encode(), PARTITIONS): [record]})


def test_every_alert_once_and_oldest_judged_first(stream: Stream) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    dice = random.Random(seed)
    made = [
        alert(n, who=f"c-{dice.randrange(20)}", force=dice.choice(("north", "south")), judged=later(n * 0.2))
        for n in range(400)
    ]
    for at in range(0, 400, 20):
        some = made[at : at + 20]
        dice.shuffle(some)
        put(stream, some)
        put(stream, dice.sample(made[: at + 20], 5))
    listed = list(list_alerts(stream))
    assert [row.alert_id for row in listed] == [each.alert_id for each in made]
    north = [each.alert_id for each in made if each.force == "north"]
    assert [row.alert_id for row in list_alerts(stream, "north")] == north
    assert list(list_alerts(stream, "nowhere")) == []


def test_an_alert_has_the_fields_of_the_door_and_its_first_delivery(stream: Stream) -> None:
    put(stream, [alert(1), alert(2, judged=later(1)), alert(3, judged=later(2))])
    deliver(stream, 1, 9)
    deliver(stream, 1, 4)
    deliver(stream, 3, 5)
    rows = list(list_alerts(stream))
    assert [row.delivered_at for row in rows] == [to_wire(later(4)), None, to_wire(later(5))]
    shown = msgspec.json.decode(msgspec.json.encode(rows[1]))
    door = "alert_id force report_id watcher_id name harmonyscore lat lon time received_at judged_at delivered_at rule"
    assert set(door.split()) <= set(shown)
    assert shown["delivered_at"] is None


def test_since_narrows_to_what_was_judged_from_then_on(tmp_path: Path) -> None:
    clock = ManualClock(later(0))
    stream = SqliteStream(tmp_path / "stream", StreamSettings(), clock)
    make_topics(stream)
    for number in range(50):
        put(stream, [alert(number, who=f"c-{number % 3}", judged=clock.now())])
        clock.advance(1)
    for seconds in (0, 0.5, 20, 49, 50):
        wanted = [alert(n).alert_id for n in range(50) if n >= seconds]
        assert [row.alert_id for row in list_alerts(stream, since=later(seconds))] == wanted
    stream.close()


@pytest.fixture
def short(tmp_path: Path) -> Iterator[tuple[SqliteStream, ManualClock]]:
    """A stream that keeps ten seconds, a segment for each second, with an alert a second for half a minute."""
    clock = ManualClock(later(0))
    stream = SqliteStream(tmp_path / "stream", StreamSettings(segment_s=1, retention_s=10), clock)
    make_topics(stream)
    for number in range(30):
        put(stream, [alert(number, who="Ada", judged=clock.now())])
        clock.advance(1)
    yield stream, clock
    stream.close()


@pytest.mark.parametrize("since", [None, later(2)])
def test_a_sweep_in_the_middle_of_a_listing_takes_the_oldest_and_leaves_the_rest(
    short: tuple[SqliteStream, ManualClock], monkeypatch: pytest.MonkeyPatch, since: datetime | None
) -> None:
    stream, _ = short
    reads: list[int] = []
    read = stream.read

    def sweeping(topic: str, partition: int, position: int, max_records: int = 10_000) -> list[Batch]:
        """Somebody sweeps between two reads, which bring little at a time."""
        reads.append(position)
        if len(reads) == (2 if since is None else 1):
            assert stream.sweep() > 0
        return read(topic, partition, position, min(max_records, 1))

    monkeypatch.setattr(stream, "read", sweeping)
    ids = [row.alert_id for row in list_alerts(stream, "north", since)]
    kept = [alert(n).alert_id for n in range(30)]
    if since is None:
        assert ids.pop(0) == kept[0], "it had been read before the sweep"
    assert 10 <= len(ids) <= 15
    assert ids == kept[-len(ids) :]


def test_a_follower_that_retention_overtook_goes_on_with_what_is_left(short: tuple[SqliteStream, ManualClock]) -> None:
    stream, clock = short
    stop = threading.Event()
    rows = follow_alerts(stream, stop, "north")
    seen = [next(rows).alert_id for _ in range(30)]
    put(stream, [alert(30, judged=clock.now())])
    seen.append(next(rows).alert_id)
    for number in range(31, 60):  # it stands still for half a minute, as with its output held up
        clock.advance(1)
        put(stream, [alert(number, judged=clock.now())])
    assert stream.sweep() > 0
    seen.append(next(rows).alert_id)
    while seen[-1] != alert(59).alert_id:
        seen.append(next(rows).alert_id)
    stop.set()
    rows.close()
    assert 30 + 10 <= len(seen) < 60
    assert seen == [each for each in [alert(n).alert_id for n in range(60)] if each in seen]


def test_what_is_no_alert_is_left_out(stream: Stream) -> None:
    stream.append(
        "alerts.north", {0: [b"\x00", b'{"v":1}'], 1: [encode(alert(1)).replace(b'"alert_id":"', b'"alert_id":"x')]}
    )
    stream.append("deliveries.north", {0: [b"what"]})
    put(stream, [alert(2)])
    assert [row.alert_id for row in list_alerts(stream)] == [alert(2).alert_id]


class Follower:
    """`alerts --follow` in a thread."""

    def __init__(self, stream: Stream, **fields: object) -> None:
        self.rows: list[ListedAlert] = []
        self.stop = threading.Event()
        self.came = threading.Condition()
        rows = follow_alerts(stream, self.stop, **fields)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self._run, args=(rows,))
        self.thread.start()

    def _run(self, rows: Iterator[ListedAlert]) -> None:
        for row in rows:
            with self.came:
                self.rows.append(row)
                self.came.notify_all()

    def wait(self, count: int) -> list[str]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.rows) >= count, 10)
            return [row.alert_id for row in self.rows]

    def end(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_following_shows_what_is_there_and_then_each_new_one_once(stream: Stream) -> None:
    put(stream, [alert(n, judged=later(n)) for n in range(5)])
    follower = Follower(stream)
    assert follower.wait(5) == [alert(n).alert_id for n in range(5)]
    put(stream, [alert(3, judged=later(3)), alert(5, judged=later(5))])
    put(stream, [alert(6, judged=later(6), force="south"), alert(5, judged=later(5))])
    follower.wait(7)
    stream.create_topic("alerts.west", PARTITIONS)
    late = msgspec.structs.replace(alert(7), force="west")
    stream.append("alerts.west", {0: [encode(late)]})
    got = follower.wait(8)
    follower.end()
    assert sorted(got) == sorted({row.alert_id for row in follower.rows})
    assert len(follower.rows) == 8 and got[-1] == late.alert_id


def test_following_one_force_since_a_moment_shows_only_that(stream: Stream) -> None:
    put(stream, [alert(n, judged=later(n)) for n in range(4)])
    follower = Follower(stream, force="north", since=later(2))
    follower.wait(2)
    put(stream, [alert(8, force="south", judged=later(9)), alert(9, judged=later(1)), alert(10, judged=later(9))])
    got = follower.wait(3)
    follower.end()
    assert got == [alert(2).alert_id, alert(3).alert_id, alert(10).alert_id]
