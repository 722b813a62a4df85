"""The supervisor when the machine says no, and the notes of services that are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harmonywatch.service import note_place, places
from harmonywatch.supervisor import AlreadyUp, Supervisor

DEADLINE_S = 20.0


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


@contextmanager
def supervised(supervisor: Supervisor) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def test_a_service_whose_log_cannot_be_opened_is_told_of_and_started_later(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with capture_logs() as told:
        supervisor = Supervisor(tmp_path, ["--data", str(tmp_path)], logs=logs, services=("alerting",))
        with supervised(supervisor) as thread:
            wait_for(lambda: len([line for line in told if line["event"] == "service cannot be started"]) >= 2)
            assert thread.is_alive()
            assert str(logs) in told[0]["reason"]
            assert told[1]["after_s"] > told[0]["after_s"], "it backs off"
            logs.mkdir()
            wait_for(supervisor.pids)
    assert not supervisor.pids()


def test_who_holds_the_folder_is_named_and_its_note_survives_the_refusal(tmp_path: Path) -> None:
    with supervised(Supervisor(tmp_path, [], services=())):
        lock = tmp_path / "run" / "up.lock"
        wait_for(lambda: lock.exists() and lock.read_text() == str(os.getpid()))
        for _ in range(2):
            with pytest.raises(AlreadyUp, match=f"process {os.getpid()}\\).*{tmp_path}"):
                Supervisor(tmp_path, [], services=()).run(threading.Event())


def test_a_log_that_takes_nothing_stops_nobody() -> None:
    """As on a full disk: `up 2> up.log`."""
    code = (
        "import sys, structlog; from harmonywatch.telemetry import configure_logging; configure_logging('x');"
        "[structlog.get_logger().info('line' * 1000) for _ in range(10)]; print('lives')"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.returncode, done.stdout) == (0, b"lives\n")


def test_a_note_is_believed_while_its_process_lives(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harmonywatch.service import note_place;"
        "note_place(Path(sys.argv[1]), 'gateway', port=1); print('noted', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdout, process.stdin:
        assert process.stdout.readline() == b"noted\n"
        assert places(tmp_path)["gateway"]["pid"] == process.pid
        assert places(tmp_path).keys() == places(tmp_path).keys() == {"gateway"}, "looking changes nothing"
        process.kill()
        process.wait()
        assert places(tmp_path) == {}


def test_a_note_of_the_dead_is_not_believed_when_its_number_comes_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    note = {"service": "gateway", "pid": os.getpid(), "port": 1}
    (tmp_path / "run" / "gateway.json").write_text(json.dumps(note))
    assert places(tmp_path) == {}
    note_place(tmp_path, "gateway", port=2)
    note_place(tmp_path, "gateway", port=3)
    assert places(tmp_path)["gateway"]["port"] == 3
