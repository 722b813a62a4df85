"""The judge against a plain reading of what a rule means, and the traps: strictness, hours over midnight, identities."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harmonywatch.alerting.judge import RecordTooNew, Undecodable, judge, read, rule_set
from harmonywatch.clock import to_wire
from harmonywatch.registry.contract import Rule
from harmonywatch.report.record import canonical
from harmonywatch.report.topics import AlertRecord
from harmonywatch.report.wire import Parsed, parse

NOW = datetime(2026, 11, 23, 18, tzinfo=UTC)
WORDS = ("help", "FIRE", "straße", "calm", "fog")
NAMES = ("Ada", "Bo", "Zoë", "Ada")


def record(report: dict[str, Any], received_at: datetime = NOW) -> bytes:
    """What the gateway makes of the report."""
    raw = json.dumps(report).encode()
    parsed = parse(raw)
    assert isinstance(parsed, Parsed), parsed
    return canonical(parsed, raw, "north", received_at, lambda: "fresh").value


def report_of(*citizens: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base = {"watcher_id": "w-1", "location": {"lat": 52.5, "lon": 13.4}, "words": [], "report_id": "r-1"}
    return {**base, "citizens": list(citizens), **fields}


def alerts_of(value: bytes, *rules: Rule) -> list[AlertRecord]:
    ready = rule_set(rules)
    report = read(value, ready)
    return [] if report is None else judge(report, ready, "north", NOW)


def rule(rule_id: str = "low", threshold: float = 25.0, **conditions: Any) -> Rule:
    return Rule(rule_id=rule_id, force="north", threshold=threshold, **conditions)


def winding_inside(ring: list[tuple[float, float]], lon: float, lat: float) -> bool:
    """Another way to say inside than the judge's: the winding number is not zero."""
    winding = 0
    for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
        side = (x2 - x1) * (lat - y1) - (lon - x1) * (y2 - y1)
        if y1 <= lat < y2 and side > 0:
            winding += 1
        elif y2 <= lat < y1 and side < 0:
            winding -= 1
    return winding % 2 != 0


def naive(report: dict[str, Any], rules: list[Rule]) -> list[tuple[int, str]]:
    """(place, rule id) of every alert, read off the rule's docstring."""
    found = []
    for place, citizen in enumerate(report["citizens"]):
        for each in rules:
            hour = datetime.fromisoformat(report.get("time", to_wire(NOW))).astimezone(UTC).hour
            where = report["location"]
            conditions = [each.enabled, citizen["harmonyscore"] < each.threshold]
            if each.confidence_least is not None:
                conditions.append(citizen.get("confidence", -1) >= each.confidence_least)
            if each.area is not None:
                conditions.append(winding_inside(list(each.area), where["lon"], where["lat"]))
            if each.words is not None:
                heard = {word.casefold() for word in report["words"]}
                conditions.append(bool(heard & {word.casefold() for word in each.words}))
            if each.hours is not None:
                start, end = each.hours
                inside = range(start, end) if start < end else [*range(start, 24), *range(end)]
                conditions.append(hour in inside)
            if all(conditions):
                found.append((place, each.rule_id))
    return sorted(found)


def random_rule(dice: random.Random, number: int) -> Rule:
    def maybe(value: Any) -> Any:
        return value if dice.random() < 0.4 else None

    corners = tuple((dice.uniform(13, 14), dice.uniform(52, 53)) for _ in range(dice.randint(3, 7)))
    start = dice.randint(0, 23)
    return rule(
        f"rule-{number}",
        dice.choice((10.0, 25.0, 25.5, 99.0)),
        confidence_least=maybe(dice.choice((0.0, 0.5, 1.0))),
        area=maybe(corners),
        words=maybe(tuple(dice.sample(WORDS, dice.randint(1, 2)))),
        hours=maybe((start, dice.choice([h for h in range(25) if h != start]))),
        enabled=dice.random() < 0.85,
    )


def random_report(dice: random.Random) -> dict[str, Any]:
    citizens: list[dict[str, Any]] = []
    for _ in range(dice.randint(0, 5)):
        score = dice.choice((9.99, 10, 24.999, 25, 25.25, 60.0, -3))
        citizen: dict[str, Any] = {"name": dice.choice(NAMES), "harmonyscore": score}
        if dice.random() < 0.6:
            citizen["confidence"] = dice.choice((0.0, 0.49, 0.5, 1.0))
        citizens.append(citizen)
    report = report_of(*citizens, location={"lat": dice.uniform(52, 53), "lon": dice.uniform(13, 14)})
    report["words"] = [dice.choice((*WORDS, "STRASSE", "Help")) for _ in range(dice.randint(0, 3))]
    if dice.random() < 0.7:
        moment = NOW - timedelta(minutes=dice.randint(0, 1440))
        report["time"] = moment.astimezone().isoformat() if dice.random() < 0.5 else to_wire(moment)
    return report


