"""The identity of incidents under concurrent workers on PostgreSQL: eight processes, killed again and again, and officers."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier

import dispatch_worker
import pytest
from dispatch_parts import T0, alert, later
from dispatch_worker import STREAM_ID, WORKERS, Load, UnlockedStore
from sqlalchemy import text

from engines.postgres import Postgres
from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.dispatch.incident import IncidentError, StaleVersion
from harmonywatch.dispatch.listing import change_incident, officer_act
from harmonywatch.dispatch.store import IncidentStore, open_incidents
from harmonywatch.registry.engine import open_engine, reading, writing
from harmonywatch.settings import DispatchSettings

FORKING = get_context("forkserver")
"""Workers are forked from a process that has imported everything: to start again after a kill costs milliseconds."""

FORKING.set_forkserver_preload(["dispatch_worker"])
KILLS = 12
DEADLINE_S = 240.0


class Floor:
    """The workers, each started again when it was killed, until all have recorded their share."""

    def __init__(self, url: str, load: Load, kind: type[IncidentStore] = IncidentStore, kills: int = KILLS) -> None:
        self.url, self.load, self.kind, self.kills_wanted = url, load, kind, kills
        self.dice, self.clock = random.Random(), SystemClock()
        self.running: dict[int, ForkServerProcess] = {}
        self.kills = 0

    def start(self, worker: int, together: Barrier | None = None) -> None:
        arguments = (self.url, self.load, worker, self.kind, together)
        process = FORKING.Process(target=dispatch_worker.main, args=arguments, daemon=True)
        process.start()
        self.running[worker] = process

    def done(self, store: IncidentStore) -> int:
        return sum(store.positions(STREAM_ID).values())

    def wait_all_recorded(self, store: IncidentStore) -> None:
        """Kills somebody whenever another part of the load is recorded."""
        whole = sum(map(len, self.load.shares))
        deadline, pause = self.clock.monotonic() + DEADLINE_S, threading.Event()
        together = FORKING.Barrier(WORKERS)
        for worker in range(WORKERS):
            self.start(worker, together)
        while self.running:
            assert self.clock.monotonic() < deadline, f"{self.done(store)} of {whole} after {DEADLINE_S} s"
            for worker, process in [*self.running.items()]:
                if process.exitcode is not None:
                    assert process.exitcode in (0, -9), f"worker {worker} ended with {process.exitcode}"
                    del self.running[worker]
                    if process.exitcode:
                        self.start(worker)
            if self.kills < self.kills_wanted and self.done(store) > whole * (self.kills + 1) / (self.kills_wanted + 2):
                self.running[self.dice.choice([*self.running])].kill()
                self.kills += 1
            pause.wait(0.01)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.join()


class Officers:
    """Three who act on whatever they see, by the version they saw."""

    def __init__(self, url: str) -> None:
        self.stop = threading.Event()
        self.done: list[tuple[str, int]] = []
        self.stale = 0
        self._stores = [open_incidents(url, DispatchSettings()) for _ in range(3)]
        self._threads = [
            threading.Thread(target=self._act, args=(f"o-{n}", store)) for n, store in enumerate(self._stores)
        ]
        for thread in self._threads:
            thread.start()

    def _act(self, name: str, store: IncidentStore) -> None:
        dice, clock = random.Random(), ManualClock(T0)
        while not self.stop.wait(0.02):
            for seen in store.newest_incidents(None, None, 3):
                act = officer_act(dice.choice(("acknowledge", "release", "dispatch", "note")), name, clock)
                try:
                    after = change_incident(store, seen.incident_id, act, seen.version)
                except StaleVersion:
                    self.stale += 1
                except IncidentError:
                    continue
                else:
                    self.done.append((seen.incident_id, after.version))

    def close(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        for store in self._stores:
            store.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def check(store: IncidentStore, url: str, load: Load) -> None:
    """One open incident a citizen, each alert in one once, each watcher counted once, no event and no notice missing."""
    wanted: dict[str, tuple[set[str], set[str]]] = {}
    for each in load.alerts:
        ids, watchers = wanted.setdefault(each.name, (set(), set()))
        ids.add(each.alert_id)
        watchers.add(each.watcher_id)
    listed = store.incidents()
    assert all(incident.closed_us is None and incident.current for incident in listed)
    got = sorted((i.name, i.occurrences, i.watchers) for i in listed)
    assert got == sorted((who, len(ids), len(watchers)) for who, (ids, watchers) in wanted.items())
    for incident in listed:
        numbers = [occurrence["number"] for occurrence in store.occurrences(incident.incident_id)]
        assert numbers == list(range(max(1, incident.occurrences - 99), incident.occurrences + 1))
    engine = open_engine(url)
    with reading(engine) as connection:
        seen = connection.execute(text("SELECT count(DISTINCT alert), count(*) FROM seen_alerts")).one()
        told = connection.execute(text("SELECT count(DISTINCT incident_id), count(*) FROM notifications")).one()
    engine.dispose()
    assert tuple(seen) == (len(load.alerts),) * 2
    assert tuple(told) == (len(listed),) * 2


def test_eight_workers_and_three_officers_at_once_count_all_once_and_lose_no_act(postgres: Postgres) -> None:
    url, seed = postgres.database(), random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    store = open_incidents(url, DispatchSettings())
    floor, officers = Floor(url, dispatch_worker.load(seed)), Officers(url)
    try:
        floor.wait_all_recorded(store)
    finally:
        floor.close()
        officers.close()
    assert floor.kills == KILLS
    check(store, url, floor.load)
    acts = set(officers.done)
    assert len(acts) == len(officers.done) > 20, "two acts never make one version"
    for incident in store.incidents():
        log = store.log(incident.incident_id)
        assert [line["version"] for line in log] == list(range(1, incident.version + 1))
        theirs = {(incident.incident_id, line["version"]) for line in log if line["by"].startswith("o-")}
        assert theirs == {act for act in acts if act[0] == incident.incident_id}
    store.close()


KEYS = {
    "incidents": ("uq_incidents_current_subject", "pk_incidents"),
    "incident_occurrences": ("pk_incident_occurrences",),
    "incident_watchers": ("pk_incident_watchers",),
    "incident_log": ("pk_incident_log",),
    "incident_events": ("pk_incident_events",),
    "seen_alerts": ("pk_seen_alerts",),
}


@pytest.mark.parametrize(("kind", "red"), [(IncidentStore, False), (UnlockedStore, True)])
def test_the_control_without_keys_goes_red_without_locks_as_well(
    postgres: Postgres, kind: type[IncidentStore], red: bool
) -> None:
    """Every alert is one worker's here, and their citizen has an incident already: so what is left is the locks' to do."""
    url = postgres.database()
    alerts = [alert(n, watcher=f"w-{n % 7}", judged=later(n / 10)) for n in range(601)]
    load = Load(alerts, [[*range(1 + worker, 601, WORKERS)] for worker in range(WORKERS)] + [[0]])
    store = open_incidents(url, DispatchSettings())
    dispatch_worker.main(url, load, WORKERS)
    engine = open_engine(url)
    with writing(engine) as connection:
        for table, keys in KEYS.items():
            for key in keys:
                connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {key}"))
    engine.dispose()
    floor = Floor(url, load, kind, kills=0)
    try:
        floor.wait_all_recorded(store)
    finally:
        floor.close()
    counted = sum(incident.occurrences for incident in store.incidents())
    store.close()
    assert (counted < 601) is red, f"{counted} of 601"
