"""Every saved question answered in plain Python from plain rows, by another way of thinking than the SQL's.

`TRUTH[name](rows, values)` is the list of rows that the question should answer with, in order. `rows` has the lists of
dicts `reports` (repeats among them), `alerts`, `rejects`; `values` the question's parameters. A number that the question
rounds is `Rounded` here: the exact value, equal to what may be made of it by rounding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import h3

Row = dict[str, Any]
Rows = dict[str, list[Row]]
Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Rounded:
    """Equal to a number that is `exact` rounded to so many digits; where it lies just between two, to both of them."""

    exact: Fraction
    digits: int

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Rounded):
            return (self.exact, self.digits) == (other.exact, other.digits)
        if isinstance(other, bool) or not isinstance(other, int | float):
            return NotImplemented
        half = Fraction(1, 2 * 10**self.digits)
        noise = abs(self.exact) / 10**9  # doubles, added up in any order
        return abs(Fraction(other) - self.exact) <= half + noise and round(other, self.digits) == other

    def units(self) -> int:
        """The rounded value in units of the last digit, for sorting."""
        return int(self.exact * 10**self.digits + Fraction(1, 2))

    def __repr__(self) -> str:
        return f"Rounded({float(self.exact)!r}, {self.digits})"


def _ratio(part: int, whole: int, digits: int) -> Rounded:
    return Rounded(Fraction(part, whole), digits)


def _within(rows: Iterable[Row], values: Values, column: str = "time") -> list[Row]:
    return [row for row in rows if values["since"] <= row[column] < values["until"]]


def _reports(rows: Rows, values: Values) -> list[Row]:
    return [row for row in _within(rows["reports"], values) if not row["repeat"]]


def _alerts(rows: Rows, values: Values) -> list[Row]:
    return [row for row in _within(rows["alerts"], values) if not row["repeat"]]


def _sightings(rows: Rows, values: Values) -> list[Row]:
    return [{**row, **each} for row in _reports(rows, values) for each in row["citizens"]]


def _groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _distinct(rows: Iterable[Row], column: str) -> int:
    return len({row[column] for row in rows if row[column] is not None})


def _mean(rows: list[Row]) -> Rounded:
    return Rounded(sum(Fraction(row["harmonyscore"]) for row in rows) / len(rows), 3)


def _lowest(rows: list[Row]) -> Rounded:
    return Rounded(Fraction(min(row["harmonyscore"] for row in rows)), 3)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _whole_seconds(earlier: datetime, later: datetime) -> int:
    """Boundaries of seconds crossed, as SQL's date_diff counts."""
    return int((later.replace(microsecond=0) - earlier.replace(microsecond=0)).total_seconds())


def alerts_by_hour(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_alerts(rows, values), lambda row: row["time"].hour)
    return [{"hour": h, "alerts": len(g), "citizens": _distinct(g, "citizen")} for h, g in sorted(groups.items())]


def alerts_by_weekday(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_alerts(rows, values), lambda row: row["time"].isoweekday())
    return [{"weekday": d, "alerts": len(g), "citizens": _distinct(g, "citizen")} for d, g in sorted(groups.items())]


def alerts_by_district(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_alerts(rows, values), lambda row: h3.cell_to_parent(row["h3"], 7))
    found = [
        {"district": d, "alerts": len(g), "citizens": _distinct(g, "citizen"), "watchers": _distinct(g, "watcher_id")}
        for d, g in groups.items()
    ]
    return sorted(found, key=lambda row: (-row["alerts"], row["district"]))


def agitation_map(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_sightings(rows, values), lambda row: row["h3"])
    return [
        {"cell": c, "sightings": len(g), "mean_score": _mean(g), "low": sum(row["harmonyscore"] < 25 for row in g)}
        for c, g in sorted(groups.items())
        if len(g) >= values["least"]
    ]


def words_of_low_scores(rows: Rows, values: Values) -> list[Row]:
    reports = _groups(_reports(rows, values), lambda row: (row["report_id"], row["watcher_id"]))
    low = {
        key for key, same in reports.items()
        if any(each["harmonyscore"] < values["threshold"] for row in same for each in row["citizens"])
    }  # fmt: skip
    heard: dict[str, set[Any]] = defaultdict(set)
    for key, same in reports.items():
        for row in same:
            for word in row["words"]:
                heard[word.lower()].add(key)
    found = [
        {"word": word, "reports": len(keys), "low_reports": len(keys & low),
         "lift": _ratio(len(keys & low) * len(reports), len(keys) * len(low), 3)}
        for word, keys in heard.items()
        if len(keys) >= values["least"] and low
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row["lift"].units(), -row["reports"], row["word"]))


