"""A server as a process of this machine: started, waited for, stopped, killed, started again on the same data.

It dies with whoever started it, however that ends, so a killed test run leaves no server behind. The kernel ties a child
to the *thread* that started it: servers are started from the main thread, and anything else is refused.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

LOOK_S = 0.05
TAIL_BYTES = 4000


class NotReady(Exception):
    """A server ended, or did not get ready in time; the message holds the end of its log."""


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Raises NotReady with `what` if the condition is not true within the deadline."""
    until = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > until:
            raise NotReady(f"{what}: not within {deadline_s:g} s")
        time.sleep(LOOK_S)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


class Server:
    """One server process. `ready`: asked again and again until it is true; `log`: where its output goes, appended;
    `user`: the unprivileged user it runs as, if whoever starts it is root."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        deadline_s: float = 60.0,
    ) -> None:
        self.command = tied(command, user)
        self.log, self.ready, self.deadline_s = log, ready, deadline_s
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Launch and wait until it is ready. Raises NotReady."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the process without waiting, for servers that get ready only together."""
        assert threading.current_thread() is threading.main_thread(), "a server dies with the thread that started it"
        assert not self.running, "started already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, process_group=0
            )

    def wait_ready(self) -> None:
        """Raises NotReady, with the end of the log, if the process ends or the deadline passes; it is gone then."""
        until = time.monotonic() + self.deadline_s
        while not self.ready():
            if not self.running or time.monotonic() > until:
                why = f"not ready within {self.deadline_s:g} s" if self.running else f"ended ({self._code()})"
                self.kill()
                raise NotReady(f"{self.command}: {why}\n{self._tail()}")
            time.sleep(LOOK_S)

    def stop(self, deadline_s: float = 30.0) -> None:
        """SIGTERM and wait; SIGKILL after the deadline. Twice is once."""
        if self._process is None:
            return
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL to it and its children, and wait until it is gone."""
        if self._process is not None and self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def pause(self) -> None:
        """It holds its connections and does nothing, until `resume`."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _code(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    def _tail(self) -> str:
        return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if self.log.exists() else ""


def tied(command: Sequence[str | Path], user: str | None) -> list[str]:
    """The command, dying with its parent; as another user where that is asked and we are root."""
    tie = ["setpriv", "--pdeathsig", "KILL"]
    if user is not None and os.getuid() == 0:
        entry = pwd.getpwnam(user)
        tie += [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    return [*tie, "--", *map(str, command)]
