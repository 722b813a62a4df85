"""A pruned answer is the unpruned answer: random filters, and the ways in which a filter only looks like one."""

# ruff: noqa: S608

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from engine_room import engine_over, rows_of
from small_lake import FolderCatalog, report, seen, write_table

from harmonywatch.analysis.contract import TABLES, BadQuery, Days, QueryError
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.moments import Given
from harmonywatch.analysis.planning import cost_of, needs_of, plans_of

NOW = datetime(2026, 11, 10, 23, 59, 30, tzinfo=UTC)
FIRST = datetime(2026, 10, 25, tzinfo=UTC)
DAYS = 20
CASES = 40
SEEDS = range(3)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> FolderCatalog:
    """Every day has rows at its first and last microsecond, and in between."""
    lake = tmp_path_factory.mktemp("pruning") / "lake"
    rows, number = [], 0
    for day in range(DAYS):
        for within in (
            timedelta(),
            timedelta(hours=1, minutes=day),
            timedelta(hours=12),
            timedelta(days=1, microseconds=-1),
        ):
            number += 1
            rows.append(report(number, number % 4, FIRST + timedelta(days=day) + within, words=["bus", f"d{day}"],
                               citizens=[seen(f"c{number % 3}", float(number % 50))]))  # fmt: skip
    write_table(lake, "north", "reports", rows)
    write_table(lake, "north", "rejects", [
        {"reject_id": f"x{n}", "source": "gateway", "code": "missing", "received_at": FIRST + timedelta(hours=7 * n),
         "day": (FIRST + timedelta(hours=7 * n)).date()} for n in range(60)
    ])  # fmt: skip
    return FolderCatalog(lake)


@pytest.fixture(scope="module")
def whole(catalog: FolderCatalog) -> Engine:
    return engine_over({table: catalog.plan("north", table, None, None) for table in TABLES})


def days_read(sql: str, catalog: FolderCatalog, **values: Any) -> set[str]:
    """The days of the reports' (or rejects') files that a query would read."""
    plans = plans_of(needs_of(sql, Given(NOW, values)), catalog, "north")
    return {Path(file).parent.name[4:] for plan in plans.values() for file in plan.files}


def _moment(draw: random.Random) -> str:
    moment = FIRST + timedelta(days=draw.randrange(-2, DAYS + 2))
    moment += draw.choice((timedelta(), timedelta(), timedelta(microseconds=1), timedelta(microseconds=-1),
                           timedelta(seconds=draw.randrange(86_400))))  # fmt: skip
    text, day = moment.strftime("%Y-%m-%d %H:%M:%S.%f"), moment.strftime("%Y-%m-%d")
    return draw.choice((
        f"'{text}'", f"'{text}Z'", f"TIMESTAMP '{text}'", f"TIMESTAMPTZ '{text}+00'", f"'{day}'", f"DATE '{day}'",
        f"'{text}+05:30'::TIMESTAMPTZ", f"'{text}-11'", f"CAST('{day}' AS DATE) + {draw.randrange(3)}",
        f"'{day}'::TIMESTAMP - INTERVAL {draw.randrange(50)} HOUR", f"DATE '{day}' + INTERVAL '1 month'",
        f"'{text}'::TIMESTAMPTZ::DATE", f"date_trunc('week', TIMESTAMP '{text}')", "now()", "current_date",
        f"now() - INTERVAL '{draw.randrange(12)} days'", f"current_date - {draw.randrange(12)}",
        f"date_trunc('month', now()) - INTERVAL {draw.randrange(3)} WEEK", f"'{text}-08'::DATE", f"'{text}+09'::TIMESTAMP",
        f"today() - INTERVAL '{draw.randrange(9)}' DAY", f"least('{text}'::TIMESTAMPTZ, now())", "NULL",
    ))  # fmt: skip


def _column(draw: random.Random, alias: str) -> str:
    column = draw.choice((f"{alias}.time", f"{alias}.time", f'{alias}."Time"'))
    unit = draw.choice(("hour", "day", "week", "month", "quarter", "year", "minute"))
    return draw.choice((column, column, column, f"{column}::DATE", f"CAST({column} AS TIMESTAMP)",
                        f"date_trunc('{unit}', {column})", f"date_trunc('{unit}', {column})::DATE"))  # fmt: skip


