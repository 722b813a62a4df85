"""Load, a probe and a killer: what the fault tests do to a running system while they count.

The load is the fleet with its ground truth, in a thread. The probe sends one report after another, each again until it is
answered 2xx, so the time from a kill to the first 2xx of a request that was sent after it is known for every kill. All
randomness comes from one seed, which the tests print.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from running_system import SERVICES, System, report, wait_for
from truth_check import ReportKey, Told

from harmonywatch.fleet.faults import FaultRates
from harmonywatch.fleet.plan import NO_FAULTS, FleetPlan, Target
from harmonywatch.fleet.send import run_fleet
from harmonywatch.fleet.tally import FleetResult, Tally

FIRST_WAVE_PER_S = 1_157.0
RECOVERY_MOST_S = 5.0
RESTART_MOST_S = 20.0
ALL = "all"
FORCE = "north"
WATCHERS = 500
"""So few that each sends twice a second: a report lost between two others leaves a gap in its watcher's sequence."""


class Load:
    """The paced fleet in a thread of its own, until `stop`."""

    def __init__(
        self,
        system: System,
        key: str,
        truth: Path,
        seed: int,
        rate: float = FIRST_WAVE_PER_S,
        faults: FaultRates = NO_FAULTS,
    ) -> None:
        target = Target(FORCE, system.url, key)
        self.truth = truth
        self._plan = FleetPlan(
            watchers=WATCHERS,
            rate=rate,
            seconds=0,
            seed=seed,
            targets=(target,),
            faults=faults,
            truth=truth,
            give_up_s=60,
        )
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self.tally = Tally()
        self.result: FleetResult | None = None

    def _run(self) -> None:
        self.result = self._loop.run_until_complete(run_fleet(self._plan, self._progress, self._stop))
        self._loop.close()

    def _progress(self, tally: Tally) -> None:
        self.tally = tally

    def start(self) -> Load:
        self._thread.start()
        wait_for("the first answer", lambda: self.tally.accepted > 0, 20)
        return self

    def stop(self) -> Tally:
        """End the traffic, wait for every outcome."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(90)
        assert self.result is not None, "the fleet died"
        return self.result.tally


@contextlib.contextmanager
def load(system: System, key: str, truth: Path, seed: int) -> Iterator[Load]:
    running = Load(system, key, truth, seed)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass
class Probe:
    """Sends reports of one watcher, none of them with a bad score; `accepted` are those that were answered 2xx."""

    system: System
    key: str
    watcher_id: str = "probe"
    accepted: list[ReportKey] = field(default_factory=list)

    def first_2xx_s(self, deadline_s: float = 30.0) -> float:
        """Seconds from now until a report sent from now on is accepted."""
        began = time.monotonic()
        number = len(self.accepted)
        body = report(self.watcher_id, report_id=f"p-{number}", sequence=number)

        def taken() -> bool:
            try:
                return self._post(body) == 202
            except (OSError, http.client.HTTPException):
                return False

        wait_for("a 2xx after the kill", taken, deadline_s, 0.01)
        self.accepted.append((self.watcher_id, f"p-{number}"))
        return time.monotonic() - began

    def told(self) -> Told:
        """Its part of the ground truth."""
        return Told(attempted=set(self.accepted), acked=set(self.accepted), acked_attempts=len(self.accepted))

    def _post(self, body: dict[str, object]) -> int:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        with contextlib.closing(self.system.connection(self.system.gateway_port, 3.0)) as connection:
            connection.request("POST", "/v1/reports", json.dumps(body), headers)
            return connection.getresponse().status


@dataclass
class Kills:
    """What was killed, and how long the next 2xx and the restart took."""

    of: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[tuple[float, str]] = field(default_factory=list)
    restarts_s: list[float] = field(default_factory=list)

    def told(self) -> str:
        times = sorted(seconds for seconds, _ in self.recoveries_s)
        worst = max(self.recoveries_s)
        doors = sorted(seconds for seconds, what in self.recoveries_s if what in ("gateway", ALL)) or [0.0]
        return (
            f"{sum(self.of.values())} kills {dict(self.of)}; first new 2xx after p50 {times[len(times) // 2]:.2f} s, "
            f"max {worst[0]:.2f} s ({worst[1]}), of kills that hit the gateway p50 {doors[len(doors) // 2]:.2f} s; "
            f"services back after max {max(self.restarts_s):.2f} s"
        )


def schedule(random: Random, count: int, services: Sequence[str] = SERVICES) -> list[str]:
    """What to kill, in order: every service and all at once, evenly, shuffled round by round."""
    wanted: list[str] = []
    while len(wanted) < count:
        turn = [*services, ALL]
        random.shuffle(turn)
        wanted += turn
    return wanted[:count]


def kill_in_turn(system: System, probe: Probe, random: Random, victims: Sequence[str]) -> Kills:
    """One kill after the other, each at a random moment after the system has got over the one before."""
    kills = Kills()
    for victim in victims:
        time.sleep(random.uniform(0.2, 2.0))  # the moment of the kill is the test's input
        hit = SERVICES if victim == ALL else (victim,)
        before = system.pids()
        system.kill(*hit)
        kills.of[victim] += 1
        began = time.monotonic()
        kills.recoveries_s.append((probe.first_2xx_s(), victim))
        wait_for(f"{victim} started again", lambda hit=hit, was=before: _renewed(system, hit, was), RESTART_MOST_S)
        kills.restarts_s.append(time.monotonic() - began)
    return kills


def _renewed(system: System, services: Sequence[str], before: dict[str, int]) -> bool:
    now = system.pids()
    return all(now.get(service) not in (None, before.get(service)) for service in services)
