"""What is said to Spark, and what is not said: no JVM is needed for that. What Spark makes of it: tests/cluster/test_spark.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import sqlglot
from engine_room import engine_over
from small_lake import FolderCatalog
from spark_examples import ALIKE, REFUSED
from sqlglot import exp

from harmonywatch.analysis.contract import TABLES, BadQuery
from harmonywatch.analysis.dialect import NAMED, RULES, SAME, SAME_NAMES, Columns, spark_of
from harmonywatch.analysis.questions import questions
from harmonywatch.analysis.spark_vetting import vet_plan
from harmonywatch.analysis.views import sql_of


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Columns:
    catalog = FolderCatalog(tmp_path_factory.mktemp("lake"))
    return engine_over({table: catalog.plan("north", table, None, None) for table in TABLES}).columns()


def test_every_function_that_is_let_through_has_an_example() -> None:
    texts = [*ALIKE, *(each.sql for each in questions())]
    nodes = [node for text in texts for node in sqlglot.parse_one(text, read="duckdb").walk()]
    kinds = {type(node) for node in nodes if not isinstance(node, exp.Anonymous)}
    names = {node.name.lower() for node in nodes if isinstance(node, exp.Anonymous)}
    assert sorted(kind.__name__ for kind in (SAME | RULES.keys()) - kinds) == []
    assert sorted((SAME_NAMES | NAMED.keys()) - names) == []


@pytest.mark.parametrize("reason", list(REFUSED))
def test_what_has_no_sure_translation_is_refused_with_a_way_out(reason: str, columns: Columns) -> None:
    with pytest.raises(BadQuery) as told:
        spark_of(REFUSED[reason], columns)
    assert reason in str(told.value)
    assert "--engine duckdb" in str(told.value)


@pytest.mark.parametrize("text", ALIKE)
def test_what_can_be_said_is_one_select_of_sparks(text: str, columns: Columns) -> None:
    said = sqlglot.parse(spark_of(text, columns), read="spark")
    assert len(said) == 1 and isinstance(said[0], exp.Query)


def test_a_quote_or_backslash_does_not_end_a_text(columns: Columns) -> None:
    nasty = "\\' UNION ALL SELECT reflect('java.lang.System', 'exit') -- "
    said = spark_of("select '" + nasty.replace("'", "''") + "' as x", columns)
    assert [each.name for each in sqlglot.parse_one(said, read="spark").find_all(exp.Literal)] == [nasty]


def test_a_quoted_name_does_not_end_a_name(columns: Columns) -> None:
    said = spark_of('select watcher_id as "a` from secret --" from reports', columns)
    assert sqlglot.parse_one(said, read="spark").selects[0].alias == "a` from secret --"


def test_a_view_unnests_by_place(columns: Columns) -> None:
    said = spark_of(sql_of("heard"), columns)
    assert "LATERAL VIEW POSEXPLODE(`lake_reports`.`words`)" in said
    assert "GENERATE_SUBSCRIPTS" not in said


PLANS = "org.apache.spark.sql.catalyst.plans.logical."
ANALYSIS = "org.apache.spark.sql.catalyst.analysis."


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"class": PLANS + "DropTable"}, "DropTable"),
        ({"class": PLANS + "InsertIntoStatement"}, "InsertIntoStatement"),
        ({"class": "org.apache.spark.sql.execution.command.SetCommand"}, "SetCommand"),
        ({"class": ANALYSIS + "UnresolvedTable"}, "UnresolvedTable"),
        ({"class": ANALYSIS + "UnresolvedRelation", "multipartIdentifier": "[csv, /etc/passwd]"}, "no view csv, /etc/passwd"),
        ({"class": ANALYSIS + "UnresolvedRelation", "multipartIdentifier": "[lake_reports]"}, "no view lake_reports"),
        ({"class": ANALYSIS + "UnresolvedTableValuedFunction", "name": "[sql_keywords]"}, "sql_keywords"),
        ({"class": ANALYSIS + "UnresolvedFunction", "nameParts": "[Reflect]"}, r"Reflect\(\) is not allowed"),
        ({"class": ANALYSIS + "UnresolvedFunction", "nameParts": "[other, f]"}, "not allowed"),
    ],
)  # fmt: skip
def test_the_wall_before_spark_refuses(node: dict[str, str], reason: str) -> None:
    with pytest.raises(BadQuery, match=reason):
        vet_plan(json.dumps([{"class": PLANS + "Project", "projectList": [[node]]}]))


def test_the_wall_before_spark_lets_views_and_ctes_by() -> None:
    views = [
        {"class": ANALYSIS + "UnresolvedRelation", "multipartIdentifier": name} for name in ("[Reports]", "[mine]")
    ]
    cte = {"class": ANALYSIS + "UnresolvedWith", "cteRelations": [{"_1": "mine", "_2": []}]}
    vet_plan(json.dumps([{"class": PLANS + "Project", "child": [views]}]).replace("mine", "alerts"))
    vet_plan(json.dumps([cte | {"class": PLANS + "UnresolvedWith", "child": [views]}]))


def test_without_spark_one_is_told_what_to_install() -> None:
    text = """
import sys
sys.modules["pyspark"] = None
from harmonywatch.analysis.contract import EngineFailed
try:
    import harmonywatch.analysis.spark
except EngineFailed as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
    assert "pip install 'harmonywatch[spark]'" in told and "--engine duckdb" in told