def _condition(draw: random.Random, alias: str, depth: int = 0) -> str:
    if depth < 3 and draw.random() < 0.45:
        left, right = _condition(draw, alias, depth + 1), _condition(draw, alias, depth + 1)
        return draw.choice((f"({left} AND {right})", f"({left} OR {right})", f"NOT ({left})", f"({left}) IS NOT TRUE"))
    column, operator = _column(draw, alias), draw.choice(("<", "<=", ">", ">=", "=", "<>", "IS DISTINCT FROM"))
    return draw.choice((
        f"{column} {operator} {_moment(draw)}", f"{_moment(draw)} {operator} {column}",
        f"{column} BETWEEN {_moment(draw)} AND {_moment(draw)}", f"{column} NOT BETWEEN {_moment(draw)} AND {_moment(draw)}",
        f"{column} IN ({_moment(draw)}, {_moment(draw)})", f"{alias}.watcher_id = 'w-001'", f"{alias}.lat > 0",
        f"{column} + INTERVAL 5 DAY {operator} {_moment(draw)}", f"{alias}.time IS NULL", "TRUE",
    ))  # fmt: skip


def _filter(draw: random.Random, alias: str) -> str:
    """Mostly with one plain bound in it, so that there is something to prune by."""
    plain = f"{_column(draw, alias)} {draw.choice(('<', '<=', '>', '>=', '='))} {_moment(draw)}"
    return draw.choice((plain, f"{plain} AND {_condition(draw, alias)}", f"({_condition(draw, alias)}) AND {plain}",
                        _condition(draw, alias)))  # fmt: skip


