"""Workers of alerting and of the archive come, go and die under load: 1, 4, 2, 3 of each, again and again.

REBALANCES: how often their number changes (12 by default, with some 12,000 reports; the full proof is 100, with 100,000).
HARMONYWATCH_SEED: of who is asked to stop and who is killed.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from cluster_rig import Aside, Workers, figure, went_back
from figures import Tell
from running_system import System, wait_for
from storm import FORCE, Load
from truth_check import check

from harmonywatch.fleet.faults import FaultRates
from harmonywatch.supervisor import service_of

REBALANCES = int(os.environ.get("REBALANCES", "12"))
REPORTS = 1_000 * REBALANCES
RATE = 250.0
COUNTS = (4, 2, 3, 1)
SERVICES = ("alerting", "archive")

SHARE_REPORTS, SHARE_RATE = 12_000, 600.0
HANDLED = {"alerting": "harmonywatch_received_total", "archive": "harmonywatch_accepted_total"}


@dataclass
class Story:
    """What happened to the workers."""

    counts: list[int] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)

    def told(self) -> str:
        return f"{len(self.counts)} times another number of workers, {dict(self.endings)}"


@pytest.mark.timeout(240 + 15 * REBALANCES)
def test_each_report_is_stored_once_and_each_alert_is_there_while_workers_come_and_go(
    cluster: System, seen: Aside, tmp_path: Path, tell: Tell
) -> None:
    seed = int(os.environ.get("HARMONYWATCH_SEED") or secrets.randbits(31))
    key = cluster.add_force(FORCE)
    cluster.start()
    traffic = Load(cluster, key, tmp_path / "truth.ndjson", seed, RATE, FaultRates(twice=0.02)).start()
    began = time.monotonic()
    try:
        story = rebalance(cluster, seen, Random(seed))
        wait_for("the last reports", lambda: traffic.tally.accepted >= REPORTS, 60 + REPORTS / RATE, 0.5)
        took_s = time.monotonic() - began
    finally:
        traffic.stop()
    verdict = check(cluster, traffic.truth)
    commits, fenced = seen.commits(), cluster.log.read_text().count('"WriterFenced"')
    tell(f"seed {seed}; {took_s:.0f} s; {story.told()}; {fenced} fenced of {len(commits)} commits; {verdict.told()}")
    assert went_back(commits) == [], f"seed {seed}"
    assert verdict.faults() == [], f"seed {seed}"
    assert verdict.total("alerts") > 0
    cluster.stop()


def rebalance(cluster: System, seen: Aside, random: Random) -> Story:
    """Change the number of workers, wait until they share the partitions, again and again; only the first ones stay."""
    story, crews = Story(), [Workers(cluster, service) for service in SERVICES]
    for number in range(REBALANCES):
        count = COUNTS[number % len(COUNTS)]
        for crew in crews:
            how = random.choice((signal.SIGTERM, signal.SIGKILL))
            story.endings[how.name] += sum(worker > count for worker in crew.processes)
            crew.become(count, how)
        story.counts.append(count)
        for service in SERVICES:
            seen.wait_shared(service, count)
        time.sleep(random.uniform(0, 1.0))  # the moment of the next change is the test's input
    for crew in crews:
        crew.become(1, signal.SIGTERM)
    return story


@pytest.mark.timeout(240)
def test_two_workers_share_the_records_evenly(cluster: System, seen: Aside, tmp_path: Path, tell: Tell) -> None:
    """12 partitions, 500 watchers. CPU is told, not asserted: it is the machine's."""
    seed = secrets.randbits(31)
    key = cluster.add_force(FORCE)
    spent: list[dict[str, float]] = []
    for workers in (1, 2):
        cluster.options = ("--copies", ",".join(f"{service}={workers}" for service in SERVICES))
        cluster.start()
        for service in SERVICES:
            seen.wait_shared(service, workers)
        handled, cpu_s = measured(
            cluster, seen, Load(cluster, key, tmp_path / f"{workers}", seed + workers, SHARE_RATE)
        )
        shares = {name: count / sum(of(service_of(name), handled)) for name, count in handled.items()}
        spent.append({service: sum(of(service, cpu_s)) / sum(of(service, handled)) for service in SERVICES})
        cluster.stop()
    ratio = {service: f"{spent[1][service] * 1e6:.0f} for {spent[0][service] * 1e6:.0f}" for service in SERVICES}
    tell(f"shares {shares}; CPU seconds per million, two workers for one: {ratio}")
    assert len(shares) == 4 and all(0.4 <= share <= 0.6 for share in shares.values())


def of(service: str, figures: Mapping[str, float]) -> list[float]:
    """Of the workers of a service."""
    return [value for name, value in figures.items() if service_of(name) == service]


def measured(cluster: System, seen: Aside, traffic: Load) -> tuple[dict[str, float], dict[str, float]]:
    """By worker: records handled, CPU seconds."""
    names = [name for name in cluster.pids() if service_of(name) in SERVICES]
    before, began = cluster.cpu_s(), {name: handled(cluster, name) for name in names}
    traffic.start()
    wait_for("the reports", lambda: traffic.tally.accepted >= SHARE_REPORTS, 60, 0.5)
    traffic.stop()
    ends = seen.ends(seen.reports)
    wait_for("their rows", lambda: seen.is_stored(ends), 30, 0.2)
    after = cluster.cpu_s()
    counts = {name: handled(cluster, name) - began[name] for name in names}
    return counts, {name: after[name] - before[name] for name in names}


def handled(cluster: System, name: str) -> float:
    return figure(cluster, name, HANDLED[service_of(name)])
