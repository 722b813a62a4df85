"""`kill -9` under the first wave: nothing accepted is lost, nothing is there twice, every alert and incident is exact.

HARMONYWATCH_KILLS: how many kills (12 by default; the full proof is 100). HARMONYWATCH_SEED: of when and what. The same
checker goes red, in the last test, when the gateway acknowledges before the commit.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from random import Random

import pytest
from figures import Tell
from running_system import QUICK_ARCHIVE, System, made, running, wait_for
from storm import ALL, FORCE, RECOVERY_MOST_S, Kills, Load, Probe, kill_in_turn, load, schedule
from truth_check import Verdict, check

KILLS = int(os.environ.get("HARMONYWATCH_KILLS", "12"))
pytestmark = pytest.mark.fault


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("HARMONYWATCH_SEED") or secrets.randbits(31))


def story(seed: int, kills: Kills, traffic: Load, verdict: Verdict) -> str:
    tally = traffic.tally
    outcomes = f"{tally.sent} sent, {tally.accepted} accepted, {tally.unknown} unknown, {tally.retried} requests again"
    return f"seed {seed}; {kills.told()}; {outcomes}; {verdict.told()}"


@pytest.mark.timeout(240 + 15 * KILLS)
def test_nothing_is_lost_or_twice_after_kills_of_every_service(tmp_path: Path, seed: int, tell: Tell) -> None:
    random = Random(seed)
    with made(tmp_path / "data") as system:
        key = system.add_force(FORCE)
        system.start()
        probe = Probe(system, key)
        with load(system, key, tmp_path / "truth.ndjson", seed) as traffic:
            kills = kill_in_turn(system, probe, random, schedule(random, KILLS))
        verdict = check(system, traffic.truth, {FORCE: probe.told()})
        tell(story(seed, kills, traffic, verdict))
        assert verdict.faults() == [], f"seed {seed}"
        assert traffic.tally.unknown == 0, f"seed {seed}: {traffic.tally.last_problem}"
        assert verdict.total("alerts") > 0, "a run without alerts proves nothing about alerts"
        assert max(kills.recoveries_s)[0] <= RECOVERY_MOST_S, f"seed {seed}"
        system.wait_ready(20)
        system.stop()


def test_one_service_killed_again_and_again_leaves_no_trace(tmp_path: Path, seed: int, tell: Tell) -> None:
    """Only the archiver, then only the dispatcher, at random moments of commits, batches and starts."""
    random = Random(seed)
    with made(tmp_path / "data", environment={"HARMONYWATCH_ARCHIVE__FLUSH_INTERVAL_S": "0.5"}) as system:
        key = system.add_force(FORCE)
        system.start()
        probe = Probe(system, key)
        with load(system, key, tmp_path / "truth.ndjson", seed) as traffic:
            kills = kill_in_turn(system, probe, random, ["archive"] * 4 + ["dispatch"] * 4)
        verdict = check(system, traffic.truth, {FORCE: probe.told()})
        tell(story(seed, kills, traffic, verdict))
        assert verdict.faults() == [], f"seed {seed}"
        assert traffic.tally.unknown == 0


def test_the_checker_goes_red_when_the_gateway_acknowledges_before_the_commit(
    tmp_path: Path, seed: int, tell: Tell
) -> None:
    """The positive control: the same load, kills and checker on a gateway with the guarantee off."""
    launcher = str(Path(__file__).parent / "early_ack")
    search = os.pathsep.join(filter(None, [launcher, os.environ.get("PYTHONPATH")]))
    random = Random(seed)
    with running(tmp_path / "data", environment={**QUICK_ARCHIVE, "PYTHONPATH": search}) as system:
        key = system.add_force(FORCE)
        probe = Probe(system, key)
        with load(system, key, tmp_path / "truth.ndjson", seed) as traffic:
            kills = kill_in_turn(system, probe, random, ["gateway", ALL])
        verdict = check(system, traffic.truth, {FORCE: probe.told()}, alerted_s=3)
        tell(story(seed, kills, traffic, verdict))
        assert verdict.total("lost") > 0, f"seed {seed}: acknowledged before the commit, killed, and nothing was lost"
        assert verdict.total("gaps") > 0, f"seed {seed}: reports were lost, and no watcher's sequence shows it"


def test_a_killed_supervisor_takes_its_services_along_and_a_new_one_goes_on(
    tmp_path: Path, seed: int, tell: Tell
) -> None:
    with made(tmp_path / "data", environment=QUICK_ARCHIVE) as system:
        key = system.add_force(FORCE)
        system.start()
        probe = Probe(system, key)
        with load(system, key, tmp_path / "truth.ndjson", seed) as traffic:
            probe.first_2xx_s()
            gone_s = _kill_supervisor(system)
            began = time.monotonic()
            system.start(ready=False)
            back_s = probe.first_2xx_s()
            system.wait_ready()
            ready_s = time.monotonic() - began
        verdict = check(system, traffic.truth, {FORCE: probe.told()})
        tell(
            f"seed {seed}; services gone {gone_s:.2f} s after the supervisor, 2xx {back_s:.2f} s and all ready "
            f"{ready_s:.2f} s after the new start; {verdict.told()}"
        )
        assert verdict.faults() == [], f"seed {seed}"
        assert traffic.tally.unknown == 0
        system.stop()


def _kill_supervisor(system: System) -> float:
    """`kill -9` of `up` alone; how long its services took to stop by themselves."""
    assert system.process is not None
    system.process.kill()
    system.process.wait()
    system.process = None
    began = time.monotonic()
    wait_for("the end of the services", lambda: not system.own_processes(), 15)
    return time.monotonic() - began
