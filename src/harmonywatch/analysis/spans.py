"""Sets of moments as sorted closed spans: the algebra in which filters become days. Pure.

None = every moment (nothing is known); an empty tuple = no moment at all.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

from harmonywatch.analysis.contract import Days

Ends = tuple[datetime, datetime]
Moments = tuple[Ends, ...] | None

SPANS_MAX = 64
"""Beyond, only the hull is kept: a plan of many spans costs more than the files it saves."""

FIRST, LAST = datetime.min, datetime.max


def all_of(left: Moments, right: Moments) -> Moments:
    """Moments in both."""
    if left is None or right is None:
        return right if left is None else left
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in left for b in right)
    return _merged([pair for pair in pairs if pair[0] <= pair[1]])


def any_of(left: Moments, right: Moments) -> Moments:
    """Moments in either."""
    return None if left is None or right is None else _merged([*left, *right])


def _merged(spans: list[Ends]) -> Moments:
    merged: list[Ends] = []
    for lo, hi in sorted(spans):
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
        else:
            merged.append((lo, hi))
    if len(merged) > SPANS_MAX:
        return ((merged[0][0], merged[-1][1]),)
    return tuple(merged)


def days_of(moments: Moments) -> tuple[Days, ...]:
    """The spans of days that hold the moments, disjoint and not even touching; () = no day."""
    if moments is None:
        return (Days(),)
    spans: list[list[date]] = []
    for lo, hi in moments:
        first, last = lo.date(), hi.date()
        if spans and (first - spans[-1][1]) <= timedelta(days=1):
            spans[-1][1] = max(spans[-1][1], last)
        else:
            spans.append([first, last])
    return tuple(
        Days(None if first == FIRST.date() else first, None if last == LAST.date() else last) for first, last in spans
    )
