"""A release stands alone: its wheel starts the program, holds every file that is not Python, and says what it is made of."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "release.py"), "--out", str(out)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_every_part_has_the_version_and_a_sum(release: Path) -> None:
    name = f"harmonywatch-{PROJECT['version']}"
    parts = {f"{name}-py3-none-any.whl", f"{name}.tar.gz", f"{name}.cdx.json", f"{name}-notices.txt"}
    sums = dict(reversed(line.split("  ")) for line in (release / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == parts
    for part, expected in sums.items():
        assert hashlib.sha256((release / part).read_bytes()).hexdigest() == expected


def test_the_wheel_holds_every_file_of_the_package(release: Path) -> None:
    (wheel,) = release.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    tracked = subprocess.run(
        ["git", "ls-files", "src/harmonywatch"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(tracked) > 100
    missing = [
        name for name in tracked if name.removeprefix(f"{source.name}/") not in inside and (ROOT / name).exists()
    ]
    assert missing == []


def test_the_wheel_alone_starts_the_program(release: Path, tmp_path: Path) -> None:
    (wheel,) = release.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import harmonywatch; print(harmonywatch.__file__);"
    code += "from harmonywatch.cli import main; main(['force', 'add', 'north', '--data', 'd'], standalone_mode=False);"
    code += "main(['query', 'select count(*) as n from reports', '--data', 'd', '--json'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert str(tmp_path / "site") in lines[0]
    assert json.loads(lines[-1]) == {"n": 0}


def test_notices_and_bill_name_what_the_wheel_needs(release: Path) -> None:
    notices = next(release.glob("*-notices.txt")).read_text()
    bill = {part["name"].lower() for part in json.loads(next(release.glob("*.cdx.json")).read_text())["components"]}
    for package in ("apsw", "deltalake", "duckdb", "httptools", "sqlalchemy", "confluent-kafka"):
        assert package in bill
        line = next(line for line in notices.splitlines() if line.startswith(f"{package} "))
        assert "see its own" not in line or package in ("apsw",), line
    assert "pytest" not in notices
