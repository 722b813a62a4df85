"""The incident: what an officer acts on, and everything that may become of it. Pure values, no clock, no disk.

The rules it keeps (design, decisions):

- One incident per (force, citizen, rule) while it lasts. That triple is its *subject*. Of a subject's incidents only the
  newest, the *current* one, can still change; so one incident at most is not closed.
- An alert joins the current incident if that is not closed. Within `reopen_s` of the resolve it joins and re-opens it,
  unless it is late: late ones join and leave it closed. An incident without an alert for `lapse_s` is closed as lapsed.
  Otherwise a new one opens. The times compared are the alerts' `judged_at`, never the moment of handling, so a replay
  after an outage decides as a dispatcher that had been alive.
- One that has been closed for days is history (`dispatch.upkeep`): it is not current any more, whatever came after it.
- An alert judged before the resolve but handled after it re-opens as well: a look too many costs less than a citizen
  too few.
- A *late* alert reports what was long past when it was judged (the force's `alert_age_max_s`, by `time`). It opens an incident
  that is flagged late and that nobody is notified of. The first alert in it that is not late makes it fresh.
- `version` counts what people decide on: opening, re-opening, every act, the loss of the flag. Joins do not count, or
  no officer could acknowledge an incident that fifty watchers see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import xxhash

State = Literal["new", "reopened", "acknowledged", "dispatched", "resolved", "lapsed"]
Verb = Literal["acknowledge", "dispatch", "release", "resolve", "reopen", "lapse", "note"]
Answer = Literal["open", "join", "reopen", "lapse and open"]

OPEN: frozenset[State] = frozenset({"new", "reopened", "acknowledged", "dispatched"})
CLOSED: frozenset[State] = frozenset({"resolved", "lapsed"})

TRANSITIONS: Mapping[Verb, tuple[frozenset[State], State | None, str]] = {
    "acknowledge": (frozenset({"new", "reopened"}), "acknowledged", "acknowledged"),
    "dispatch": (frozenset({"new", "reopened", "acknowledged"}), "dispatched", "dispatched"),
    "release": (frozenset({"acknowledged", "dispatched"}), "new", "released"),
    "resolve": (OPEN, "resolved", "resolved"),
    "reopen": (frozenset({"resolved"}), "reopened", "reopened"),
    "lapse": (OPEN, "lapsed", "lapsed"),
    "note": (OPEN | CLOSED, None, "noted"),
}
"""Every verb: the states it may be said in, the state it leads to (None: the same), the kind of event it makes."""

RESOLUTIONS = ("handled", "false alarm", "nobody found", "duplicate", "other")
"""Why an incident was resolved. `false alarm` is what a rule's author reads to mend the rule."""

DISPATCHER = "dispatcher"
"""Who acts where no officer does: opening, re-opening by an alert, lapsing."""


class IncidentError(Exception):
    """Anything that keeps an officer's act from happening. Nothing was changed."""


class NoIncident(IncidentError, LookupError):
    def __init__(self, incident_id: str) -> None:
        super().__init__(f"no incident {incident_id!r}")
        self.incident_id = incident_id


class AmbiguousIncident(IncidentError):
    def __init__(self, prefix: str, found: tuple[str, ...]) -> None:
        super().__init__(f"{prefix!r} begins more than one incident: {', '.join(found)}")
        self.prefix, self.found = prefix, found


class StaleVersion(IncidentError):
    """The officer decided on what they saw, and somebody was faster."""

    def __init__(self, incident: Incident, expected: int) -> None:
        super().__init__(
            f"incident {incident.incident_id} was changed by {incident.changed_by} meanwhile: it is {incident.state}, "
            f"version {incident.version}, not {expected}"
        )
        self.incident, self.expected = incident, expected


class NotAllowed(IncidentError):
    def __init__(self, incident: Incident, verb: str, reason: str = "") -> None:
        super().__init__(
            f"cannot {verb} incident {incident.incident_id}: {reason or f'it is {incident.state}'} "
            f"(last changed by {incident.changed_by})"
        )
        self.incident, self.verb = incident, verb


class BadReason(IncidentError):
    def __init__(self, reason: str | None) -> None:
        super().__init__(f"a resolve needs a reason out of {', '.join(RESOLUTIONS)}; not {reason!r}")
        self.reason = reason


