"""Rules applied to one report: which scores are bad, and so which alerts it makes. Pure; live alerting and back-tests
share it.

The rules it keeps:

- A score is bad when it is strictly below the rule's threshold and every condition of the rule that is set holds
  (`registry.contract.Rule` says what each means). Alerts come in the order of (place in the report, rule id).
- Only what the rules need is decoded. `glimpse` decodes nothing but the scores: fewer than one report in a hundred goes
  further. Words, the bulk of a report, are decoded only for a force one of whose rules asks for them.
- A point on the edge of an area counts as inside on its western and southern edges, so that of two areas that share an
  edge exactly one holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

from harmonywatch.clock import to_wire
from harmonywatch.registry.contract import Rule
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import AlertRecord
from harmonywatch.report.words import identity_of

Moment = Annotated[datetime, Meta(tz=True)]
Ring = tuple[tuple[float, float], ...]


class Undecodable(Exception):
    """The record is not a canonical report. The archiver isolates it into the rejects; here it only makes no alert."""


class RecordTooNew(Exception):
    """The operator must upgrade: a record of a greater version may mean something else by the same words."""

    def __init__(self, version: int) -> None:
        super().__init__(f"a record of version {version}; this harmonywatch reads up to {VERSION}: upgrade it")
        self.version = version


class Score(msgspec.Struct, gc=False):
    """All that most citizens are ever asked for."""

    harmonyscore: float


class Glimpse(msgspec.Struct, gc=False):
    """Enough of a report to pass it by."""

    v: int
    citizens: list[Score]


class SeenCitizen(msgspec.Struct, gc=False):
    """A citizen as rules see it."""

    name: str
    harmonyscore: float
    citizen_id: str | None = None
    confidence: float | None = None


class SeenReport(msgspec.Struct, gc=False):
    """A canonical report as rules see it, without words; degrees, aware times."""

    report_id: str
    watcher_id: str
    lat: Annotated[float, Meta(ge=-90, le=90)]
    lon: Annotated[float, Meta(ge=-180, le=180)]
    citizens: list[SeenCitizen]
    time: Moment
    received_at: Moment
    content: int
    clock_suspect: bool = False


class HeardReport(SeenReport, kw_only=True, gc=False):
    """The same with the words."""

    words: list[str]


class _Version(msgspec.Struct, gc=False):
    v: int


_GLIMPSE = msgspec.json.Decoder(Glimpse)
_SEEN = msgspec.json.Decoder(SeenReport)
_HEARD = msgspec.json.Decoder(HeardReport)
_VERSION = msgspec.json.Decoder(_Version)


@dataclass(frozen=True, slots=True)
class ReadyRule:
    """A rule made ready for many reports: words casefolded, the area's box beside its ring."""

    rule_id: str
    threshold: float
    confidence_least: float | None
    ring: Ring | None
    box: tuple[float, float, float, float] | None
    words: frozenset[str] | None
    hours: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The enabled rules of one force, by rule id. `highest`: no score at or above it is bad for any of them."""

    rules: tuple[ReadyRule, ...]
    highest: float
    needs_words: bool


def rule_set(rules: Sequence[Rule]) -> RuleSet:
    """Make a force's rules ready; disabled ones are left out."""
    ready = tuple(_ready(rule) for rule in sorted(rules, key=lambda rule: rule.rule_id) if rule.enabled)
    highest = max((rule.threshold for rule in ready), default=float("-inf"))
    return RuleSet(ready, highest, any(rule.words is not None for rule in ready))


def _ready(rule: Rule) -> ReadyRule:
    box = None
    if rule.area is not None:
        lons, lats = [lon for lon, _ in rule.area], [lat for _, lat in rule.area]
        box = (min(lons), min(lats), max(lons), max(lats))
    words = None if rule.words is None else frozenset(word.casefold() for word in rule.words)
    return ReadyRule(rule.rule_id, rule.threshold, rule.confidence_least, rule.area, box, words, rule.hours)


def read(value: bytes, rules: RuleSet) -> SeenReport | None:
    """The report, or None where no score is below any threshold. Raises Undecodable, RecordTooNew."""
    try:
        glimpse = _GLIMPSE.decode(value)
        if glimpse.v > VERSION:
            raise RecordTooNew(glimpse.v)
        highest = rules.highest
        for citizen in glimpse.citizens:
            if citizen.harmonyscore < highest:
                return (_HEARD if rules.needs_words else _SEEN).decode(value)
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _fault(value) from error


