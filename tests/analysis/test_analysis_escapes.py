"""Ways out of a query, each tried at three walls: the planner, the engine's own judgement with the planner passed by, and,
for what touches files, settings or other databases, the locked engine with both passed by. None gets through any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
from engine_room import engine_over
from small_lake import FolderCatalog

from harmonywatch.analysis.contract import TABLES, BadQuery
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.moments import Given
from harmonywatch.analysis.planning import needs_of
from harmonywatch.analysis.vetting import allowed_functions, refused_function
from harmonywatch.clock import SystemClock

LOCKED = [
    # files, by function
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_json_auto('/etc/passwd')",
    "SELECT * FROM read_ndjson_objects('/etc/passwd')",
    "SELECT * FROM read_parquet('/nonexistent/other.parquet')",
    "SELECT * FROM parquet_scan('/nonexistent/other.parquet')",
    "SELECT * FROM parquet_metadata('/nonexistent/other.parquet')",
    "SELECT * FROM parquet_schema('/nonexistent/other.parquet')",
    "SELECT * FROM parquet_file_metadata('/nonexistent/other.parquet')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_duckdb('/nonexistent/other.db', table_name = 't')",
    "SELECT * FROM READ_TEXT('/etc/passwd')",
    "SELECT * FROM \"read_text\"('/etc/passwd')",
    "SELECT * FROM main.read_text('/etc/passwd')",
    "SELECT * FROM system.main.read_text('/etc/passwd')",
    "SELECT * FROM read_text(['/etc/passwd', '/etc/hosts'])",
    "SELECT * FROM read_text('/etc/' || 'passwd')",
    "SELECT * FROM read_text('file:///etc/passwd')",
    "SELECT * FROM read_text('http://127.0.0.1:9/x')",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    # files, by name
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '/etc/passwd.csv'",
    'SELECT * FROM "/etc/passwd.csv"',
    "SELECT * FROM '/nonexistent/other.parquet'",
    "FROM '/etc/hosts.json'",
    "SELECT * FROM 'https://127.0.0.1:9/x.parquet'",
    # nested
    "WITH x AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM x",
    "WITH RECURSIVE x AS (SELECT content FROM read_text('/etc/passwd') UNION ALL SELECT content FROM x) SELECT * FROM x",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM (SELECT * FROM (SELECT * FROM read_text('/etc/passwd')))",
    "SELECT * FROM reports WHERE EXISTS (SELECT * FROM read_text('/etc/passwd'))",
    "SELECT * FROM reports WHERE report_id IN (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM reports, LATERAL (SELECT * FROM read_text('/etc/passwd')) AS t",
    "SELECT * FROM reports JOIN read_text('/etc/passwd') AS t ON true",
    "SELECT 1 UNION ALL SELECT size FROM read_text('/etc/passwd')",
    "SELECT * FROM reports ORDER BY (SELECT size FROM read_text('/etc/passwd'))",
    "SELECT list_transform([1], lambda x: (SELECT size FROM read_text('/etc/passwd')))",
    "SELECT CASE WHEN true THEN (SELECT size FROM read_text('/etc/passwd')) END",
    "VALUES ((SELECT content FROM read_text('/etc/passwd')))",
    "SELECT * FROM (VALUES ((SELECT content FROM read_text('/etc/passwd')))) AS v",
    "SELECT count(*) FILTER (WHERE (SELECT size FROM read_text('/etc/passwd')) > 0) FROM reports",
    "SELECT sum(1) OVER (PARTITION BY (SELECT size FROM read_text('/etc/passwd'))) FROM reports",
    "SELECT * FROM range((SELECT size FROM read_text('/etc/passwd')))",
    "SELECT * FROM reports LIMIT (SELECT size FROM read_text('/etc/passwd'))",
    "(SELECT * FROM read_text('/etc/passwd'))",
    "FROM (FROM read_text('/etc/passwd'))",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('/etc/passwd.csv')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''/etc/passwd'')'))",
    "/* c */ SELECT /* c */ * FROM /* c */ read_text/* c */('/etc/passwd') -- c",
    # statements
    "COPY (SELECT 1) TO '/tmp/harmonywatch-escape.csv'",
    "COPY reports TO '/tmp/harmonywatch-escape.parquet'",
    "COPY t FROM '/etc/passwd'",
    "EXPORT DATABASE '/tmp/harmonywatch-escape'",
    "IMPORT DATABASE '/tmp/harmonywatch-escape'",
    "ATTACH '/tmp/harmonywatch-escape.db'",
    "ATTACH '/etc/passwd' AS p (READ_ONLY)",
    "INSTALL httpfs",
    "FORCE INSTALL spatial",
    "LOAD httpfs",
    "LOAD '/tmp/x.duckdb_extension'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET allowed_paths = ['/etc/passwd']",
    "SET allowed_directories = ['/']",
    "SET memory_limit = '100GB'",
    "SET threads = 64",
    "SET GLOBAL threads = 64",
    "RESET memory_limit",
    "PRAGMA threads = 64",
    "PRAGMA memory_limit = '100GB'",
    "SET home_directory = '/'",
    "SET temp_directory = '/'",
    "SET python_enable_replacements = true",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
]

JUDGED = [
    # more than one, or another verb
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '/tmp/harmonywatch-escape.csv'",
    "CREATE TABLE t AS SELECT 1",
    "CREATE OR REPLACE VIEW reports AS SELECT 1",
    "CREATE MACRO m() AS TABLE SELECT * FROM read_text('/etc/passwd')",
    "CREATE TEMP TABLE t (a INT)",
    "DROP VIEW reports",
    "ALTER VIEW reports RENAME TO r",
    "INSERT INTO typed_reports SELECT * FROM reports",
    "UPDATE typed_reports SET lat = 0",
    "DELETE FROM typed_reports",
    "TRUNCATE typed_reports",
    "WITH x AS (SELECT 1) INSERT INTO typed_reports SELECT * FROM x",
    "ATTACH ':memory:' AS m",
    "DETACH memory",
    "USE memory",
    "CALL pragma_version()",
    "CALL enable_logging()",
    "PRAGMA database_list",
    "PRAGMA show_tables",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE SELECT 1",
    "EXPLAIN SELECT 1",
    "DESCRIBE reports",
    "SUMMARIZE reports",
    "SHOW TABLES",
    "FROM (DESCRIBE reports)",
    "FROM (SHOW TABLES)",
    "FROM (SUMMARIZE reports)",
    "BEGIN TRANSACTION",
    "CHECKPOINT",
    "VACUUM",
    "ANALYZE",
    "SET VARIABLE x = 1",
    "SET TimeZone = 'Asia/Tokyo'",
    "COMMENT ON VIEW reports IS 'x'",
    "PIVOT reports ON watcher_id USING count(*)",
    # what lies below the views
    "SELECT * FROM lake_reports",
    "SELECT * FROM typed_reports",
    "SELECT * FROM main.lake_reports",
    "SELECT * FROM memory.main.lake_reports",
    "SELECT * FROM memory.main.reports",
    "SELECT * FROM query_table('lake_reports')",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_views()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_views",
    "SELECT * FROM pragma_table_info('reports')",
    "SELECT * FROM duckdb_external_file_cache()",
    "SELECT * FROM test_all_types()",
    "SELECT * FROM arrow_scan(1::POINTER, 2::POINTER, 3::POINTER)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM seq_scan('typed_reports')",
    "SELECT * FROM checkpoint()",
    "SELECT * FROM repeat('x', 10)",
    # the session
    "SELECT getenv('HOME')",
    "SELECT current_setting('allowed_paths')",
    "SELECT main.current_setting('threads')",
    "SELECT getvariable('x')",
    "SELECT nextval('s')",
    "SELECT setseed(0.5)",
    "SELECT write_log('x')",
    "SELECT sleep_ms(100000)",
    "SELECT pg_sleep(1000)",
    "SELECT current_query()",
    "SELECT version()",
    "SELECT json_serialize_sql('SELECT 1')",
    "SELECT pg_get_viewdef(0)",
    "SELECT x.current_setting('threads') FROM reports x",
    "SELECT 'threads'.current_setting()",
    "SELECT list_transform(['threads'], lambda s: current_setting(s))",
    "SELECT CuRrEnT_SeTtInG('threads')",
    "SELECT \"current_setting\"('threads')",
    "WITH \"a.csv\" AS (SELECT 1) SELECT (SELECT count(*) FROM x) FROM \"a.csv\"",
    "SELECT * FROM (WITH duckdb_views AS (SELECT 1 AS a) SELECT a FROM duckdb_views), duckdb_views",
    "",
    ";",
    "-- nothing",
    "SELECT",
    "SELECT 1\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    catalog = FolderCatalog(lake)
    plans = {table: catalog.plan("north", table, None, None) for table in TABLES}
    return engine_over(plans, tmp_path_factory.mktemp("spill"))


SCOPE_ONLY = {"SELECT * FROM (WITH duckdb_views AS (SELECT 1 AS a) SELECT a FROM duckdb_views), duckdb_views"}
"""The planner does not look at scopes; the strict wall does."""


@pytest.mark.parametrize("sql", [sql for sql in (*LOCKED, *JUDGED) if sql not in SCOPE_ONLY])
def test_the_planner_refuses(sql: str) -> None:
    with pytest.raises(BadQuery):
        needs_of(sql, Given(SystemClock().now()))


@pytest.mark.parametrize("sql", [*LOCKED, *JUDGED])
def test_the_engine_refuses_what_the_planner_has_not_seen(sql: str, engine: Engine) -> None:
    with pytest.raises(BadQuery):
        engine.run(sql, {})


@pytest.mark.parametrize("sql", LOCKED)
def test_the_lock_holds_alone(sql: str, engine: Engine) -> None:
    with pytest.raises(duckdb.Error):
        engine._connection.execute(sql).fetchall()


def test_a_planned_file_is_not_written_over(engine: Engine, lake: Path) -> None:
    file = next((lake / "north" / "reports").rglob("*.parquet"))
    before = file.read_bytes()
    with pytest.raises(duckdb.Error):
        engine._connection.execute(f"COPY (SELECT 1 AS x) TO '{file}'")
    assert file.read_bytes() == before


def test_the_corpus_left_nothing_on_the_disk() -> None:
    assert not list(Path("/tmp").glob("harmonywatch-escape*"))


def test_the_walls_let_honest_queries_through(engine: Engine) -> None:
    """The control: without it a wall that refuses everything would pass."""
    honest: list[Any] = [
        "SELECT count(*) FROM reports",
        "WITH x AS (SELECT * FROM sightings) SELECT citizen, avg(harmonyscore) FROM x GROUP BY ALL ORDER BY 2 LIMIT 3",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT sum(i) FROM n",
        "SELECT * FROM range(3), generate_series(1, 2), unnest([1, 2]) AS u(x), (VALUES (1)) AS v(y)",
        "SELECT unnest(words), time AT TIME ZONE 'Europe/Rome', extract(hour FROM time), words[1], h3_parent(h3, 7) FROM reports",
        "SELECT list_transform(words, lambda w: upper(w)), [w FOR w IN words IF len(w) > 3] FROM main.reports",
        "SELECT rank() OVER (PARTITION BY watcher_id ORDER BY time), COLUMNS('lat|lon') FROM reports QUALIFY 1 = 1",
        "SELECT * EXCLUDE (words) REPLACE (lat + 1 AS lat) FROM reports USING SAMPLE 5 ROWS",
        "SELECT extra->>'$.mood', CASE WHEN lat > 0 THEN 1 END, coalesce(battery, 0), words IS DISTINCT FROM NULL FROM reports",
        "SELECT quantile_cont(harmonyscore, 0.5), mode(citizen), count(DISTINCT h3), max_by(h3, time) FROM sightings",
        "SELECT word FROM heard WHERE word ILIKE 'b%' UNION SELECT word FROM heard WHERE word SIMILAR TO '.*n' ORDER BY 1",
        "SELECT * FROM reports a ASOF JOIN alerts b ON a.watcher_id = b.watcher_id AND a.time >= b.time",
        "SELECT * FROM (SELECT model, battery FROM reports) PIVOT (avg(battery) FOR model IN ('M0', 'M1'))",
    ]
    for sql in honest:
        needs_of(sql, Given(SystemClock().now()))
        engine.run(sql, {})


def test_every_function_of_the_engine_is_decided() -> None:
    """An engine with more functions than this list was made for stops here, not in production."""
    rows = duckdb.connect().execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro')"
    )
    names = {row[0] for row in rows.fetchall()}
    decided = {name for name in names if refused_function(name)}
    assert names - decided == allowed_functions() - {"h3_parent"}
