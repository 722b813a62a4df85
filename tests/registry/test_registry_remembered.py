"""Rules and channels in memory: the alert path does not wait for the registry, and a change still bites within a second."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from test_registry_damage import until

from harmonywatch import assemble, processes
from harmonywatch.clock import SystemClock
from harmonywatch.registry.contract import NotFound, RegistryBroken, Rule
from harmonywatch.registry.remembered import RememberedDesk, RememberedRules
from harmonywatch.registry.store import Registry
from harmonywatch.report.record import canonical
from harmonywatch.report.topics import ALERTS, EVENTS, REPORTS, topic_of
from harmonywatch.report.wire import Parsed, parse
from harmonywatch.service import Stop
from harmonywatch.settings import Settings, load
from harmonywatch.stream.contract import Stream

BITES_S = 1.0


@contextmanager
def held(database: Path) -> Iterator[None]:
    """Nobody can read or write meanwhile: what a reader meets while a commit is fsynced on a slow disk."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def test_what_is_remembered_is_what_the_registry_says_within_a_second_of_a_change(registry: Registry) -> None:
    registry.add_force("north")
    rules, desk = RememberedRules(registry, SystemClock()), RememberedDesk(registry, SystemClock())
    rules.start()
    desk.start()
    assert rules.all_rules() == registry.all_rules() and rules.version() == registry.version()
    assert desk.forces() == registry.forces() and desk.channels("north") == []
    with pytest.raises(NotFound, match="did you mean north"):
        desk.channels("nroth")
    registry.add_rule(Rule(rule_id="x", force="north", threshold=5.0))
    channel = registry.add_channel("north", "webhook", "http://127.0.0.1:9/")
    south = registry.add_force("south")
    began = SystemClock().monotonic()
    until(lambda: (rules.version(), desk.version()) == (registry.version(), registry.version()))
    assert SystemClock().monotonic() - began < BITES_S
    assert rules.all_rules() == registry.all_rules() and set(rules.all_rules()) == {"north", "south"}
    assert desk.channels("north") == [channel] and south in desk.forces()
    rules.close()
    desk.close()


def test_memory_answers_at_once_while_the_registry_is_held_and_says_how_old_it_is(
    registry: Registry, database: Path
) -> None:
    clock = SystemClock()
    registry.add_force("north")
    rules = RememberedRules(registry, clock)
    assert rules.age_s() == float("inf")
    rules.start()
    with held(database):
        until(lambda: rules.age_s() > 0.6)
        began = clock.monotonic()
        assert list(rules.all_rules()) == ["north"] and rules.version() == 2
        assert clock.monotonic() - began < 0.05
    until(lambda: rules.age_s() < 0.5)
    rules.close()


def test_the_first_read_is_waited_for_and_its_failure_told(registry: Registry, database: Path) -> None:
    database.write_bytes(b"x" * 4096)
    with pytest.raises(RegistryBroken):
        RememberedRules(registry, SystemClock()).start()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings, _ = load({"data": str(tmp_path / "data")}, {})
    assemble.prepare(settings)
    return settings


@pytest.fixture
def hold(settings: Settings) -> Callable[[], AbstractContextManager[None]]:
    """Nobody can read or write the registry meanwhile."""
    return lambda: held(settings.folder / "state" / "registry.db")


@pytest.fixture
def running(settings: Settings) -> Iterator[Callable[[str], None]]:
    """Start services in threads of this process."""
    stop, threads = Stop(), []

    def start(service: str) -> None:
        threads.append(threading.Thread(target=processes.RUN[service], args=(settings, stop, service), name=service))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def _send(stream: Stream, number: int) -> None:
    report = {
        "watcher_id": "w-1",
        "report_id": f"r-{number}",
        "location": {"lat": 1, "lon": 2},
        "citizens": [{"name": f"Ada {number}", "harmonyscore": 3.0}],
        "words": [],
    }
    raw = json.dumps(report).encode()
    parsed = parse(raw)
    assert isinstance(parsed, Parsed)
    stream.append(topic_of(REPORTS, "north"), {0: [canonical(parsed, raw, "north", SystemClock().now(), str).value]})


def test_alerts_and_incidents_go_on_while_the_registry_is_held(
    settings: Settings, running: Callable[[str], None], hold: Callable[[], AbstractContextManager[None]]
) -> None:
    assemble.add_force(settings, "os:test", "north")
    stream = assemble.open_stream(settings)

    def count(kind: str) -> int:
        topic = topic_of(kind, "north")
        return sum(stream.bounds(topic, partition).end for partition in range(4))

    def counts() -> tuple[int, int]:
        return count(ALERTS), count(EVENTS)

    running("alerting")
    running("dispatch")
    _send(stream, 0)
    until(lambda: counts() == (1, 1))
    worst_s, clock = 0.0, SystemClock()
    with hold():
        for number in range(1, 13):  # longer than every interval at which anybody looks for changes
            began = clock.monotonic()
            _send(stream, number)
            until(lambda of=number: counts() == (of + 1, of + 1))  # type: ignore[misc]
            worst_s = max(worst_s, clock.monotonic() - began)
            threading.Event().wait(0.1)
    assert worst_s < 1.0, f"an alert waited {worst_s:.3f} s for the registry"
    stream.close()