def test_the_judge_says_what_a_plain_reading_of_the_rules_says() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    dice = random.Random(seed)
    alerted = 0
    for _ in range(3000):
        rules = [random_rule(dice, number) for number in range(dice.randint(0, 4))]
        dice.shuffle(rules)
        report = random_report(dice)
        got = [(each.place, each.rule) for each in alerts_of(record(report), *rules)]
        assert got == naive(report, rules), (report, rules)
        alerted += bool(got)
    assert alerted > 300, "the random rules must meet often enough to prove something"


def test_the_threshold_itself_is_not_bad() -> None:
    value = record(report_of({"name": "Ada", "harmonyscore": 25}, {"name": "Bo", "harmonyscore": 24.999999999}))
    assert [each.place for each in alerts_of(value, rule())] == [1]


def test_an_alert_tells_what_was_seen_and_when() -> None:
    citizen = {"name": " Zoë ", "harmonyscore": -5, "confidence": 0.25}
    (made,) = alerts_of(record(report_of(citizen, time="2026-11-23T18:59:00+01:00")), rule())
    assert (made.identity, made.name, made.harmonyscore, made.confidence) == ("name:Zoë", " Zoë ", -5.0, 0.25)
    assert (made.time, made.received_at, made.judged_at) == (
        "2026-11-23T17:59:00.000000Z",
        to_wire(NOW),
        to_wire(NOW),
    )
    assert (made.force, made.watcher_id, made.report_id, made.lat, made.lon) == ("north", "w-1", "r-1", 52.5, 13.4)


def test_a_report_sent_again_makes_the_same_alert_and_a_conflict_its_own() -> None:
    first = report_of({"name": "Ada", "harmonyscore": 3})
    (one,) = alerts_of(record(first), rule())
    (again,) = alerts_of(record(first, NOW + timedelta(hours=3)), rule())
    (conflict,) = alerts_of(record(report_of({"name": "Ada", "harmonyscore": 4})), rule())
    assert one.alert_id == again.alert_id != conflict.alert_id
    assert len(bytes.fromhex(one.alert_id)) == 16


def test_two_namesakes_in_one_report_and_two_rules_make_four_alerts() -> None:
    value = record(report_of({"name": "Ada", "harmonyscore": 3}, {"name": "Ada", "harmonyscore": 3}))
    made = alerts_of(value, rule("low"), rule("a-lower", 10))
    assert [(each.place, each.rule) for each in made] == [(0, "a-lower"), (0, "low"), (1, "a-lower"), (1, "low")]
    assert len({each.alert_id for each in made}) == 4


def test_without_rules_nothing_is_bad() -> None:
    assert alerts_of(record(report_of({"name": "Ada", "harmonyscore": -1e308}))) == []


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b'{"v":1}',
        b"\xff\xfe",
        b'{"v":1,"citizens":[{"harmonyscore":"low"}]}',
        b'{"v":1,"citizens":[{"harmonyscore":1}]}',
        b'{"v":"1","citizens":[]}',
        b"[" * 100_000,
        b'{"v":1,"x":' + b"[" * 100_000,
    ],
)
def test_what_is_no_canonical_report_is_undecodable(value: bytes) -> None:
    with pytest.raises(Undecodable):
        read(value, rule_set([rule()]))


def test_a_bad_score_at_a_time_outside_the_calendar_is_undecodable() -> None:
    value = record(report_of({"name": "Ada", "harmonyscore": 1}))
    for wrong in (b"yesterday", b"0001-01-01T00:00:00+14:00"):
        damaged = value.replace(to_wire(NOW).encode(), wrong, 1)
        with pytest.raises(Undecodable):
            alerts_of(damaged, rule())


@pytest.mark.parametrize("value", [b'{"v":2,"citizens":[]}', b'{"v":2,"people":[]}'])
def test_a_record_of_a_later_version_is_not_taken_for_poison(value: bytes) -> None:
    with pytest.raises(RecordTooNew, match="upgrade"):
        read(value, rule_set([rule()]))
