"""DuckDB and Spark answer alike: every saved question on what a seeded fleet sent, every text of `spark_examples.py` on a
small lake full of ties, nulls and midnights. One Spark session (two cores, 1 GiB) for all of it.

Rows are compared in the order of the text: numbers to nine significant digits, moments to the microsecond. A mean depends
on the order of its sum in the last bits, on either engine, and so does on which side of a tie it is rounded: so what a fleet's
questions round is compared before it is rounded, and after that may be one unit apart.
"""

# ruff: noqa: S608

from __future__ import annotations

import math
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from pyspark import SparkContext
from pyspark.sql import SparkSession
from sqlglot import exp

sys.path.insert(0, str(Path(__file__).parent.parent / "analysis"))
sys.path.insert(0, str(Path(__file__).parent.parent / "end_to_end"))

from engine_room import engine_over, rows_of
from running_system import QUICK_ARCHIVE, System, running
from small_lake import START, UNTIL, FolderCatalog, city, write_city
from spark_examples import ALIKE, DIFFERENT, REFUSED

from harmonywatch import assemble
from harmonywatch.analysis.contract import TABLE_OF_VIEW, TABLES, BadQuery, Deadline, Plan, Room
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.questions import bound, question, questions
from harmonywatch.analysis.spark import SparkEngine, open_session
from harmonywatch.analysis.spark_vetting import vet_plan
from harmonywatch.settings import load

pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
"""Spark's client leaves the socket of each answer to the garbage collector."""

SEED = 20261123
FLEET = ("--watchers", 120, "--rate", 800, "--seconds", 5, "--seed", SEED)
FAULTS = "twice=0.04,late=0.03,order=0.03,malformed=0.03,skew=0.1,silent=0.01"
REPORTS_LEAST = 2000
NAMES = [each.name for each in questions()]
VALUES: Mapping[str, Any] = {
    "threshold": 25.5, "n": 3, "since": START, "naive": START.replace(tzinfo=None), "word": "Ñandú", "day": START.date(),
    "none": None, "yes": True,
}  # fmt: skip

NINTH_DIGIT = (0.0, 1.1e-8)
"""One unit in the last of nine digits, where the first is a 1."""

Rows = list[dict[str, Any]]


@dataclass
class Engines:
    """Both over the same files. `system`: where they come from, if it is a system."""

    duckdb: Engine
    spark: SparkEngine
    system: System | None = None

    def answers(self, sql: str, values: Mapping[str, Any]) -> tuple[Rows, Rows]:
        """DuckDB's rows, then Spark's; their columns have the same names and types."""
        used = {name: value for name, value in values.items() if f"${name}" in sql}
        of_duckdb, of_spark = (engine.run(sql, used) for engine in (self.duckdb, self.spark))
        assert of_spark.schema == of_duckdb.schema
        return _rows(of_duckdb.read_all()), _rows(of_spark.read_all())


def _rows(table: Any) -> Rows:
    """By place, because a name may stand twice."""
    named = table.rename_columns([f"{place} {name}" for place, name in enumerate(table.schema.names)])
    return [_comparable(row) for row in named.to_pylist()]


def _comparable(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value + 0.0:.9g}"  # -0.0 is 0.0
    if isinstance(value, dict):
        return {name: _comparable(each) for name, each in value.items()}
    return [_comparable(each) for each in value] if isinstance(value, list) else value


def _engines(session: SparkSession, plans: Mapping[str, Plan], system: System | None = None) -> Engines:
    model = engine_over({table: Plan([], 0, plan.schema) for table, plan in plans.items()})
    room = Room("1GB", 2, "/nonexistent", 60.0)
    return Engines(engine_over(plans), SparkEngine(lambda: session, plans, model, room), system)


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    with tempfile.TemporaryDirectory() as folder:
        opened = open_session(Room("1GB", 2, folder, 60.0), 1 << 30)
        yield opened
        gateway = SparkContext._gateway
        opened.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(30)
        SparkContext._gateway = SparkContext._jvm = None


