"""The city and its reports: deterministic, valid, rare in bad scores, fast, small."""

from __future__ import annotations

import subprocess
import sys
import time
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harmonywatch.fleet.city import CITIZENS_MAX, City
from harmonywatch.fleet.pieces import Pieces
from harmonywatch.fleet.plan import FleetPlan, Target, base36
from harmonywatch.fleet.traffic import Traffic
from harmonywatch.fleet.vocabulary import MOOD_WORDS, vocabulary
from harmonywatch.report.words import Report, identity_of

TWO = (Target("north"), Target("south"))
START_US = 1_790_000_000_000_000
DIGEST = """
import hashlib, sys
from harmonywatch.fleet.faults import parse_faults
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.traffic import Traffic
faults = parse_faults(sys.argv[2])
plan = FleetPlan(watchers=3000, seed=int(sys.argv[1]), targets=(Target("north"), Target("south")), faults=faults)
traffic, digest = Traffic(plan, "r"), hashlib.sha256()
for step in range(20):
    digest.update(b"\\n".join(traffic.take(400, 1_790_000_000_000_000 + step * 400_000, 1000).lines) + b"\\n")
digest.update(b"\\n".join(traffic.rest().lines))
sys.stdout.write(digest.hexdigest())
"""


def digest_elsewhere(seed: int, faults: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", DIGEST, str(seed), faults], capture_output=True, text=True, check=True, timeout=60
    )
    return found.stdout


def reports_of(watchers: int, reports: int, seed: int = 1) -> list[Report]:
    traffic = Traffic(FleetPlan(watchers=watchers, seed=seed, targets=TWO), "r")
    return [msgspec.json.decode(line, type=Report) for line in traffic.take(reports, START_US, 1000.0).lines]


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    return reports_of(4_000, 12_000)


@pytest.mark.parametrize("faults", ["", "twice=0.05,late=0.05,order=0.05,malformed=0.05,skew=0.05,silent=0.01"])
def test_the_same_seed_gives_the_same_bytes_in_any_process(faults: str) -> None:
    first, again, other = digest_elsewhere(7, faults), digest_elsewhere(7, faults), digest_elsewhere(8, faults)
    assert first == again
    assert first != other


def test_the_bytes_do_not_depend_on_how_many_turns_are_taken_at_once() -> None:
    plan = FleetPlan(watchers=900, targets=TWO)
    one, many = Traffic(plan, "r"), Traffic(plan, "r")
    whole = one.take(1_000, START_US, 1_000.0).lines
    pieces = [line for i in range(100) for line in many.take(10, START_US + i * 10_000, 1_000.0).lines]
    assert whole == pieces


def test_every_report_is_valid_json_and_complete(reports: list[Report]) -> None:
    assert len(reports) == 12_000
    for report in reports:
        assert report.time is not None
        assert report.report_id and report.sequence and report.battery is not None and report.model and report.firmware
        assert report.signal_dbm is not None and -160 < report.signal_dbm < 0
        assert len(report.citizens) <= CITIZENS_MAX
        assert all(0 <= c.harmonyscore <= 100 and 0 < (c.confidence or 0) <= 1 for c in report.citizens)
        identities = [identity_of(c.name, c.citizen_id) for c in report.citizens]
        assert len(set(identities)) == len(identities)
    assert any(not report.citizens for report in reports), "now and then the sky is empty"


def test_the_time_is_the_time_asked_for() -> None:
    traffic = Traffic(FleetPlan(watchers=4_000, targets=TWO), "r")
    times = [msgspec.json.decode(line)["time"] for line in traffic.take(12_000, START_US, 1000.0).lines]
    assert times[:3] == [
        "2026-09-21T14:13:20.000000Z",
        "2026-09-21T14:13:20.001000Z",
        "2026-09-21T14:13:20.002000Z",
    ]
    assert times[11_999] == "2026-09-21T14:13:31.999000Z"


def test_sequences_have_no_gap_and_report_ids_are_ordered(reports: list[Report]) -> None:
    by_watcher: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        by_watcher[report.watcher_id].append(report)
    assert len(by_watcher) == 4_000
    for watcher, mine in by_watcher.items():
        assert [report.sequence for report in mine] == [1, 2, 3]
        ids = [report.report_id or "" for report in mine]
        assert ids == sorted(ids) and ids[0] == f"{watcher}-r-000001"


