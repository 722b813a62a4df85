"""Several dispatchers in one process, one a force: what they share, and what stays each one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dispatch_parts import PARTITIONS, T0, Room, WrongClock, alert, make_topics, put
from sqlalchemy import Engine, event

from harmonywatch.dispatch.dispatcher import Dispatcher, DispatchParts
from harmonywatch.dispatch.listing import change_incident, officer_act
from harmonywatch.stream.contract import TopicDamaged
from harmonywatch.stream.memory import MemoryStream


class Damaged(MemoryStream):
    """Takes no event of the force named."""

    damaged = ""

    def append(self, topic, records):  # type: ignore[no-untyped-def]
        if topic == f"events.{self.damaged}":
            raise TopicDamaged(topic, "a segment does not match its proof")
        return super().append(topic, records)


class Crew:
    """A dispatcher for each force, made of the same parts."""

    def __init__(self, folder: Path) -> None:
        self.stream = Damaged()
        make_topics(self.stream)
        self.clock = WrongClock(T0)
        self.room = Room(self.stream, folder, self.clock)
        self.parts = DispatchParts(self.room.store, self.stream, self.room.desk, self.clock, self.room.telemetry)
        self.of = {force: self.started(force) for force in ("north", "south")}

    def started(self, force: str) -> Dispatcher:
        dispatcher = Dispatcher(self.parts)
        for partition in range(PARTITIONS):
            dispatcher.start(f"alerts.{force}", partition)
        return dispatcher

    def see(self, number: int, force: str) -> None:
        """An alert, handled by the force's own dispatcher."""
        put(self.stream, [alert(number, force=force, judged=self.clock.now())])
        for partition in range(PARTITIONS):
            position = self.room.store.positions(self.stream.id).get((f"alerts.{force}", partition), 0)  # type: ignore[call-overload]
            if batches := self.stream.read(f"alerts.{force}", partition, position):
                self.of[force].handle(batches)

    def tick(self, force: str, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.of[force].handle([])

    def events(self, force: str) -> int:
        return sum(self.stream.bounds(f"events.{force}", partition).end for partition in range(PARTITIONS))


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path)
    yield crew
    crew.room.store.close()


def test_each_publishes_and_lapses_what_is_its_forces_own(crew: Crew) -> None:
    for force in crew.of:
        crew.see(1, force)
    south = crew.room.store.incidents("south")[0]
    change_incident(crew.room.store, south.incident_id, officer_act("acknowledge", "kim", crew.clock))
    crew.tick("north", 1)
    assert (crew.events("north"), crew.events("south")) == (1, 1)
    crew.tick("south")
    assert (crew.events("north"), crew.events("south")) == (1, 2)
    crew.tick("north", 86_400)
    assert [i.state for i in crew.room.store.incidents()] == ["lapsed", "acknowledged"]
    crew.tick("south")
    assert [i.state for i in crew.room.store.incidents()] == ["lapsed", "lapsed"]


def test_a_damaged_topic_of_events_stops_no_incident_of_any_force(crew: Crew) -> None:
    crew.stream.damaged = "south"
    for number in range(3):
        for force in crew.of:
            crew.see(number, force)
            crew.tick(force, 6)
    assert sorted((i.force, i.occurrences) for i in crew.room.store.incidents()) == [("north", 3), ("south", 3)]
    assert crew.events("south") == 0
    crew.stream.damaged = ""
    for _ in range(2):
        crew.tick("south", 6)
    assert (crew.events("north"), crew.events("south")) == (3, 3)


def test_one_that_is_dropped_and_made_again_goes_on_where_it_was(crew: Crew) -> None:
    crew.see(1, "south")
    crew.of["south"] = crew.started("south")
    crew.see(2, "south")
    assert [i.occurrences for i in crew.room.store.incidents()] == [2]


def test_what_is_asked_of_the_state_does_not_grow_with_the_forces(crew: Crew) -> None:
    asked: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    many = [crew.started("north") for _ in range(50)]
    event.listen(Engine, "before_cursor_execute", count)
    try:
        for _ in range(10):
            crew.clock.advance(0.2)
            for dispatcher in many:
                dispatcher.handle([])
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert 10 < len(asked) < 80
