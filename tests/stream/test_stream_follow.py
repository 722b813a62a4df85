"""The one consumer loop, on every adapter: handled in order, settled before committed, finished on a clean stop; and one
force's failure is that force's alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.stream.contract import (
    Batch,
    ClosedStream,
    PartitionsMoved,
    Reader,
    Stream,
    StreamBroken,
    StreamFull,
    StreamReset,
    TopicDamaged,
    TopicPartition,
)
from harmonywatch.stream.follow import follow
from harmonywatch.stream.forces import PAUSE_MOST_S, WELL_S, Forces, Handler
from harmonywatch.telemetry import Telemetry

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
    forces = Forces(lambda _force: handler, SystemClock(), Telemetry("archive"))
    reader = stream.reader([TOPIC], group="archive", start=forces.start)
    follow(reader, forces, clock=SystemClock(), stop=handler.stop, commit_interval_s=0.0)
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


def test_the_handlers_truth_decides_where_the_loop_begins(stream: Stream) -> None:
    stream.create_topic(TOPIC, 1)
    stream.append(TOPIC, {0: [b"a", b"b", b"c"]})
    handler = Gatherer(1, threading.Event(), truth=2)
    run(stream, handler)
    assert handler.values == [b"c"]


# one force, and the others


class Room:
    """Handlers of two forces whose effects are durable at once, in `done`. `fails`: by force, what is raised and where."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.done: dict[str, list[bytes]] = {"north": [], "south": []}
        self.fails: dict[tuple[str, str], Exception] = {}
        self.made: list[str] = []
        self.logs: list[MutableMapping[str, Any]] = []
        self.clock = ManualClock(datetime(2026, 11, 23, 12, tzinfo=UTC))
        self.telemetry = Telemetry("archive")
        self.forces = Forces(self.open, self.clock, self.telemetry)
        self.reader: Reader = stream.reader(("reports.", "alerts."), group="archive", start=self.forces.start)

    def open(self, force: str) -> Handler:
        self.made.append(force)
        self.fail(force, "open")
        return _OneForce(self, force)

    def fail(self, force: str, where: str) -> None:
        if (force, where) in self.fails:
            raise self.fails[force, where]

    def turn(self, times: int = 3) -> None:
        """What the loop does between two looks at the clock."""
        for _ in range(times):
            self.follow_while(lambda: False)

    def follow_while(self, goes_on: Callable[[], bool]) -> None:
        stop = _Countdown(goes_on)
        reader = _Open(self.reader)
        follow(reader, self.forces, clock=self.clock, stop=stop, commit_interval_s=0.0)  # type: ignore[arg-type]

    def metric(self, force: str) -> float | None:
        return self.telemetry.registry.get_sample_value("harmonywatch_force_aside", {"force": force})


class _Countdown(threading.Event):
    """Lets the loop go round once, and on while `goes_on`."""

    def __init__(self, goes_on: Callable[[], bool]) -> None:
        super().__init__()
        self._rounds, self._goes_on = 0, goes_on

    def is_set(self) -> bool:
        self._rounds += 1
        return self._rounds > 1 and not self._goes_on()