def test_sequences_beyond_a_thousand_are_rendered_right() -> None:
    reports = reports_of(2, 2_010)
    assert [r.sequence for r in reports[::2]] == list(range(1, 1_006))
    assert reports[-1].report_id == "south-00000-r-001005"
    assert reports[1_998].sequence == 1_000 and reports[1_998].report_id == "north-00000-r-001000"


def test_each_force_has_a_city_of_its_own(reports: list[Report]) -> None:
    places = {"north": (47.1, -29.6), "south": (41.3, -30.2)}
    for report in reports:
        lat, lon = places[report.watcher_id.split("-")[0]]
        assert abs(report.location.lat - lat) < 0.15 and abs(report.location.lon - lon) < 0.2


def test_watchers_patrol_and_batteries_drain_and_charge() -> None:
    city = City(300, 1, 5)
    seen = [city.block().patrol for _ in range(180)]
    lat = np.array([p.lat_udeg for p in seen])
    battery = np.array([p.battery_pct for p in seen])
    assert (np.abs(np.diff(lat, axis=0)) > 0).mean() > 0.5, "most move in most minutes"
    assert np.abs(lat - lat[0]).max() < 60_000, "and stay in their district"
    assert (np.diff(battery, axis=0) < 0).any(axis=0).all() and (np.diff(battery, axis=0) > 0).any()
    assert battery.min() >= 0 and battery.max() <= 100


