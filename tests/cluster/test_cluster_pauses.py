"""Two archivers, of which one stands still around its commit while the other takes over its partitions.

ROUNDS: how often (6 by default; the full proof is 50). HARMONYWATCH_SEED: of the moments.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from pathlib import Path
from random import Random

import pytest
from cluster_rig import Aside, went_back
from figures import Tell
from running_system import System, wait_for
from storm import FORCE, Load
from truth_check import check

from harmonywatch.fleet.faults import FaultRates

ROUNDS = int(os.environ.get("ROUNDS", "6"))
RATE = 150.0
TAKEN_OVER_S, BACK_S = 30.0, 60.0


@pytest.mark.timeout(240 + 30 * ROUNDS)
def test_an_archiver_that_wakes_after_another_took_over_stores_nothing_twice(
    cluster: System, seen: Aside, tmp_path: Path, tell: Tell
) -> None:
    seed = int(os.environ.get("HARMONYWATCH_SEED") or secrets.randbits(31))
    random = Random(seed)
    cluster.options = ("--copies", "archive=2")
    key = cluster.add_force(FORCE)
    cluster.start()
    traffic = Load(cluster, key, tmp_path / "truth.ndjson", seed, RATE, FaultRates(twice=0.02)).start()
    began = time.monotonic()
    try:
        for number in range(ROUNDS):
            seen.wait_shared("archive", 2)
            pause(cluster, seen, random, at_a_file=number % 2 == 0)
        took_s = time.monotonic() - began
        seen.wait_shared("archive", 2)
    finally:
        traffic.stop()
    verdict = check(cluster, traffic.truth)
    commits = seen.commits()
    fenced = cluster.log.read_text().count('"WriterFenced"')
    tell(
        f"seed {seed}; {ROUNDS} pauses in {took_s:.0f} s, {fenced} woke fenced, {len(commits)} commits; {verdict.told()}"
    )
    assert went_back(commits) == [], f"seed {seed}"
    assert verdict.faults() == [], f"seed {seed}"
    cluster.stop()


def pause(cluster: System, seen: Aside, random: Random, at_a_file: bool) -> None:
    """Stop the first archiver, `at_a_file`: just when one of the two has written a file and not yet committed it, else at any
    moment; wake it when all that was on the stream is stored by the other, or soon after."""
    pid = cluster.pids()["archive:1"]
    time.sleep(random.uniform(0, 1.0))  # the moment is the test's input
    if at_a_file:
        folder = seen.engines.table(seen.name, seen.force, "reports")
        before = {*folder.rglob("*.parquet")}
        wait_for("a data file", lambda: {*folder.rglob("*.parquet")} - before, 20, 0.0)
    os.kill(pid, signal.SIGSTOP)
    try:
        ends = seen.ends(seen.reports)
        wait_for("the other one to take over", lambda: seen.is_stored(ends), TAKEN_OVER_S, 0.1)
        time.sleep(random.uniform(0, 0.5))  # so is this one
    finally:
        os.kill(pid, signal.SIGCONT)
