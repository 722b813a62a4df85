"""Real dispatcher processes on one stream and one database: several at once, and killed in the middle of the load."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dispatch_parts
import msgspec
import pytest
from dispatch_parts import PARTITIONS, alert, make_topics, put

from harmonywatch.clock import SystemClock
from harmonywatch.dispatch.store import IncidentStore, open_incidents
from harmonywatch.report.topics import AlertRecord, EventRecord
from harmonywatch.settings import DispatchSettings, StreamSettings
from harmonywatch.stream.sqlite import SqliteStream

PEOPLE = 12
PROGRAM = Path(__file__).parent / "dispatcher_process.py"


class Yard:
    """A stream and a database in files, and the processes that work on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, SystemClock()
        self.stream = SqliteStream(folder / "stream", StreamSettings(), self.clock)
        make_topics(self.stream)
        self.url = dispatch_parts.state_url(folder)
        self.store: IncidentStore = open_incidents(self.url, DispatchSettings())
        self.seed = random.randrange(1 << 32)
        print(f"seed {self.seed}")  # noqa: T201
        self.dice = random.Random(self.seed)
        self.alerts: list[AlertRecord] = []
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.folder), self.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def wait_ready(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def load(self, appends: int) -> None:
        """Alerts as they come, a fifth of them told again."""
        for _ in range(appends):
            some = []
            for _ in range(self.dice.randint(1, 8)):
                who = f"c-{self.dice.randrange(PEOPLE)}"
                watcher = f"w-{self.dice.randrange(9)}"
                some.append(alert(len(self.alerts) + len(some), who=who, watcher=watcher, judged=self.clock.now()))
            self.alerts += some
            put(self.stream, some + [a for a in self.alerts[-50:] if self.dice.random() < 0.2])

    def handled(self) -> int:
        """Alerts below the stored positions."""
        return sum(self.store.positions(self.stream.id).values())

    def wait_handled(self, before: int) -> None:
        """Until more than that are handled."""
        pause, deadline = threading.Event(), self.clock.monotonic() + 30
        while self.handled() <= before:
            assert self.clock.monotonic() < deadline, "the dispatcher handles nothing"
            pause.wait(0.002)

    def wait_done(self) -> None:
        """Until every alert is handled and every event is out. A condition with a deadline, no guess."""
        pause, deadline = threading.Event(), self.clock.monotonic() + 30
        ends = {p: self.stream.bounds("alerts.north", p).end for p in range(PARTITIONS)}
        while self.clock.monotonic() < deadline:
            got = {
                at.partition: n for at, n in self.store.positions(self.stream.id).items() if at.topic == "alerts.north"
            }
            if all(got.get(p, 0) == end for p, end in ends.items()) and not self.store.pending_forces(1 << 62):
                return
            pause.wait(0.02)
        raise AssertionError(f"handled {got} of {ends}")

    def check(self) -> None:
        """One incident a citizen, every alert in it once, every change told."""
        wanted: dict[str, tuple[set[str], set[str]]] = {}
        for each in self.alerts:
            ids, watchers = wanted.setdefault(each.name, (set(), set()))
            ids.add(each.alert_id)
            watchers.add(each.watcher_id)
        listed = self.store.incidents()
        got = sorted((i.name, i.occurrences, i.watchers, i.state) for i in listed)
        assert got == sorted((who, len(ids), len(watchers), "new") for who, (ids, watchers) in wanted.items())
        told: dict[str, int] = {}
        opened = set()
        for partition in range(PARTITIONS):
            for batch in self.stream.read("events.north", partition, 0):
                for value in batch.values:
                    event = msgspec.json.decode(value, type=EventRecord)
                    occurrences = msgspec.json.decode(event.incident)["occurrences"]
                    told[event.incident_id] = max(told.get(event.incident_id, 0), occurrences)
                    opened |= {event.incident_id} if event.kind == "opened" else set()
        assert told == {i.incident_id: i.occurrences for i in listed}
        assert opened == set(told)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.communicate(timeout=20)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self.store.close()
        self.stream.close()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.close()


@pytest.mark.fault
def test_a_dispatcher_killed_in_the_middle_of_the_load_counts_every_alert_once(yard: Yard) -> None:
    for _ in range(5):
        process = yard.start()
        yard.wait_ready(process)
        before = yard.handled()
        yard.load(yard.dice.randint(5, 40))
        yard.wait_handled(before)  # the kill meets a dispatcher at work
        yard.load(yard.dice.randint(1, 10))
        process.kill()
        process.wait()
    yard.start()
    yard.wait_done()
    yard.check()


@pytest.mark.fault
def test_two_dispatchers_on_one_database_count_every_alert_once(yard: Yard) -> None:
    workers = [yard.start(), yard.start()]
    for worker in workers:
        yard.wait_ready(worker)
    yard.load(120)
    yard.wait_done()
    yard.check()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(20) == 0
