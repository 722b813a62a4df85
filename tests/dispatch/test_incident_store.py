"""The state of incidents: what one commit holds, what the database itself refuses, how it grows and is opened."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from dispatch_parts import PARTITIONS, RULE, T0, Room, alert, later, make_topics, put
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from harmonywatch.clock import micros
from harmonywatch.dispatch.dispatcher import AlertTooNew, Dispatcher, DispatchParts
from harmonywatch.dispatch.incident import Act, AmbiguousIncident, NoIncident, NotAllowed, StaleVersion
from harmonywatch.dispatch.listing import change_incident, list_incidents, officer_act, page_of_incidents
from harmonywatch.dispatch.migrations import INCIDENTS_HEAD, INCIDENTS_VERSION_TABLE, MIGRATIONS
from harmonywatch.dispatch.store import open_incidents
from harmonywatch.dispatch.tables import incident_occurrences, metadata
from harmonywatch.registry.engine import open_engine, reading, writing
from harmonywatch.registry.store import open_registry
from harmonywatch.report.topics import EventRecord, encode
from harmonywatch.settings import DispatchSettings
from harmonywatch.stream.contract import Batch, StreamFull, StreamReset
from harmonywatch.stream.memory import MemoryStream


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    stream = MemoryStream()
    make_topics(stream)
    room = Room(stream, tmp_path)
    yield room
    room.store.close()


def events(room: Room, force: str = "north") -> list[EventRecord]:
    topic = f"events.{force}"
    values = [v for p in range(PARTITIONS) for b in room.stream.read(topic, p, 0) for v in b.values]
    return [msgspec.json.decode(value, type=EventRecord) for value in values]


def rows(room: Room, sql: str) -> list[tuple[object, ...]]:
    engine = open_engine(room.url)
    with reading(engine) as connection:
        found = [tuple(row) for row in connection.execute(text(sql)).all()]
    engine.dispose()
    return found


def test_fifty_watchers_in_one_instant_through_eight_doors_are_one_incident(room: Room) -> None:
    numbers = list(range(50))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    random.Random(seed).shuffle(numbers)
    for door in range(8):
        put(room.stream, [alert(n, watcher=f"w-{n}") for n in numbers[door::8]])
    room.drain(most=1)
    (incident,) = room.store.incidents()
    assert (incident.occurrences, incident.watchers, incident.state) == (50, 50, "new")
    assert len(room.store.occurrences(incident.incident_id)) == 50


def test_two_forces_never_share_an_incident(room: Room) -> None:
    put(room.stream, [alert(1), alert(1, force="south")])
    room.drain()
    assert sorted((i.force, i.occurrences) for i in room.store.incidents()) == [("north", 1), ("south", 1)]
    assert [i.force for i in room.store.incidents(force="south")] == ["south"]
    assert {event.force for event in events(room, "south")} == {"south"}


def test_only_the_last_hundred_occurrences_are_kept_and_all_are_counted(room: Room) -> None:
    put(room.stream, [alert(n, watcher=f"w-{n % 7}") for n in range(70)])
    room.drain()
    put(room.stream, [alert(n, watcher=f"w-{n % 7}") for n in range(70, 330)])
    room.drain(most=100)
    (incident,) = room.store.incidents()
    assert (incident.occurrences, incident.watchers) == (330, 7)
    assert [o["number"] for o in room.store.occurrences(incident.incident_id)] == list(range(231, 331))


def test_the_event_holds_what_the_command_line_prints(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    (event,) = events(room)
    (told,) = list_incidents(room.store)
    assert bytes(event.incident) == msgspec.json.encode(told)
    assert (event.kind, event.incident_id, event.alert_id) == ("opened", told.incident_id, alert(1).alert_id)
    door = {"incident_id", "force", "name", "rule", "state", "occurrences", "watchers", "opened_at", "last_seen_at"}
    assert door | {"lat", "lon"} <= set(msgspec.to_builtins(told))
    assert (told.rule, told.opened_at) == (RULE, "2026-11-23T18:00:00.000000Z")


def test_a_crash_between_commit_and_append_loses_no_event(tmp_path: Path) -> None:
    class Dying(MemoryStream):
        dead = False

        def append(self, topic, records):  # type: ignore[no-untyped-def]
            if self.dead and topic.startswith("events."):
                raise KeyboardInterrupt
            return super().append(topic, records)

    stream = Dying()
    make_topics(stream)
    room = Room(stream, tmp_path)
    put(stream, [alert(1)])
    stream.dead = True
    with pytest.raises(KeyboardInterrupt):
        room.drain()
    stream.dead = False
    assert len(room.store.incidents()) == 1 and events(room) == []
    room.reopen()
    room.drain()
    room.tick(5.1)
    assert [event.kind for event in events(room)] == ["opened"]
    room.tick(1)
    assert rows(room, "SELECT count(*) FROM incident_events") == [(0,)]
    room.store.close()


def test_a_full_topic_of_events_stops_no_incident_and_loses_no_event(tmp_path: Path) -> None:
    class Full(MemoryStream):
        full = True

        def append(self, topic, records):  # type: ignore[no-untyped-def]
            if self.full and topic.startswith("events."):
                raise StreamFull("no room")
            return super().append(topic, records)

    stream = Full()
    make_topics(stream)
    room = Room(stream, tmp_path)
    put(stream, [alert(1)])
    room.drain()
    put(stream, [alert(2)])
    room.drain()
    assert [i.occurrences for i in room.store.incidents()] == [2]
    stream.full = False
    room.tick(5.1)
    assert sorted(event.kind for event in events(room)) == ["joined", "opened"]
    room.store.close()


def test_an_officers_act_is_logged_and_told_and_a_stale_one_says_who_was_faster(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    (incident,) = room.store.incidents()
    seen = incident.version
    put(room.stream, [alert(n) for n in range(2, 30)])
    room.drain()
    taken = change_incident(
        room.store, incident.incident_id[:6], officer_act("acknowledge", "kim", room.clock, "mine"), seen
    )
    assert (taken.state, taken.owner) == ("acknowledged", "kim")
    with pytest.raises(StaleVersion, match="kim"):
        change_incident(room.store, incident.incident_id, officer_act("acknowledge", "lee", room.clock), seen)
    with pytest.raises(NotAllowed, match="time"):
        change_incident(room.store, incident.incident_id, officer_act("lapse", "lee", room.clock))
    act = officer_act("resolve", "kim", room.clock, "slept", "false alarm")
    assert change_incident(room.store, incident.incident_id, act).closed_us is not None
    room.tick(0.3)
    assert [event.kind for event in events(room)][-2:] == ["acknowledged", "resolved"]
    log = [
        (line["version"], line["by"], line["kind"], line["note"], line["reason"])
        for line in room.store.log(incident.incident_id)
    ]
    assert log == [
        (1, "dispatcher", "opened", "", None),
        (2, "kim", "acknowledged", "mine", None),
        (3, "kim", "resolved", "slept", "false alarm"),
    ]


def test_an_incident_that_is_not_there_or_not_one_is_named(room: Room) -> None:
    put(room.stream, [alert(n, who=f"c-{n}") for n in range(3)])
    room.drain()
    for wrong in ("i00000000", "", "%", "i_"):
        with pytest.raises(NoIncident):
            room.store.incident(wrong)
    with pytest.raises(AmbiguousIncident):
        room.store.change("i", Act(verb="note", by="kim", at_us=1))


def test_incidents_are_listed_in_the_order_they_opened_across_pages(room: Room) -> None:
    put(room.stream, [alert(n, who=f"c-{n}", judged=later(n % 10)) for n in range(40)])
    room.drain()
    whole = room.store.incidents()
    assert [i.opened_us for i in whole] == sorted(i.opened_us for i in whole) and len(whole) == 40
    paged, after = [], None
    while page := room.store.incidents(after=after, limit=7):
        paged += page
        after = (page[-1].opened_us, page[-1].incident_id)
    assert paged == whole
    assert len(list(list_incidents(room.store, since=later(7)))) == 12


def test_a_page_of_incidents_is_the_newest_or_what_follows_one(room: Room) -> None:
    put(
        room.stream,
        [alert(n, who=f"c-{n}", judged=later(n % 10), force="south" if n % 4 else "north") for n in range(40)],
    )
    room.drain()
    whole = [row.incident_id for row in list_incidents(room.store)]
    assert [row.incident_id for row in page_of_incidents(room.store, limit=7)] == whole[-7:]
    paged: list[str] = []
    while page := page_of_incidents(room.store, limit=7, after=paged[-1] if paged else ""):
        assert len(page) <= 7
        paged += [row.incident_id for row in page]
    assert paged == whole
    south = [row.incident_id for row in list_incidents(room.store, "south")]
    assert [row.incident_id for row in page_of_incidents(room.store, "south", limit=100, after=south[3])] == south[4:]
    assert [row.opened_at for row in page_of_incidents(room.store, since=later(9), limit=2)] == [
        "2026-11-23T18:00:09.000000Z"
    ] * 2
    for wrong in (south[0][:6], "i0"):
        with pytest.raises(NoIncident):
            page_of_incidents(room.store, after=wrong)
    with pytest.raises(NoIncident):
        page_of_incidents(room.store, "north", after=south[0])


def test_a_day_without_an_alert_closes_as_lapsed_and_only_when_caught_up(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    room.tick(86_399)
    assert room.store.incidents()[0].state == "new"
    room.tick(1)
    (lapsed,) = room.store.incidents()
    assert (lapsed.state, lapsed.closed_us) == ("lapsed", micros(later(86_400)))
    assert rows(room, "SELECT count(*) FROM incident_watchers") == [(0,)]
    room.tick(1)
    assert [event.kind for event in events(room)] == ["opened", "lapsed"]


def test_a_backlog_does_not_lapse_what_it_keeps_open(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    put(room.stream, [alert(2, judged=later(80_000))])
    room.advance_to(later(90_000))
    room.drain()
    room.tick(1)
    (incident,) = room.store.incidents()
    assert (incident.state, incident.occurrences) == ("new", 2)


def test_alert_ids_are_forgotten_when_they_are_old_and_never_sooner(room: Room) -> None:
    room.tick()
    put(room.stream, [alert(1)])
    room.drain()
    room.tick(2 * 86_400)
    put(room.stream, [alert(1)])
    room.drain()
    assert [i.occurrences for i in room.store.incidents()] == [1], "still remembered after two days"
    room.tick(86_400 * 2)
    room.tick(2)
    assert rows(room, "SELECT count(*) FROM seen_alerts") == [(0,)]
    put(room.stream, [alert(1)])
    room.drain()
    assert len(room.store.incidents()) == 1, "what opened an incident is known by it, however long ago"


def test_a_stream_that_was_reset_stops_the_dispatcher(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    other = MemoryStream()
    make_topics(other)
    with pytest.raises(StreamReset, match="incidents"):
        Dispatcher(DispatchParts(room.store, other, room.desk, room.clock, room.telemetry))


def test_positions_are_never_lowered(room: Room) -> None:
    put(room.stream, [alert(n) for n in range(9)])
    room.drain()
    before = room.store.positions(room.stream.id)
    (at,) = [at for at, position in before.items() if position]
    room.dispatcher.handle([Batch(at.topic, at.partition, 0, room.stream.read(*at, 0)[0].values[:3], 0)])
    assert room.store.positions(room.stream.id) == before
    assert [i.occurrences for i in room.store.incidents()] == [9]


def test_records_that_were_never_handled_are_not_skipped(room: Room) -> None:
    put(room.stream, [alert(1), alert(2), alert(3)])
    room.drain()
    (at,) = [at for at, position in room.store.positions(room.stream.id).items() if position]
    with pytest.raises(AssertionError, match="never handled"):
        room.dispatcher.handle([Batch(at.topic, at.partition, 7, [encode(alert(8))], 0)])


def test_what_is_no_alert_is_counted_and_the_rest_goes_on(room: Room) -> None:
    topic = "alerts.north"
    odd = [b"\x00", b"{}", b'{"v":1}', encode(alert(1)).replace(alert(1).alert_id.encode(), b"short")]
    bad_time = encode(alert(2)).replace(b"2026-11-23T18", b"2026-13-23T18")
    nul = encode(alert(3, who="A\x00a"))
    room.stream.append(topic, {0: [*odd, bad_time, nul, encode(alert(4, who="Bo"))]})
    room.drain()
    assert sorted(i.name for i in room.store.incidents()) == ["A\\x00a", "Bo"]
    assert room.telemetry.registry.get_sample_value("harmonywatch_failed_total", {"kind": "undecodable"}) == 5
    room.stream.append(topic, {0: [b'{"v":2,"whatever":1}']})
    with pytest.raises(AlertTooNew, match="upgrade"):
        room.drain()


ODD = (
    None,
    True,
    -1,
    2**31,
    2**63,
    2**64,
    10**400,
    1e308,
    "",
    "\x00",
    "\ud800",
    "x" * 5_000,
    [],
    {},
    [[]],
    "9999-12-31T23:59:59Z",
)


def test_no_alert_with_an_odd_member_stops_the_dispatcher_or_its_neighbours(room: Room) -> None:
    good = msgspec.to_builtins(alert(1))
    number, values = 0, []
    for member in (*good, "citizen_id", "confidence", "clock_suspect"):
        for odd in ODD:
            number += 1
            changed = {**good, "alert_id": f"{number:032x}", "identity": f"name:odd-{number}", member: odd}
            values += [json.dumps(changed).encode(), encode(alert(number, who=f"good-{number}"))]
    values = [value for value in values if newest(value) <= 1]
    room.stream.append("alerts.north", {0: values})
    room.drain(most=50)
    assert sum(i.name.startswith("good-") for i in room.store.incidents(limit=10_000)) == number
    engine = open_engine(room.url)
    with reading(engine) as connection:
        c = incident_occurrences.c
        (place, watcher) = connection.execute(select(func.max(c.place), func.max(func.length(c.watcher_id)))).one()
    engine.dispose()
    assert place < 2**31 and watcher < 650, "what another engine behind the same tables would refuse"


def newest(value: bytes) -> float:
    """The version of an alert, 0 where it is none: one that is too new rightly stops the dispatcher."""
    version = json.loads(value)["v"]
    return version if isinstance(version, int) else 0


def test_the_database_itself_refuses_a_second_open_incident(room: Room) -> None:
    put(room.stream, [alert(1)])
    room.drain()
    columns = "SELECT 'i2', force, identity, name, rule, state, occurrences, watchers, opened_us, last_seen_us, "
    columns += (
        "last_alert_us, lat, lon, harmonyscore_least, version, late, owner, reason, closed_us, changed_by, changed_us"
    )
    engine = open_engine(room.url)
    for subject in ("current_subject", "NULL"):
        with pytest.raises(IntegrityError), writing(engine) as connection:
            connection.execute(text(f"INSERT INTO incidents {columns}, {subject}, trimmed FROM incidents"))
    engine.dispose()


def test_the_steps_make_the_tables_that_the_program_uses(room: Room) -> None:
    engine = open_engine(room.url)
    with reading(engine) as connection:
        options = {"compare_type": True, "version_table": INCIDENTS_VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


def test_the_constant_names_the_last_step() -> None:
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [INCIDENTS_HEAD]


def test_registry_and_incidents_may_share_one_database(tmp_path: Path) -> None:
    room = Room(MemoryStream(), tmp_path)
    registry = open_registry(room.url, room.clock, "os:alice")
    registry.add_force("north")
    registry.close()
    again = open_incidents(room.url, DispatchSettings())
    assert again.incidents() == []
    again.close()
    room.store.close()
    assert room.clock.now() == T0
