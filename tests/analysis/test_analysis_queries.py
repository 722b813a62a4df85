"""Queries through the whole room: a process each, typed views, limits that hold, errors with their place, the audit."""

# ruff: noqa: S608

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from engine_room import engine_over
from kept_audit import KeptAudit
from small_lake import UNTIL, FolderCatalog, Row, report, write_table

from harmonywatch.analysis.analyst import Analyst
from harmonywatch.analysis.contract import TABLE_OF_VIEW, BadQuery, Deadline, EngineFailed, Limits, OutOfMemory
from harmonywatch.analysis.notebook import Connection
from harmonywatch.archive.schema import TABLES
from harmonywatch.clock import ManualClock


def one(analyst: Analyst, sql: str, force: str = "north", **values: Any) -> Any:
    [row] = analyst.query(sql, force, values).table().to_pylist()
    return next(iter(row.values())) if len(row) == 1 else row


def test_the_views_hold_each_report_once_and_hide_repeats(analyst: Analyst, rows: dict[str, list[Row]]) -> None:
    kept = [row for row in rows["reports"] if not row["repeat"]]
    assert one(
        analyst,
        "SELECT (SELECT count(*) FROM reports) AS reports, (SELECT count(*) FROM repeats) AS repeats, "
        "(SELECT count(*) FROM sightings) AS sightings, (SELECT count(*) FROM heard) AS heard, "
        "(SELECT count(*) FROM alerts) AS alerts, (SELECT count(*) FROM rejects) AS rejects",
    ) == {
        "reports": len(kept), "repeats": len(rows["reports"]) - len(kept),
        "sightings": sum(len(row["citizens"]) for row in kept), "heard": sum(len(row["words"]) for row in kept),
        "alerts": sum(not row["repeat"] for row in rows["alerts"]), "rejects": len(rows["rejects"]),
    }  # fmt: skip


def test_the_views_of_a_new_force_are_empty_and_typed(tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path)
    engine = engine_over({table: catalog.plan("brand-new", table, None, None) for table in TABLES})
    wanted = {
        "reports": {"report_id", "watcher_id", "time", "device_time", "received_at", "lat", "lon", "h3", "words", "extra",
                    "partition", "offset"},
        "sightings": {"report_id", "watcher_id", "time", "lat", "lon", "citizen", "harmonyscore", "confidence"},
        "heard": {"report_id", "watcher_id", "time", "lat", "lon", "word"},
        "alerts": {"alert_id", "rule", "report_id", "watcher_id", "citizen", "harmonyscore", "lat", "lon", "time"},
        "rejects": {"reject_id", "received_at", "code", "pointer", "reason", "bytes"},
        "repeats": {"report_id", "watcher_id", "time", "received_at"},
    }  # fmt: skip
    assert wanted.keys() == TABLE_OF_VIEW.keys()
    for view, columns in wanted.items():
        answer = engine.run(f"SELECT * FROM {view}", {}).read_all()
        assert columns <= set(answer.schema.names)
        if "time" in columns:
            assert answer.schema.field("time").type == pa.timestamp("us", "UTC")
        assert answer.num_rows == 0


def test_a_force_without_a_report_is_asked_like_any_other(analyst: Analyst) -> None:
    assert one(analyst, "SELECT count(*) FROM reports", "brand-new") == 0
    assert analyst.ask("alerts-by-hour", "brand-new").table().num_rows == 0


def test_the_schema_of_reports_is_the_lakes(analyst: Analyst) -> None:
    answer = analyst.query("SELECT * FROM reports LIMIT 0", "north")
    assert answer.schema.names == TABLES["reports"].names
    answer.close()


def test_a_force_sees_nothing_of_another(tmp_path: Path, audit: KeptAudit) -> None:
    for number, force in enumerate(("north", "south")):
        write_table(tmp_path, force, "reports", [report(number, 1, UNTIL, words=[force])])
    analyst = Analyst(FolderCatalog(tmp_path), audit, ManualClock(UNTIL), Limits(nice=0))
    assert one(analyst, "SELECT string_agg(word, ',') FROM heard", "north") == "north"
    assert one(analyst, "SELECT string_agg(word, ',') FROM heard", "south") == "south"


