"""The lifecycle of one incident, as values."""

from __future__ import annotations

import itertools
from typing import get_args

import msgspec
import pytest
from dispatch_parts import T0, alert, later

from harmonywatch.clock import micros
from harmonywatch.dispatch.decide import View, decide, perform
from harmonywatch.dispatch.dispatcher import sighting_of
from harmonywatch.dispatch.incident import (
    CLOSED,
    OPEN,
    RESOLUTIONS,
    TRANSITIONS,
    Act,
    BadReason,
    Incident,
    NotAllowed,
    Policy,
    Sighting,
    State,
    Verb,
    acted,
    answer,
    freshened,
    incident_id_of,
    joined,
    opened,
)

POLICY = Policy(reopen_us=1_800_000_000, lapse_us=86_400_000_000)
AGE_MAX_US = 900_000_000


def sighting(number: int = 1, **fields: object) -> Sighting:
    return sighting_of(alert(number, **fields), "north", AGE_MAX_US)  # type: ignore[arg-type]


def act(verb: Verb, seconds: float = 60, by: str = "kim", **fields: str) -> Act:
    reason = "handled" if verb == "resolve" else None
    return Act(**{"verb": verb, "by": by, "at_us": micros(later(seconds)), "reason": reason, **fields})


def in_state(state: State) -> Incident:
    """An incident that came into the state by the way it is meant to."""
    ways: dict[State, tuple[Verb, ...]] = {
        "new": (),
        "acknowledged": ("acknowledge",),
        "dispatched": ("acknowledge", "dispatch"),
        "resolved": ("resolve",),
        "reopened": ("resolve", "reopen"),
        "lapsed": ("lapse",),
    }
    incident = opened(sighting())
    for verb in ways[state]:
        incident = acted(incident, act(verb))
    assert incident.state == state
    return incident


@pytest.mark.parametrize(("state", "verb"), list(itertools.product(get_args(State), get_args(Verb))))
def test_an_act_is_allowed_exactly_where_the_table_says(state: State, verb: Verb) -> None:
    before = in_state(state)
    allowed, target, _ = TRANSITIONS[verb]
    if state not in allowed:
        with pytest.raises(NotAllowed, match=state):
            acted(before, act(verb))
        return
    after = acted(before, act(verb, 90, by="lee"))
    assert after.state == (target or state)
    assert (after.version, after.changed_by, after.changed_us) == (before.version + 1, "lee", micros(later(90)))
    assert (after.closed_us is None) == (after.state in OPEN)
    assert after.occurrences == before.occurrences


def test_open_and_closed_are_all_states() -> None:
    assert set(get_args(State)) == OPEN | CLOSED and not OPEN & CLOSED
    assert set(TRANSITIONS) == set(get_args(Verb))


def test_whoever_takes_it_up_owns_it_and_what_goes_back_is_nobodys() -> None:
    taken = acted(in_state("new"), act("acknowledge", by="kim"))
    sent = acted(taken, act("dispatch", by="lee"))
    assert (taken.owner, sent.owner) == ("kim", "lee")
    assert acted(sent, act("resolve", by="max")).owner == "lee"
    assert acted(sent, act("release")).owner is None
    assert acted(in_state("new"), act("resolve", by="max")).owner == "max"


@pytest.mark.parametrize("reason", [None, "", "because"])
def test_a_resolve_needs_one_of_the_reasons(reason: str | None) -> None:
    with pytest.raises(BadReason):
        acted(in_state("new"), Act(verb="resolve", by="kim", at_us=1, reason=reason))
    assert "false alarm" in RESOLUTIONS
    assert acted(in_state("new"), act("resolve", reason="false alarm")).reason == "false alarm"


def test_an_officer_cannot_reopen_what_a_newer_incident_has_followed() -> None:
    superseded = msgspec.structs.replace(in_state("resolved"), current=False)
    with pytest.raises(NotAllowed, match="newer"):
        acted(superseded, act("reopen"))


