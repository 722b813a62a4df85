"""What a query puts on the disk is gone after it, also after one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harmonywatch.analysis.spill import PREFIX, YOUNG_S, Spill

OWNER = "from harmonywatch.analysis.spill import Spill; s = Spill(); print(s.folder, flush=True); input()"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def aged(folder: Path) -> Path:
    """As if it had been made long ago."""
    (folder / "spilled.tmp").write_bytes(b"x")
    long_ago = time.time() - YOUNG_S - 1
    os.utime(folder, (long_ago, long_ago))
    return folder


def test_the_folder_of_a_killed_query_is_removed_by_the_next_and_not_while_it_lives(temporary: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as owner:
        assert owner.stdout is not None
        folder = aged(Path(owner.stdout.readline().strip()))
        assert folder.parent == temporary
        Spill().close()
        assert folder.exists(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    Spill().close()
    assert list(temporary.iterdir()) == []


def test_a_young_folder_and_others_are_left_alone(temporary: Path) -> None:
    young, other = temporary / f"{PREFIX}young", temporary / "other"
    for folder in (young, other):
        folder.mkdir()
    aged(other)
    (temporary / f"{PREFIX}link").symlink_to(other)
    Spill().close()
    assert sorted(path.name for path in temporary.iterdir()) == [f"{PREFIX}link", f"{PREFIX}young", "other"]
