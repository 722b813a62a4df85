"""The checker: what a system holds, against what the ground truth says was sent and answered.

Sets, by the identity of a report (watcher_id, report_id): *attempted* (handed to the network), *acked* (answered 2xx),
*read* (rows of the view `reports`). lost = acked - read; unexpected = read - attempted; twice = rows beyond the first.
A report whose outcome is unknown and that is read later is legal. Alerts and incidents follow from the acked reports;
those of unknown ones may exist. `judge` is a function of values, so that the checker itself is tested.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running_system import System

from harmonywatch.fleet.truth import ACCEPTED, OUTCOMES, AlertKey, Attempt, Header, Outcome, iter_truth

ReportKey = tuple[str, str]
ARCHIVED_S = 30.0
ALERTED_S = 30.0


@dataclass
class Told:
    """One force's ground truth. `bad`: the identity of the citizen of each alert that may exist."""

    attempted: set[ReportKey] = field(default_factory=set)
    acked: set[ReportKey] = field(default_factory=set)
    acked_attempts: int = 0
    unknown_attempts: int = 0
    bad: dict[AlertKey, str] = field(default_factory=dict)

    def add(self, more: Told) -> None:
        """Take in what another sender was told."""
        self.attempted |= more.attempted
        self.acked |= more.acked
        self.acked_attempts += more.acked_attempts
        self.unknown_attempts += more.unknown_attempts
        self.bad |= more.bad

    def alerts(self) -> set[AlertKey]:
        """The alerts that must exist."""
        return {key for key in self.bad if key[:2] in self.acked}


@dataclass
class Seen:
    """What one force's system shows. `incidents`: (identity, occurrences, watchers)."""

    reports: list[ReportKey] = field(default_factory=list)
    gaps: int = 0
    alerts: list[AlertKey] = field(default_factory=list)
    lake_alerts: list[AlertKey] = field(default_factory=list)
    incidents: list[tuple[str, int, int]] = field(default_factory=list)
    verified: Mapping[str, Any] = field(default_factory=dict)
    archived_after_s: float = 0.0


@dataclass
class ForceVerdict:
    """Counts; all but the first block are faults when they are not 0."""

    attempted: int
    acked: int
    read: int
    alerts: int
    incidents: int
    unknown: int
    archived_after_s: float

    lost: int
    twice: int
    unexpected: int
    gaps: int
    alerts_missing: int
    alerts_repeated: int
    alerts_unexpected: int
    lake_alerts_wrong: int
    incidents_missing: int
    incidents_repeated: int
    incidents_wrong: int
    """Incidents whose occurrences or watchers are not those of the alerts."""
    verify_missing: int
    verify_repeated: int
    verify_lag: int
    verify_miscounted: int
    """How far `lake verify`'s `accepted` is below what was answered 2xx (above is legal: what was sent again, is twice there)."""

    FIGURES = ("attempted", "acked", "read", "alerts", "incidents", "unknown", "archived_after_s")

    def faults(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if name not in self.FIGURES and value}


@dataclass
class Verdict:
    forces: dict[str, ForceVerdict]

    def faults(self) -> list[str]:
        """One line for each thing that is wrong; empty when everything agrees."""
        return [
            f"{force}: {name} {value}" for force, each in self.forces.items() for name, value in each.faults().items()
        ]

    def total(self, name: str) -> int:
        return sum(int(getattr(each, name)) for each in self.forces.values())

    def told(self) -> str:
        figures = ", ".join(f"{name} {self.total(name)}" for name in ForceVerdict.FIGURES[:6])
        slowest = max((each.archived_after_s for each in self.forces.values()), default=0.0)
        return f"{figures}; archive caught up after {slowest:.1f} s; faults: {self.faults() or 'none'}"


def read_told(path: Path) -> dict[str, Told]:
    """The ground truth by force, as sets."""
    told: dict[str, Told] = {}
    attempts: dict[int, Attempt] = {}
    outcomes: dict[int, int] = {}
    for entry in iter_truth(path):
        if isinstance(entry, Attempt):
            attempts[entry.attempt] = entry
        elif isinstance(entry, Outcome):
            for first, last in entry.attempts:
                outcomes.update(dict.fromkeys(range(first, last + 1), OUTCOMES[entry.outcome]))
        else:
            assert isinstance(entry, Header)
            told = {force: Told() for force in entry.forces}
    for number, attempt in attempts.items():
        if attempt.fault != "malformed":
            _add(told[attempt.force], attempt, outcomes.get(number, 0))
    return told


def _add(told: Told, attempt: Attempt, outcome: int) -> None:
    key = (attempt.watcher_id, attempt.report_id)
    told.attempted.add(key)
    if outcome == ACCEPTED:
        told.acked.add(key)
        told.acked_attempts += 1
    told.unknown_attempts += outcome == 0
    for bad in attempt.bad:
        told.bad[(*key, bad.place)] = bad.identity


