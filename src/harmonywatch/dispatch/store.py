"""The state of incidents: SQLite (`incidents.db`) or PostgreSQL, the same tables. Every verb is one transaction.

`record` is the heart. For one poll of alerts, in one commit: 1. lock the positions; 2. read what the state holds of
these alerts; 3. decide (pure); 4. write incidents, occurrences, log, seen alerts, both outboxes and the new positions. A
crash anywhere leaves the poll done or not done. What was done is recognised twice over: by its position (records below
the stored one are skipped) and by the alert's id (the topic may repeat an alert).

Several workers: SQLite lets in one writer at a time (BEGIN IMMEDIATE). PostgreSQL runs them side by side at READ
COMMITTED, with explicit locks: first the rows of the positions, then those of the incidents (in the order of their
subjects, so that two polls wait for one another and do not deadlock), and only then is read what is decided upon: what is
read below a lock is what the one before us committed. Rows that do not exist yet cannot be locked (two firsts of one
subject, of one partition, of one alert): there the unique keys refuse the second one, which then begins again and sees the
first. SERIALIZABLE would promise the same without a thought, by making workers begin again whenever they touch one page of
a table: here, where all of them add rows at its end, that is nearly always, and officers' acts would suffer with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, bindparam, func, or_, select, tuple_
from sqlalchemy.exc import IntegrityError

from harmonywatch.dispatch.decide import Outcome, View, decide, lapse, perform
from harmonywatch.dispatch.incident import (
    Act,
    AmbiguousIncident,
    Incident,
    NoIncident,
    Policy,
    Sighting,
    StaleVersion,
    incident_id_of,
)
from harmonywatch.dispatch.migrations import INCIDENTS_HEAD, INCIDENTS_VERSION_TABLE, MIGRATIONS
from harmonywatch.dispatch.tables import (
    alert_positions,
    incident_events,
    incident_log,
    incident_occurrences,
    incidents,
    notifications,
)
from harmonywatch.dispatch.upkeep import DAY_US, Upkeep, running_day
from harmonywatch.dispatch.writing import (
    INCIDENT,
    ChannelIds,
    EventKey,
    PendingEvent,
    current_of,
    delete_events,
    incident_of,
    openers_among,
    run,
    seen_among,
    watchers_among,
    write_events,
    write_incidents,
    write_notices,
    write_outcome,
)
from harmonywatch.registry.contract import RegistryBusy
from harmonywatch.registry.engine import open_engine, reading, writing
from harmonywatch.registry.migrate import migrate
from harmonywatch.settings import DispatchSettings
from harmonywatch.stream.contract import StreamReset, TopicPartition

T = TypeVar("T")

RACES_MAX = 50
"""Times that a transaction begins again because another worker was first. Each time the other has made progress, so it is
as many as there are others at work on the same citizens: more than this is a bug, of ours or of a key."""

AHEAD_LEAST_S = 3_600.0
"""Nothing is due later than this, or twice the longest wait between two tries: what seems to be was written before the
clock was set back, and is due now."""

DAY_KEPT_US = 60_000_000
EVENT_HOLD_US = 5_000_000
"""The writer of an event publishes it within milliseconds; after this long somebody else does."""

LAPSE_MOST = 500
"""Incidents a tick closes: some milliseconds, so that no alert waits for the housekeeping."""


@dataclass(frozen=True, slots=True)
class Poll:
    """What a poll brought. `spans`: first and next position of each partition; `sightings`: with partition and offset.

    `published`: events known to be on the stream by now, to be taken out of the outbox on the way.
    """

    spans: Mapping[TopicPartition, tuple[int, int]]
    sightings: Sequence[tuple[TopicPartition, int, Sighting]]
    now_us: int
    channel_ids: ChannelIds
    published: Sequence[EventKey] = ()


@dataclass(slots=True)
class Recorded:
    """What a transaction did. `events` are the writer's to publish; `notified`: rows added for the channels."""

    outcome: Outcome = field(default_factory=Outcome)
    events: list[PendingEvent] = field(default_factory=list)
    notified: int = 0


