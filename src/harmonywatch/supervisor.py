"""`up`: every service as a child process of its own, started again when it crashes, never given up.

The children hold the other end of a pipe as their standard input: when this process is gone, however it went, they read its
end and stop (service.py). A lock on DATA/run/up.lock keeps a second `up` off the same folder. Backoff: 0.1 s, doubled up to
2 s, back to 0.1 s once a service has lived for 10 s. A service that cannot even be started (no memory, no process, no log
file) is said to be so, and tried again like one that ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

SERVICES = ("gateway", "alerting", "dispatch", "console", "archive")
"""In the order of their start: what answers first comes first, what may wait last."""

MQTT = "mqtt"
"""The service that runs only where the settings name a broker."""

DOORS = ("gateway", MQTT)

BACKOFF_LEAST_S, BACKOFF_MOST_S = 0.1, 2.0
STEADY_S = 10.0
STOP_S = 18.0
"""`up` has stopped 20 s after SIGTERM (design, doors); the last 2 s are for killing what did not."""


def services_of(mqtt: bool) -> tuple[str, ...]:
    """The services of a folder, in the order of their start. `mqtt`: whether its settings name a broker."""
    return (*SERVICES, MQTT) if mqtt else SERVICES


def service_of(name: str) -> str:
    """The service that a process is: `archive` for the copies `archive:1` and `archive:2` too."""
    return name.partition(":")[0]


def copies_of(services: Sequence[str], copies: Mapping[str, int]) -> tuple[str, ...]:
    """The names of the processes: `archive:1` and `archive:2` for a service of two copies, `console` for one of one."""
    names: list[str] = []
    for service in services:
        count = copies.get(service, 1)
        names += [service] if count == 1 else [f"{service}:{copy}" for copy in range(1, count + 1)]
    return tuple(names)


class AlreadyUp(Exception):
    """Another `up` holds the folder."""


def is_up(folder: Path) -> bool:
    """Whether an `up` holds the folder now."""
    try:
        with (folder / "run" / "up.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@dataclass
class _Child:
    service: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_s: float = BACKOFF_LEAST_S
    due_at: float = 0.0
    restarts: int = 0

    def let_go(self) -> None:
        """Our end of the pipe of a process that has ended."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


@dataclass
class Supervisor:
    """Starts the services of a data folder and keeps them up until `stop` is set.

    `services`: names of their processes (`copies_of`); `arguments`: what follows `harmonywatch run NAME`; `logs`: a folder
    for their logs, or None = our own stderr.
    """

    folder: Path
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    logs: Path | None = None
    services: Sequence[str] = SERVICES
    on_restart: Callable[[str, int], None] | None = None

    def __post_init__(self) -> None:
        self._children = {service: _Child(service) for service in self.services}
        import structlog  # a command that only asks for the services' names need not carry it

        self._log: Any = structlog.get_logger()

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop`, then stops the children. Raises AlreadyUp."""
        with self._lock():
            try:
                while not stop.is_set():
                    for child in self._children.values():
                        self._tend(child)
                    stop.wait(0.02)
            finally:
                self._stop_all()

    def pids(self) -> dict[str, int]:
        """Process ids of the services that run now."""
        return {
            child.service: child.process.pid
            for child in self._children.values()
            if child.process is not None and child.process.poll() is None
        }

    def _tend(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.due_at:
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            return
        self._again_later(child, now)
        child.restarts += 1
        self._log.warning(
            "service ended, will be started again", service=child.service, code=code, after_s=child.backoff_s
        )
        if self.on_restart:
            self.on_restart(child.service, code)

    def _again_later(self, child: _Child, now: float) -> None:
        child.let_go()
        steady = now - child.started_at > STEADY_S
        child.backoff_s = BACKOFF_LEAST_S if steady else min(child.backoff_s * 2, BACKOFF_MOST_S)
        child.due_at, child.process = now + child.backoff_s, None

    def _start(self, child: _Child) -> None:
        child.started_at = time.monotonic()
        try:
            child.process = self._spawned(child.service)
        except OSError as error:
            self._again_later(child, child.started_at)
            self._log.error(
                "service cannot be started", service=child.service, reason=str(error), after_s=child.backoff_s
            )
            return
        self._log.info("service started", service=child.service, pid=child.process.pid)

    def _spawned(self, service: str) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            out: IO[bytes] | None = None
            if self.logs is not None:
                out = stack.enter_context((self.logs / f"{service}.log").open("ab"))
            return subprocess.Popen(
                [sys.executable, "-m", "harmonywatch", "run", service, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.environment, "HARMONYWATCH_SUPERVISED": "1"},
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on, in order
            )

    def _stop_all(self) -> None:
        """The doors close first and answer what they have; then the others finish what is on the stream."""
        deadline = time.monotonic() + STOP_S
        doors = [name for name in self._children if service_of(name) in DOORS]
        for batch in (doors, [name for name in self._children if name not in doors]):
            running = [p for name in batch if name in self._children and (p := self._children[name].process)]
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children.values():
            if child.process is not None and child.process.poll() is None:
                self._log.error("service did not stop in time, killed", service=child.service)
                child.process.kill()
                child.process.wait()
            child.let_go()

    @contextlib.contextmanager
    def _lock(self) -> Any:
        place = self.folder / "run"
        place.mkdir(parents=True, exist_ok=True)
        with (place / "up.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise AlreadyUp(
                    f"another `harmonywatch up` (process {file.read() or '?'}) runs on {self.folder}; stop it, or give"
                    " another --data"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
