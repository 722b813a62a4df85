"""`status --force F`: what the force used today and this month."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harmonywatch import assemble, operations
from harmonywatch.cli import main
from harmonywatch.clock import from_wire
from harmonywatch.settings import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for force in ("north", "south"):
        assert CliRunner().invoke(main, ["force", "add", force, "--data", str(tmp_path)]).exit_code == 0
    return tmp_path


def status(folder: Path, *more: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(main, ["status", "--seconds", "0", "--json", "--data", str(folder), *more])
    assert done.exit_code == 0, done.output
    return [row for line in done.stdout.splitlines() if "span" in (row := json.loads(line))]


def test_a_forces_usage_counts_its_own_questions(folder: Path) -> None:
    for force, times in (("north", 2), ("south", 1)):
        for _ in range(times):
            asked = ["query", "select count(*) from reports", "--force", force, "--data", str(folder)]
            assert CliRunner().invoke(main, asked).exit_code == 0
    rows = status(folder, "--force", "north")
    assert [(row["span"], row["reports"], row["lake_bytes"], row["queries"]) for row in rows] == [
        ("today", 0, 0, 2),
        ("month", 0, 0, 2),
    ]
    assert status(folder) == []


def test_spans_are_utc_days_and_months(folder: Path) -> None:
    settings, _ = load({"data": str(folder)}, {})

    class Noon:
        def now(self) -> Any:
            return from_wire("2031-03-09T12:00:00Z")

        def monotonic(self) -> float:
            return 0.0

    found = operations.usage(settings, assemble.os_user(), Noon(), "north")
    assert [each.since for each in found] == ["2031-03-09T00:00:00.000000Z", "2031-03-01T00:00:00.000000Z"]
