"""The checker goes red on each single thing that can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
from truth_check import Seen, Told, judge

R1, R2, R3, MAYBE = ("w1", "r1"), ("w1", "r2"), ("w2", "r1"), ("w3", "r9")
TOLD = Told(
    attempted={R1, R2, R3, MAYBE},
    acked={R1, R2, R3},
    acked_attempts=3,
    unknown_attempts=1,
    bad={(*R1, 0): "name:A", (*R3, 1): "name:A", (*R2, 0): "name:B", (*MAYBE, 0): "name:C"},
)
SEEN = Seen(
    reports=[R1, R2, R3],
    alerts=[(*R1, 0), (*R3, 1), (*R2, 0)],
    lake_alerts=[(*R1, 0), (*R3, 1), (*R2, 0)],
    incidents=[("name:A", 2, 2), ("name:B", 1, 1)],
    verified={"accepted": 3, "missing": 0, "repeated": 0, "lag": 0},
)


def test_what_agrees_has_no_fault() -> None:
    assert judge(TOLD, SEEN).faults() == {}


def test_an_unknown_outcome_that_is_read_later_is_legal() -> None:
    seen = deepcopy(SEEN)
    seen.reports.append(MAYBE)
    seen.alerts.append((*MAYBE, 0))
    seen.lake_alerts.append((*MAYBE, 0))
    seen.incidents.append(("name:C", 1, 1))
    assert judge(TOLD, seen).faults() == {}


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("lost", lambda seen: seen.reports.remove(R2)),
        ("twice", lambda seen: seen.reports.append(R2)),
        ("unexpected", lambda seen: seen.reports.append(("w9", "r1"))),
        ("gaps", lambda seen: setattr(seen, "gaps", 1)),
        ("alerts_missing", lambda seen: seen.alerts.remove((*R3, 1))),
        ("alerts_repeated", lambda seen: seen.alerts.append((*R3, 1))),
        ("alerts_unexpected", lambda seen: seen.alerts.append((*R3, 0))),
        ("lake_alerts_wrong", lambda seen: seen.lake_alerts.remove((*R1, 0))),
        ("lake_alerts_wrong", lambda seen: seen.lake_alerts.append((*R1, 0))),
        ("incidents_missing", lambda seen: seen.incidents.pop()),
        ("incidents_repeated", lambda seen: seen.incidents.append(("name:B", 1, 1))),
        ("incidents_wrong", lambda seen: seen.incidents.__setitem__(0, ("name:A", 3, 2))),
        ("incidents_wrong", lambda seen: seen.incidents.__setitem__(0, ("name:A", 2, 1))),
        ("verify_missing", lambda seen: seen.verified.update(missing=1)),
        ("verify_repeated", lambda seen: seen.verified.update(repeated=1)),
        ("verify_lag", lambda seen: seen.verified.update(lag=1)),
        ("verify_miscounted", lambda seen: seen.verified.update(accepted=2)),
    ],
)
def test_each_single_fault_is_found(fault: str, spoil: Callable[[Seen], object]) -> None:
    seen = deepcopy(SEEN)
    spoil(seen)
    assert fault in judge(TOLD, seen).faults()
