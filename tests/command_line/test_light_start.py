"""A command loads what it needs and no more: most of a short command's time would be libraries that it never calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = frozenset(
    (
        "aiohttp", "alembic", "altair", "apprise", "deltalake", "duckdb", "fastapi", "h3", "numpy", "prometheus_client",
        "psycopg", "pyarrow", "pydantic", "pygments", "rich", "sqlalchemy", "sqlglot", "structlog", "uvicorn", "uvloop",
    )
)  # fmt: skip
LAKE = frozenset(("deltalake", "numpy", "pyarrow"))
STATE = frozenset(("sqlalchemy",))
CARRIED: dict[tuple[str, ...], frozenset[str]] = {
    ("schema",): frozenset(),
    ("config", "show"): frozenset(),
    ("questions",): frozenset(("sqlglot",)),
    ("send", os.devnull, "--key", "k", "--to", "http://127.0.0.1:1"): frozenset(),
    ("alerts",): frozenset(),
    ("incidents",): STATE,
    ("status", "--seconds", "0"): LAKE,
    ("query", "select 1 as one"): LAKE | {"sqlglot"},
    ("ask", "alerts-by-hour"): LAKE | {"sqlglot"},
    ("lake", "verify"): LAKE,
    ("rejects", "list"): LAKE,
}
"""Command -> the heavy ones that its work needs."""

PROGRAM = """
import sys
from harmonywatch.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(" ".join({module.partition(".")[0] for module in sys.modules}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light") / "data"
    for arguments in (("force", "add", "north"), ("incidents",)):  # the first use makes the databases, with more
        command = [sys.executable, "-m", "harmonywatch", *arguments, "--data", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("arguments", CARRIED, ids=lambda arguments: arguments[0])
def test_a_command_carries_only_what_it_needs(arguments: tuple[str, ...], folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *arguments, "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    carried = HEAVY & set(done.stderr.splitlines()[-1].split())
    assert carried <= CARRIED[arguments]
