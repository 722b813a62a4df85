"""A service that stands still for a while is no fault of the others, and catches up."""

from __future__ import annotations

import secrets
import signal
import time
from pathlib import Path

import pytest
from figures import Tell
from running_system import QUICK_ARCHIVE, System, made, report, wait_for
from storm import FIRST_WAVE_PER_S, FORCE, Load, Probe, load
from truth_check import Told, check

pytestmark = pytest.mark.fault
PAUSE_S = 5.0
CATCH_UP_S = 10.0
LATE = ("after-the-pause", "late-1")
LATE_RISER = Told(attempted={LATE}, acked={LATE}, acked_attempts=1, bad={(*LATE, 0): "name:Late Riser"})


def test_alerting_that_stood_still_catches_up_and_misses_nothing(tmp_path: Path, tell: Tell) -> None:
    seed = secrets.randbits(31)
    with made(tmp_path / "data", environment=QUICK_ARCHIVE) as system:
        key = system.add_force(FORCE)
        system.start()
        probe = Probe(system, key)
        with load(system, key, tmp_path / "truth.ndjson", seed) as traffic:
            accepted, slowest = _paused(system, probe, traffic)
            late_s = _until_alerted(system, key)
        sent = probe.told()
        sent.add(LATE_RISER)
        verdict = check(system, traffic.truth, {FORCE: sent})
        tell(
            f"seed {seed}; alerting stood still {PAUSE_S:g} s: {accepted} reports accepted meanwhile, slowest probe "
            f"{slowest * 1e3:.0f} ms; live again {late_s:.2f} s after; {verdict.told()}"
        )
        assert accepted > 0.9 * FIRST_WAVE_PER_S * (PAUSE_S - 1), "the door slowed down with alerting"
        assert verdict.faults() == [], f"seed {seed}"


def _paused(system: System, probe: Probe, traffic: Load) -> tuple[int, float]:
    """Stop alerting for PAUSE_S; reports accepted meanwhile (counted about once a second), the slowest probe's answer."""
    process = system.services()["alerting"]
    process.send_signal(signal.SIGSTOP)
    try:
        before, began = traffic.tally.accepted, time.monotonic()
        slowest = 0.0
        while time.monotonic() - began < PAUSE_S:
            slowest = max(slowest, probe.first_2xx_s())
        return traffic.tally.accepted - before, slowest
    finally:
        process.send_signal(signal.SIGCONT)


def _until_alerted(system: System, key: str) -> float:
    """How long until an alert raised now is listed: everything before it has been judged then."""
    began = time.monotonic()
    assert system.post(key, report(LATE[0], 1.0, "Late Riser", report_id=LATE[1], sequence=1)).status == 202
    wait_for("the alert", lambda: any(row["name"] == "Late Riser" for row in system.run("alerts")), CATCH_UP_S)
    return time.monotonic() - began
