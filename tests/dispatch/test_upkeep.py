"""How the state stays bounded, what is never forgotten too early, and a database of the previous schema."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dispatch_parts
import pytest
import structlog
from dispatch_parts import T0, Room, WrongClock, alert, careless, later, make_topics, put
from sqlalchemy import Engine, event, text

from harmonywatch.clock import micros
from harmonywatch.dispatch.incident import NotAllowed
from harmonywatch.dispatch.listing import change_incident, officer_act, page_of_incidents
from harmonywatch.dispatch.migrations import INCIDENTS_HEAD, INCIDENTS_VERSION_TABLE, MIGRATIONS
from harmonywatch.dispatch.store import IncidentStore, open_incidents
from harmonywatch.dispatch.upkeep import DAY_US
from harmonywatch.registry.engine import open_engine, reading, writing
from harmonywatch.registry.migrate import migrate
from harmonywatch.settings import DispatchSettings
from harmonywatch.stream.memory import MemoryStream

DAY_S = 86_400.0
CHILDREN = ("incident_occurrences", "incident_watchers", "notifications")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    stream = MemoryStream()
    make_topics(stream)
    room = Room(stream, tmp_path, WrongClock(T0))
    room.tick()
    yield room
    room.store.close()


def count(room: Room, table: str) -> int:
    engine = open_engine(room.url)
    with reading(engine) as connection:
        found = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608
    engine.dispose()
    return int(found)


def resolve(room: Room) -> str:
    (incident,) = room.store.incidents()
    act = officer_act("resolve", "kim", room.clock, reason="handled")
    return change_incident(room.store, incident.incident_id, act).incident_id


def set_clock(room: Room, off_s: float) -> None:
    assert isinstance(room.clock, WrongClock)
    room.clock.off_s = off_s


def run(room: Room, seconds: float) -> None:
    """Time passes as it does in a service: an hour at a time is enough for the housekeeping."""
    for _ in range(int(seconds // 3600)):
        room.tick(3600)


def test_an_incident_that_is_closed_for_days_loses_its_details_and_keeps_its_row_and_log(room: Room) -> None:
    put(room.stream, [alert(n, watcher=f"w-{n}") for n in range(30)])
    room.drain()
    incident_id = resolve(room)
    run(room, 3 * DAY_S - 3600)
    assert [count(room, table) for table in CHILDREN] == [30, 30, 0]
    run(room, 2 * 3600)
    assert [count(room, table) for table in CHILDREN] == [0, 0, 0]
    (kept,) = room.store.incidents()
    assert (kept.incident_id, kept.occurrences, kept.watchers, kept.state) == (incident_id, 30, 30, "resolved")
    assert [line["kind"] for line in room.store.log(incident_id)] == ["opened", "resolved"]
    with pytest.raises(NotAllowed, match="history"):
        change_incident(room.store, incident_id, officer_act("reopen", "kim", room.clock))
    change_incident(room.store, incident_id, officer_act("note", "kim", room.clock, "for the record"))


def test_what_is_open_or_reopened_keeps_its_details_however_old(room: Room) -> None:
    put(room.stream, [alert(1), alert(2, who="Bo")])
    room.drain()
    ada, bo = room.store.incidents()
    act = officer_act("resolve", "kim", room.clock, reason="handled")
    change_incident(room.store, ada.incident_id, act)
    for day in range(1, 8):
        run(room, DAY_S - 3600)
        if day == 2:
            change_incident(room.store, ada.incident_id, officer_act("reopen", "kim", room.clock))
        people = [(day * 10 + 1, "Bo"), *([(day * 10, "Ada")] if day > 2 else [])]
        put(room.stream, [alert(n, who=who, judged=room.clock.now()) for n, who in people])
        room.drain()
    assert [(i.state, i.watchers) for i in room.store.incidents()] == [("reopened", 1), ("new", 1)]
    assert len(room.store.occurrences(ada.incident_id)) == 6
    assert len(room.store.occurrences(bo.incident_id)) == 8


def test_an_incident_is_forgotten_whole_after_its_time_and_not_before(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    resolve(room)
    for _ in range(399):
        room.tick(DAY_S)
    room.tick(2)
    assert count(room, "incidents") == 1
    room.tick(DAY_S + 2)
    room.tick(2)
    assert [count(room, table) for table in ("incidents", "incident_log", *CHILDREN)] == [0] * 5


@pytest.mark.parametrize("off_s", [10 * DAY_S, -10 * DAY_S, 80 * 365 * DAY_S])
def test_a_clock_that_is_set_wrong_for_an_hour_counts_no_alert_twice_and_none_less(room: Room, off_s: float) -> None:
    before = [alert(n) for n in range(5)]
    put(room.stream, before)
    room.drain()
    set_clock(room, off_s)
    during = [alert(n, judged=room.clock.now()) for n in range(5, 10)]
    put(room.stream, [*before, *during])
    room.drain()
    for _ in range(60):
        room.tick(60)
    put(room.stream, [*before, *during])
    room.drain()
    set_clock(room, 0)
    for _ in range(60):
        room.tick(60)
    put(room.stream, [*before, *during, alert(10, judged=room.clock.now())])
    room.drain()
    assert sum(incident.occurrences for incident in room.store.incidents()) == 11


def test_nothing_is_trimmed_by_a_clock_that_was_set_until_a_day_has_been_run(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    resolve(room)
    run(room, 3600)
    with structlog.testing.capture_logs() as said:
        set_clock(room, 30 * DAY_S)
        run(room, 20 * 3600)
    assert [line["event"] for line in said] == ["the clock was set; no incident is trimmed for a day"]
    assert count(room, "incident_occurrences") == 1
    run(room, 6 * 3600)
    assert count(room, "incident_occurrences") == 0, "nobody set it right: then it is right"


def test_several_at_work_do_not_make_running_time_faster_than_time(room: Room) -> None:
    others = [open_incidents(room.url, DispatchSettings()) for _ in range(3)]
    for _ in range(100):
        room.tick(20)
        for store in others:
            store.upkeep.tick(micros(room.clock.now()), room.clock.monotonic())
    engine = open_engine(room.url)
    with reading(engine) as connection:
        ran_us = connection.execute(text("SELECT ran_us FROM running_time")).scalar_one()
    engine.dispose()
    assert 0.9 * 2000e6 <= ran_us <= 2000e6
    for store in others:
        store.close()


def test_a_hundred_thousand_alerts_leave_a_bounded_file(tmp_path: Path) -> None:
    """25 days of 4,000 alerts of 200 citizens, who are new every day. What grows is a row and a log of two lines each."""

    def opener(url: str, settings: DispatchSettings) -> IncidentStore:
        open_incidents(url, settings).close()
        return IncidentStore(careless(url), settings)

    stream = MemoryStream()
    make_topics(stream)
    room = Room(stream, tmp_path, WrongClock(T0))
    room.opener = opener
    room.reopen()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    dice = random.Random(seed)
    sizes = []
    for day in range(25):
        now, first = room.clock.now(), day * 4000
        for n in range(first, first + 4000):
            put(stream, [alert(n, who=f"{day}-{n % 200}", watcher=f"w-{dice.randrange(500)}", judged=now)])
        room.drain()
        for _ in range(8):
            room.tick(3 * 3600)
        sizes.append((tmp_path / "incidents.db").stat().st_size)
    listed = room.store.incidents(limit=100_000)
    assert (len(listed), sum(incident.occurrences for incident in listed)) == (5_000, 100_000)
    assert count(room, "seen_alerts") <= 4 * 4000
    assert count(room, "incident_occurrences") <= 6 * 4000
    assert count(room, "incident_watchers") <= 6 * 4000
    grown = (sizes[-1] - sizes[9]) / (15 * 200)
    assert grown < 1200, f"{grown:.0f} bytes an incident; sizes {sizes}"
    room.store.close()


def opened_in_previous_schema(folder: Path) -> str:
    """A database as the first schema made and filled it: an alert counted on a day of the calendar, its incident."""
    url = dispatch_parts.state_url(folder)
    engine = open_engine(url)
    migrate(engine, "0001", MIGRATIONS, INCIDENTS_VERSION_TABLE)
    first, now_us = alert(1), micros(T0)
    with writing(engine) as connection:
        values = "'i1', 'north', 'name:Ada', 'Ada', 'harmonyscore-below-25', 'new', 2, 1, :now, :now, :now, 1, 2, 3, 1, :late"
        connection.execute(
            text(f"INSERT INTO incidents VALUES ({values}, NULL, NULL, NULL, 'dispatcher', :now, :subject)"),  # noqa: S608
            {"now": now_us, "late": False, "subject": b"s" * 16},
        )
        connection.execute(
            text("INSERT INTO seen_alerts VALUES (:day, :alert)"),
            {"day": now_us // DAY_US, "alert": bytes.fromhex(first.alert_id)},
        )
    engine.dispose()
    return url


def test_a_database_of_the_previous_schema_is_brought_forward_and_knows_what_it_knew(tmp_path: Path) -> None:
    opened_in_previous_schema(tmp_path)
    stream = MemoryStream()
    make_topics(stream)
    room = Room(stream, tmp_path, WrongClock(T0))
    room.tick()
    put(stream, [alert(1), alert(2, who="Bo")])
    room.drain()
    assert [(i.name, i.occurrences) for i in page_of_incidents(room.store)] == [("Ada", 2), ("Bo", 1)]
    engine = open_engine(room.url)
    with reading(engine) as connection:
        assert connection.execute(text(f"SELECT * FROM {INCIDENTS_VERSION_TABLE}")).scalar() == INCIDENTS_HEAD  # noqa: S608
    engine.dispose()
    room.store.close()


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        ("SELECT 1 FROM incidents WHERE force = 'north' ORDER BY opened_us, incident_id LIMIT 9", "force_opened"),
        ("SELECT 1 FROM incidents WHERE closed_us <= 1 AND NOT trimmed ORDER BY closed_us", "ix_incidents_closed"),
        ("SELECT 1 FROM incidents WHERE closed_us IS NULL AND last_alert_us <= 1", "ix_incidents_open"),
        ("SELECT 1 FROM incidents WHERE current_subject IN (x'01', x'02')", "current_subject"),
        ("SELECT 1 FROM incidents WHERE last_alert_us >= 1 OR changed_us >= 1", "MULTI-INDEX OR"),
    ],
)
def test_every_question_that_is_asked_often_has_its_index(room: Room, sql: str, index: str) -> None:
    engine = open_engine(room.url)
    with reading(engine) as connection:
        plan = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql}"))]
    engine.dispose()
    assert any(index in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan)


def test_a_page_of_incidents_since_a_moment_reads_only_those(room: Room) -> None:
    put(room.stream, [alert(n, who=f"c-{n}", judged=later(n)) for n in range(30)])
    room.drain()
    plans = []

    def explained(connection: Any, _cursor: object, statement: str, values: Any, *_: object) -> None:
        if "last_alert_us >=" in statement and "EXPLAIN" not in statement:
            plans.append([row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)])

    event.listen(Engine, "before_cursor_execute", explained)
    try:
        got = page_of_incidents(room.store, "north", since=later(25))
    finally:
        event.remove(Engine, "before_cursor_execute", explained)
    assert [row.name for row in got] == [f"c-{n}" for n in range(25, 30)]
    assert "MULTI-INDEX OR" in plans[0], plans
