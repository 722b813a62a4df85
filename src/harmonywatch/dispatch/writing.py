"""What an `Outcome` becomes in the tables: the statements, each run once for all of its rows. Called inside a
transaction that the store holds; nothing here begins or ends one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, Update, and_, bindparam, select

from harmonywatch.dispatch.decide import Change, Notice, Outcome
from harmonywatch.dispatch.incident import Incident, subject_of
from harmonywatch.dispatch.tables import (
    incident_events,
    incident_log,
    incident_occurrences,
    incident_watchers,
    incidents,
    notifications,
    seen_alerts,
)
from harmonywatch.dispatch.told import event_json

T = TypeVar("T")

PARTS = 500
"""Most values in one list of a statement: well below every engine's limit of parameters."""

FIELDS = tuple(name for name in Incident.__struct_fields__ if name != "current")
INCIDENT = select(*(incidents.c[name] for name in FIELDS), incidents.c.current_subject)

_FIXED = ("incident_id", "force", "identity", "rule", "opened_us")
_BY_JOINING = (
    "name",
    "occurrences",
    "watchers",
    "last_seen_us",
    "last_alert_us",
    "lat",
    "lon",
    "harmonyscore_least",
    "late",
)


def _update(*names: str) -> Update:
    of = incidents.update().where(incidents.c.incident_id == bindparam("of"))
    return of.values({name: bindparam(name) for name in names})


_UPDATE = _update(*(name for name in FIELDS if name not in _FIXED), "current_subject")
_JOIN = _update(*_BY_JOINING)
"""Names no column that another index is made of: what a statement names is written there again, changed or not."""
_TRIM = incident_occurrences.delete().where(
    and_(incident_occurrences.c.incident_id == bindparam("of"), incident_occurrences.c.number <= bindparam("upto"))
)
_FORGET_WATCHERS = incident_watchers.delete().where(incident_watchers.c.incident_id == bindparam("of"))
_PUBLISHED = incident_events.delete().where(
    and_(
        incident_events.c.incident_id == bindparam("of"),
        incident_events.c.version == bindparam("v"),
        incident_events.c.occurrences == bindparam("n"),
    )
)


class EventKey(NamedTuple):
    """What tells one event from all others: each raises the version or the occurrences of its incident."""

    incident_id: str
    version: int
    occurrences: int


class PendingEvent(msgspec.Struct, frozen=True, gc=False):
    """An event that is committed and not known to be on the stream; `body`: the EventRecord's bytes."""

    key: EventKey
    force: str
    body: bytes


ChannelIds = Callable[[str], Sequence[str]]
"""The enabled channels of a force."""


def parts(values: Iterable[T]) -> Iterator[list[T]]:
    """The values in lists short enough for one statement."""
    listed = list(values)
    for at in range(0, len(listed), PARTS):
        yield listed[at : at + PARTS]


def incident_of(row: Sequence[Any]) -> Incident:
    """From a row of INCIDENT."""
    fields = dict(zip(FIELDS, row, strict=False))
    fields["late"] = bool(fields["late"])
    return Incident(**fields, current=row[len(FIELDS)] is not None)


def _row(incident: Incident) -> dict[str, Any]:
    row = {name: getattr(incident, name) for name in FIELDS}
    subject = subject_of(incident.force, incident.identity, incident.rule) if incident.current else None
    return row | {"current_subject": subject}