@pytest.fixture(scope="module")
def small(session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """The folder's name is one that would be a pattern, or a partition."""
    lake = tmp_path_factory.mktemp("a=b") / "la[k]e {a,b} *"
    write_city(lake, "north", city(SEED))
    catalog = FolderCatalog(lake)
    return _engines(session, {table: catalog.plan("north", table, None, None) for table in TABLES})


@pytest.fixture(scope="module")
def fleets(session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with running(tmp_path_factory.mktemp("spark") / "data", environment=QUICK_ARCHIVE) as system:
        key = system.add_force("north")
        system.run("fleet", *map(str, FLEET), "--faults", FAULTS, "--to", system.url, "--key", f"north={key}")
        system.wait_archived("north", REPORTS_LEAST, 90.0)
        system.stop()
        lake = assemble.open_lake(load({"data": str(system.folder)})[0])
        plans = {table: lake.plan("north", table) for table in TABLES}
        yield _engines(session, {table: Plan(p.files, p.bytes, p.schema) for table, p in plans.items()}, system)


def _arguments(name: str, engines: Engines, span: str) -> dict[str, Any]:
    """Of the whole run, or of its middle with other thresholds, as far as the question has them."""
    ((first, last),) = ((row["first"], row["last"]) for row in rows_of(engines.duckdb, SPAN))
    if span == "whole":
        wanted: dict[str, Any] = {"since": first - timedelta(hours=1), "until": last + timedelta(minutes=10)}
    else:
        tenth = (last - first) / 10
        wanted = {"since": first + tenth, "until": last - tenth, "minutes": 0, "threshold": 55.5, "least": 1, "most": 7}
    return {param.name: wanted[param.name] for param in question(name).params if param.name in wanted}


SPAN = "select min(received_at) as first, max(received_at) as last from reports"


def _unrounded(sql: str) -> str:
    query = sqlglot.parse_one(sql, read="duckdb")
    return query.transform(lambda node: node.this if isinstance(node, exp.Round) else node).sql("duckdb")


def _units(sql: str) -> dict[int, float]:
    """By place of the column: the last unit to which it is rounded."""
    columns = [each.unalias() for each in sqlglot.parse_one(sql, read="duckdb").selects]
    return {
        place: 10.0 ** -int(each.args["decimals"].name)
        for place, each in enumerate(columns)
        if isinstance(each, exp.Round)
    }


def _sorted(rows: Rows, rounded: Collection[int]) -> Rows:
    """By what is not rounded, for an unrounded order may be another."""
    return sorted(
        rows, key=lambda row: repr([value for place, value in enumerate(row.values()) if place not in rounded])
    )


def _within_a_unit(found: Rows, expected: Rows, units: Mapping[int, tuple[float, float]]) -> bool:
    """`units`: by place, how far apart numbers may be, absolutely and relatively."""

    def near(place: int, one: Any, other: Any) -> bool:
        if place not in units or None in (one, other):
            return bool(one == other)
        apart, share = units[place]
        return math.isclose(float(one), float(other), abs_tol=1.001 * apart, rel_tol=share)

    return len(found) == len(expected) and all(
        near(place, *values)
        for one, other in zip(found, expected, strict=True)
        for place, values in enumerate(zip(one.values(), other.values(), strict=True))
    )


def test_the_comparison_of_rounded_answers_can_fail() -> None:
    assert _units("select watcher_id, round(avg(lat), 3) as mean from reports group by 1") == {1: 0.001}
    units = {1: (0.001, 0.0)}
    row = {"0 watcher_id": "w", "1 mean": "0.063"}
    assert _within_a_unit([row], [{**row, "1 mean": "0.062"}], units)
    assert not _within_a_unit([row], [{**row, "1 mean": "0.061"}], units)
    assert not _within_a_unit([row], [{**row, "0 watcher_id": "v"}], units)
    assert not _within_a_unit([row], [], units)
    assert not _within_a_unit([row], [{**row, "1 mean": "0.0630001"}], {1: NINTH_DIGIT})


@pytest.mark.parametrize("span", ["whole", "part"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_question_has_one_answer_on_what_a_fleet_sent(name: str, span: str, fleets: Engines) -> None:
    asked = question(name)
    values = bound(asked, _arguments(name, fleets, span), datetime.now(UTC))
    of_duckdb, of_spark = fleets.answers(asked.sql, values)
    units = {place: (unit, 0.0) for place, unit in _units(asked.sql).items()}
    assert _within_a_unit(of_spark, of_duckdb, units)
    exact = [_sorted(rows, units) for rows in fleets.answers(_unrounded(asked.sql), values)]
    assert _within_a_unit(exact[1], exact[0], dict.fromkeys(units, NINTH_DIGIT))
    assert of_duckdb or (name, span) in {("sequence-gaps", "whole"), ("silent-watchers", "whole")}


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_question_has_one_answer_on_a_small_lake(name: str, small: Engines) -> None:
    asked = question(name)
    of_duckdb, of_spark = small.answers(asked.sql, bound(asked, {"since": START, "until": UNTIL}, UNTIL))
    assert of_spark == of_duckdb


@pytest.mark.parametrize("lake", ["small", "fleets"])
@pytest.mark.parametrize("view", list(TABLE_OF_VIEW))
def test_a_view_has_the_same_rows(view: str, lake: str, request: pytest.FixtureRequest) -> None:
    of_duckdb, of_spark = request.getfixturevalue(lake).answers(f"select * from {view} order by all", {})
    assert of_duckdb
    assert of_spark == of_duckdb


@pytest.mark.parametrize("text", ALIKE)
def test_a_text_has_one_answer(text: str, small: Engines) -> None:
    of_duckdb, of_spark = small.answers(text, VALUES)
    assert of_spark == of_duckdb


def _different(text: str, why: str) -> Any:
    return pytest.param(text, marks=pytest.mark.xfail(reason=why, raises=AssertionError, strict=True))


@pytest.mark.parametrize("text", [_different(text, why) for text, why in DIFFERENT.items()])
def test_a_known_difference(text: str, small: Engines) -> None:
    of_duckdb, of_spark = small.answers(text, {})
    assert of_spark == of_duckdb


@pytest.mark.parametrize("reason", list(REFUSED))
def test_what_spark_refuses_duckdb_answers(reason: str, small: Engines) -> None:
    """Else the way out would be none."""
    with pytest.raises(BadQuery, match="--engine duckdb"):
        small.spark.run(REFUSED[reason], {})
    assert small.duckdb.run(REFUSED[reason], {}).schema.names


def test_a_force_without_a_row_has_every_view(session: SparkSession, tmp_path: Path) -> None:
    catalog = FolderCatalog(tmp_path)
    empty = _engines(session, {table: catalog.plan("south", table, None, None) for table in TABLES})
    for view in TABLE_OF_VIEW:
        assert empty.answers(f"select * from {view}", {}) == ([], [])
        assert empty.answers(f"select count(*) from {view}", {})[1] == [{"0 count_star()": 0}]


# --- what it may not do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "select * from lake_reports",
        "select * from read_parquet('/etc/passwd')",
        "select * from 'x.parquet'",
        "drop view reports",
        "select getenv('HOME')",
        "select 1; select 2",
    ],
)
def test_a_text_that_duckdb_refuses_never_reaches_spark(sql: str, small: Engines) -> None:
    with pytest.raises(BadQuery):
        small.spark.run(sql, {})


@pytest.mark.parametrize(
    "text",
    [
        "select * from csv.`/etc/passwd`",
        "select * from lake_reports",
        "select reflect('java.lang.System', 'getenv', 'HOME')",
        "select upper(java_method('java.lang.System', 'getenv', 'HOME')) from reports",
        "select sum(x) over (partition by reflect('a', 'b')) from (select 1 as x)",
        "select * from reports where exists (select * from parquet.`/x`)",
        "with a as (select * from text.`/etc/passwd`) select * from a",
        "select * from reports, lateral (select input_file_name())",
        "select transform(watcher_id) using 'cat' from reports",
        "select * from sql_keywords()",
        "insert into reports select * from reports",
        "create table t as select 1",
        "set spark.sql.runSQLOnFiles=true",
        "cache table reports",
        "add jar '/x.jar'",
        "describe reports",
    ],
)
def test_the_wall_before_spark_holds_against_its_own_dialect(text: str, session: SparkSession) -> None:
    parser = session._jsparkSession.sessionState().sqlParser()
    with pytest.raises(BadQuery):
        vet_plan(parser.parsePlan(text).toJSON())


def test_behind_the_wall_spark_opens_no_file_by_its_name(session: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(Exception, match=r"TABLE_OR_VIEW_NOT_FOUND|not found"):
        session.sql(f"select * from text.`{tmp_path / 'secret.txt'}`").collect()


def test_an_error_in_the_analysts_values_is_the_analysts(small: Engines) -> None:
    with pytest.raises(BadQuery, match="CAST_INVALID_INPUT"):
        small.spark.run("select cast(watcher_id as int) from reports", {})


def test_a_query_is_stopped_from_another_thread(session: SparkSession, small: Engines) -> None:
    """The work of it would take hours. The engine is spent then; the session is not."""
    doomed = SparkEngine(lambda: session, small.spark._plans, small.spark._model, small.spark._room)
    tracker = session.sparkContext.statusTracker()
    began, stopped = threading.Event(), threading.Event()

    def stop_when_it_runs() -> None:
        while not tracker.getActiveJobsIds() and not stopped.wait(0.02):
            pass
        began.set()
        doomed.interrupt()

    thread = threading.Thread(target=stop_when_it_runs)
    thread.start()
    try:
        with pytest.raises(Deadline, match="stopped after 60 s"):
            doomed.run(
                "select count(*) from heard a, heard b, heard c, heard d where a.lat + b.lat + c.lat < d.lat", {}
            )
    finally:
        stopped.set()
        thread.join()
    assert began.is_set()
    assert small.answers("select 1 as one", {})[1] == [{"0 one": 1}]