@pytest.mark.parametrize(("watchers", "seed"), [(69_420, 1), (69_420, 2), (9_000, 3)])
def test_bad_reports_stay_under_one_percent_in_every_minute(watchers: int, seed: int) -> None:
    city = City(watchers, 2, seed)
    minutes, share_of = Counter[int](), Counter[int]()
    for _ in range(watchers * 12 // 512):
        block = city.block()
        minutes[block.turn] += len(block.watcher)
        share_of[block.turn] += int(block.bad().any(axis=1).sum())
    overall = share_of.total() / minutes.total()
    assert 0.004 <= overall <= 0.008
    assert max(share_of[m] / minutes[m] for m in minutes if minutes[m] == watchers) < 0.01


def test_repeat_offenders_exist_and_heated_words_go_with_low_scores() -> None:
    reports = reports_of(4_000, 32_000, seed=4)
    bad_by = Counter(
        identity_of(c.name, c.citizen_id) for report in reports for c in report.citizens if c.harmonyscore < 25
    )
    assert max(bad_by.values()) >= 5 and len(bad_by) > 50
    heated = set(MOOD_WORDS["heated"].split())
    share = {True: [0, 0], False: [0, 0]}
    for report in reports:
        tally = share[any(c.harmonyscore < 25 for c in report.citizens)]
        tally[0] += sum(word in heated for word in report.words)
        tally[1] += len(report.words)
    assert share[True][0] / share[True][1] > 5 * share[False][0] / share[False][1]


def test_namesakes_are_always_sent_with_their_id(reports: list[Report]) -> None:
    ids_of: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for report in reports:
        for c in report.citizens:
            ids_of[report.watcher_id[:5], unicodedata.normalize("NFC", c.name).strip()].add(c.citizen_id)
    namesakes = [ids for ids in ids_of.values() if len(ids) > 1]
    assert namesakes and all(None not in ids for ids in namesakes)
    without = sum(ids == {None} for ids in ids_of.values())
    assert without > len(ids_of) / 2


def test_names_come_in_several_spellings_of_one_identity(reports: list[Report]) -> None:
    spellings: dict[str, set[str]] = defaultdict(set)
    for report in reports:
        for c in report.citizens:
            spellings[identity_of(c.name, c.citizen_id)].add(c.name)
    several = [names for names in spellings.values() if len(names) > 1]
    assert any(any(not unicodedata.is_normalized("NFC", name) for name in names) for names in several)
    assert any(any(name != name.strip() for name in names) for names in several)
    assert all(len({unicodedata.normalize("NFC", name).strip() for name in names}) == 1 for names in several)


def test_citizens_move_by_day_and_night() -> None:
    city = City(2_000, 1, 9)
    noon, night = city.citizens.district_at(12.0), city.citizens.district_at(3.0)
    assert 0.2 < (noon != night).mean() < 0.7
    assert (city.citizens.district_at(12.0) == noon).all()


def test_agitation_rises_spreads_and_cools() -> None:
    city = City(20_000, 1, 3)
    districts, rng = city.districts, np.random.default_rng(1)
    districts.agitation[:] = 0
    districts.agitation[0] = 1.0
    quiet = type("Quiet", (), {"poisson": staticmethod(lambda _: 0)})()
    districts.advance(5.0, quiet)
    assert districts.agitation[0] < 1.0 and (districts.agitation[1:] > 0).any()
    for _ in range(300):
        districts.advance(1.0, quiet)
    assert districts.agitation.max() < 0.01
    for _ in range(300):
        districts.advance(1.0, rng)
    assert districts.agitation.max() > 0.1


def test_a_report_has_the_size_of_the_brief_and_compresses() -> None:
    traffic = Traffic(FleetPlan(targets=TWO), "r")
    lines = traffic.take(5_000, START_US, 864.0).lines
    assert 1_700 <= sum(map(len, lines)) / len(lines) <= 2_000
    words = [len(msgspec.json.decode(line, type=Report).words) for line in lines]
    assert 80 <= sum(words) / len(words) <= 110
    assert 1_400 <= len(vocabulary()) <= 1_600


def test_a_city_of_the_first_wave_is_built_quickly_and_small(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import psutil, sys, time\n"
        "from harmonywatch.fleet.plan import FleetPlan, Target\n"
        "from harmonywatch.fleet.traffic import Traffic\n"
        "began = time.perf_counter()\n"
        "traffic = Traffic(FleetPlan(targets=(Target('north'), Target('south'))), 'r')\n"
        "built = time.perf_counter() - began\n"
        "for _ in range(20): traffic.take(512, 0, 1)\n"
        "sys.stdout.write(f'{built} {psutil.Process().memory_info().rss / 2**20}')\n"
    )
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    built_s, memory_mib = map(float, found.stdout.split())
    assert built_s < 2.0
    assert memory_mib < 250


def test_making_reports_is_never_the_bottleneck() -> None:
    traffic = Traffic(FleetPlan(targets=TWO), "r")
    best = 0.0
    for step in range(8):
        cpu_s = time.process_time()
        made = len(traffic.take(4_096, START_US + step, 1.0).lines)
        best = max(best, made / (time.process_time() - cpu_s))
    assert best > 30_000


def test_tiny_fleets_work_too() -> None:
    for watchers in (2, 3, 7, 100):
        reports = reports_of(watchers, watchers * 3)
        assert len({report.watcher_id for report in reports}) == watchers
        assert any(report.citizens for report in reports)


def test_a_plan_that_cannot_be_carried_out_is_refused() -> None:
    for wrong in (
        {"watchers": 0},
        {"rate": 0.0},
        {"seconds": -1},
        {"singles": 2.0},
        {"encoding": "br"},
        {"connections": 0},
        {"watchers": 1, "targets": TWO},
        {"targets": (TWO[0], TWO[0])},
    ):
        with pytest.raises(ValueError):
            FleetPlan(**wrong)  # type: ignore[arg-type]
    assert FleetPlan(watchers=69_420).reports_per_s == pytest.approx(1_157.0)
    assert base36(0) == "0" and int(base36(1_790_000_000), 36) == 1_790_000_000


def test_pieces_are_gathered_row_by_row() -> None:
    pieces = Pieces()
    first, shelf = pieces.add([b"a", b"b", b"\n"]), pieces.shelf(2)
    pieces.seal()
    late = shelf.index(b"late")
    assert shelf.index(b"late") == late
    shelf.index(b"other")
    with pytest.raises(OverflowError):
        shelf.index(b"third")
    rows = np.array([[first, first + 1, first + 2], [0, late, first + 2]], np.int32)
    assert pieces.texts(rows) == [b"ab", b"late"]