def _query(draw: random.Random) -> str:
    a, b, c = _filter(draw, "a"), _filter(draw, "b"), _condition(draw, "a")
    return draw.choice((
        f"SELECT count(*) AS n, min(time) AS t FROM reports AS a WHERE {a}",
        f"SELECT a.report_id, a.time FROM sightings AS a WHERE {a} ORDER BY 1",
        f"SELECT word, count(*) AS n FROM heard a WHERE {a} GROUP BY word ORDER BY word",
        f"SELECT count(*) AS n FROM reports a JOIN sightings b ON a.report_id = b.report_id WHERE {a} AND {b}",
        f"SELECT count(*) AS n FROM reports a LEFT JOIN reports b ON a.watcher_id = b.watcher_id AND a.time < b.time "
        f"WHERE {a} AND {b}",
        f"SELECT count(*) AS n, count(a.time) AS m FROM reports a FULL JOIN reports b ON a.report_id = b.report_id AND {c} "
        f"WHERE {draw.choice((a, b))}",
        f"SELECT count(*) AS n FROM (SELECT time, watcher_id, lat FROM reports) AS a WHERE {a}",
        f"SELECT count(*) AS n FROM (SELECT * FROM reports AS b WHERE {b}) AS a WHERE {a}",
        f"WITH a AS (SELECT * FROM sightings AS b WHERE {b}) SELECT count(*) AS n FROM a WHERE {a}",
        f"WITH x AS (SELECT * FROM reports), y AS (SELECT * FROM x AS b WHERE {b}) "
        f"SELECT (SELECT count(*) FROM x AS a WHERE {a}) AS n, (SELECT count(*) FROM y AS a WHERE {c}) AS m",
        f"SELECT count(*) AS n FROM (SELECT *, row_number() OVER (ORDER BY b.time) AS r FROM reports b) AS a WHERE {a} AND r > 3",
        f"SELECT count(*) AS n FROM (SELECT * FROM reports ORDER BY time, report_id LIMIT 9) AS a WHERE {a}",
        "SELECT count(*) AS n, sum(k) AS s FROM (SELECT time, watcher_id, max(lat) AS lat, count(*) AS k "
        f"FROM reports b GROUP BY ALL) AS a WHERE {a}",
        f"SELECT count(*) AS n FROM (SELECT DISTINCT ON (watcher_id) * FROM reports ORDER BY watcher_id, time) AS a WHERE {a}",
        f"SELECT time FROM reports a WHERE {a} UNION ALL SELECT time FROM sightings b WHERE {b} ORDER BY 1",
        f"SELECT count(*) AS n FROM reports a WHERE {a} AND EXISTS (FROM reports b WHERE b.watcher_id = a.watcher_id AND {b})",
        f"SELECT count(*) AS n FROM reports a WHERE a.report_id IN (SELECT report_id FROM sightings b WHERE {b} AND {a})",
        f"SELECT count(*) AS n FROM (SELECT received_at AS time, watcher_id, lat FROM reports) AS a WHERE {a}",
        f"SELECT count(*) AS n FROM (SELECT time + INTERVAL 9 DAY AS time, watcher_id, lat FROM reports) AS a WHERE {a}",
        "SELECT count(*) AS n, max(b.lat) AS l FROM reports a ASOF JOIN reports b ON a.watcher_id = b.watcher_id "
        f"AND a.time >= b.time WHERE {a} AND {b}",
        f"SELECT count(*) AS n FROM reports a SEMI JOIN reports b ON a.report_id = b.report_id WHERE {a}",
        f"SELECT count(*) AS n FROM reports a ANTI JOIN (SELECT * FROM reports b WHERE {b}) b "
        f"ON a.report_id = b.report_id WHERE {a}",
        f"WITH reports AS (SELECT * FROM reports b WHERE {b}) SELECT count(*) AS n FROM reports a WHERE {a}",
        f"FROM reports a SELECT count(*) AS n, list(a.time ORDER BY a.time)[1] AS t WHERE {a} HAVING count(*) > 0",
        f"SELECT count(*) AS n, count(*) FILTER (WHERE {c}) AS m FROM reports a, unnest(a.words) AS w(word) WHERE {a}",
        f"SELECT a.report_id, lag(a.time) OVER (ORDER BY a.time) AS before FROM reports a WHERE {a} "
        "QUALIFY row_number() OVER (ORDER BY a.time) < 9 ORDER BY 1",
    ))  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pruned_answer_is_the_unpruned_answer(seed: int, catalog: FolderCatalog, whole: Engine) -> None:
    draw = random.Random(seed)
    every, pruned, answered = len(catalog.plan("north", "reports", None, None).files), 0, 0
    for _ in range(CASES):
        sql = _query(draw).replace("now()", f"TIMESTAMPTZ '{NOW.isoformat()}'").replace("today()", "current_date").replace(
            "current_date", f"DATE '{NOW.date()}'")  # fmt: skip
        try:
            expected = rows_of(whole, sql)
        except QueryError as error:  # a query that fails whole is no question to prune
            assert isinstance(error, BadQuery), sql
            continue
        plans = plans_of(needs_of(sql, Given(NOW)), catalog, "north")
        assert rows_of(engine_over(plans), sql) == expected, f"seed {seed}: {sql}"
        answered += 1
        pruned += len(plans["reports"].files) < every
    assert answered > CASES * 0.6
    assert pruned > answered * 0.1, "the property is empty if nothing is pruned"


PRUNED = {
    "SELECT * FROM reports WHERE time >= '2026-11-01' AND time < '2026-11-03'": {"2026-11-01", "2026-11-02"},
    "SELECT * FROM reports WHERE time BETWEEN '2026-11-01' AND '2026-11-02'": {"2026-11-01", "2026-11-02"},
    "SELECT * FROM reports WHERE time::DATE = DATE '2026-11-01'": {"2026-11-01"},
    "SELECT * FROM reports WHERE day = '2026-11-01'": {"2026-11-01"},
    "SELECT * FROM reports WHERE date_trunc('day', time) = '2026-11-01'": {"2026-11-01"},
    "SELECT * FROM reports WHERE '2026-10-26T00:00:00Z' > time": {"2026-10-25"},
    "SELECT * FROM reports WHERE time = '2026-11-01' OR time = '2026-11-05 10:00'": {"2026-11-01", "2026-11-05"},
    "SELECT * FROM reports WHERE time > now() - INTERVAL '1 day'": {"2026-11-09", "2026-11-10", "2026-11-11", "2026-11-12",
                                                                   "2026-11-13"},
    "SELECT * FROM reports WHERE time > now() - INTERVAL '1 day' AND time < now()": {"2026-11-09", "2026-11-10",
                                                                                     "2026-11-11"},
    "SELECT * FROM reports WHERE time < '2026-11-01' AND time > '2026-11-02'": set(),
    "WITH r AS (SELECT * FROM reports) SELECT * FROM r WHERE time < '2026-10-26'": {"2026-10-25"},
    "SELECT word FROM (SELECT h.word, h.time FROM heard h) WHERE time < '2026-10-26'": {"2026-10-25"},
    "SELECT (SELECT count(*) FROM reports WHERE time < '2026-10-26'), (SELECT count(*) FROM sightings WHERE day(time) > 0 "
    "AND time >= '2026-11-13')": {"2026-10-25", "2026-11-13"},
    "SELECT * FROM rejects WHERE received_at < '2026-10-26'": {"2026-10-25"},
    "SELECT * FROM reports WHERE time >= $since AND time < $since + INTERVAL 1 DAY": {"2026-11-01"},
}  # fmt: skip