@dataclass(frozen=True, slots=True)
class Notification:
    """A try of a channel that is due. `body`: an EventRecord's JSON."""

    serial: int
    force: str
    channel_id: str
    incident_id: str
    version: int
    alert_id: str
    received_us: int
    made_us: int
    tries: int
    body: bytes


def open_incidents(url: str, settings: DispatchSettings) -> IncidentStore:
    """The incidents at `url`, made or brought forward if need be. Raises SchemaTooNew, RegistryBusy, RegistryBroken."""
    engine = open_engine(url)
    try:
        migrate(engine, INCIDENTS_HEAD, MIGRATIONS, INCIDENTS_VERSION_TABLE)
    except BaseException:
        engine.dispose()
        raise
    return IncidentStore(engine, settings)


class IncidentStore:
    """Safe for several threads and processes. Every verb may raise RegistryBusy and RegistryBroken."""

    def __init__(self, engine: Engine, settings: DispatchSettings) -> None:
        self._engine = engine
        self._seen_days = math.ceil(settings.seen_s * 1e6 / DAY_US)
        self._running_day, self._day_read_us = 0, -(1 << 62)
        self._ahead_us = int(max(AHEAD_LEAST_S, 2 * settings.retry_most_s) * 1e6)
        self.upkeep = Upkeep(engine, settings)
        self._occurrences_max = settings.occurrences_max
        self.policy = Policy(int(settings.reopen_s * 1e6), int(settings.lapse_s * 1e6))

    def close(self) -> None:
        self._engine.dispose()

    # --- the dispatcher's verbs

    def positions(self, stream_id: str) -> dict[TopicPartition, int]:
        """Next to read of every partition of alerts. Raises StreamReset if they belong to another stream."""
        with reading(self._engine) as connection:
            return self._positions(connection, stream_id, None)

    def record(self, poll: Poll, stream_id: str) -> Recorded:
        """See the header. Raises StreamReset."""
        return self._racing(lambda connection: self._record(connection, poll, stream_id))

    def overdue_forces(self, now_us: int) -> set[str]:
        """Forces with an incident that was unseen for too long."""
        with reading(self._engine) as connection:
            return set(connection.execute(self._overdue(select(incidents.c.force), now_us).distinct()).scalars())

    def lapse(self, now_us: int, forces: Sequence[str]) -> Recorded:
        """Close incidents of these forces that were unseen for too long, the longest first, at most LAPSE_MOST."""
        c = incidents.c
        wanted = self._overdue(INCIDENT, now_us).where(c.force.in_(forces)).order_by(c.last_alert_us).limit(LAPSE_MOST)

        def close(connection: Connection) -> Recorded:
            rows = connection.execute(wanted.with_for_update(skip_locked=True)).all()
            recorded = Recorded(lapse([incident_of(row) for row in rows], now_us, self.policy))
            write_outcome(connection, recorded.outcome, self._day(connection, now_us), self._occurrences_max)
            recorded.events = write_events(connection, recorded.outcome.changes, now_us + EVENT_HOLD_US)
            return recorded

        return self._racing(close)

    def _overdue(self, of: Select[Any], now_us: int) -> Select[Any]:
        c = incidents.c
        return of.where(c.closed_us.is_(None), c.last_alert_us <= now_us - self.policy.lapse_us)

    def _due(self, outbox: Table, now_us: int) -> ColumnElement[bool]:
        return or_(outbox.c.due_us <= now_us, outbox.c.due_us > now_us + self._ahead_us)

    def pending_forces(self, now_us: int) -> set[str]:
        """Forces with events that anybody may publish by now."""
        with reading(self._engine) as connection:
            found = select(incident_events.c.force).where(self._due(incident_events, now_us)).distinct()
            return set(connection.execute(found).scalars())

    def pending_events(self, now_us: int, forces: Sequence[str], limit: int = 1000) -> list[PendingEvent]:
        """Events of these forces that anybody may publish by now: of officers, and of writers that did not come to it."""
        c = incident_events.c
        wanted = select(c.incident_id, c.version, c.occurrences, c.force, c.body)
        wanted = wanted.where(self._due(incident_events, now_us), c.force.in_(forces))
        with reading(self._engine) as connection:
            rows = connection.execute(
                wanted.order_by(c.due_us, c.incident_id, c.version, c.occurrences).limit(limit)
            ).all()
        return [PendingEvent(EventKey(row[0], row[1], row[2]), row[3], bytes(row[4])) for row in rows]

    def published(self, keys: Sequence[EventKey]) -> None:
        """These events are on the stream."""
        if keys:
            with writing(self._engine) as connection:
                delete_events(connection, keys)

    def _record(self, connection: Connection, poll: Poll, stream_id: str) -> Recorded:
        stored = self._positions(connection, stream_id, sorted(poll.spans))
        for at, (base, _) in poll.spans.items():
            assert base <= stored.get(at, base), f"{at}: records between {stored[at]} and {base} were never handled"
        sightings = [sighting for at, offset, sighting in poll.sightings if offset >= stored.get(at, 0)]
        day = self._day(connection, poll.now_us)
        outcome = decide(sightings, self._view(connection, sightings, day), self.policy)
        write_outcome(connection, outcome, day, self._occurrences_max)
        delete_events(connection, poll.published)
        events = write_events(connection, outcome.changes, poll.now_us + EVENT_HOLD_US)
        notified = write_notices(connection, outcome.notices, poll.channel_ids, poll.now_us)
        self._write_positions(connection, stored, {at: end for at, (_, end) in poll.spans.items()}, stream_id)
        return Recorded(outcome, events, notified)

    def _view(self, connection: Connection, sightings: Sequence[Sighting], day: int) -> View:
        """What the state holds of these alerts. One that opened an incident is known by that, however long ago.

        Incidents first: whoever holds one has counted its alert before we are let in, so then we see that."""
        current = self._current(connection, {sighting.subject for sighting in sightings})
        seen = self._seen(connection, {sighting.key for sighting in sightings}, day)
        unseen = [sighting for sighting in sightings if sighting.key not in seen]
        pairs = {(current[s.subject].incident_id, s.watcher_id) for s in unseen if s.subject in current}
        openers = openers_among(connection, sorted({incident_id_of(s.alert_id) for s in unseen}))
        seen.update(s.key for s in unseen if incident_id_of(s.alert_id) in openers)
        return View(current, seen, watchers_among(connection, pairs))

    def _seen(self, connection: Connection, keys: set[bytes], day: int) -> set[bytes]:
        return seen_among(connection, sorted(keys), list(range(day - self._seen_days, day + 2)))

    def _day(self, connection: Connection, now_us: int) -> int:
        """The day of running time, of at most DAY_KEPT_US ago: another worker may be in the next one already."""
        if abs(now_us - self._day_read_us) > DAY_KEPT_US:
            self._running_day, self._day_read_us = running_day(connection), now_us
        return self._running_day

    def _current(self, connection: Connection, subjects: set[bytes]) -> dict[bytes, Incident]:
        return current_of(connection, sorted(subjects))

    def _positions(
        self, connection: Connection, stream_id: str, ours: Sequence[TopicPartition] | None
    ) -> dict[TopicPartition, int]:
        """Of all partitions; or of `ours`, which are locked, and no others: those are other workers'."""
        c = alert_positions.c
        wanted = select(c.topic, c.partition, c.position, c.stream_id)
        if ours is not None:
            mine = wanted.where(tuple_(c.topic, c.partition).in_(ours))
            wanted = mine.order_by(c.topic, c.partition).with_for_update()
        rows = connection.execute(wanted).all()
        for row in rows:
            if row.stream_id != stream_id:
                raise StreamReset(row.stream_id, stream_id, f"the state of incidents ({row.topic})")
        return {TopicPartition(row.topic, row.partition): row.position for row in rows}

    def _write_positions(
        self,
        connection: Connection,
        stored: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        stream_id: str,
    ) -> None:
        """Never lowered."""
        c = alert_positions.c
        raised = alert_positions.update().where(c.topic == bindparam("t"), c.partition == bindparam("p"))
        risen = {at: end for at, end in ends.items() if at in stored and end > stored[at]}
        run(
            connection,
            raised.values(position=bindparam("position")),
            [{"t": at.topic, "p": at.partition, "position": end} for at, end in risen.items()],
        )
        first = {at: end for at, end in ends.items() if at not in stored}
        run(
            connection,
            alert_positions.insert(),
            [{**at._asdict(), "position": end, "stream_id": stream_id} for at, end in first.items()],
        )

    def _racing(self, work: Callable[[Connection], T]) -> T:
        for _ in range(RACES_MAX - 1):
            try:
                with writing(self._engine) as connection:
                    return work(connection)
            except IntegrityError:
                continue
            except RegistryBusy as error:
                if not _is_lost_race(error):
                    raise
        with writing(self._engine) as connection:
            return work(connection)

    # --- the officers' verbs

    def change(self, incident_id: str, act: Act, expected_version: int | None = None) -> Incident:
        """An officer's act on the incident whose id this is or begins. None: whatever its version is.

        Raises NoIncident, AmbiguousIncident, StaleVersion, NotAllowed, BadReason; then nothing was changed. The event
        is left to the dispatcher, who publishes it within a fraction of a second or when it runs again.
        """

        def perform_act(connection: Connection) -> Incident:
            before = _find(connection, incident_id, lock=True)
            if expected_version is not None and before.version != expected_version:
                raise StaleVersion(before, expected_version)
            outcome = perform(before, act)
            write_incidents(connection, outcome)
            write_events(connection, outcome.changes, due_us=0)
            return outcome.incidents[before.incident_id]

        return self._racing(perform_act)

    def incident(self, incident_id: str) -> Incident:
        """By its id or the beginning of it. Raises NoIncident, AmbiguousIncident."""
        with reading(self._engine) as connection:
            return _find(connection, incident_id)

    def incidents(
        self,
        force: str | None = None,
        since_us: int | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 1000,
    ) -> list[Incident]:
        """Incidents in the order they opened (then by id), of all states. `since_us`: those with an alert or a change
        from then on; `after`: (opened_us, incident_id) of the last one of the page before."""
        c = incidents.c
        wanted = _listed(force, since_us).order_by(_opened(since_us), c.incident_id).limit(limit)
        if after is not None:
            wanted = wanted.where(tuple_(c.opened_us, c.incident_id) > after)
        with reading(self._engine) as connection:
            return [incident_of(row) for row in connection.execute(wanted).all()]

    def newest_incidents(self, force: str | None, since_us: int | None, limit: int) -> list[Incident]:
        """The last ones of the same listing, in its order."""
        c = incidents.c
        wanted = _listed(force, since_us).order_by(_opened(since_us).desc(), c.incident_id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [incident_of(row) for row in reversed(connection.execute(wanted).all())]

    def log(self, incident_id: str) -> list[dict[str, Any]]:
        """Who did what, when and why: version, at_us, kind, state, by, note, reason; oldest first."""
        return self._rows_of(incident_log, incident_id, "version")

    def occurrences(self, incident_id: str) -> list[dict[str, Any]]:
        """The last alerts of the incident, oldest first; `alert_id` in hexadecimal digits."""
        rows = self._rows_of(incident_occurrences, incident_id, "number")
        return [{"alert_id": bytes(row.pop("alert")).hex(), **row} for row in rows]

    def counts(self) -> dict[tuple[str, str], int]:
        """How many incidents each (force, state) has."""
        c = incidents.c
        with reading(self._engine) as connection:
            rows = connection.execute(select(c.force, c.state, func.count()).group_by(c.force, c.state)).all()
        return {(row[0], row[1]): row[2] for row in rows}

    def _rows_of(self, table: Any, incident_id: str, order: str) -> list[dict[str, Any]]:
        wanted = select(table).where(table.c.incident_id == incident_id).order_by(table.c[order])
        with reading(self._engine) as connection:
            return [dict(row._mapping) for row in connection.execute(wanted).all()]

    # --- the notifier's verbs

    def claim(self, now_us: int, claim_us: int, busy: Sequence[str], limit: int = 100) -> list[Notification]:
        """Notifications that are due, for channels that are not busy; nobody else gets them for `claim_us`."""
        c = notifications.c
        names = Notification.__dataclass_fields__
        wanted = select(*(c[name] for name in names)).where(self._due(notifications, now_us), c.channel_id.not_in(busy))
        wanted = wanted.order_by(c.due_us, c.serial).limit(limit)
        with reading(self._engine) as connection:
            if not connection.execute(wanted.limit(1)).all():
                return []
        with writing(self._engine) as connection:
            rows = connection.execute(wanted.with_for_update(skip_locked=True)).all()
            ours = [{"of": row.serial, "due": now_us + claim_us} for row in rows]
            claimed = notifications.update().where(c.serial == bindparam("of")).values(due_us=bindparam("due"))
            run(connection, claimed, ours)
        return [Notification(*row) for row in rows]

    def next_due_us(self, busy: Sequence[str]) -> int | None:
        """When the next try of a channel that is not busy is due, None if nothing waits."""
        c = notifications.c
        with reading(self._engine) as connection:
            return connection.execute(select(func.min(c.due_us)).where(c.channel_id.not_in(busy))).scalar()

    def tried(self, done: Sequence[int], again: Mapping[int, int]) -> None:
        """`done`: serials that are through, one way or the other; `again`: serials with the time of their next try."""
        c = notifications.c
        if not done and not again:
            return
        with writing(self._engine) as connection:
            run(
                connection,
                notifications.delete().where(c.serial == bindparam("of")),
                [{"of": serial} for serial in done],
            )
            later = notifications.update().where(c.serial == bindparam("of"))
            rows = [{"of": serial, "due": due_us} for serial, due_us in again.items()]
            run(connection, later.values(due_us=bindparam("due"), tries=c.tries + 1), rows)


def _listed(force: str | None, since_us: int | None) -> Select[Any]:
    """Incidents of a force, or of all, with an alert or a change from then on.

    Since a moment it is few that are found by that and sorted afterwards: as plain columns, force and opened_us would
    invite the engine to walk one of their indexes instead, over everything that ever was."""
    c = incidents.c
    if since_us is None:
        return INCIDENT if force is None else INCIDENT.where(c.force == force)
    wanted = INCIDENT.where(or_(c.last_alert_us >= since_us, c.changed_us >= since_us))
    return wanted if force is None else wanted.where(c.force.concat("") == force)


def _opened(since_us: int | None) -> ColumnElement[int]:
    """What a listing is ordered by; see `_listed`."""
    return incidents.c.opened_us if since_us is None else incidents.c.opened_us + 0


def _is_lost_race(error: RegistryBusy) -> bool:
    """Two waited for one another, and the database chose us to give way."""
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) in ("40001", "40P01")


_PREFIX = re.compile("i[0-9a-f]{0,16}")


def _find(connection: Connection, incident_id: str, *, lock: bool = False) -> Incident:
    """By the whole id, else by its beginning. `lock`: until the transaction ends nobody else changes it."""
    c = incidents.c
    wanted = INCIDENT.with_for_update() if lock else INCIDENT
    rows = connection.execute(wanted.where(c.incident_id == incident_id)).all()
    if not rows and _PREFIX.fullmatch(incident_id):
        # "g" comes after every digit that an id has: a stretch of the key, where LIKE would read the whole table
        begins = wanted.where(c.incident_id > incident_id, c.incident_id < incident_id + "g")
        rows = connection.execute(begins.order_by(c.incident_id).limit(10)).all()
    if not rows:
        raise NoIncident(incident_id)
    if len(rows) > 1:
        raise AmbiguousIncident(incident_id, tuple(row.incident_id for row in rows))
    return incident_of(rows[0])
