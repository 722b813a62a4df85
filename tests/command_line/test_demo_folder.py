"""The demo empties its own folder and no other, and not while somebody lives in it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from harmonywatch.cli import main
from harmonywatch.demo.ground import MARKER, DemoFailed, cleared
from harmonywatch.service import note_place
from harmonywatch.supervisor import Supervisor


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_demo_empties_what_a_demo_left(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    with cleared(folder):
        assert content(folder) == [MARKER]
        (folder / "stream").mkdir()
        (folder / "stream" / "id").write_text("1")
        (folder / "link").symlink_to(tmp_path)
    with cleared(folder):
        assert content(folder) == [MARKER]
    assert tmp_path.exists()
    assert "empties it" in (folder / MARKER).read_text()


def test_a_folder_of_something_else_is_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    done = CliRunner().invoke(main, ["demo", "--data", str(tmp_path)])
    assert done.exit_code == 2
    assert str(tmp_path) in done.stderr
    assert content(tmp_path) == ["state"]


def test_a_running_demo_is_not_emptied_by_another(tmp_path: Path) -> None:
    with cleared(tmp_path):
        (tmp_path / "stream").mkdir()
        done = CliRunner().invoke(main, ["demo", "--data", str(tmp_path)])
        assert done.exit_code == 2
        assert "a demo runs in" in done.stderr and str(tmp_path) in done.stderr
        assert content(tmp_path) == ["stream", MARKER]


def test_a_former_demo_with_services_on_it_is_not_emptied(tmp_path: Path) -> None:
    with cleared(tmp_path):
        pass
    stop = threading.Event()
    up = threading.Thread(target=Supervisor(tmp_path, [], services=()).run, args=(stop,))
    up.start()
    try:
        end = time.monotonic() + 10
        while not (tmp_path / "run" / "up.lock").exists() or not (tmp_path / "run" / "up.lock").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(DemoFailed, match="services run on"), cleared(tmp_path):
            pass
    finally:
        stop.set()
        up.join()
    with cleared(tmp_path):
        assert content(tmp_path) == [MARKER]
        note_place(tmp_path, "gateway", port=1)  # by this process, which lives
    with pytest.raises(DemoFailed, match="services run on"), cleared(tmp_path):
        pass
