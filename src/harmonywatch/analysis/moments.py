"""What a constant expression of SQL means as time, or None: the ground on which days are pruned. Pure.

A constant becomes a `Span`: the true value lies within it, ends included. Spans are wider than a point where the value
is not known exactly (`now()` is read later, by another process; months differ in length). Whatever is not surely
understood is None, and then nothing is pruned. Session time is UTC, so a timestamp without a zone is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from sqlglot import exp

DAY = timedelta(days=1)
CLOCK_BACK = timedelta(minutes=1)
CLOCK_AHEAD = timedelta(hours=1)
"""`now()` is evaluated between a minute before planning (a clock set back) and an hour after (the longest deadline)."""

LITERAL = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(Z|[+-]\d\d(?::?\d\d)?)?)?"
)  # fmt: skip

UNITS: dict[str, tuple[timedelta, timedelta]] = {
    "MICROSECOND": (timedelta(microseconds=1), timedelta(microseconds=1)),
    "MILLISECOND": (timedelta(milliseconds=1), timedelta(milliseconds=1)),
    "SECOND": (timedelta(seconds=1), timedelta(seconds=1)),
    "MINUTE": (timedelta(minutes=1), timedelta(minutes=1)),
    "HOUR": (timedelta(hours=1), timedelta(hours=1)),
    "DAY": (DAY, DAY),
    "WEEK": (7 * DAY, 7 * DAY),
    "MONTH": (28 * DAY, 31 * DAY),
    "QUARTER": (90 * DAY, 92 * DAY),
    "YEAR": (365 * DAY, 366 * DAY),
}
"""Shortest and longest length of each unit."""

MOMENT_TYPES = {exp.DataType.Type.TIMESTAMP, exp.DataType.Type.TIMESTAMPNTZ, exp.DataType.Type.TIMESTAMPTZ}

NOW_NAMES = {"now", "transaction_timestamp", "get_current_timestamp", "current_localtimestamp"}

Value = str | int | float | bool | datetime | date | None
"""What a parameter may be."""


@dataclass(frozen=True, slots=True)
class Span:
    """lo <= value <= hi, naive UTC; `is_date`: the value is a DATE, to which whole days may be added."""

    lo: datetime
    hi: datetime
    is_date: bool = False


@dataclass(frozen=True, slots=True)
class Length:
    """lo <= value <= hi, of an interval."""

    lo: timedelta
    hi: timedelta


@dataclass(frozen=True, slots=True)
class Given:
    """What is known when planning: the time, and the parameters by name. `exact`: `now()` is this very moment."""

    now: datetime
    parameters: Mapping[str, Value] = field(default_factory=dict)
    exact: bool = False


def span_of(node: exp.Expr, given: Given) -> Span | None:
    """The moment that `node` means, or None. Never raises on account of the query."""
    try:
        found = _value(node, given)
    except (OverflowError, ValueError):
        return None
    return found if isinstance(found, Span) else None


def unit_name(text: str) -> str:
    """`days` -> `DAY`."""
    name = text.strip().upper()
    return name[:-1] if name.endswith("S") and name[:-1] in UNITS else name


def _value(node: exp.Expr, given: Given) -> Span | Length | int | None:
    if isinstance(node, exp.Paren):
        return _value(node.this, given)
    if isinstance(node, exp.Literal):
        return _text(node.name) if node.is_string else _integer(node.name)
    if isinstance(node, exp.Neg):
        inner = _value(node.this, given)
        return -inner if isinstance(inner, int) else None
    if isinstance(node, exp.Cast):
        return _cast(node, given)
    if isinstance(node, exp.Interval):
        return _interval(node, given)
    if isinstance(node, exp.Add | exp.Sub):
        return _sum(node, given)
    if isinstance(node, exp.Placeholder | exp.Parameter):
        return _parameter(node, given)
    if isinstance(node, exp.TimestampTrunc | exp.DateTrunc):
        return _truncated(node, given)
    return _now(node, given)


def _integer(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 7 else None


def _text(text: str) -> Span | None:
    match = LITERAL.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, zone = match.groups()
    stated = datetime.fromisoformat(f"{day}T{clock or '00:00'}")
    if zone in (None, "Z"):
        return Span(stated, stated)
    # Whether an offset counts depends on the type that the text is cast to: both readings lie within.
    meant = datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(UTC).replace(tzinfo=None)
    return Span(min(stated, meant), max(stated, meant))


def _cast(node: exp.Cast, given: Given) -> Span | None:
    kind = node.to.this
    inner = _value(node.this, given)
    if not isinstance(inner, Span):
        return None
    if kind == exp.DataType.Type.DATE:
        return Span(_midnight(inner.lo), _midnight(inner.hi), is_date=True)
    return Span(inner.lo, inner.hi) if kind in MOMENT_TYPES else None


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _interval(node: exp.Interval, given: Given) -> Length | None:
    unit = node.args.get("unit")
    if not isinstance(unit, exp.Var) or node.this is None:
        return None
    count: object = None
    if isinstance(node.this, exp.Literal) and node.this.is_string:
        count = int(node.this.name) if re.fullmatch(r"-?\d{1,6}", node.this.name) else None
    else:
        count = _value(node.this, given)
    lengths = UNITS.get(unit_name(unit.name))
    if not isinstance(count, int) or lengths is None:
        return None
    ends = (count * lengths[0], count * lengths[1])
    return Length(min(ends), max(ends))


def _sum(node: exp.Add | exp.Sub, given: Given) -> Span | None:
    left, right = _value(node.this, given), _value(node.expression, given)
    if isinstance(node, exp.Add) and isinstance(right, Span):
        left, right = right, left
    if not isinstance(left, Span):
        return None
    if isinstance(right, int):
        if not left.is_date:
            return None
        right = Length(right * DAY, right * DAY)
        is_date = True
    else:
        is_date = False
    if not isinstance(right, Length):
        return None
    if isinstance(node, exp.Sub):
        return Span(left.lo - right.hi, left.hi - right.lo, is_date)
    return Span(left.lo + right.lo, left.hi + right.hi, is_date)


def _parameter(node: exp.Expr, given: Given) -> Span | int | None:
    value = given.parameters.get(node.name)
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, datetime):
        moment = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return Span(moment, moment)
    if isinstance(value, date):
        moment = datetime(value.year, value.month, value.day)
        return Span(moment, moment, is_date=True)
    return _text(value) if isinstance(value, str) else None


def _truncated(node: exp.Expr, given: Given) -> Span | None:
    inner, lengths = _value(node.this, given), trunc_length(node)
    if not isinstance(inner, Span) or lengths is None:
        return None
    return Span(inner.lo - lengths, inner.hi)


def trunc_length(node: exp.Expr) -> timedelta | None:
    """Longest distance between a moment and its date_trunc, or None for a unit unknown here."""
    unit = node.args.get("unit")
    lengths = UNITS.get(unit_name(unit.name)) if isinstance(unit, exp.Var | exp.Literal) else None
    zoned = node.args.get("zone")
    return None if lengths is None or zoned is not None else lengths[1]


def _now(node: exp.Expr, given: Given) -> Span | None:
    now = given.now.astimezone(UTC).replace(tzinfo=None)
    back, ahead = (timedelta(), timedelta()) if given.exact else (CLOCK_BACK, CLOCK_AHEAD)
    if isinstance(node, exp.CurrentDate) and node.this is None:
        return Span(_midnight(now - back), _midnight(now + ahead), is_date=True)
    anonymous = isinstance(node, exp.Anonymous) and node.name.lower() in NOW_NAMES and not node.expressions
    if anonymous or (isinstance(node, exp.CurrentTimestamp | exp.Localtimestamp) and node.this is None):
        return Span(now - back, now + ahead)
    return None