class _Open:
    """The reader, which stays open over several runs of the loop, and does not wait."""

    def __init__(self, inner: Reader) -> None:
        self._inner = inner

    def poll(self, _timeout_s: float) -> list[Batch]:
        return self._inner.poll(0.0)

    def close(self) -> None:
        """Not yet."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


class _OneForce:
    def __init__(self, room: Room, force: str) -> None:
        self._room, self._force = room, force
        self._settled: dict[TopicPartition, int] = {}

    def start(self, _topic: str, _partition: int) -> int | None:
        self._room.fail(self._force, "start")
        return None

    def handle(self, batches: list[Batch]) -> None:
        assert all(batch.topic.endswith(self._force) for batch in batches)
        self._room.fail(self._force, "handle" if batches else "beat")
        for batch in batches:
            self._room.done[self._force] += batch.values
            self._settled[TopicPartition(batch.topic, batch.partition)] = batch.position

    def settled(self) -> Mapping[TopicPartition, int]:
        self._room.fail(self._force, "settled")
        return self._settled

    def finish(self) -> None:
        self._room.fail(self._force, "finish")


@pytest.fixture
def room(stream: Stream) -> Iterator[Room]:
    for force in ("north", "south"):
        for kind in ("reports.", "alerts."):
            stream.create_topic(kind + force, 1)
    made = Room(stream)
    with capture_logs() as made.logs:
        yield made
    made.reader.close()


def put(room: Room, *values: bytes) -> None:
    for force in ("north", "south"):
        room.stream.append(f"reports.{force}", {0: list(values)})


@pytest.mark.parametrize("where", ["handle", "beat", "settled"])
def test_a_force_that_fails_is_put_aside_and_the_other_goes_on(room: Room, where: str) -> None:
    room.turn()
    room.fails["north", where] = RuntimeError("not today")
    put(room, b"a")
    room.turn()
    put(room, b"b")
    room.turn()
    assert room.done["south"] == [b"a", b"b"]
    assert room.forces.degraded()[0].startswith("force north: not today; tried again in 1 s")
    assert (room.metric("north"), room.metric("south")) == (1, None)
    assert not room.forces.all_aside()
    assert [(log["log_level"], log["force"], log["reason"]) for log in room.logs] == [("error", "north", "not today")]
    room.fails.clear()
    room.clock.advance(1)
    room.turn()
    assert room.done["north"][-1] == b"b" and room.made.count("north") == 2
    room.turn()
    assert room.stream.committed("archive", TOPIC) == {0: 2}


@pytest.mark.parametrize("where", ["open", "start"])
def test_a_force_that_cannot_begin_is_tried_again(room: Room, where: str) -> None:
    room.fails["east", where] = RuntimeError("no key")
    room.stream.create_topic("reports.east", 1)
    room.stream.create_topic("alerts.east", 1)
    room.done["east"] = []
    room.stream.append("reports.east", {0: [b"e"]})
    put(room, b"a")
    deadline = 50
    while not room.forces.degraded() and (deadline := deadline - 1):
        room.turn(1)
        threading.Event().wait(0.05)  # an embedded reader looks for new topics once a second
    assert room.forces.degraded() == ["force east: no key; tried again in 1 s"]
    assert room.done == {"north": [b"a"], "south": [b"a"], "east": []}
    room.fails.clear()
    room.clock.advance(1)
    room.turn()
    assert room.done["east"] == [b"e"]
    assert room.forces.degraded() == ["force east: no key; taken up again"]


def test_the_pause_doubles_while_it_fails_and_is_forgotten_when_it_is_well(room: Room) -> None:
    put(room, b"a")
    room.fails["north", "handle"] = RuntimeError("poison")
    room.turn()
    pauses = []
    for _ in range(7):
        pauses.append(room.forces.degraded()[0].rpartition(" in ")[2])
        room.clock.advance(PAUSE_MOST_S)
        room.turn()
    assert pauses == ["1 s", "2 s", "4 s", "8 s", "16 s", "30 s", "30 s"]
    room.fails.clear()
    room.clock.advance(PAUSE_MOST_S)
    room.turn()
    assert room.done["north"] == [b"a"] and room.forces.degraded() == ["force north: poison; taken up again"]
    room.clock.advance(WELL_S)
    room.turn()
    assert room.forces.degraded() == [] and room.metric("north") == 0
    room.fails["north", "beat"] = RuntimeError("again")
    room.turn()
    assert room.forces.degraded() == ["force north: again; tried again in 1 s"]


def test_when_every_force_is_aside_that_is_said(room: Room) -> None:
    room.turn()
    for force in ("north", "south"):
        room.fails[force, "beat"] = RuntimeError("no lake")
    room.turn()
    assert room.forces.all_aside() and len(room.forces.degraded()) == 2
    room.fails.clear()
    room.clock.advance(1)
    room.turn()
    assert not room.forces.all_aside()


def test_a_lost_position_of_one_topic_puts_all_of_its_force_aside(room: Room) -> None:
    put(room, b"a")
    room.turn()
    lost = TopicDamaged("alerts.north", "gone")
    room.fails["north", "start"] = lost
    room.reader.take_up(["alerts.north"])
    room.turn()
    put(room, b"b")
    room.turn()
    assert room.done == {"north": [b"a"], "south": [b"a", b"b"]}


def test_what_one_force_cannot_finish_does_not_keep_the_other_from_it(room: Room) -> None:
    put(room, b"a")
    room.fails["north", "finish"] = RuntimeError("no")
    room.turn(1)
    assert room.stream.committed("archive", "reports.south") == {0: 1}
    assert room.stream.committed("archive", TOPIC) in ({}, {0: 1})


@pytest.mark.parametrize("error", [StreamBroken("fsync"), StreamReset("a", "b", "the lake"), ClosedStream()])
def test_what_concerns_the_whole_stream_ends_the_loop(room: Room, error: Exception) -> None:
    room.turn()
    room.fails["north", "handle"] = error
    put(room, b"a")
    with pytest.raises(type(error)):
        room.turn()


def test_a_commit_that_finds_no_room_is_made_later(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, full = room.reader.commit, [True]

    def commits(positions: Mapping[TopicPartition, int]) -> None:
        if full:
            raise StreamFull("no space left")
        commit(positions)

    monkeypatch.setattr(room.reader, "commit", commits)
    put(room, b"a")
    room.turn()
    assert room.done["north"] == [b"a"] and room.stream.committed("archive", TOPIC) == {}
    full.clear()
    room.turn()
    assert room.stream.committed("archive", TOPIC) == {0: 1}


def test_partitions_that_moved_make_a_handler_forget_what_it_gathered(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(room, b"a")
    room.turn()
    poll, moves = room.reader.poll, [True]

    def moved(timeout_s: float) -> list[Batch]:
        if moves:
            moves.clear()
            room.reader.set_aside([TOPIC])
            raise PartitionsMoved([TOPIC])
        return poll(timeout_s)

    monkeypatch.setattr(room.reader, "poll", moved)
    put(room, b"b")
    room.turn()
    assert room.made == ["north", "south", "north"] or room.made == ["south", "north", "north"]
    assert room.done["north"] == [b"a", b"b"] and room.forces.degraded() == []