def repeat_offenders(rows: Rows, values: Values) -> list[Row]:
    groups = _groups((row for row in _alerts(rows, values) if row["citizen"]), lambda row: row["citizen"])
    found = [
        {"citizen": c, "alerts": len(g), "days": len({row["time"].date() for row in g}), "cells": _distinct(g, "h3"),
         "watchers": _distinct(g, "watcher_id"), "lowest_score": _lowest(g),
         "first_at": min(row["time"] for row in g), "last_at": max(row["time"] for row in g)}
        for c, g in groups.items()
        if len(g) >= values["least"]
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row["alerts"], row["citizen"]))


def spread_of_agitation(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_sightings(rows, values), lambda row: (_hour(row["time"]), h3.cell_to_parent(row["h3"], 7)))
    found = []
    for (hour, district), g in sorted(groups.items()):
        low = sum(row["harmonyscore"] < values["threshold"] for row in g)
        share = _ratio(low, len(g), 4)
        found.append({"hour": hour, "district": district, "sightings": len(g), "low": low, "low_share": share})
    return found


def watcher_coverage(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_reports(rows, values), lambda row: row["watcher_id"])
    found = [
        {"watcher_id": w, "reports": len(g), "cells": _distinct(g, "h3"),
         "sightings": sum(len(row["citizens"]) for row in g),
         "first_at": min(row["time"] for row in g), "last_at": max(row["time"] for row in g)}
        for w, g in groups.items()
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row["reports"], row["watcher_id"]))


def silent_watchers(rows: Rows, values: Values) -> list[Row]:
    found = []
    for watcher, g in _groups(_reports(rows, values), lambda row: row["watcher_id"]).items():
        last = max(row["received_at"] for row in g)
        silent_s = _whole_seconds(last, values["until"])
        if silent_s >= values["minutes"] * 60:
            found.append({"watcher_id": watcher, "last_received_at": last, "silent_minutes": _ratio(silent_s, 60, 2)})
    return sorted(found, key=lambda row: (row["last_received_at"], row["watcher_id"]))


def sequence_gaps(rows: Rows, values: Values) -> list[Row]:
    numbered = (row for row in _reports(rows, values) if row["sequence"] is not None)
    found = []
    for watcher, g in _groups(numbered, lambda row: row["watcher_id"]).items():
        came = {row["sequence"] for row in g}
        gaps, run = [], 0
        for number in range(min(came), max(came) + 1):  # walk every number that should have come
            if number in came:
                gaps += [run] if run else []
                run = 0
            else:
                run += 1
        if gaps:
            found.append({"watcher_id": watcher, "gaps": len(gaps), "missing": sum(gaps), "longest": max(gaps)})
    return sorted(found, key=lambda row: (-row["missing"], row["watcher_id"]))


def _turns(rows: Rows, values: Values) -> list[tuple[Row, bool]]:
    """Each report that has a next one of its watcher, with whether the next came too late."""
    turns = []
    for g in _groups(_reports(rows, values), lambda row: row["watcher_id"]).values():
        order = sorted(
            g, key=lambda row: (row["time"], row["received_at"], row["report_id"], row["partition"], row["offset"])
        )
        for here, following in pairwise(order):
            turns.append((here, _whole_seconds(here["time"], following["time"]) > values["minutes"] * 60))
    return turns


def battery_against_failures(rows: Rows, values: Values) -> list[Row]:
    turns, failures = Counter[int](), Counter[int]()
    for row, failed in _turns(rows, values):
        if row["battery"] is not None:
            step = min(int(row["battery"] * 10), 9) * 10
            turns[step] += 1
            failures[step] += failed
    return [
        {"battery_percent": s, "turns": turns[s], "failures": failures[s],
         "failure_share": _ratio(failures[s], turns[s], 4)}
        for s in sorted(turns)
    ]  # fmt: skip


def firmware_against_failures(rows: Rows, values: Values) -> list[Row]:
    turns, failures = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row, failed in _turns(rows, values):
        kit = (row["model"] or "unknown", row["firmware"] or "unknown")
        turns[kit] += 1
        failures[kit] += failed
    found = [
        {"model": kit[0], "firmware": kit[1], "turns": turns[kit], "failures": failures[kit],
         "failure_share": _ratio(failures[kit], turns[kit], 4)}
        for kit in turns
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row["failure_share"].units(), row["model"], row["firmware"]))


DELAYS = (
    (timedelta(0), "below 0"), (timedelta(seconds=1), "0 to 1 s"), (timedelta(seconds=10), "1 to 10 s"),
    (timedelta(minutes=1), "10 to 60 s"), (timedelta(minutes=10), "1 to 10 min"), (timedelta(hours=1), "10 to 60 min"),
    (timedelta(days=1), "1 to 24 h"), (timedelta.max, "a day or more"),
)  # fmt: skip


