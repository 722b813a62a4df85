"""The demo, in the order of its acts:

1. a new folder, two forces, a relay each, an officer          4. wait until the lake holds what was accepted
2. every service up, an officer's screen listening              5. ask the doors; compare with the ground truth
3. the fleet sends; incidents are said as they open             6. five questions to the archive, one drawn
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonywatch.demo.ground import DemoFailed, cleared
from harmonywatch.demo.live import listen
from harmonywatch.demo.measure import FsyncProbe, cpu_s, histogram_ms, pss_bytes
from harmonywatch.demo.verdict import Check, Found, checks_of, latencies_ms, quantile
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.send import run_fleet
from harmonywatch.fleet.tally import FleetResult, Tally
from harmonywatch.fleet.truth import read_truth
from harmonywatch.supervisor import SERVICES, Supervisor

FORCES = ("north", "south")
READY_S = 60.0
SETTLE_S = 60.0
QUESTIONS = (
    ("alerts-by-hour", ()),
    ("repeat-offenders", ()),
    ("words-of-low-scores", ()),
    ("watcher-coverage", ()),
    ("report-delay", ()),
)
PLOTTED = "agitation-map"


@dataclass(frozen=True)
class Stage:
    """Where and with what the demo is played. `say` prints a line; `services`: names of the processes."""

    folder: Path
    plan: FleetPlan
    say: Callable[[str], None]
    gateway_port: int = 8470
    console_port: int = 8480
    services: Sequence[str] = SERVICES


@dataclass
class Outcome:
    """What came of it."""

    checks: list[Check] = field(default_factory=list)
    latencies: list[tuple[str, float, float, float]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return all(check.fine is not False for check in self.checks)


def play(stage: Stage) -> Outcome:
    """All acts. Raises DemoFailed."""
    with cleared(stage.folder):
        return _played(stage)


def _played(stage: Stage) -> Outcome:
    keys = _people(stage)
    ports = {"gateway": _free(stage.gateway_port), "console": _free(stage.console_port)}
    logs = stage.folder / "logs"
    logs.mkdir()
    arguments = ["--data", str(stage.folder)]
    for name, port in ports.items():
        arguments += [f"--{name}-port", str(port)]
    restarts: list[str] = []
    supervisor = Supervisor(
        stage.folder,
        arguments,
        logs=logs,
        services=stage.services,
        on_restart=lambda service, code: restarts.append(f"{service} ({code})"),
    )
    stop = threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,), name="supervisor")
    thread.start()
    try:
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        _await_ready(f"{urls['gateway']}/readyz", logs)
        _await_ready(f"{urls['console']}/readyz", logs)
        stage.say(f"gateway {urls['gateway']}, console {urls['console']}, data {stage.folder.resolve()}")
        return _acts(stage, supervisor, urls, keys, restarts)
    finally:
        stop.set()
        thread.join()


def command(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """A command line of ours, as a user's program would call it: its rows. Raises DemoFailed."""
    done = subprocess.run(
        [sys.executable, "-m", "harmonywatch", *arguments, "--data", str(folder), "--json"],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode not in (0, 1):
        raise DemoFailed(f"harmonywatch {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _people(stage: Stage) -> dict[str, str]:
    """Two forces, a relay each, an officer of all: their keys."""
    keys = {}
    for force in FORCES:
        command(stage.folder, "force", "add", force)
        keys[force] = command(stage.folder, "relay", "add", f"base-{force}", "--force", force)[0]["key"]
    keys["officer"] = command(stage.folder, "officer", "add", "demo", "--role", "supervisor")[0]["key"]
    return keys


def _acts(
    stage: Stage, supervisor: Supervisor, urls: dict[str, str], keys: dict[str, str], restarts: list[str]
) -> Outcome:
    truth_path = stage.folder / "truth.ndjson"
    plan = FleetPlan(
        **{
            **stage.plan.__dict__,
            "targets": tuple(Target(force, urls["gateway"], keys[force]) for force in FORCES),
            "truth": truth_path,
        }
    )
    probe = FsyncProbe(stage.folder)
    probe.start()
    before = cpu_s(supervisor.pids())
    result = asyncio.run(_traffic(stage, plan, urls["console"], keys["officer"]))
    fsync_ms = probe.stop()
    stage.say("the fleet is done; waiting until the lake holds what was accepted ...")
    _await_settled(stage.folder)
    outcome = Outcome()
    truth = read_truth(truth_path)
    alerts: list[Mapping[str, Any]] = []
    for force in FORCES:
        found = _found(stage.folder, force)
        alerts += found.alerts
        outcome.checks += checks_of(force, truth.forces[force], found)
    outcome.checks.append(Check("services that crashed", "none", ", ".join(restarts) or "none", not restarts))
    outcome.latencies = _latencies(urls["gateway"], alerts)
    after = cpu_s(supervisor.pids())
    spent = {service: after[service] - before.get(service, 0.0) for service in after}
    outcome.figures = _figures(stage, result, spent, pss_bytes(supervisor.pids()), fsync_ms)
    _questions(stage)
    return outcome


async def _traffic(stage: Stage, plan: FleetPlan, console: str, key: str) -> FleetResult:
    """The fleet sends while the screen listens."""
    listening = asyncio.Event()
    opened = 0

    def on_event(kind: str, data: dict[str, Any]) -> None:
        nonlocal opened
        if kind == "incident" and data.get("kind") == "opened":
            opened += 1
            where = f"{data['lat']:.4f}, {data['lon']:.4f}"
            stage.say(f"  incident {opened}: {data['name']} at {where} (force {data['force']}, {data['rule']})")

    def on_progress(tally: Tally) -> None:
        total = plan.reports_total
        share = f" of {total:,}" if total else ""
        stage.say(
            f"{tally.elapsed_s:5.0f} s  {tally.sent:,}{share} reports sent, {tally.accepted:,} accepted,"
            f" {tally.refused:,} refused, {opened:,} incidents"
        )

    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)  # Ctrl-C ends the fleet; the table still follows
    screen = asyncio.create_task(listen(console, key, on_event, listening))
    screen.add_done_callback(lambda _: ended.set())
    try:
        return await run_fleet(plan, on_progress, ended)
    finally:
        await asyncio.sleep(0.5)  # the last alerts are on their way; the table below waits for them properly
        listening.set()
        if not screen.done():
            screen.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await screen


def _found(folder: Path, force: str) -> Found:
    counts = "select (select count(*) from reports) as reports, (select count(*) from rejects) as rejects"
    counted = command(folder, "query", counts, "--force", force)[0]
    return Found(
        command(folder, "lake", "verify", "--force", force)[0],
        command(folder, "alerts", "--force", force),
        command(folder, "incidents", "--force", force),
        counted["reports"],
        counted["rejects"],
    )


def _latencies(gateway: str, alerts: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, float]]:
    rows = [("received to appended (all reports)", *histogram_ms(f"{gateway}/metrics", "harmonywatch_append_seconds"))]
    for stage, until in (("judged", "judged_at"), ("delivered", "delivered_at")):
        ordered = latencies_ms(alerts, until)
        rows.append(
            (
                f"received to {stage} ({len(ordered):,} alerts)",
                quantile(ordered, 0.5),
                quantile(ordered, 0.99),
                quantile(ordered, 1.0),
            )
        )
    return rows