def test_files_of_an_older_schema_are_read_with_nulls(tmp_path: Path, audit: KeptAudit) -> None:
    import pyarrow.parquet as pq

    write_table(tmp_path, "north", "reports", [report(1, 1, UNTIL)])
    older = TABLES["reports"].remove(TABLES["reports"].get_field_index("firmware"))
    older = older.remove(older.get_field_index("day"))
    folder = tmp_path / "north" / "reports" / "day=2026-11-01"
    folder.mkdir()
    row = report(2, 1, datetime(2026, 11, 1, tzinfo=UTC))
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in older.names}], older), folder / "old.parquet")
    analyst = Analyst(FolderCatalog(tmp_path), audit, ManualClock(UNTIL), Limits(nice=0))
    found = analyst.query("SELECT report_id, firmware, day::VARCHAR AS day FROM reports ORDER BY 1", "north").table()
    assert found.to_pylist() == [
        {"report_id": "r-1", "firmware": "1.0", "day": "2026-11-04"},
        {"report_id": "r-2", "firmware": None, "day": "2026-11-01"},
    ]


def test_parameters_are_values_never_text(analyst: Analyst) -> None:
    assert one(analyst, "SELECT $x", x="'; DROP VIEW reports; --") == "'; DROP VIEW reports; --"
    assert one(analyst, "SELECT $t::TIMESTAMPTZ", t=UNTIL) == UNTIL
    assert one(analyst, "SELECT $n + 1", n=41) == 42
    with pytest.raises(BadQuery):
        analyst.query("SELECT $missing", "north")


@pytest.mark.parametrize(
    ("sql", "line", "column", "near"),
    [
        ("SELECT nope FROM reports", 1, 8, "nope"),
        ("SELECT *\nFROM reports\nWHERE nope > 1", 3, 7, "nope"),
        ("SELECT *\nFROM nope", 2, 6, "nope"),
        ("SELECT 'ñandú', nope FROM reports", 1, 17, "nope"),
    ],
)
def test_an_error_says_where(sql: str, line: int, column: int, near: str, analyst: Analyst) -> None:
    with pytest.raises(BadQuery) as refused:
        analyst.query(sql, "north")
    assert (refused.value.line, refused.value.column, refused.value.near) == (line, column, near)


RUNAWAYS = [
    "SELECT count(*) FROM range(1000000000000)",
    "SELECT count(*) FROM reports a, reports b, reports c, reports d",
    "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
    "SELECT * FROM range(1000000000000)",
    "SELECT levenshtein(repeat('a', 100000), repeat('b', 100000)) FROM range(1000)",
]


@pytest.mark.parametrize("sql", RUNAWAYS)
def test_a_runaway_is_stopped_within_a_second_of_its_deadline(sql: str, analyst: Analyst) -> None:
    deadline_s = 1.0
    began = time.monotonic()
    with pytest.raises(Deadline):
        for _ in analyst.query(sql, "north", limits=Limits(deadline_s, "200MB", 2, 0)):
            pass
    start_up_s = 3.0  # of the interpreter, on a machine shared with others
    assert time.monotonic() - began < deadline_s + 1 + start_up_s
    assert not [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "sql",
    ["SELECT list(range) FROM range(1000000000)", "SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)"],
)
def test_a_query_that_eats_memory_is_stopped(sql: str, analyst: Analyst) -> None:
    with pytest.raises(OutOfMemory, match="200MB"):
        analyst.query(sql, "north", limits=Limits(30, "200MB", 2, 0)).table()


def test_an_engine_that_dies_is_an_error_and_never_a_short_answer(analyst: Analyst) -> None:
    answer = analyst.query("SELECT * FROM range(100000000)", "north")
    batches = iter(answer)
    next(batches)
    [child] = psutil.Process().children()
    child.kill()
    with pytest.raises(EngineFailed, match="-9"):
        for _ in batches:
            pass


