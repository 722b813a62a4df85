"""Truth against result, pure: what the fleet knows it did, what the product says it has, and where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmonywatch.clock import from_wire
from harmonywatch.fleet.truth import ForceTruth


@dataclass(frozen=True)
class Check:
    """One line of the table. `fine` None: a figure without an expectation."""

    what: str
    truth: str
    result: str
    fine: bool | None = None


@dataclass(frozen=True)
class Found:
    """What the product's doors answered for one force: rows of `lake verify`, `alerts`, `incidents`; rows of the view
    `reports`; number of rejects."""

    verify: Mapping[str, Any]
    alerts: Sequence[Mapping[str, Any]]
    incidents: Sequence[Mapping[str, Any]]
    reports: int
    rejects: int


def checks_of(force: str, truth: ForceTruth, found: Found) -> list[Check]:
    """Every comparison for a force. Reports of unknown outcome (the connection broke) may be there or not."""
    verify = found.verify
    sure, maybe = truth.stored, truth.stored + truth.unknown
    alert_ids = {alert["alert_id"] for alert in found.alerts}
    alerts_most = len(truth.alerts) + len(truth.possible_alerts)
    incidents_most = len(truth.incidents) + len(truth.possible_incidents)
    occurrences = sum(incident["occurrences"] for incident in found.incidents)
    return [
        Check(f"{force}: reports sent", f"{truth.attempted:,}", "", None),
        Check(f"{force}: accepted (each once)", f"{sure:,}", f"{found.reports:,}", sure <= found.reports <= maybe),
        Check(
            f"{force}: refused = rejects", f"{truth.refused:,}", f"{found.rejects:,}", truth.refused == found.rejects
        ),
        Check(
            f"{force}: lake verify, accepted = stored",
            f"{verify['accepted']:,}",
            f"{verify['stored']:,}",
            verify["accepted"] == verify["stored"],
        ),
        Check(f"{force}: missing", "0", str(verify["missing"]), verify["missing"] == 0),
        Check(f"{force}: repeated", "0", str(verify["repeated"]), verify["repeated"] == 0),
        Check(
            f"{force}: repeats recognised",
            f"{truth.repeats:,}",
            f"{verify['repeats']:,}",
            truth.repeats <= verify["repeats"] <= truth.repeats + truth.unknown,
        ),
        Check(
            f"{force}: bad scores = alerts",
            f"{truth.bad_scores:,}",
            f"{len(alert_ids):,}",
            len(truth.alerts) <= len(alert_ids) <= alerts_most and len(alert_ids) == len(found.alerts),
        ),
        Check(
            f"{force}: citizens = incidents",
            f"{len(truth.incidents):,}",
            f"{len(found.incidents):,}",
            len(truth.incidents) <= len(found.incidents) <= incidents_most,
        ),
        Check(
            f"{force}: occurrences = alerts", f"{len(alert_ids):,}", f"{occurrences:,}", occurrences == len(alert_ids)
        ),
    ]


def latencies_ms(alerts: Sequence[Mapping[str, Any]], until: str) -> list[float]:
    """Milliseconds from a report's receipt to `judged_at` or `delivered_at` of its alert, sorted; without nulls."""
    return sorted(
        (from_wire(alert[until]) - from_wire(alert["received_at"])).total_seconds() * 1e3
        for alert in alerts
        if alert.get(until)
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the ordered values do not exceed; 0 without values."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