def report_delay(rows: Rows, values: Values) -> list[Row]:
    groups: dict[int, list[timedelta]] = defaultdict(list)
    for row in _reports(rows, values):
        if row["device_time"] is not None:
            delay = row["received_at"] - row["device_time"]
            rank = next(place for place, (end, _) in enumerate(DELAYS) if delay < end)
            groups[rank].append(delay)
    return [
        {
            "rank": rank,
            "delay": DELAYS[rank][1],
            "reports": len(g),
            "longest_s": _ratio(max(g) // timedelta(microseconds=1), 10**6, 3),
        }
        for rank, g in sorted(groups.items())
    ]


def score_trend(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_sightings(rows, values), lambda row: _hour(row["time"]))
    return [
        {"hour": hour, "sightings": len(g), "mean_score": _mean(g), "lowest_score": _lowest(g),
         "low_share": _ratio(sum(r["harmonyscore"] < values["threshold"] for r in g), len(g), 4)}
        for hour, g in sorted(groups.items())
    ]  # fmt: skip


def busiest_cells(rows: Rows, values: Values) -> list[Row]:
    groups = _groups(_sightings(rows, values), lambda row: row["h3"])
    found = [
        {"cell": c, "citizens": _distinct(g, "citizen"), "sightings": len(g), "watchers": _distinct(g, "watcher_id")}
        for c, g in groups.items()
    ]
    return sorted(found, key=lambda row: (-row["citizens"], -row["sightings"], row["cell"]))[: values["most"]]


def citizens_of_many_watchers(rows: Rows, values: Values) -> list[Row]:
    groups = _groups((row for row in _sightings(rows, values) if row["citizen"]), lambda row: row["citizen"])
    found = [
        {"citizen": c, "watchers": _distinct(g, "watcher_id"), "sightings": len(g), "mean_score": _mean(g),
         "cells": _distinct(g, "h3")}
        for c, g in groups.items()
        if _distinct(g, "watcher_id") >= values["least"]
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row["watchers"], -row["sightings"], row["citizen"]))


def clock_suspects(rows: Rows, values: Values) -> list[Row]:
    suspects = (row for row in _reports(rows, values) if row["clock_suspect"])
    found = []
    for watcher, g in _groups(suspects, lambda row: row["watcher_id"]).items():
        behind_s = [_whole_seconds(row["device_time"], row["received_at"]) for row in g]
        found.append({"watcher_id": watcher, "suspect": len(g), "least_hours": _ratio(min(behind_s), 3600, 3),
                      "most_hours": _ratio(max(behind_s), 3600, 3)})  # fmt: skip
    return sorted(found, key=lambda row: (-row["suspect"], row["watcher_id"]))


def rejects_by_reason(rows: Rows, values: Values) -> list[Row]:
    rejects = _within(rows["rejects"], values, "received_at")
    groups = _groups(rejects, lambda row: (row["code"], row["source"], row["pointer"]))
    found = [
        {"code": k[0], "source": k[1], "pointer": k[2], "rejects": len(g), "senders": _distinct(g, "sender"),
         "last_at": max(row["received_at"] for row in g)}
        for k, g in groups.items()
    ]  # fmt: skip
    return sorted(found, key=lambda row: (-row["rejects"], row["code"], row["source"], row["pointer"]))


def repeats_by_watcher(rows: Rows, values: Values) -> list[Row]:
    first: dict[tuple[str, str], datetime] = {}
    for row in _reports(rows, values):
        key = (row["watcher_id"], row["report_id"])
        first[key] = min(row["received_at"], first.get(key, row["received_at"]))
    repeats = [row for row in _within(rows["reports"], values) if row["repeat"]]
    found = []
    for watcher, g in _groups(repeats, lambda row: row["watcher_id"]).items():
        waits = [
            _whole_seconds(first[watcher, row["report_id"]], row["received_at"])
            for row in g
            if (watcher, row["report_id"]) in first
        ]
        found.append({"watcher_id": watcher, "repeats": len(g), "reports": _distinct(g, "report_id"),
                      "longest_s": max(waits, default=None)})  # fmt: skip
    return sorted(found, key=lambda row: (-row["repeats"], row["watcher_id"]))


TRUTH: dict[str, Callable[[Rows, Values], list[Row]]] = {
    answer.__name__.replace("_", "-"): answer
    for answer in (
        agitation_map, alerts_by_district, alerts_by_hour, alerts_by_weekday, battery_against_failures, busiest_cells,
        citizens_of_many_watchers, clock_suspects, firmware_against_failures, rejects_by_reason, repeat_offenders,
        repeats_by_watcher, report_delay, score_trend, sequence_gaps, silent_watchers, spread_of_agitation,
        watcher_coverage, words_of_low_scores,
    )
}  # fmt: skip
