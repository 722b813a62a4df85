"""How an incident is told: the one JSON form that the command line, the events, the webhooks and the console share."""

from __future__ import annotations

import msgspec

from harmonywatch.clock import to_wire
from harmonywatch.dispatch.decide import Change
from harmonywatch.dispatch.incident import Incident
from harmonywatch.registry.rows import moment
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import EventRecord, encode


class ToldIncident(msgspec.Struct, frozen=True, gc=False):
    """The incident of the command line's door, and more; times RFC 3339, null where there is none."""

    incident_id: str
    force: str
    name: str
    rule: str
    state: str
    occurrences: int
    watchers: int
    opened_at: str
    last_seen_at: str
    lat: float
    lon: float
    version: int
    owner: str | None
    late: bool
    reason: str | None
    harmonyscore_least: float
    identity: str
    last_alert_at: str
    closed_at: str | None
    changed_by: str
    changed_at: str


_ENCODER = msgspec.json.Encoder()


def told(incident: Incident) -> ToldIncident:
    return ToldIncident(
        incident.incident_id,
        incident.force,
        incident.name,
        incident.rule,
        incident.state,
        incident.occurrences,
        incident.watchers,
        wire(incident.opened_us),
        wire(incident.last_seen_us),
        incident.lat,
        incident.lon,
        incident.version,
        incident.owner,
        incident.late,
        incident.reason,
        incident.harmonyscore_least,
        incident.identity,
        wire(incident.last_alert_us),
        None if incident.closed_us is None else wire(incident.closed_us),
        incident.changed_by,
        wire(incident.changed_us),
    )


def told_json(incident: Incident) -> bytes:
    """One object, without a line break: what `incidents --json` prints and an event holds."""
    return _ENCODER.encode(told(incident))


def event_json(change: Change) -> bytes:
    """The EventRecord of a change, as it goes on `events.<force>`."""
    incident = change.incident
    return encode(
        EventRecord(
            v=VERSION,
            kind=change.kind,
            force=incident.force,
            incident_id=incident.incident_id,
            at=wire(change.at_us),
            incident=msgspec.Raw(told_json(incident)),
            alert_id=change.alert_id,
        )
    )


def wire(us: int) -> str:
    return to_wire(moment(us))