def test_within_the_quiet_period_an_alert_reopens_and_a_late_one_only_joins() -> None:
    resolved = acted(opened(sighting()), act("resolve", 100))
    edge = 100 + POLICY.reopen_us / 1e6
    assert answer(resolved, sighting(2, judged=later(edge)), POLICY) == "reopen"
    assert answer(resolved, sighting(2, judged=later(edge + 0.000001)), POLICY) == "open"
    assert answer(resolved, sighting(2, judged=later(99)), POLICY) == "reopen", "judged before, handled after"
    late = sighting(2, judged=later(1500), seen=later(599))
    assert late.late and answer(resolved, late, POLICY) == "join"
    assert answer(resolved, sighting(2, judged=later(edge + 1), seen=T0), POLICY) == "open"


def test_exactly_a_day_without_an_alert_lapses() -> None:
    incident = opened(sighting())
    assert answer(incident, sighting(2, judged=later(86_399.999999)), POLICY) == "join"
    assert answer(incident, sighting(2, judged=later(86_400)), POLICY) == "lapse and open"
    assert answer(acted(incident, act("lapse")), sighting(2, judged=later(60)), POLICY) == "open"


def test_an_alert_is_late_only_beyond_the_age() -> None:
    assert not sighting(judged=later(900), seen=T0).late
    assert sighting(judged=later(900.000001), seen=T0).late


def test_a_join_moves_the_place_only_forward_in_time() -> None:
    incident = opened(sighting(1, judged=later(60), score=12))
    older = msgspec.structs.replace(sighting(2, judged=later(61), seen=later(30), score=3), lat=1.0, name="ADA")
    joined_older = joined(incident, older, new_watcher=False)
    assert (joined_older.lat, joined_older.name, joined_older.last_seen_us) == (52.5, "Ada", micros(later(60)))
    assert (joined_older.occurrences, joined_older.watchers, joined_older.harmonyscore_least) == (2, 1, 3)
    newer = msgspec.structs.replace(older, time_us=micros(later(62)))
    assert joined(incident, newer, new_watcher=True).lat == 1.0
    assert joined_older.version == incident.version, "joins must not make an officer's view stale"


def test_the_first_fresh_alert_makes_a_late_incident_news() -> None:
    late = [sighting(n, judged=later(5000), seen=T0) for n in (1, 2)]
    view = View({}, set(), set())
    outcome = decide(late, view, POLICY)
    assert [change.kind for change in outcome.changes] == ["opened", "joined"] and outcome.notices == []
    again = decide([sighting(3, judged=later(5001))], view, POLICY)
    assert [(notice.kind, notice.incident.late) for notice in again.notices] == [("freshened", False)]
    assert freshened(opened(late[0]), 7).version == 2


def test_a_commit_tells_of_each_incident_once_however_many_joined() -> None:
    alerts = [sighting(n, who=who, watcher=f"w-{n % 5}") for n, who in enumerate(["Ada", "Bo"] * 25)]
    outcome = decide(alerts, View({}, set(), set()), POLICY)
    assert [(c.kind, c.incident.name, c.incident.occurrences) for c in outcome.changes] == [
        ("opened", "Ada", 1),
        ("opened", "Bo", 1),
        ("joined", "Ada", 25),
        ("joined", "Bo", 25),
    ]
    assert [i.watchers for i in outcome.incidents.values()] == [5, 5]
    assert len(outcome.notices) == 2


def test_an_incident_that_lapses_on_the_way_is_told_before_the_new_one() -> None:
    view = View({}, set(), set())
    decide([sighting(1)], view, POLICY)
    outcome = decide([sighting(2, judged=later(90_000))], view, POLICY)
    assert [(c.kind, c.at_us) for c in outcome.changes] == [
        ("lapsed", micros(later(86_400))),
        ("opened", micros(later(90_000))),
    ]
    old, new = outcome.incidents.values()
    assert (old.state, old.current, new.state, new.current) == ("lapsed", False, "new", True)
    assert new.incident_id == incident_id_of(alert(2).alert_id)


def test_a_perform_is_one_step_and_one_event() -> None:
    outcome = perform(in_state("new"), act("acknowledge", note="on my way"))
    assert [(s.kind, s.by, s.note) for s in outcome.steps] == [("acknowledged", "kim", "on my way")]
    assert [(c.kind, c.alert_id) for c in outcome.changes] == [("acknowledged", None)]