@pytest.mark.parametrize("sql", PRUNED)
def test_a_filter_on_time_prunes_to_its_days(sql: str, catalog: FolderCatalog) -> None:
    assert days_read(sql, catalog, since=datetime(2026, 11, 1, tzinfo=UTC)) == PRUNED[sql]


UNPRUNED = [
    "SELECT * FROM reports",
    "SELECT * FROM reports WHERE received_at < '2026-10-26'",
    "SELECT * FROM reports WHERE NOT time < '2026-11-01'",
    "SELECT * FROM reports WHERE time < '2026-10-26' OR lat > 0",
    "SELECT * FROM reports, (VALUES (TIMESTAMPTZ '2026-11-01')) AS v(time) WHERE v.time < '2026-10-26'",
    "SELECT * FROM reports AS r(time) WHERE time < '2026-10-26'",
    "SELECT count(*) FILTER (WHERE time < '2026-10-26') FROM reports",
    "SELECT * FROM reports WHERE time < 'infinity'",
    "SELECT * FROM (SELECT time FROM reports LIMIT 3) WHERE time < '2026-10-26'",
    "SELECT * FROM (SELECT max(time) AS time FROM reports) WHERE time < '2026-10-26'",
    "SELECT * FROM reports TABLESAMPLE 10% WHERE time < '2026-10-26'",
    "WITH r AS (SELECT * FROM reports) SELECT (SELECT count(*) FROM r), (SELECT count(*) FROM r WHERE time < '2026-10-26')",
    "SELECT * FROM reports WHERE time > (SELECT max(time) FROM alerts)",
    "SELECT * FROM reports a POSITIONAL JOIN reports b WHERE a.time < '2026-10-26'",
]


@pytest.mark.parametrize("sql", UNPRUNED)
def test_what_is_not_surely_a_bound_prunes_nothing(sql: str, catalog: FolderCatalog) -> None:
    assert len(days_read(sql, catalog)) == DAYS


def test_a_table_that_is_not_named_is_not_planned() -> None:
    assert needs_of("SELECT 1", Given(NOW)).days == {}
    assert set(needs_of("SELECT * FROM heard", Given(NOW)).days) == {"reports"}


def test_the_cost_names_days_files_and_bytes(catalog: FolderCatalog) -> None:
    needs = needs_of("SELECT * FROM reports WHERE time >= '2026-11-01' AND time < '2026-11-02'", Given(NOW))
    plans = plans_of(needs, catalog, "north")
    cost = cost_of(needs, plans)
    assert cost.days == (("reports", Days(date(2026, 11, 1), date(2026, 11, 1))),)
    assert cost.files == 1
    assert cost.bytes == Path(plans["reports"].files[0]).stat().st_size


def test_many_scattered_days_are_read_as_one_span_rather_than_planned_apart() -> None:
    moments = ", ".join(f"'{2000 + n}-01-01'" for n in range(200))
    needs = needs_of(f"SELECT * FROM reports WHERE time IN ({moments})", Given(NOW))
    assert len(needs.days["reports"]) <= 64