class Incident(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Times in microseconds since 1970, place in degrees: those of the newest sighting by `time` (`last_seen_us`).

    `opened_us`, `last_alert_us`: when its first and newest alert were judged. `watchers`: how many distinct ones.
    `owner`: the officer who has it. `late`: every alert in it was. `current`: see the header. `changed_by`, `changed_us`:
    the last change of `version`.
    """

    incident_id: str
    force: str
    identity: str
    name: str
    rule: str
    state: State
    occurrences: int
    watchers: int
    opened_us: int
    last_seen_us: int
    last_alert_us: int
    lat: float
    lon: float
    harmonyscore_least: float
    version: int
    late: bool
    owner: str | None
    reason: str | None
    closed_us: int | None
    changed_by: str
    changed_us: int
    current: bool


class Sighting(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An alert as incidents see it. `key`: its id as 16 bytes; `subject`: see `subject_of`; `late`: see the header."""

    key: bytes
    alert_id: str
    subject: bytes
    force: str
    identity: str
    rule: str
    name: str
    watcher_id: str
    report_id: str
    place: int
    harmonyscore: float
    lat: float
    lon: float
    time_us: int
    received_us: int
    judged_us: int
    late: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things last, microseconds."""

    reopen_us: int
    lapse_us: int


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Something an officer (or the dispatcher) does to an incident. `reason`: of a resolve, one of RESOLUTIONS."""

    verb: Verb
    by: str
    at_us: int
    note: str = ""
    reason: str | None = None


def subject_of(force: str, identity: str, rule: str) -> bytes:
    """16 bytes for (force, citizen, rule): what a unique key of the database is made of, whatever the names' length."""
    return xxhash.xxh3_128_digest(msgspec.json.encode((force, identity, rule)))


def incident_id_of(alert_id: str) -> str:
    """An incident is called after the alert that opened it, so that the same alert can never open two."""
    return "i" + alert_id[:16]


def answer(current: Incident | None, sighting: Sighting, policy: Policy) -> Answer:
    """What an alert does to its subject's current incident."""
    if current is None or current.state == "lapsed":
        return "open"
    if current.state == "resolved":
        assert current.closed_us is not None
        if sighting.judged_us > current.closed_us + policy.reopen_us:
            return "open"
        return "join" if sighting.late else "reopen"
    return "lapse and open" if sighting.judged_us >= current.last_alert_us + policy.lapse_us else "join"


def opened(sighting: Sighting) -> Incident:
    """A new incident, with its first occurrence."""
    return Incident(
        incident_id=incident_id_of(sighting.alert_id),
        force=sighting.force,
        identity=sighting.identity,
        name=sighting.name,
        rule=sighting.rule,
        state="new",
        occurrences=1,
        watchers=1,
        opened_us=sighting.judged_us,
        last_seen_us=sighting.time_us,
        last_alert_us=sighting.judged_us,
        lat=sighting.lat,
        lon=sighting.lon,
        harmonyscore_least=sighting.harmonyscore,
        version=1,
        late=sighting.late,
        owner=None,
        reason=None,
        closed_us=None,
        changed_by=DISPATCHER,
        changed_us=sighting.judged_us,
        current=True,
    )


def joined(incident: Incident, sighting: Sighting, *, new_watcher: bool) -> Incident:
    """One occurrence more. Only the count, what was seen last and `late` can change; see `freshened` for the latter."""
    newest = sighting.time_us >= incident.last_seen_us
    return msgspec.structs.replace(
        incident,
        occurrences=incident.occurrences + 1,
        watchers=incident.watchers + new_watcher,
        last_alert_us=max(incident.last_alert_us, sighting.judged_us),
        last_seen_us=max(incident.last_seen_us, sighting.time_us),
        lat=sighting.lat if newest else incident.lat,
        lon=sighting.lon if newest else incident.lon,
        name=sighting.name if newest else incident.name,
        harmonyscore_least=min(incident.harmonyscore_least, sighting.harmonyscore),
    )


def freshened(incident: Incident, at_us: int) -> Incident:
    """The first alert that is not late came: now it is news."""
    return msgspec.structs.replace(
        incident, late=False, version=incident.version + 1, changed_by=DISPATCHER, changed_us=at_us
    )


def acted(incident: Incident, act: Act) -> Incident:
    """The incident after the act. Raises NotAllowed, BadReason."""
    allowed, target, _ = TRANSITIONS[act.verb]
    if incident.state not in allowed:
        raise NotAllowed(incident, act.verb)
    if act.verb == "reopen" and not incident.current:
        raise NotAllowed(incident, act.verb, "it is history: a newer one has opened since, or it closed days ago")
    if act.verb == "resolve" and act.reason not in RESOLUTIONS:
        raise BadReason(act.reason)
    state = target or incident.state
    closes = state in CLOSED
    return msgspec.structs.replace(
        incident,
        state=state,
        version=incident.version + 1,
        owner=_owner(incident, act),
        reason=(act.reason if act.verb == "resolve" else incident.reason) if closes else None,
        closed_us=(incident.closed_us or act.at_us) if closes else None,
        last_alert_us=max(incident.last_alert_us, act.at_us) if act.verb == "reopen" else incident.last_alert_us,
        changed_by=act.by,
        changed_us=act.at_us,
    )


def _owner(incident: Incident, act: Act) -> str | None:
    """Whoever takes it up owns it; what goes back to the queue is nobody's."""
    if act.verb in ("acknowledge", "dispatch"):
        return act.by
    if act.verb in ("release", "reopen"):
        return None
    if act.verb == "resolve":
        return incident.owner or act.by
    return incident.owner