def _figures(
    stage: Stage, result: FleetResult, spent: dict[str, float], memory: dict[str, int], fsync_ms: list[float]
) -> list[tuple[str, str]]:
    tally = result.tally
    millions = max(tally.accepted, 1) / 1e6
    services = ", ".join(f"{service} {seconds / millions:.0f}" for service, seconds in spent.items())
    fresh = _lake_bytes(stage.folder)
    command(stage.folder, "lake", "compact")
    lake = _lake_bytes(stage.folder)
    return [
        ("reports a second", f"{result.rate:,.0f}"),
        ("fsync of 4 KiB beside it, p50 / p99", f"{quantile(fsync_ms, 0.5):.2f} / {quantile(fsync_ms, 0.99):.2f} ms"),
        (
            "bytes of JSON received / in the lake",
            f"{tally.json_bytes:,} / {lake:,} (1/{tally.json_bytes / max(lake, 1):.1f};"
            f" as committed, before files were merged, 1/{tally.json_bytes / max(fresh, 1):.1f})",
        ),
        (
            "CPU-seconds per million reports",
            f"{(sum(spent.values()) + tally.cpu_s) / millions:.0f} (fleet {tally.cpu_s / millions:.0f}, {services})",
        ),
        ("memory of all services (PSS)", f"{sum(memory.values()) / (1 << 20):.0f} MiB"),
    ]


def _lake_bytes(folder: Path) -> int:
    return sum(row.get("lake_bytes", 0) for row in command(folder, "status", "--seconds", "0"))


def _questions(stage: Stage) -> None:
    """Five answers as tables, one more as a picture."""
    for name, arguments in QUESTIONS:
        stage.say(f"\n$ harmonywatch ask {name} --force {FORCES[0]} --data {stage.folder}")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "harmonywatch",
                "ask",
                name,
                *arguments,
                "--force",
                FORCES[0],
                "--data",
                str(stage.folder),
            ],
            capture_output=True,
            check=False,
            text=True,
        )
        if done.returncode:
            raise DemoFailed(f"ask {name}: {done.stderr.strip()}")
        lines = done.stdout.splitlines()
        for line in lines[:8]:
            stage.say("  " + line)
        if len(lines) > 8:
            stage.say(f"  ... {len(lines) - 8} more lines")
    picture = stage.folder / f"{PLOTTED}.png"
    command(stage.folder, "ask", PLOTTED, "--force", FORCES[0], "--plot", str(picture))
    stage.say(f"\npicture: {picture}")


def _await_settled(folder: Path) -> None:
    """Until the archive holds every report, alert and reject. Raises DemoFailed after SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        rows = command(folder, "status", "--seconds", "0")
        lags = {row["topic"]: row["lag"] for row in rows if row.get("group") == "archive"}
        if not any(lags.values()):
            return
        if time.monotonic() > deadline:
            raise DemoFailed(f"after {SETTLE_S:.0f} s the lake still lacks records: {lags}")
        time.sleep(0.5)


def _await_ready(url: str, logs: Path) -> None:
    deadline = time.monotonic() + READY_S
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read().decode(errors="replace")
        except OSError as error:
            reason = str(error)
        time.sleep(0.05)
    raise DemoFailed(f"{url} is not ready after {READY_S:.0f} s: {reason}; see {logs}")


def _free(port: int) -> int:
    """The port, or any free one if something else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