def test_closing_an_answer_ends_its_process_and_removes_its_folder(analyst: Analyst) -> None:
    with analyst.query("SELECT * FROM range(1000000000000)", "north") as answer:
        batches = iter(answer)
        next(batches)
        folder = Path(answer._sandbox.spill_folder)
        assert folder.is_dir()
    assert not folder.exists()
    assert psutil.Process().children() == []


def test_the_process_has_no_environment_of_ours_and_gave_up_its_priority(
    analyst: Analyst, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARMONYWATCH_CANARY", "secret")
    with analyst.query("SELECT * FROM range(1000000000000)", "north", limits=Limits(nice=10)) as answer:
        batches = iter(answer)
        next(batches)
        [child] = psutil.Process().children()
        assert "HARMONYWATCH_CANARY" not in child.environ()
        assert child.nice() == os.nice(0) + 10


def test_a_long_answer_comes_in_batches_before_it_is_whole(analyst: Analyst) -> None:
    with analyst.query("SELECT range AS n FROM range(100000000)", "north") as answer:
        batches = iter(answer)
        first = next(batches)
    assert 0 < first.num_rows <= 8192
    assert first.column(0)[0].as_py() == 0


def test_every_question_is_in_the_audit_before_it_runs(analyst: Analyst, audit: KeptAudit) -> None:
    analyst.ask("alerts-by-hour", "north", {"since": "2026-11-01"}).close()
    with pytest.raises(BadQuery):
        analyst.query("SELECT nope FROM reports WHERE time > $t", "north", {"t": UNTIL})
    with pytest.raises(BadQuery):
        analyst.query("COPY reports TO 'x'", "north")
    assert [entry[:3] for entry in audit.entries] == [
        ("ask", "north", "alerts-by-hour"), ("query", "north", "lake"), ("query", "north", "lake"),
    ]  # fmt: skip
    assert audit.entries[0][3] == {
        "parameters": {"since": "2026-11-01T00:00:00.000000Z", "until": "2026-11-04T00:00:00.000000Z"}
    }
    assert audit.entries[1][3] == {
        "sql": "SELECT nope FROM reports WHERE time > $t", "parameters": {"t": "2026-11-04T00:00:00.000000Z"},
    }  # fmt: skip
    assert psutil.Process().children() == []


def test_a_notebook_asks_and_draws(analyst: Analyst, now: datetime, tmp_path: Path) -> None:
    connection = Connection(analyst, "north", ManualClock(now))
    assert connection.sql("SELECT $n AS n", n=3).to_pylist() == [{"n": 3}]
    assert connection.ask("alerts-by-hour").num_rows == 24
    assert connection.plot("alerts-by-hour", tmp_path / "a.svg").num_rows == 24
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert connection.cost("SELECT * FROM reports WHERE time < '2026-11-02'").files == 1


def test_the_lakes_own_catalog_is_one_and_its_relative_paths_are_found(
    tmp_path: Path, audit: KeptAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deltalake

    from harmonywatch.archive.lake import Lake

    monkeypatch.chdir(tmp_path)
    made = [report(number, 1, datetime(2026, 11, number, tzinfo=UTC)) for number in (1, 2, 3)]
    table = pa.Table.from_pylist(
        [{name: row.get(name) for name in TABLES["reports"].names} for row in made], TABLES["reports"]
    )
    deltalake.write_deltalake("lake/north/reports", table, partition_by=["day"])
    analyst = Analyst(Lake("lake"), audit, ManualClock(UNTIL), Limits(nice=0))
    sql = "SELECT string_agg(report_id, ',' ORDER BY time) AS ids FROM reports WHERE time < '2026-11-03'"
    assert one(analyst, sql) == "r-1,r-2"
    assert analyst.cost(sql, "north").files == 2
