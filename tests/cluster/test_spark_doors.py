"""Spark behind the doors: the command line, the notebook, and the recipe for people with their own Spark. Each query has a
JVM of its own here, so there are few."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "end_to_end"))

from running_system import HARMONYWATCH, QUICK_ARCHIVE, System, clean_environment, report, running

import harmonywatch
from engines.spark import class_path
from harmonywatch.analysis.contract import BadQuery

ROOT = Path(__file__).parents[2]
SLOW = ("--engine", "spark", "--deadline", "200")
"""A JVM on a busy machine takes its time."""

COUNTS = """select watcher_id, count(*) as seen, round(avg(harmonyscore), 2) as mean, min(time) as first
            from sightings group by 1 order by 1"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A force with reports and one without."""
    with running(tmp_path_factory.mktemp("doors") / "data", environment=QUICK_ARCHIVE) as system:
        key = system.add_force("north")
        system.add_force("south")
        for number in range(40):
            sent = report(f"w-{number % 4}", score=float(number), name=f"Citizen {number % 7}", report_id=f"r-{number}")
            assert system.post(key, sent).status == 202
        system.wait_archived("north", 40)
        system.stop()
        (system.folder / "harmonywatch.toml").write_text("[analysis]\nnice = 0\n")  # nothing is to be given way to here
        yield system


def test_a_query_and_a_question_have_one_answer_on_both_engines(system: System) -> None:
    rows = system.query(COUNTS, "north")
    assert len(rows) == 4
    assert system.run("query", COUNTS, "--force", "north", *SLOW) == rows
    asked = ("ask", "watcher-coverage", "--force", "north")
    assert system.run(*asked, *SLOW) == system.run(*asked)
    entries = system.run("audit", "--force", "north")
    assert [entry["detail"].get("engine") for entry in entries if entry["action"] in ("query", "ask")][-4:] == [
        None, "spark", "spark", None,
    ]  # fmt: skip


def test_every_format_and_an_empty_force(system: System) -> None:
    done = system.call("query", "select count(*) as n from reports", "--force", "south", "--format", "csv", *SLOW)
    assert (done.returncode, done.stdout) == (0, "n\n0\n")


def test_a_bad_text_is_told_before_spark_starts(system: System, tmp_path: Path) -> None:
    """No Java can be found there, and it is not missed."""
    environment = {**clean_environment(), "PATH": str(tmp_path)}
    environment.pop("JAVA_HOME", None)
    told = {}
    for sql in ("select nope from reports", "select sqrt(lat) from reports", "drop table reports", "select 1"):
        command = [
            str(HARMONYWATCH),
            "query",
            sql,
            "--force",
            "north",
            "--data",
            str(system.folder),
            "--engine",
            "spark",
        ]
        told[sql] = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert all(done.returncode != 0 and not done.stdout for done in told.values())
    assert '"nope" not found' in told["select nope from reports"].stderr
    assert "ask DuckDB (--engine duckdb)" in told["select sqrt(lat) from reports"].stderr
    assert "only SELECT" in told["drop table reports"].stderr
    assert "it needs Java 17" in told["select 1"].stderr


def test_at_its_deadline_a_query_ends_with_its_jvm(system: System) -> None:
    hours = "select count(*) from heard a, heard b, heard c, heard d, heard e, heard f where a.lat + b.lat > c.lat"
    before = _jvms()
    done = system.call("query", hours, "--force", "north", "--engine", "spark", "--deadline", "20")
    assert done.returncode != 0
    assert "stopped after 20 s" in done.stderr
    assert _jvms() <= before


def _jvms() -> set[int]:
    """Those that a query started: they work in its folder."""
    found = set()
    for each in psutil.process_iter(["cmdline"]):
        command = " ".join(each.info["cmdline"] or [])
        if "SparkSubmit" in command and "harmonywatch-query-" in command:
            found.add(each.pid)
    return found


def test_a_notebook_asks_spark(system: System) -> None:
    north = harmonywatch.connect("north", data=system.folder, engine="spark")
    with pytest.raises(BadQuery, match="--engine duckdb"):
        north.sql("select sqrt(lat) from reports")
    found = north.sql("select count(*) as n from sightings where harmonyscore < $below", below=25)
    assert found.to_pylist() == [{"n": 25}]


def test_the_recipe_for_ones_own_spark_runs_as_it_stands(system: System) -> None:
    """But for where the archives come from, and what a test machine may take."""
    page = (ROOT / "docs/how-to/spark.md").read_text("utf-8")
    cells = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    packages = re.search(r'\.config\("spark.jars.packages", "io.delta:([^"]+)"\)', cells)
    assert packages is not None
    name, version = packages[1].split(":")
    assert f"{name}-{version}.jar" in class_path()
    small = (
        '.config("spark.ui.enabled", "false").config("spark.driver.memory", "1g").config("spark.driver.bindAddress",'
    )
    ours = f'.config("spark.jars", {class_path()!r}).master("local[2]"){small} "127.0.0.1")'
    checked = """
import json
rows = spark.sql("select count(*) as n, sum(harmonyscore) as total, count(distinct h3_parent(h3, 7)) as d from sightings")
views = ("reports", "heard", "repeats", "alerts", "rejects")
print(json.dumps(rows.first().asDict()), [spark.table(view).count() for view in views])
south = harmonywatch.connect("south")
for statement in south.spark_views():
    spark.sql(statement)
print(spark.table("sightings").count(), len(spark.table("reports").columns))
"""
    done = subprocess.run(
        [sys.executable, "-c", cells.replace(packages[0], ours) + checked],
        cwd=system.folder.parent, env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, third = done.stdout.strip().splitlines()[-3:]
    assert first == "1 districts; 7 citizens with a low score"
    counts, views = second.split("} ")
    assert json.loads(counts + "}") == {"n": 40, "total": 780.0, "d": 1}
    assert json.loads(views) == [40, 80, 0, 25, 0]
    columns = len(harmonywatch.connect("south", data=system.folder).sql("select * from reports").schema.names)
    assert third == f"0 {columns}"
    *_, newest = [row for row in system.run("audit", "--force", "south") if row["action"] == "spark-views"]
    assert newest["force"] == "south"
