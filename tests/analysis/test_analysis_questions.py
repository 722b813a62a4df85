"""Every saved question against an answer computed from the rows themselves."""

# ruff: noqa: S608

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import h3
import pytest
import sqlglot
from engine_room import engine_over, rows_of
from small_lake import START, UNTIL, FolderCatalog, Row
from sqlglot import exp
from truth_answers import TRUTH, Rounded

from harmonywatch.analysis.contract import TABLES
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.questions import Question, QuestionError, bound, question, questions, read

NAMES = [each.name for each in questions()]


@pytest.fixture(scope="module")
def engine(lake: Any) -> Engine:
    catalog = FolderCatalog(lake)
    return engine_over({table: catalog.plan("north", table, None, None) for table in TABLES})


ARGUMENTS: dict[str, dict[str, Any]] = {
    "all": {},
    "a day": {"since": START + timedelta(days=1), "until": START + timedelta(days=2)},
    "hours across midnight": {"since": START + timedelta(hours=22.5), "until": START + timedelta(hours=26)},
    "nothing": {"since": UNTIL + timedelta(days=1), "until": UNTIL + timedelta(days=2)},
}


def _comparable(found: list[Row]) -> list[Row]:
    """Moments as text, for they have to agree exactly."""
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in found
    ]


@pytest.mark.parametrize("span", list(ARGUMENTS))
@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_that_of_the_ground_truth(
    name: str, span: str, engine: Engine, rows: dict[str, list[Row]]
) -> None:
    asked = question(name)
    values = bound(asked, ARGUMENTS[span], UNTIL)
    found = rows_of(engine, asked.sql, values)
    expected = TRUTH[name](rows, values)
    assert _comparable(found) == _comparable(expected)
    assert bool(expected) == (span != "nothing") or name == "silent-watchers"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("silent-watchers", {"until": "2026-11-04T03:00:00Z", "minutes": "30"}),
        ("agitation-map", {"least": "100"}),
        ("words-of-low-scores", {"threshold": "4", "least": "300"}),
        ("repeat-offenders", {"least": 20}),
        ("busiest-cells", {"most": 3}),
        ("citizens-of-many-watchers", {"least": 25}),
        ("spread-of-agitation", {"threshold": 60}),
        ("score-trend", {"threshold": 25.5}),
        ("battery-against-failures", {"minutes": 60}),
        ("firmware-against-failures", {"minutes": "60"}),
    ],
)
def test_parameters_change_the_answer_as_they_change_the_truth(
    name: str, arguments: dict[str, Any], engine: Engine, rows: dict[str, list[Row]]
) -> None:
    asked = question(name)
    values = bound(asked, arguments, UNTIL)
    expected = TRUTH[name](rows, values)
    assert expected
    assert expected != TRUTH[name](rows, bound(asked, {}, UNTIL))
    found = rows_of(engine, asked.sql, values)
    assert _comparable(found) == _comparable(expected)


def test_the_comparison_of_rounded_numbers_can_fail() -> None:
    third, tie = Rounded(Fraction(1, 3), 3), Rounded(Fraction(1, 16), 3)
    assert third == 0.333 and not any(third == wrong for wrong in (0.334, 0.332, 0.3333333, None, "0.333", True))
    assert tie == 0.062 and tie == 0.063 and tie != 0.064
    assert [{"score": 0.333}] == [{"score": third}] != [{"score": 0.334}]


def test_there_is_a_truth_for_every_question_and_a_question_for_every_truth() -> None:
    assert sorted(NAMES) == sorted(TRUTH)
    assert len(NAMES) >= 15


@pytest.mark.parametrize("asked", questions(), ids=NAMES)
def test_a_question_is_whole_bound_pruned_and_ordered(asked: Question) -> None:
    assert asked.title
    assert asked.sentence.endswith((".", "?"))
    query = sqlglot.parse_one(asked.sql, read="duckdb")
    used = {node.name for node in query.find_all(exp.Placeholder)}
    assert used == {param.name for param in asked.params}
    assert query.args.get("order"), "an answer without order is not the same twice"
    fields = {each["field"] for each in asked.chart.values() if isinstance(each, dict)} | {
        asked.chart[name] for name in ("cell",) if name in asked.chart
    }
    assert fields <= {each.alias_or_name for each in query.selects}


@pytest.mark.parametrize("asked", questions(), ids=NAMES)
def test_a_question_reads_no_day_outside_its_span(asked: Question, analyst: Any, catalog: FolderCatalog) -> None:
    analyst.cost_of_question(asked.name, "north", {"since": "2026-11-02", "until": "2026-11-03"})
    assert catalog.asked
    for _, first, last in catalog.asked:
        assert first == datetime(2026, 11, 2, tzinfo=UTC).date() == last


def test_the_default_span_is_the_last_seven_days() -> None:
    values = bound(question("score-trend"), {}, UNTIL)
    assert values == {"since": UNTIL - timedelta(days=7), "until": UNTIL, "threshold": 25.0}


def test_an_unknown_question_or_parameter_is_refused_with_the_nearest() -> None:
    with pytest.raises(QuestionError, match="did you mean alerts-by-hour"):
        question("alert-by-hour")
    with pytest.raises(QuestionError, match="did you mean 'since'"):
        bound(question("score-trend"), {"sinse": "2026-11-01"}, UNTIL)
    assert question("score_trend") is question("score-trend")


@pytest.mark.parametrize(
    ("name", "value"),
    [("since", "yesterday"), ("since", "2026-13-01"), ("since", "now() - interval '1 month'"), ("since", 7),
     ("threshold", "low"), ("threshold", "nan"), ("since", "2026-11-01' OR 1=1 --"), ("threshold", True)],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(QuestionError, match=name):
        bound(question("score-trend"), {name: value}, UNTIL)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:30:00Z", datetime(2026, 11, 1, 10, 30, tzinfo=UTC)),
        ("2026-11-01 10:30", datetime(2026, 11, 1, 10, 30, tzinfo=UTC)),
        ("now() - interval '36 hours'", UNTIL - timedelta(hours=36)),
        ("current_date - 2", datetime(2026, 11, 2, tzinfo=UTC)),
    ],
)
def test_a_moment_may_be_said_in_several_ways(text: str, moment: datetime) -> None:
    assert bound(question("score-trend"), {"since": text}, UNTIL)["since"] == moment


def test_a_header_that_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match="no SQL"):
        read("x", "-- title: only a title\n")
    with pytest.raises(ValueError, match="needs a title"):
        read("x", "-- title: t\nSELECT 1")
    with pytest.raises(ValueError, match="not a parameter"):
        read("x", '-- title: t\n-- sentence: s.\n-- chart: {"mark": "bar"}\n-- param a blob = 1 : b\nSELECT 1')


@pytest.mark.parametrize("resolution", range(9))
def test_a_parent_cell_is_that_of_the_h3_library(resolution: int, engine: Engine) -> None:
    cells = [h3.latlng_to_cell(lat, lon, 9) for lat in range(-90, 91, 15) for lon in range(-180, 180, 24)]
    cells += [h3.cell_to_center_child(cell, 9) for cell in h3.get_pentagons(5)]
    listed = ", ".join(f"('{cell}')" for cell in cells)
    found = rows_of(engine, f"SELECT cell, h3_parent(cell, {resolution}) AS parent FROM (VALUES {listed}) AS v(cell)")
    assert {row["cell"]: row["parent"] for row in found} == {c: h3.cell_to_parent(c, resolution) for c in cells}
