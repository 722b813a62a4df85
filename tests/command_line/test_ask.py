"""`ask` with everything at once: drawn, written, reasoned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harmonywatch.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    assert run(folder, "force", "add", "north").exit_code == 0
    return folder


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--data", str(folder)], catch_exceptions=False)


def test_a_question_is_drawn_written_and_reasoned_at_once(folder: Path, tmp_path: Path) -> None:
    picture, file = tmp_path / "a.svg", tmp_path / "a.csv"
    how = ("--plot", str(picture), "--out", str(file), "--format", "csv", "--reason", "the yearly report")
    done = run(folder, "ask", "alerts-by-hour", *how, "--json")
    assert done.exit_code == 0, done.output
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"question": "alerts-by-hour", "rows": 0, "plot": str(picture)}
    ]
    assert picture.read_text().startswith("<svg")
    assert file.read_bytes().startswith(b"hour,")
    audit = [json.loads(line) for line in run(folder, "audit", "--json").stdout.splitlines()]
    assert [entry["reason"] for entry in audit if entry["action"] == "ask"] == ["the yearly report"]


def test_a_drawn_answer_is_also_printed_when_its_form_is_named(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    done = run(folder, "ask", "alerts-by-hour", "--plot", str(picture), "--format", "csv")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("hour,")
    assert str(picture) in done.stderr
    assert picture.exists()
