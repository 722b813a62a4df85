"""What a force used in a span: counted by receipt, exactly, without reading what need not be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from archive_rig import FORCE, NOW, Rig, new_rig, report

from harmonywatch.archive.compact import compact
from harmonywatch.archive.lake import LakeTable
from harmonywatch.archive.usage import Received, received

TODAY = NOW.replace(hour=0)
DAY = timedelta(days=1)


def table_of(rig: Rig) -> LakeTable:
    table = rig.lake.open(FORCE, "reports")
    assert table is not None
    return table


def used(rig: Rig, since: datetime, days: int = 1) -> Received:
    return received(table_of(rig), since, since + days * DAY)


def archived(folder: Path, *moments: datetime) -> Rig:
    """A report received at each moment, each in files of its own."""
    rig = new_rig(folder)
    for number, moment in enumerate(moments):
        rig.put([report(number, received_at=moment, time=None, sequence=number)])
        rig.archive()
    return rig


def test_reports_count_on_the_day_on_which_they_were_received(tmp_path: Path) -> None:
    edge = timedelta(microseconds=1)
    rig = archived(tmp_path, TODAY - edge, TODAY, TODAY + DAY - edge, TODAY + DAY)
    assert [used(rig, TODAY + shift * DAY).reports for shift in (-2, -1, 0, 1, 2)] == [0, 1, 2, 1, 0]
    assert used(rig, TODAY - DAY, 3).reports == 4
    assert used(rig, TODAY).files_read == 0


def test_a_late_report_counts_when_it_came_and_a_repeat_each_time(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    late = report(1, received_at=TODAY + timedelta(hours=1), time="2026-11-20T10:00:00Z")
    rig.put([late, late])
    rig.archive()
    assert used(rig, datetime(2026, 11, 20, tzinfo=UTC)).reports == 0
    assert used(rig, TODAY).reports == 2


def test_a_file_over_midnight_is_read_and_counted_by_row(tmp_path: Path) -> None:
    moments = [TODAY + timedelta(seconds=second) for second in range(-3, 5)]
    rig = archived(tmp_path)
    rig.put([report(n, received_at=at, time="2026-11-22T12:00:00Z") for n, at in enumerate(moments)])
    rig.archive()
    (file,) = table_of(rig).files()
    assert used(rig, TODAY) == Received(5, round(file.size_bytes * 5 / 8), 1)
    assert used(rig, TODAY - DAY) == Received(3, round(file.size_bytes * 3 / 8), 1)
    assert used(rig, TODAY - DAY, 2) == Received(8, file.size_bytes, 0)


def test_merging_files_changes_no_count(tmp_path: Path) -> None:
    rig = archived(tmp_path, *(TODAY + timedelta(minutes=n) for n in range(6)))
    before = used(rig, TODAY)
    assert list(compact(rig.lake, FORCE, rig.settings, everything=True, vacuum=False))
    assert len(table_of(rig).files()) == 1
    after = used(rig, TODAY)
    assert (after.reports, after.files_read) == (before.reports, 0) == (6, 0)
    assert 0 < after.lake_bytes < before.lake_bytes
