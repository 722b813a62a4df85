"""A real system under test: `harmonywatch up` as a process on a folder of its own, spoken to through the doors only.

Rules it keeps: only the command line, HTTP and the SQL views are used; every wait is for a condition and has a deadline;
what was started is ended, found by the folder in its command line, so that nobody else's process is ever touched.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

HARMONYWATCH = Path(sys.executable).with_name("harmonywatch")
SERVICES = ("gateway", "alerting", "dispatch", "console", "archive")
READY_S, STOP_S, COMMAND_S = 30.0, 20.0, 120.0
FOUR_FIELDS: Mapping[str, Any] = {"location": {"lat": 48.8566, "lon": 2.3522}, "words": ["bread", "rain"]}

Row = dict[str, Any]
T = TypeVar("T")


QUICK_ARCHIVE: Mapping[str, str] = {"HARMONYWATCH_ARCHIVE__FLUSH_INTERVAL_S": "1"}
"""For tests whose point is not when rows appear."""


class NotInTime(AssertionError):
    """A condition did not come true before its deadline."""


def wait_for(what: str, condition: Callable[[], T], deadline_s: float, every_s: float = 0.02) -> T:
    """The condition's first true value. Raises NotInTime with its last one."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise NotInTime(f"{what}: not within {deadline_s:g} s; last seen: {value!r}")
        time.sleep(every_s)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def report(watcher_id: str, score: float = 80.0, name: str = "Ada Quiet", **members: Any) -> Row:
    """One report with the four required fields, and what else is given."""
    return {"watcher_id": watcher_id, **FOUR_FIELDS, "citizens": [{"name": name, "harmonyscore": score}], **members}


