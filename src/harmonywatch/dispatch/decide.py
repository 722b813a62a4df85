"""A poll's alerts against what the state holds of them: what becomes of each incident. Pure; the store reads and writes.

One pass over the alerts in order. Each is counted at most once: an alert whose id was seen is a repeat, whatever brought
it. Joins of one commit are told as one event per incident, carrying the newest state: live screens want the count, not
fifty messages that overtake each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from harmonywatch.dispatch.incident import (
    DISPATCHER,
    TRANSITIONS,
    Act,
    Incident,
    Policy,
    Sighting,
    acted,
    answer,
    freshened,
    incident_id_of,
    joined,
    opened,
)


class Occurrence(msgspec.Struct, frozen=True, gc=False):
    """An alert in its incident; `number` counts from 1 within it."""

    incident_id: str
    number: int
    sighting: Sighting


class Step(msgspec.Struct, frozen=True, gc=False):
    """A change of `version`: one line of the incident's log, and an event."""

    incident: Incident
    kind: str
    by: str
    at_us: int
    note: str = ""
    reason: str | None = None


class Change(msgspec.Struct, frozen=True, gc=False):
    """An event as it will be told. `alert_id`: the occurrence that did it, if one did."""

    kind: str
    incident: Incident
    at_us: int
    alert_id: str | None


class Notice(msgspec.Struct, frozen=True, gc=False):
    """Something to tell the force's channels: a fresh incident, or one that is fresh again."""

    kind: str
    incident: Incident
    sighting: Sighting


@dataclass(frozen=True, slots=True)
class View:
    """What the state holds of a poll's alerts. `current`: by subject; `seen`: keys; `watchers`: (incident, watcher)."""

    current: dict[bytes, Incident]
    seen: set[bytes]
    watchers: set[tuple[str, str]]


@dataclass(slots=True)
class Outcome:
    """What to write, and what to tell once it is written. `incidents`: the last state of each changed one."""

    incidents: dict[str, Incident] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    occurrences: list[Occurrence] = field(default_factory=list)
    watchers: list[tuple[str, str]] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    repeated: list[Sighting] = field(default_factory=list)


def decide(sightings: Sequence[Sighting], view: View, policy: Policy) -> Outcome:
    """What the alerts do, in order. `view` is used up: it follows the decisions as they are made."""
    outcome = Outcome()
    last_join: dict[str, int] = {}
    for sighting in sightings:
        if sighting.key in view.seen or incident_id_of(sighting.alert_id) in outcome.new:
            outcome.repeated.append(sighting)
            continue
        view.seen.add(sighting.key)
        outcome.seen.append(sighting.key)
        _meet(sighting, view, policy, outcome, last_join)
    return outcome


def _meet(sighting: Sighting, view: View, policy: Policy, outcome: Outcome, last_join: dict[str, int]) -> None:
    current = view.current.get(sighting.subject)
    reply = answer(current, sighting, policy)
    if current is None or reply in ("open", "lapse and open"):
        if current is not None:
            _supersede(current, policy, outcome)
        incident = opened(sighting)
        outcome.new.add(incident.incident_id)
        _watch(incident.incident_id, sighting, view, outcome)
        _tell(outcome, incident, "opened", sighting)
    else:
        incident = joined(current, sighting, new_watcher=_watch(current.incident_id, sighting, view, outcome))
        kind = "joined"
        if incident.late and not sighting.late and reply == "join":
            incident, kind = freshened(incident, sighting.judged_us), "freshened"
        elif reply == "reopen":
            act = Act(verb="reopen", by=DISPATCHER, at_us=sighting.judged_us)
            incident, kind = msgspec.structs.replace(acted(incident, act), late=False), "reopened"
        if kind == "joined":
            _tell_join(outcome, incident, sighting, last_join)
        else:
            _tell(outcome, incident, kind, sighting)
            last_join.pop(incident.incident_id, None)
    view.current[sighting.subject] = outcome.incidents[incident.incident_id] = incident
    outcome.occurrences.append(Occurrence(incident.incident_id, incident.occurrences, sighting))


def _supersede(current: Incident, policy: Policy, outcome: Outcome) -> None:
    """A new one opens: the old one, lapsed by now if it was open, is current no longer."""
    if current.closed_us is None:
        current = _lapse(current, policy, outcome)
    outcome.incidents[current.incident_id] = msgspec.structs.replace(current, current=False)


def _lapse(incident: Incident, policy: Policy, outcome: Outcome) -> Incident:
    at_us = incident.last_alert_us + policy.lapse_us
    lapsed = acted(incident, Act(verb="lapse", by=DISPATCHER, at_us=at_us))
    outcome.incidents[lapsed.incident_id] = lapsed
    outcome.steps.append(Step(lapsed, "lapsed", DISPATCHER, at_us))
    outcome.changes.append(Change("lapsed", lapsed, at_us, None))
    return lapsed


def lapse(incidents: Sequence[Incident], now_us: int, policy: Policy) -> Outcome:
    """Close those that no alert has joined for too long."""
    outcome = Outcome()
    for incident in incidents:
        if incident.closed_us is None and incident.last_alert_us + policy.lapse_us <= now_us:
            _lapse(incident, policy, outcome)
    return outcome


def perform(incident: Incident, act: Act) -> Outcome:
    """What an officer's act makes of an incident. Raises NotAllowed, BadReason."""
    after = acted(incident, act)
    kind = TRANSITIONS[act.verb][2]
    outcome = Outcome(incidents={after.incident_id: after})
    outcome.steps.append(Step(after, kind, act.by, act.at_us, act.note, act.reason))
    outcome.changes.append(Change(kind, after, act.at_us, None))
    return outcome


def _watch(incident_id: str, sighting: Sighting, view: View, outcome: Outcome) -> bool:
    pair = (incident_id, sighting.watcher_id)
    if pair in view.watchers:
        return False
    view.watchers.add(pair)
    outcome.watchers.append(pair)
    return True


def _tell(outcome: Outcome, incident: Incident, kind: str, sighting: Sighting) -> None:
    outcome.steps.append(Step(incident, kind, DISPATCHER, sighting.judged_us))
    outcome.changes.append(Change(kind, incident, sighting.judged_us, sighting.alert_id))
    if not sighting.late:
        outcome.notices.append(Notice(kind, incident, sighting))


def _tell_join(outcome: Outcome, incident: Incident, sighting: Sighting, last_join: dict[str, int]) -> None:
    change = Change("joined", incident, sighting.judged_us, sighting.alert_id)
    at = last_join.get(incident.incident_id)
    if at is None:
        last_join[incident.incident_id] = len(outcome.changes)
        outcome.changes.append(change)
    else:
        outcome.changes[at] = change
