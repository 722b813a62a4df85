"""docs/reference says what the code says: its tables are generated, and its lists are complete."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import reference
from housemap import ROOT

from harmonywatch.cli import COMMANDS
from harmonywatch.gateway.openapi import openapi
from harmonywatch.report.schema import json_schema
from harmonywatch.report.words import REFUSAL_CODES

PAGES = sorted(reference.REFERENCE.glob("*.md"))


def test_every_generated_part_stands_in_exactly_one_page() -> None:
    held = [name for page in PAGES for name in reference.names(page.read_text("utf-8"))]
    assert sorted(held) == sorted(reference.PARTS)


@pytest.mark.parametrize("name", [page.name for page in PAGES])
def test_a_page_says_what_the_code_says(name: str) -> None:
    page = (reference.REFERENCE / name).read_text("utf-8")
    assert page == reference.expected(page), "write it anew: .venv/bin/python tests/house/reference.py"


def test_every_command_of_the_help_is_there() -> None:
    assert {name.split(" ")[0] for name, _ in reference.commands()} == set(COMMANDS)


def test_every_column_of_the_views_has_a_meaning() -> None:
    page = (reference.REFERENCE / "views.md").read_text("utf-8")
    by_hand, _, generated = page.partition("<!-- generated: views -->")
    columns = set(re.findall(r"^\| `(\w+)` \| `[A-Z]", generated, re.MULTILINE))
    assert len(columns) > 40
    explained = {
        name for row in re.findall(r"^\| (`.*?) \|", by_hand, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert columns - explained == set()
    assert explained - columns == set(), "columns that no view has"


def _problem_codes() -> Iterator[str]:
    """Every code of a problem document, from the places where the gateway makes one."""
    for path in sorted((ROOT / "src/harmonywatch/gateway").glob("*.py")):
        yield from re.findall(r"Problem\(\s*\d{3},\s*\"([a-z-]+)\"", path.read_text("utf-8"))


def test_every_problem_and_path_of_the_gateway_is_documented() -> None:
    page = (reference.REFERENCE / "http.md").read_text("utf-8")
    codes = set(_problem_codes()) | REFUSAL_CODES.keys()
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in page} == set()
    document = openapi(json_schema()).decode()
    for path in set(re.findall(r'"(/v1/[a-z]+)"', document)) | {"/healthz", "/readyz", "/metrics", "/openapi.json"}:
        assert path in page
