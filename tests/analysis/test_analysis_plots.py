"""Every saved question is drawn, without anything from elsewhere."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import h3
import pytest
from engine_room import engine_over
from small_lake import UNTIL, FolderCatalog

from harmonywatch.analysis.contract import TABLES
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.plot import PlotError, draw, spec
from harmonywatch.analysis.questions import bound, question, questions


@pytest.fixture(scope="module")
def engine(lake: Path) -> Engine:
    catalog = FolderCatalog(lake)
    return engine_over({table: catalog.plan("north", table, None, None) for table in TABLES})


def asked_and_answered(name: str, engine: Engine, **arguments: Any) -> Any:
    asked = question(name)
    values = bound(asked, arguments, UNTIL + timedelta(hours=3))
    return asked, engine.run(asked.sql, values).read_all(), values


@pytest.mark.parametrize("name", [each.name for each in questions()])
def test_every_question_is_drawn(name: str, engine: Engine, tmp_path: Path) -> None:
    asked, answer, values = asked_and_answered(name, engine)
    assert answer.num_rows
    target = tmp_path / "plot.svg"
    draw(asked, answer, values, target)
    text = target.read_text()
    assert asked.title in text
    assert "UTC" in text
    assert text.count("<path") > 3


def test_a_png_is_a_picture_and_html_is_whole_by_itself(engine: Engine, tmp_path: Path) -> None:
    asked, answer, values = asked_and_answered("alerts-by-hour", engine)
    draw(asked, answer, values, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").stat().st_size > 5_000
    draw(asked, answer, values, tmp_path / "a.html")
    html = (tmp_path / "a.html").read_text()
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=|<img[^>]+src=.?http", html)
    assert len(html) > 100_000


def test_an_axis_of_counts_has_no_tick_between_whole_numbers(engine: Engine) -> None:
    for name, axis, counts in (
        ("alerts-by-hour", "y", True),
        ("repeat-offenders", "x", True),
        ("score-trend", "y", False),
    ):
        encoding = spec(*asked_and_answered(name, engine))["encoding"]
        assert (encoding[axis].get("axis", {}).get("tickMinStep") == 1) == counts, name


def test_an_empty_answer_is_drawn_and_says_so(engine: Engine, tmp_path: Path) -> None:
    for name in ("alerts-by-hour", "agitation-map", "repeat-offenders", "score-trend"):
        asked, answer, values = asked_and_answered(name, engine, since="2030-01-01", until="2030-01-02")
        draw(asked, answer, values, tmp_path / "a.svg")
        assert "nothing to draw" in (tmp_path / "a.svg").read_text()


def test_cells_are_the_polygons_of_the_h3_library_and_wind_clockwise(engine: Engine) -> None:
    asked, answer, values = asked_and_answered("agitation-map", engine)
    features = spec(asked, answer, values)["layer"][0]["data"]["values"]
    assert len(features) == answer.num_rows
    for feature, cell in zip(features, answer["cell"].to_pylist(), strict=True):
        ring = feature["geometry"]["coordinates"][0]
        assert {(lat, lon) for lon, lat in ring} == set(h3.cell_to_boundary(cell))
        assert ring[0] == ring[-1]
        assert sum((b[0] - a[0]) * (b[1] + a[1]) for a, b in pairwise(ring)) > 0


def test_another_suffix_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=r"not to \.gif"):
        draw(*asked_and_answered("alerts-by-hour", engine), tmp_path / "a.gif")