def run(connection: Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """The statement for every row, or not at all."""
    if rows:
        connection.execute(statement, rows)


def write_outcome(connection: Connection, outcome: Outcome, day: int, occurrences_max: int) -> None:
    """Everything but the outboxes. `day`: of running time. Incidents that cease to be current go first: their subject is
    taken over."""
    write_incidents(connection, outcome)
    run(connection, seen_alerts.insert(), [{"day": day, "alert": key} for key in sorted(outcome.seen)])
    pairs = [{"incident_id": incident_id, "watcher_id": watcher_id} for incident_id, watcher_id in outcome.watchers]
    run(connection, incident_watchers.insert(), pairs)
    _write_occurrences(connection, outcome, occurrences_max)
    gone = [{"of": i.incident_id} for i in outcome.incidents.values() if not i.current or i.state == "lapsed"]
    run(connection, _FORGET_WATCHERS, gone)


def write_incidents(connection: Connection, outcome: Outcome) -> None:
    """The incidents themselves and their log. All write in one order, see `store`: those that give up their subject first,
    then by subject."""
    changed = sorted(outcome.incidents.values(), key=lambda i: (i.current, subject_of(i.force, i.identity, i.rule)))
    known = [incident for incident in changed if incident.incident_id not in outcome.new]
    stepped = {step.incident.incident_id for step in outcome.steps}
    joined = [i for i in known if i.current and i.incident_id not in stepped]
    others = [i for i in known if not i.current or i.incident_id in stepped]
    run(connection, _UPDATE, [_row(incident) | {"of": incident.incident_id} for incident in others])
    run(connection, _JOIN, [{n: getattr(i, n) for n in _BY_JOINING} | {"of": i.incident_id} for i in joined])
    run(connection, incidents.insert(), [_row(i) for i in changed if i.incident_id in outcome.new])
    log = [
        {
            "incident_id": step.incident.incident_id,
            "version": step.incident.version,
            "at_us": step.at_us,
            "kind": step.kind,
            "state": step.incident.state,
            "by": step.by,
            "note": step.note,
            "reason": step.reason,
        }
        for step in outcome.steps
    ]
    run(connection, incident_log.insert(), log)


def _write_occurrences(connection: Connection, outcome: Outcome, most: int) -> None:
    """Only those that will stay; then those of before that will not."""
    kept = [o for o in outcome.occurrences if o.number > outcome.incidents[o.incident_id].occurrences - most]
    rows = [
        {
            "incident_id": o.incident_id,
            "number": o.number,
            "alert": o.sighting.key,
            "watcher_id": o.sighting.watcher_id,
            "report_id": o.sighting.report_id,
            "place": o.sighting.place,
            "harmonyscore": o.sighting.harmonyscore,
            "lat": o.sighting.lat,
            "lon": o.sighting.lon,
            "time_us": o.sighting.time_us,
            "judged_us": o.sighting.judged_us,
            "late": o.sighting.late,
        }
        for o in kept
    ]
    run(connection, incident_occurrences.insert(), rows)
    grown = {o.incident_id: outcome.incidents[o.incident_id].occurrences - most for o in kept}
    run(connection, _TRIM, [{"of": of, "upto": upto} for of, upto in grown.items() if upto > 0])


def write_events(connection: Connection, changes: Sequence[Change], due_us: int) -> list[PendingEvent]:
    """Put the events into their outbox. `due_us`: from when on others than the writer may publish them."""
    pending = [
        PendingEvent(
            EventKey(c.incident.incident_id, c.incident.version, c.incident.occurrences),
            c.incident.force,
            event_json(c),
        )
        for c in changes
    ]
    rows = [{**e.key._asdict(), "force": e.force, "body": e.body, "due_us": due_us} for e in pending]
    run(connection, incident_events.insert(), rows)
    return pending


def delete_events(connection: Connection, keys: Sequence[EventKey]) -> None:
    run(connection, _PUBLISHED, [{"of": k.incident_id, "v": k.version, "n": k.occurrences} for k in keys])


def write_notices(connection: Connection, notices: Sequence[Notice], channel_ids: ChannelIds, now_us: int) -> int:
    """One row per notice and enabled channel of its force; how many."""
    rows = [
        {
            "force": n.incident.force,
            "channel_id": channel_id,
            "incident_id": n.incident.incident_id,
            "version": n.incident.version,
            "alert_id": n.sighting.alert_id,
            "received_us": n.sighting.received_us,
            "made_us": now_us,
            "due_us": now_us,
            "tries": 0,
            "body": event_json(Change(n.kind, n.incident, n.sighting.judged_us, n.sighting.alert_id)),
        }
        for n in notices
        for channel_id in channel_ids(n.incident.force)
    ]
    run(connection, notifications.insert(), rows)
    return len(rows)


def seen_among(connection: Connection, keys: Iterable[bytes], days: Sequence[int]) -> set[bytes]:
    found: set[bytes] = set()
    for some in parts(keys):
        wanted = select(seen_alerts.c.alert).where(seen_alerts.c.day.in_(days), seen_alerts.c.alert.in_(some))
        found.update(bytes(key) for key in connection.execute(wanted).scalars())
    return found


def current_of(connection: Connection, subjects: Iterable[bytes]) -> dict[bytes, Incident]:
    """By subject; locked until the transaction ends, in the order of the sorted `subjects`."""
    found: dict[bytes, Incident] = {}
    for some in parts(subjects):
        wanted = INCIDENT.where(incidents.c.current_subject.in_(some)).order_by(incidents.c.current_subject)
        for row in connection.execute(wanted.with_for_update()).all():
            found[bytes(row[len(FIELDS)])] = incident_of(row)
    return found


def watchers_among(connection: Connection, pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those pairs of (incident, watcher) that are known."""
    c = incident_watchers.c
    found: set[tuple[str, str]] = set()
    for some in parts(sorted(pairs)):
        ids, watchers = sorted({pair[0] for pair in some}), sorted({pair[1] for pair in some})
        wanted = select(c.incident_id, c.watcher_id).where(c.incident_id.in_(ids), c.watcher_id.in_(watchers))
        found.update((row[0], row[1]) for row in connection.execute(wanted).all())
    return found


def openers_among(connection: Connection, incident_ids: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for some in parts(incident_ids):
        found.update(
            connection.execute(select(incidents.c.incident_id).where(incidents.c.incident_id.in_(some))).scalars()
        )
    return found
