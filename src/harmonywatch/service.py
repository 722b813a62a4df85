"""The frame of one service process: signals, its parent, its operations port, the note of where it is, its exit code.

Exit codes: 0 stopped when asked; 3 the stream or disk broke (a restart may mend it); 4 the operator must act (the last log
line says how); 1 a bug.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

EXIT_BUG, EXIT_BROKEN, EXIT_OPERATOR = 1, 3, 4


class AlreadyRunning(Exception):
    """Another process is this service of this folder."""


def claim(folder: Path, name: str) -> None:
    """Be the one process of this name on the folder, until it ends. Raises AlreadyRunning.

    Two processes that follow the embedded stream as the same group would each do all of the work.
    """
    place = folder / "run"
    place.mkdir(parents=True, exist_ok=True)
    held = os.open(place / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)  # stays open: its end is the end of the lock
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise AlreadyRunning(f"{name} runs on {folder} already; stop it, or give another --data") from None


class Stop:
    """One wish to stop, for threads (`event`) and, by `on_stop`, for event loops."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._then: list[Callable[[], None]] = []

    def set(self) -> None:
        self.event.set()
        for act in self._then:
            act()

    def on_stop(self, act: Callable[[], None]) -> None:
        self._then.append(act)
        if self.event.is_set():
            act()


def stop_on_signals() -> Stop:
    """SIGTERM, SIGINT and the end of a supervising parent all mean: stop in good order."""
    stop = Stop()

    def asked(_number: int, _frame: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, asked)
    if os.environ.get("HARMONYWATCH_SUPERVISED") == "1":
        threading.Thread(target=_watch_parent, args=(stop,), daemon=True, name="parent").start()
    return stop


def _watch_parent(stop: Stop) -> None:
    descriptor = sys.stdin.fileno()
    while not stop.event.is_set():
        ready, _, _ = select.select([descriptor], [], [], 3600)
        if ready and not os.read(descriptor, 4096):
            import structlog  # a command that looks for `places` need not carry it

            structlog.get_logger().warning("the supervisor is gone, stopping")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def note_place(folder: Path, name: str, **facts: Any) -> None:
    """Write DATA/run/NAME.json, whole or not at all: where a service of this folder can be asked how it is.

    The note is locked while this process lives, so that it is never believed after its death: a pid comes again.
    """
    place = folder / "run"
    place.mkdir(parents=True, exist_ok=True)
    draft = place / f"{name}.{os.getpid()}.draft"
    note = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)  # stays open: its end is the end of the lock
    os.write(note, json.dumps({"service": name, "pid": os.getpid(), **facts}).encode())
    fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(place / f"{name}.json")


def places(folder: Path) -> dict[str, dict[str, Any]]:
    """The notes of a folder's services, by name; notes of processes that are gone are left out."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "run").glob("*.json")):
        try:
            with path.open() as file:
                if not _is_locked(file):
                    continue
                note = json.load(file)
                found[note["service"]] = note
        except (ValueError, KeyError, FileNotFoundError):
            continue
    return found


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