def judge(told: Told, seen: Seen) -> ForceVerdict:
    """Compare; pure."""
    read, must = set(seen.reports), told.alerts()
    alerts = set(seen.alerts)
    expected = _expected_incidents(told, alerts | must)
    by_identity = Counter(identity for identity, _, _ in seen.incidents)
    accepted = seen.verified.get("accepted", 0)
    return ForceVerdict(
        attempted=len(told.attempted),
        acked=len(told.acked),
        read=len(read),
        alerts=len(alerts),
        incidents=len(seen.incidents),
        unknown=told.unknown_attempts,
        archived_after_s=seen.archived_after_s,
        lost=len(told.acked - read),
        twice=len(seen.reports) - len(read),
        unexpected=len(read - told.attempted),
        gaps=seen.gaps,
        alerts_missing=len(must - alerts),
        alerts_repeated=len(seen.alerts) - len(alerts),
        alerts_unexpected=len(alerts - told.bad.keys()),
        lake_alerts_wrong=len(set(seen.lake_alerts) ^ alerts) + len(seen.lake_alerts) - len(set(seen.lake_alerts)),
        incidents_missing=len(expected.keys() - by_identity.keys()),
        incidents_repeated=sum(count - 1 for count in by_identity.values()),
        incidents_wrong=sum(expected.get(identity) != counts for identity, *counts in seen.incidents),
        verify_missing=seen.verified.get("missing", 0),
        verify_repeated=seen.verified.get("repeated", 0),
        verify_lag=seen.verified.get("lag", 0),
        verify_miscounted=max(0, told.acked_attempts - accepted),
    )


def _expected_incidents(told: Told, alerts: Iterable[AlertKey]) -> dict[str, list[int]]:
    """By citizen: occurrences, watchers."""
    seen_by: dict[str, list[str]] = {}
    for key in alerts:
        seen_by.setdefault(told.bad.get(key, "nobody"), []).append(key[0])
    return {identity: [len(watchers), len(set(watchers))] for identity, watchers in seen_by.items()}


def check(system: System, truth: Path, also: Mapping[str, Told] | None = None, alerted_s: float = ALERTED_S) -> Verdict:
    """Wait until the system has caught up (or the deadlines have passed), then compare.

    `also`: what others than the fleet sent, by force; `alerted_s`: how long missing alerts are waited for.
    """
    told = read_told(truth)
    for force, more in (also or {}).items():
        told[force].add(more)
    caught_up = {force: _wait_archived(system, force) for force in told}
    return Verdict(
        {
            force: judge(each, _seen(system, force, _wait_alerts(system, force, len(each.alerts()), alerted_s), proof))
            for (force, each), proof in zip(told.items(), caught_up.values(), strict=True)
        }
    )


def _wait_archived(system: System, force: str) -> tuple[Mapping[str, Any], float]:
    """The proof when nothing waits any more, or at the deadline; and how long that took."""
    began = time.monotonic()
    while True:
        row, took = system.verified(force), time.monotonic() - began
        if row["lag"] == 0 or took > ARCHIVED_S:
            return row, took
        time.sleep(0.5)


def _seen(system: System, force: str, alerts: list[dict[str, Any]], proof: tuple[Mapping[str, Any], float]) -> Seen:
    verified, archived_after_s = proof
    reports = system.query("select watcher_id, report_id from reports", force)
    lake_alerts = _wait_lake_alerts(system, force, len({_alert_key(row) for row in alerts}))
    (gaps,) = system.query(
        "select count(*) as n from (select watcher_id from reports where sequence is not null group by watcher_id "
        "having count(distinct sequence) <> max(sequence) - min(sequence) + 1)",
        force,
    )
    incidents = system.run("incidents", "--force", force)
    return Seen(
        reports=[(row["watcher_id"], row["report_id"]) for row in reports],
        gaps=gaps["n"],
        alerts=[_alert_key(row) for row in alerts],
        lake_alerts=[_alert_key(row) for row in lake_alerts],
        incidents=[(row["identity"], row["occurrences"], row["watchers"]) for row in incidents],
        verified=verified,
        archived_after_s=archived_after_s,
    )


def _alert_key(row: Mapping[str, Any]) -> AlertKey:
    return row["watcher_id"], row["report_id"], row["place"]


def _wait_alerts(system: System, force: str, count: int, deadline_s: float) -> list[dict[str, Any]]:
    """The alerts of the live path and, so that incidents have had their time, after their last one was counted."""
    end = time.monotonic() + deadline_s
    while True:
        rows = system.run("alerts", "--force", force)
        counted = sum(row["occurrences"] for row in system.run("incidents", "--force", force))
        if (len(rows) >= count and counted >= len(rows)) or time.monotonic() > end:
            return rows
        time.sleep(0.2)


def _wait_lake_alerts(system: System, force: str, count: int) -> list[dict[str, Any]]:
    end = time.monotonic() + ARCHIVED_S
    while True:
        rows = system.query("select watcher_id, report_id, place from alerts", force)
        if len(rows) >= count or time.monotonic() > end:
            return rows
        time.sleep(0.2)