def clean_environment() -> dict[str, str]:
    """Ours, without settings of the surroundings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HARMONYWATCH_")}


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class System:
    """One data folder and, between `start` and `stop`, the `up` that runs on it."""

    folder: Path
    gateway_port: int = 0
    console_port: int = 0
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ca: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        if not self.gateway_port:
            self.gateway_port, self.console_port = free_ports(2)
        self.log = self.folder.with_name(self.folder.name + ".log")

    # --- up

    def start(self, ready: bool = True) -> System:
        """Run `up`; returns when the console says that every service is ready, unless told not to wait."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.up_command(), stdout=log, stderr=log, env={**clean_environment(), **self.environment}
            )
        if ready:
            self.wait_ready()
        return self

    def up_command(self) -> list[str]:
        doors = ["--gateway-port", str(self.gateway_port), "--console-port", str(self.console_port)]
        return [str(HARMONYWATCH), "up", "--data", str(self.folder), *doors, *self.options]

    def wait_ready(self, deadline_s: float = READY_S) -> None:
        try:
            wait_for("every service ready", self.is_ready, deadline_s, 0.05)
        except NotInTime as error:
            raise NotInTime(f"{error}\n{self.readyz()}\n--- the log's end\n{self.log_end()}") from None

    def is_ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"`up` ended with {self.process.returncode}:\n{self.log_end()}")
        return self.readyz() is not None and self.readyz().status == 200

    def readyz(self) -> Any:
        """The console's answer, None when there is none."""
        try:
            return self.get(self.console_port, "/readyz")
        except (OSError, http.client.HTTPException):
            return None

    def stop(self, deadline_s: float = STOP_S) -> float:
        """SIGTERM; how long it took. Raises AssertionError when it took too long, failed, or left a process behind."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`up` did not stop within {deadline_s} s:\n{self.log_end()}") from None
        took = time.monotonic() - began
        self.process = None
        assert code == 0, f"`up` ended with {code}:\n{self.log_end()}"
        assert not self.own_processes(), f"left behind: {[each.cmdline() for each in self.own_processes()]}"
        return took

    def destroy(self) -> None:
        """End whatever of ours still runs, without asking."""
        for each in self.own_processes():
            with contextlib.suppress(psutil.Error):
                each.kill()
        if self.process is not None:
            self.process.wait()
            self.process = None
        wait_for("the end of every process", lambda: not self.own_processes(), 10)

    def log_end(self, size: int = 6_000) -> str:
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    # --- its processes

    def own_processes(self) -> list[psutil.Process]:
        """Every process with our folder in its command line, and their descendants; zombies are gone already."""
        found: dict[int, psutil.Process] = {}
        for each in psutil.process_iter(["cmdline"]):
            command = each.info["cmdline"] or []
            if str(self.folder) in command and each.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    for one in (each, *each.children(recursive=True)):
                        found[one.pid] = one
        return [each for each in found.values() if _lives(each)]

    def services(self) -> dict[str, psutil.Process]:
        """The services that run now, by name, as children of `up`."""
        assert self.process is not None
        found: dict[str, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    command = each.cmdline()
                    if "run" in command and _lives(each):
                        found[command[command.index("run") + 1]] = each
        return found

    def pids(self) -> dict[str, int]:
        return {service: each.pid for service, each in self.services().items()}

    def kill(self, *services: str) -> None:
        """`kill -9`, all of them at once."""
        pids = self.pids()
        for service in services:
            if service in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[service], signal.SIGKILL)

    def pss_bytes(self) -> dict[str, int]:
        """Proportional memory of each service with its descendants, and of `up` itself."""
        assert self.process is not None
        families = {service: [each, *each.children(recursive=True)] for service, each in self.services().items()}
        families["up"] = [psutil.Process(self.process.pid)]
        return {name: sum(each.memory_full_info().pss for each in family) for name, family in families.items()}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far by each service with its descendants, and by `up` itself."""
        assert self.process is not None
        members = {**self.services(), "up": psutil.Process(self.process.pid)}
        return {
            name: sum(each.cpu_times()[:4] if name != "up" else each.cpu_times()[:2]) for name, each in members.items()
        }

    # --- the command line

    def call(self, *arguments: str, deadline_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """A command with our folder, whatever its exit status."""
        return subprocess.run(
            [str(HARMONYWATCH), *arguments, "--data", str(self.folder)],
            capture_output=True, text=True, timeout=deadline_s, env={**clean_environment(), **self.environment}, check=False,
        )  # fmt: skip

    def run(self, *arguments: str, codes: Sequence[int] = (0,)) -> list[Row]:
        """A command with --json: its rows. Raises AssertionError on another exit status."""
        done = self.call(*arguments, "--json")
        assert done.returncode in codes, f"{arguments} ended with {done.returncode}: {done.stderr}{done.stdout[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    def query(self, sql: str, force: str | None = None) -> list[Row]:
        return self.run("query", sql, *(["--force", force] if force else []))

    def add_force(self, name: str) -> str:
        """A force with a relay; the relay's key."""
        self.run("force", "add", name)
        return str(self.run("relay", "add", "base", "--force", name)[0]["key"])

    def verified(self, force: str) -> Row:
        """The force's row of `lake verify`, whatever it says."""
        rows = self.run("lake", "verify", codes=(0, 1))
        found = [row for row in rows if row["force"] == force and row.get("table", "reports") == "reports"]
        assert found, f"`lake verify` tells nothing of {force}: {self.call('lake', 'verify').stderr}"
        return found[0]

    def wait_archived(self, force: str, reports: int, deadline_s: float = 30.0) -> Row:
        """The proof once `reports` records of the force are in the lake and nothing waits."""

        def archived() -> Row | None:
            row = self.verified(force)
            assert row["missing"] == 0 and row["repeated"] == 0, f"lake verify: {row}"
            return row if row["lag"] == 0 and row["accepted"] >= reports else None

        return wait_for(f"{reports} reports of {force} in the lake", archived, deadline_s, 0.5)  # type: ignore[return-value]

    # --- HTTP

    @property
    def url(self) -> str:
        return (
            f"http{'s' if self.ca else ''}://localhost:{self.gateway_port}"
            if self.ca
            else f"http://127.0.0.1:{self.gateway_port}"
        )

    def connection(self, port: int, timeout_s: float = 10.0) -> http.client.HTTPConnection:
        if self.ca is not None:
            context = ssl.create_default_context(cafile=str(self.ca))
            return http.client.HTTPSConnection("localhost", port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def get(self, port: int, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self._request("GET", port, path, None, headers or {})

    def post(self, key: str, body: bytes | Row, content_type: str = "application/json") -> Answer:
        """One request to the gateway."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
        return self._request("POST", self.gateway_port, "/v1/reports", data, headers)

    def _request(self, verb: str, port: int, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        with contextlib.closing(self.connection(port)) as connection:
            connection.request(verb, path, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.headers))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextlib.contextmanager
def made(folder: Path, **how: Any) -> Iterator[System]:
    """A system that is not up yet, and that leaves nothing behind."""
    system = System(folder, **how)
    try:
        yield system
    finally:
        system.destroy()


@contextlib.contextmanager
def running(folder: Path, **how: Any) -> Iterator[System]:
    """A system that is up."""
    with made(folder, **how) as system:
        yield system.start()