def _fault(value: bytes) -> Exception:
    """A form we cannot read may be of a version that we do not know: then it is no poison."""
    try:
        version = _VERSION.decode(value).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Undecodable("not a canonical report")
    return RecordTooNew(version) if version > VERSION else Undecodable("not a canonical report")


def judge(report: SeenReport, rules: RuleSet, force: str, judged_at: datetime) -> list[AlertRecord]:
    """The alerts that a report makes under the rules of `force`, in the order of (place, rule id).

    A report without words (`SeenReport`) meets no rule that asks for words. Raises Undecodable where a time is outside
    the calendar once in UTC.
    """
    holds: dict[str, bool] = {}
    alerts: list[AlertRecord] = []
    for place, citizen in enumerate(report.citizens):
        if citizen.harmonyscore >= rules.highest:
            continue
        for rule in rules.rules:
            if citizen.harmonyscore < rule.threshold and _is_sure(rule, citizen.confidence):
                if rule.rule_id not in holds:
                    holds[rule.rule_id] = _holds(rule, report)
                if holds[rule.rule_id]:
                    alerts.append(_alert(report, place, rule.rule_id, force, judged_at))
    return alerts


def _is_sure(rule: ReadyRule, confidence: float | None) -> bool:
    least = rule.confidence_least
    return least is None or (confidence is not None and confidence >= least)


def _holds(rule: ReadyRule, report: SeenReport) -> bool:
    """The conditions that ask about the whole report."""
    if rule.hours is not None and not _in_hours(rule.hours, _utc(report.time).hour):
        return False
    if rule.box is not None and rule.ring is not None:
        west, south, east, north = rule.box
        inside_box = west <= report.lon <= east and south <= report.lat <= north
        if not inside_box or not _in_ring(rule.ring, report.lon, report.lat):
            return False
    if rule.words is not None:
        heard = report.words if isinstance(report, HeardReport) else ()
        return any(word.casefold() in rule.words for word in heard)
    return True


def _in_hours(hours: tuple[int, int], hour: int) -> bool:
    start, end = hours
    return start <= hour < end if start < end else hour >= start or hour < end


def _in_ring(ring: Ring, lon: float, lat: float) -> bool:
    """Ray casting to the east: inside where the ray crosses the ring an odd number of times."""
    inside = False
    lon_before, lat_before = ring[-1]
    for lon_here, lat_here in ring:
        if (lat_here > lat) != (lat_before > lat) and lon < (lon_before - lon_here) * (lat - lat_here) / (
            lat_before - lat_here
        ) + lon_here:
            inside = not inside
        lon_before, lat_before = lon_here, lat_here
    return inside


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise Undecodable("a time outside the calendar") from None


def _alert(report: SeenReport, place: int, rule_id: str, force: str, judged_at: datetime) -> AlertRecord:
    citizen = report.citizens[place]
    return AlertRecord(
        v=VERSION,
        alert_id=alert_id(force, report, place, rule_id),
        force=force,
        rule=rule_id,
        report_id=report.report_id,
        watcher_id=report.watcher_id,
        place=place,
        identity=identity_of(citizen.name, citizen.citizen_id),
        name=citizen.name,
        harmonyscore=citizen.harmonyscore,
        lat=report.lat,
        lon=report.lon,
        time=to_wire(_utc(report.time)),
        received_at=to_wire(_utc(report.received_at)),
        judged_at=to_wire(judged_at),
        citizen_id=citizen.citizen_id,
        confidence=citizen.confidence,
        clock_suspect=report.clock_suspect,
    )


def alert_id(force: str, report: SeenReport, place: int, rule_id: str) -> str:
    """128 bits of xxh3 over (force, watcher_id, report_id, content, place, rule id), 32 hexadecimal digits.

    So a replay of the stream and a report sent again make the same alert, and two namesakes in one report make two. The
    hash of the content is in it because a report with the id of another but other content (a conflict) is a second
    report, judged and kept: without it, the second one's alert would be dropped as a repeat of the first's. Written as
    JSON before hashing, so that no two lists of parts can run into the same bytes.
    """
    parts = (force, report.watcher_id, report.report_id, report.content, place, rule_id)
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts))
