"""Dispatch against a plain model, under any interleaving of alerts, repeats, acts, time, crashes and older positions.

The controls: with a guarantee switched off the same run and checker go red.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from dispatch_parts import PARTITIONS, Room, alert, careless, make_topics, put
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from harmonywatch.clock import from_wire
from harmonywatch.dispatch.incident import Incident, IncidentError
from harmonywatch.dispatch.listing import change_incident, officer_act
from harmonywatch.dispatch.store import IncidentStore, open_incidents
from harmonywatch.registry.engine import open_engine, writing
from harmonywatch.report.topics import AlertRecord, EventRecord
from harmonywatch.settings import DispatchSettings
from harmonywatch.stream.memory import MemoryStream

PEOPLE = ("Ada", "Bo", "Cy", "Di", "Ed")
STEPS = 140


class Crash(BaseException):
    """Ends the process, as far as the test goes."""


class Disagreement(AssertionError):
    """The state is not what the model says."""


class FallibleStream(MemoryStream):
    """Crashes whoever appends events, when told to: after the commit, before anybody was told."""

    crash = False

    def append(self, topic, records):  # type: ignore[no-untyped-def]
        if self.crash and topic.startswith("events."):
            raise Crash
        return super().append(topic, records)


@dataclass
class ModelIncident:
    who: str
    opened: datetime
    last: datetime
    state: str = "new"
    closed: datetime | None = None
    alerts: int = 1
    watchers: set[str] = field(default_factory=set)


@dataclass
class Model:
    """What the design says, in the plainest words."""

    incidents: dict[str, list[ModelIncident]] = field(default_factory=lambda: {who: [] for who in PEOPLE})
    counted: set[str] = field(default_factory=set)

    def meet(self, each: AlertRecord) -> None:
        if each.alert_id in self.counted:
            return
        self.counted.add(each.alert_id)
        judged = from_wire(each.judged_at)
        late = judged - from_wire(each.time) > timedelta(minutes=15)
        self.lapse(each.name, judged)
        before = self.incidents[each.name][-1] if self.incidents[each.name] else None
        recently = before and before.closed and judged <= before.closed + timedelta(minutes=30)
        if before and (before.closed is None or (before.state == "resolved" and recently)):
            before.alerts += 1
            before.last = max(before.last, judged)
            if before.closed is not None and not late:
                before.state, before.closed = "reopened", None
        else:
            before = ModelIncident(each.name, judged, judged)
            self.incidents[each.name].append(before)
        before.watchers.add(each.watcher_id)

    def lapse(self, who: str, now: datetime) -> None:
        for incident in self.incidents[who]:
            if incident.closed is None and incident.last + timedelta(days=1) <= now:
                incident.state, incident.closed = "lapsed", incident.last + timedelta(days=1)

    def rows(self) -> list[tuple[str, datetime, str, int, int]]:
        listed = [incident for incidents in self.incidents.values() for incident in incidents]
        return sorted((i.who, i.opened, i.state, i.alerts, len(i.watchers)) for i in listed)


class Run:
    """One random history, checked after every drain."""

    def __init__(self, folder: Path, seed: int, prepare: Callable[[Room], None]) -> None:
        self.dice = random.Random(seed)
        self.stream = FallibleStream()
        make_topics(self.stream)
        self.room = Room(self.stream, folder)
        prepare(self.room)
        self.model = Model()
        self.waiting: list[AlertRecord] = []
        self.told: list[AlertRecord] = []
        self.number = 0
        self.met: set[str] = set()

    def go(self, steps: int = STEPS) -> None:
        ways = [self.see, self.see, self.see, self.repeat, self.drain, self.act, self.wait, self.restart, self.crash]
        for _ in range(steps):
            self.dice.choice(ways)()
        self.drain()
        self.check_events()

    def see(self) -> None:
        """Some citizens are seen, some of them by many at once, some long ago."""
        now = self.room.clock.now()
        for _ in range(self.dice.choice((1, 1, 2, 12))):
            self.number += 1
            seen = now - timedelta(minutes=self.dice.choice((0, 0, 1, 14, 16, 600)))
            watcher = f"w-{self.dice.randint(1, 6)}"
            self.tell(alert(self.number, who=self.dice.choice(PEOPLE), watcher=watcher, judged=now, seen=seen))

    def repeat(self) -> None:
        recent = [a for a in self.told if self.room.clock.now() - from_wire(a.judged_at) < timedelta(hours=30)]
        for each in self.dice.sample(recent, min(len(recent), 3)):
            self.tell(each)

    def tell(self, each: AlertRecord) -> None:
        put(self.stream, [each])
        self.waiting.append(each)
        self.told.append(each)

    def drain(self) -> None:
        self.room.drain(self.dice.choice((1, 3, 1000)))
        for each in self.waiting:
            self.model.meet(each)
        self.waiting.clear()
        self.check()

    def act(self) -> None:
        """An officer does something to some incident; the model follows if it was allowed."""
        self.drain()
        listed = self.room.store.incidents()
        if not listed:
            return
        incident = self.dice.choice(listed)
        verb = self.dice.choice(("acknowledge", "dispatch", "resolve", "resolve", "release"))
        reason = "handled" if verb == "resolve" else None
        try:
            after = change_incident(
                self.room.store, incident.incident_id, officer_act(verb, "kim", self.room.clock, reason=reason)
            )
        except IncidentError:
            return
        mine = next(i for i in self.model.incidents[incident.name] if i.closed is None and incident.closed_us is None)
        mine.state = after.state
        mine.closed = self.room.clock.now() if verb == "resolve" else None
        self.check()

    def wait(self) -> None:
        self.drain()
        self.room.tick(self.dice.choice((0.5, 60, 1700, 1801, 40_000, 86_400)))
        for who in PEOPLE:
            self.model.lapse(who, self.room.clock.now())
        self.check()

    def restart(self) -> None:
        """Killed between two polls; begins at the stored positions, or is handed older ones."""
        self.room.reopen()
        if self.dice.random() < 0.5:
            for at, position in self.room.store.positions(self.stream.id).items():
                self.room.at[at] = self.dice.randint(0, position)

    def crash(self) -> None:
        """Killed after a commit, before its events were appended."""
        self.stream.crash = True
        try:
            self.room.drain(self.dice.choice((1, 1000)))
        except Crash:
            self.room.reopen()
        finally:
            self.stream.crash = False
        self.drain()

    def check(self) -> None:
        listed = self.room.store.incidents(limit=100_000)
        got = sorted((i.name, i.opened_us, i.state, i.occurrences, i.watchers) for i in listed)
        wanted = [(who, int(o.timestamp() * 1e6), s, n, w) for who, o, s, n, w in self.model.rows()]
        if got != wanted:
            raise Disagreement(f"{got} is not {wanted}")
        self.met |= {row[2] for row in got}
        still_open = [i.identity for i in listed if i.closed_us is None]
        assert len(still_open) == len(set(still_open))
        assert sum(i.occurrences for i in listed) == len(self.model.counted)

    def check_events(self) -> None:
        """Every incident was told of, and the last thing told is how it is."""
        self.room.tick(6)
        self.room.tick(1)
        last: dict[str, tuple[int, int, str]] = {}
        opened = set()
        for partition in range(PARTITIONS):
            for batch in self.stream.read("events.north", partition, 0):
                for value in batch.values:
                    record = msgspec.json.decode(value, type=EventRecord)
                    told = msgspec.json.decode(record.incident)
                    state = (told["version"], told["occurrences"], told["state"])
                    last[record.incident_id] = max(last.get(record.incident_id, state), state)
                    if record.kind == "opened":
                        opened.add(record.incident_id)
        listed = self.room.store.incidents(limit=100_000)
        assert last == {i.incident_id: (i.version, i.occurrences, i.state) for i in listed}
        assert opened == set(last)


def test_any_interleaving_counts_every_alert_once_in_one_incident_while_it_lasts(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    states: set[str] = set()
    for number in range(4):
        run = run_with(tmp_path / str(number), IncidentStore, seed=seed + number)
        states |= run.met
    assert {"new", "reopened", "resolved", "lapsed"} <= states, "the histories must meet what they are to prove"


class ForgetfulStore(IncidentStore):
    """Does not know which alerts it has counted."""

    def _seen(self, connection: Connection, keys: set[bytes], day: int) -> set[bytes]:
        del connection, keys, day
        return set()


class BlindStore(IncidentStore):
    """Does not see the incident that is there: as if another worker had opened it a moment ago."""

    def _current(self, connection: Connection, subjects: set[bytes]) -> dict[bytes, Incident]:
        del connection, subjects
        return {}


def opening(kind: type[IncidentStore]) -> Callable[[str, DispatchSettings], IncidentStore]:
    """Such a store, which does not wait for the disk: these crashes are of the process, not of the machine."""

    def opened(url: str, settings: DispatchSettings) -> IncidentStore:
        open_incidents(url, settings).close()
        return kind(careless(url), settings)

    return opened


def drop_keys(room: Room) -> None:
    """The same tables without what the database itself holds together."""
    engine = open_engine(room.url)
    with writing(engine) as connection:
        for table in ("incidents", "seen_alerts"):
            connection.execute(text(f"CREATE TABLE copied AS SELECT * FROM {table}"))  # noqa: S608
            connection.execute(text(f"DROP TABLE {table}"))
            connection.execute(text(f"ALTER TABLE copied RENAME TO {table}"))
    engine.dispose()


def run_with(
    folder: Path, kind: type[IncidentStore], prepare: Callable[[Room], None] = lambda _room: None, seed: int = 1
) -> Run:
    def prepared(room: Room) -> None:
        prepare(room)
        room.opener = opening(kind)
        room.reopen()

    run = Run(folder, seed, prepared)
    try:
        run.go()
    finally:
        run.room.store.close()
    return run


def test_the_checker_is_green_without_the_keys_as_long_as_one_worker_looks_before_it_writes(tmp_path: Path) -> None:
    run_with(tmp_path, IncidentStore, drop_keys)


def test_control_without_the_seen_alerts_the_checker_goes_red(tmp_path: Path) -> None:
    with pytest.raises(Disagreement):
        run_with(tmp_path, ForgetfulStore, drop_keys)


def test_control_without_the_unique_key_the_checker_goes_red(tmp_path: Path) -> None:
    with pytest.raises(Disagreement):
        run_with(tmp_path, BlindStore, drop_keys)


@pytest.mark.parametrize("kind", [ForgetfulStore, BlindStore])
def test_with_the_keys_the_database_refuses_what_such_a_worker_writes(
    tmp_path: Path, kind: type[IncidentStore]
) -> None:
    with pytest.raises(IntegrityError):
        run_with(tmp_path, kind)
