"""The faults do what they say, and ground truth knows everything that was sent."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import msgspec
import pytest
from door import refusal

from harmonywatch.clock import from_wire
from harmonywatch.fleet.faults import MALFORMED_KINDS, FaultRates, FaultSpecError, malformed, parse_faults
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.traffic import Traffic, header_of
from harmonywatch.fleet.truth import Attempt, Header, Outcome, TruthWriter, iter_truth, ranges, read_truth
from harmonywatch.report.words import identity_of

TWO = (Target("north"), Target("south"))
START_US = 1_790_000_000_000_000
ALL = "twice=0.05,late=0.05,order=0.05,malformed=0.05,skew=0.1,silent=0.01"


def run(
    spec: str, truth: Path | None = None, full: bool = False, watchers: int = 2_000, rounds: int = 6
) -> list[bytes]:
    """The lines of a few rounds, one report a millisecond, with their truth."""
    plan = FleetPlan(watchers=watchers, rate=1_000, targets=TWO, faults=parse_faults(spec), truth_full=full)
    writer = TruthWriter(truth, header_of(plan, "r")) if truth else None
    traffic = Traffic(plan, "r", writer)
    lines: list[bytes] = []
    for step in range(rounds * 10):
        turns = watchers // 10
        lines += traffic.take(turns, START_US + step * turns * 1000, 1_000.0).lines
    lines += traffic.rest().lines
    if writer is not None:
        writer.close()
    return lines


def good(lines: list[bytes]) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in lines if refusal(line) is None]


def test_a_spec_is_parsed_and_an_unknown_fault_is_refused_with_a_suggestion() -> None:
    assert parse_faults("twice=0.02, late=0.01") == FaultRates(twice=0.02, late=0.01)
    assert parse_faults("") == FaultRates() and not FaultRates().any()
    with pytest.raises(FaultSpecError, match="did you mean 'silent'"):
        parse_faults("silnet=0.1")
    for wrong in ("qqq=1", "late", "late=often", "late=2", "late=nan", "late=0.1,late=0.2"):
        with pytest.raises(FaultSpecError):
            parse_faults(wrong)


def test_without_faults_every_watcher_speaks_once_a_round() -> None:
    counts = Counter(report["watcher_id"] for report in good(run("")))
    assert len(counts) == 2_000 and set(counts.values()) == {6}


@pytest.mark.parametrize("kind", MALFORMED_KINDS)
def test_every_kind_of_broken_report_is_refused(kind: str) -> None:
    for line in run("", rounds=1)[:300]:
        broken = malformed(line, kind)
        assert refusal(line) is None and refusal(broken) is not None and b"\n" not in broken


def test_malformed_copies_come_beside_the_whole_report() -> None:
    clean, faulty = run(""), run("malformed=0.05")
    assert [line for line in faulty if refusal(line) is None] == clean
    assert 0.03 < len(faulty) / len(clean) - 1 < 0.07


def test_twice_sends_the_very_same_bytes_later() -> None:
    clean, faulty = run(""), run("twice=0.05")
    counts = Counter(faulty)
    assert set(counts) == set(clean)
    assert 0.03 < sum(count == 2 for count in counts.values()) / len(clean) < 0.07


def test_late_reports_lie_one_to_ten_minutes_back() -> None:
    start_s = START_US / 1e6
    back = [from_wire(str(report["time"])).timestamp() - start_s for report in good(run("late=0.05"))]
    late = [seconds for seconds in back if seconds < 0]
    assert 0.03 < len(late) / len(back) < 0.07
    assert min(late) >= -600 and max(late) < 0


def test_out_of_order_reports_come_after_their_successor_and_none_is_lost() -> None:
    clean, faulty = run(""), run("order=0.05")
    assert sorted(clean) == sorted(faulty)
    by_watcher: dict[object, list[int]] = defaultdict(list)
    for report in good(faulty):
        by_watcher[report["watcher_id"]].append(int(str(report["sequence"])))
    assert sum(numbers != sorted(numbers) for numbers in by_watcher.values()) > 100


def test_skewed_clocks_belong_to_some_watchers_for_good() -> None:
    years: dict[object, set[str]] = defaultdict(set)
    for report in good(run("skew=0.1")):
        years[report["watcher_id"]].add(str(report["time"])[:10])
    assert all(len(days) == 1 for days in years.values())
    days = Counter(next(iter(found)) for found in years.values())
    assert set(days) == {"2026-09-21", "2026-09-22", "1970-01-01", "2106-02-06"}
    assert days["2026-09-21"] > 1_600


def test_silent_watchers_stop_for_a_while_and_their_sequence_has_no_gap() -> None:
    by_watcher: dict[object, list[int]] = defaultdict(list)
    for report in good(run("silent=0.02", rounds=30, watchers=300)):
        by_watcher[report["watcher_id"]].append(int(str(report["sequence"])))
    assert any(len(numbers) < 28 for numbers in by_watcher.values())
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_watcher.values())


@pytest.mark.parametrize("full", [True, False])
def test_the_truth_has_every_line_and_every_bad_score(tmp_path: Path, full: bool) -> None:
    path = tmp_path / "truth.ndjson"
    lines = run(ALL, path, full)
    entries = list(iter_truth(path))
    assert isinstance(entries[0], Header) and entries[0].forces == ["north", "south"]
    attempts = [entry for entry in entries if isinstance(entry, Attempt)]
    assert [entry.attempt for entry in attempts] == list(range(len(lines)))
    for entry, line in zip(attempts, lines, strict=True):
        assert entry.sent() == (line if full else b"")
        if entry.fault == "malformed":
            assert not entry.bad and refusal(line) is not None
            continue
        report = msgspec.json.decode(line)
        assert (entry.watcher_id, entry.report_id, entry.time) == (
            report["watcher_id"],
            report["report_id"],
            report["time"],
        )
        assert entry.force == report["watcher_id"].split("-")[0]
        expected = [
            (place, c["name"], identity_of(c["name"], c.get("citizen_id")), c["harmonyscore"])
            for place, c in enumerate(report["citizens"])
            if c["harmonyscore"] < 25
        ]
        assert [(b.place, b.name, b.identity, b.score) for b in entry.bad] == expected
        if entry.of is not None:
            assert entry.fault == "twice" and lines[entry.of] == line and entry.of < entry.attempt
    assert {entry.fault for entry in attempts} == {None, "twice", "late", "order", "malformed", "skew"}
    assert sum(len(entry.bad) for entry in attempts) > 20


def test_the_summary_counts_repeats_once_and_keeps_unknown_apart(tmp_path: Path) -> None:
    path = tmp_path / "truth.ndjson"
    entries = [
        Header(1, 1, 2, ["north", "south"], "r", False),
        *_attempts(),
        Outcome("accepted", [(0, 1), (4, 4)]),
        Outcome("refused", [(2, 2)], "/location", "missing"),
        Outcome("unknown", [(3, 3)]),
    ]
    path.write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries) + b'{"cut short')
    summary = read_truth(path)
    north, south = summary.forces["north"], summary.forces["south"]
    assert (north.attempted, north.accepted, north.refused, north.unknown) == (3, 2, 1, 0)
    assert (north.repeats, north.stored) == (1, 1)
    assert north.alerts == {("w", "a", 0), ("w", "a", 1)} and north.incidents == {"name:A", "id:7"}
    assert south.alerts == {("w", "s2", 0)} and south.possible_alerts == {("w", "s1", 0)}
    assert south.possible_incidents == {"name:B"} and south.unknown == 1
    assert summary.attempted == 5 and summary.total("alerts") == 3 and len(summary.alerts()) == 3
    assert summary.incidents() == {("north", "name:A"), ("north", "id:7"), ("south", "name:C")}
    assert summary.faults == {"twice": 1, "malformed": 1}


def _attempts() -> list[dict[str, object]]:
    bad = [
        {"place": 0, "name": "A", "identity": "name:A", "score": 3.0},
        {"place": 1, "name": "A", "identity": "id:7", "score": 4.0},
    ]
    base = {"watcher_id": "w", "time": "2026-09-21T14:13:20.000000Z", "fault": None}
    return [
        {**base, "report_id": "a", "force": "north", "bad": bad, "attempt": 0},
        {**base, "report_id": "a", "force": "north", "bad": bad, "fault": "twice", "attempt": 1, "of": 0},
        {**base, "report_id": "b", "force": "north", "bad": [], "fault": "malformed", "attempt": 2},
        {**base, "report_id": "s1", "force": "south", "bad": [{**bad[0], "identity": "name:B"}], "attempt": 3},
        {**base, "report_id": "s2", "force": "south", "bad": [{**bad[0], "identity": "name:C"}], "attempt": 4},
    ]


def test_traffic_written_to_a_file_may_be_assumed_accepted(tmp_path: Path) -> None:
    path = tmp_path / "truth.ndjson"
    lines = run("malformed=0.05,twice=0.05", path)
    summary = read_truth(path, assume_accepted=True)
    whole = {line for line in lines if refusal(line) is None}
    assert summary.total("stored") == len(whole)
    assert summary.total("refused") == sum(refusal(line) is not None for line in lines)
    assert read_truth(path).total("unknown") == len(lines) and not read_truth(path).alerts()


def test_ranges_are_compressed() -> None:
    assert ranges([7, 1, 2, 3, 9, 8]) == [(1, 3), (7, 9)]
    assert ranges([]) == []
