"""The S3 server, and PostgreSQL, die under load and come back: what does not need them goes on, what does catches up.

HARMONYWATCH_SEED: of the traffic. OUTAGE_S: how long they are away.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_rig import Aside, went_back
from figures import Tell
from running_system import System, report, wait_for
from storm import FORCE, Load, Probe
from truth_check import Told, check, read_told

from engines.process import Server
from harmonywatch.clock import from_wire
from harmonywatch.fleet.truth import AlertKey

OUTAGE_S = float(os.environ.get("OUTAGE_S", "10"))
RATE = 300.0
SETTLE_S = 3.0
"""The ground truth is written about once a second, and the last report before the end has to be judged."""

CAUGHT_UP_S = 30.0
PROBE_MOST_S = 2.0
pytestmark = pytest.mark.timeout(300)


@dataclass
class Outage:
    """`sent`: bad scores answered 2xx while the server was away; `judged`: of those, with an alert judged before it was back."""

    sent: set[AlertKey]
    judged: set[AlertKey]
    slowest_judged_s: float
    probes_s: list[float]

    def told(self) -> str:
        return (
            f"away {OUTAGE_S:g} s: {len(self.judged)} of {len(self.sent)} bad scores judged meanwhile, slowest "
            f"{self.slowest_judged_s * 1e3:.0f} ms; {len(self.probes_s)} probes, slowest {max(self.probes_s) * 1e3:.0f} ms"
        )


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("HARMONYWATCH_SEED") or secrets.randbits(31))


def so_far(traffic: Load) -> Told:
    return read_told(traffic.truth)[FORCE]


def survive(server: Server, seen: Aside, traffic: Load, probe: Probe) -> Outage:
    """Kill the server, probe the gateway meanwhile, start it again on its data."""
    time.sleep(SETTLE_S)
    before = so_far(traffic).alerts()
    server.kill()
    try:
        began = time.monotonic()
        probes_s = []
        while time.monotonic() - began < OUTAGE_S:
            probes_s.append(probe.first_2xx_s())
            time.sleep(0.05)
        sent = so_far(traffic).alerts() - before
        time.sleep(SETTLE_S)
        alerts = seen.alerts()
    finally:
        server.start()
    judged = {key for key in sent if key in alerts}
    waited_s = [
        (from_wire(alerts[key].judged_at) - from_wire(alerts[key].received_at)).total_seconds() for key in judged
    ]
    return Outage(sent, judged, max(waited_s, default=0.0), probes_s)


def test_alerts_flow_while_the_lake_is_away_and_the_archive_catches_up(
    cluster: System, seen: Aside, tmp_path: Path, tell: Tell, seed: int
) -> None:
    cluster.options = ("--copies", "archive=2")
    key = cluster.add_force(FORCE)
    cluster.start()
    probe = Probe(cluster, key)
    traffic = Load(cluster, key, tmp_path / "truth.ndjson", seed, RATE).start()
    try:
        outage = survive(seen.engines.s3.server, seen, traffic, probe)
        began, ends = time.monotonic(), seen.ends(seen.reports)
        wait_for("the archive to catch up", lambda: seen.is_stored(ends), CAUGHT_UP_S, 0.2)
        caught_up_s = time.monotonic() - began
    finally:
        traffic.stop()
    verdict = check(cluster, traffic.truth, {FORCE: probe.told()})
    tell(f"seed {seed}; S3 {outage.told()}; all before its return stored {caught_up_s:.1f} s after; {verdict.told()}")
    assert len(outage.sent) > 5, "too few bad scores to tell"
    assert outage.judged == outage.sent
    assert max(outage.probes_s) < PROBE_MOST_S
    assert went_back(seen.commits()) == []
    assert verdict.faults() == [], f"seed {seed}"
    cluster.stop()


def test_reports_and_alerts_flow_while_the_state_is_away_and_incidents_follow(
    cluster: System, seen: Aside, tmp_path: Path, tell: Tell, seed: int
) -> None:
    key = cluster.add_force(FORCE)
    cluster.start()
    probe = Probe(cluster, key)
    traffic = Load(cluster, key, tmp_path / "truth.ndjson", seed, RATE).start()
    try:
        assert cluster.post(key, report("known", 1.0, "First Of All", report_id="f", sequence=0)).status == 202
        outage = survive(seen.engines.postgres.server, seen, traffic, probe)
        began, alerts = time.monotonic(), len(so_far(traffic).alerts())
        wait_for("incidents to follow", lambda: _counted(cluster) >= alerts, CAUGHT_UP_S, 0.2)
        followed_s = time.monotonic() - began
    finally:
        traffic.stop()
    sent = probe.told()
    first = ("known", "f")
    sent.add(Told(attempted={first}, acked={first}, acked_attempts=1, bad={(*first, 0): "name:First Of All"}))
    verdict = check(cluster, traffic.truth, {FORCE: sent})
    tell(f"seed {seed}; PostgreSQL {outage.told()}; incidents followed {followed_s:.1f} s after; {verdict.told()}")
    assert len(outage.sent) > 5, "too few bad scores to tell"
    assert outage.judged == outage.sent
    assert max(outage.probes_s) < PROBE_MOST_S
    assert verdict.faults() == [], f"seed {seed}"
    cluster.stop()


def _counted(cluster: System) -> int:
    return sum(row["occurrences"] for row in cluster.run("incidents", "--force", FORCE))
