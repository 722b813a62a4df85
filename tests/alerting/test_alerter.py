"""The alerter on a real stream: nothing missed, nothing settled before it is appended, rules taken up as they change."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from harmonywatch.alerting.alerter import Alerter, lags_s
from harmonywatch.alerting.judge import RecordTooNew
from harmonywatch.clock import ManualClock, SystemClock, micros, to_wire
from harmonywatch.registry.contract import Rule
from harmonywatch.registry.store import Registry, open_registry
from harmonywatch.report.record import canonical
from harmonywatch.report.topics import ALERTS, REPORTS, AlertRecord, topic_of
from harmonywatch.report.wire import Parsed, parse
from harmonywatch.settings import AlertingSettings, StreamSettings
from harmonywatch.stream.contract import Batch, StreamFull, TopicPartition, partition_of
from harmonywatch.stream.follow import follow
from harmonywatch.stream.forces import Forces
from harmonywatch.stream.memory import MemoryStream
from harmonywatch.stream.sqlite import SqliteStream
from harmonywatch.telemetry import Telemetry

T0 = datetime(2026, 11, 23, 18, tzinfo=UTC)
PARTITIONS = 4


class Watchtower:
    """A stream, a registry and an alerter on a clock that the test moves."""

    def __init__(self, folder: Path, stream: MemoryStream) -> None:
        self.clock, self.stream = ManualClock(T0), stream
        self.registry: Registry = open_registry(f"sqlite:///{folder / 'registry.db'}", self.clock, "os:alice")
        self.telemetry = Telemetry("alerting")
        self.alerter = Alerter(stream, self.registry, AlertingSettings(), self.clock, self.telemetry)

    def add_force(self, name: str) -> None:
        self.registry.add_force(name)
        for kind in (REPORTS, ALERTS):
            self.stream.create_topic(topic_of(kind, name), PARTITIONS)

    def send(self, force: str, *scores: float, watcher: str = "w-1", number: int = 0) -> Batch:
        """A report on the stream; the batch that holds it."""
        report = {
            "watcher_id": watcher,
            "report_id": f"r-{number}",
            "location": {"lat": 1, "lon": 2},
            "citizens": [{"name": f"c-{place}", "harmonyscore": score} for place, score in enumerate(scores)],
            "words": [],
        }
        raw = json.dumps(report).encode()
        parsed = parse(raw)
        assert isinstance(parsed, Parsed)
        value = canonical(parsed, raw, force, self.clock.now(), str).value
        return self.put(force, partition_of(watcher.encode(), PARTITIONS), value)

    def put(self, force: str, partition: int, *values: bytes) -> Batch:
        topic = topic_of(REPORTS, force)
        base = self.stream.append(topic, {partition: list(values)})[partition]
        return Batch(topic, partition, base, list(values), micros(self.clock.now()))

    def alerts(self, force: str) -> list[AlertRecord]:
        topic = topic_of(ALERTS, force)
        found = []
        for partition in range(PARTITIONS):
            for batch in self.stream.read(topic, partition, 0):
                for value in batch.values:
                    alert = msgspec.json.decode(value, type=AlertRecord)
                    assert partition == partition_of(alert.identity.encode(), PARTITIONS)
                    found.append(alert)
        return found

    def count(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(f"harmonywatch_{name}", labels) or 0.0


@pytest.fixture
def tower(tmp_path: Path) -> Iterator[Watchtower]:
    tower = Watchtower(tmp_path, MemoryStream())
    tower.add_force("north")
    yield tower
    tower.registry.close()


def test_every_bad_score_of_a_poll_makes_one_alert_and_then_the_poll_is_settled(tower: Watchtower) -> None:
    tower.add_force("south")
    batches = [tower.send("north", 24, 25, 3), tower.send("south", 80), tower.send("south", 1, watcher="w-9")]
    tower.alerter.handle(batches)
    assert sorted(alert.name for alert in tower.alerts("north")) == ["c-0", "c-2"]
    assert [alert.watcher_id for alert in tower.alerts("south")] == ["w-9"]
    assert tower.alerter.settled() == {TopicPartition(b.topic, b.partition): b.position for b in batches}
    assert tower.count("alerts_total", force="north", rule="harmonyscore-below-25") == 2
    assert tower.count("received_total", force="south") == 2


def test_nothing_is_settled_when_the_alerts_could_not_be_appended(tmp_path: Path) -> None:
    class Full(MemoryStream):
        def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
            if topic.startswith(ALERTS):
                raise StreamFull("no room")
            return super().append(topic, records)

    tower = Watchtower(tmp_path, Full())
    tower.add_force("north")
    with pytest.raises(StreamFull):
        tower.alerter.handle([tower.send("north", 1)])
    assert tower.alerter.settled() == {}
    tower.registry.close()


def test_poison_is_counted_and_the_reports_around_it_are_judged(tower: Watchtower) -> None:
    good = tower.send("north", 1).values[0]
    other = tower.send("north", 2, number=1).values[0]
    batch = tower.put("north", 0, good, b"\x00poison", b'{"v":1,"citizens":[{"harmonyscore":1}]}', other)
    tower.alerter.handle([batch])
    assert sorted(alert.harmonyscore for alert in tower.alerts("north")) == [1, 2]
    assert tower.count("failed_total", kind="undecodable") == 2
    assert tower.alerter.settled() == {TopicPartition(batch.topic, 0): batch.position}


def test_a_record_of_a_later_version_stops_the_alerter_before_it_settles(tower: Watchtower) -> None:
    with pytest.raises(RecordTooNew):
        tower.alerter.handle([tower.put("north", 0, b'{"v":2,"citizens":[]}')])
    assert tower.alerter.settled() == {}


def test_a_changed_rule_bites_within_its_interval_and_not_sooner_than_it_is_looked_for(tower: Watchtower) -> None:
    tower.alerter.handle([tower.send("north", 40)])
    tower.registry.add_rule(Rule(rule_id="wide", force="north", threshold=50))
    tower.clock.advance(AlertingSettings().rules_interval_s)
    tower.alerter.handle([])
    tower.alerter.handle([tower.send("north", 40, number=1)])
    assert [(alert.report_id, alert.rule) for alert in tower.alerts("north")] == [("r-1", "wide")]


def test_a_force_added_a_moment_ago_is_judged_by_its_own_rules(tower: Watchtower) -> None:
    tower.alerter.handle([])
    tower.add_force("south")
    tower.registry.remove_rule("south", "harmonyscore-below-25")
    tower.registry.add_rule(Rule(rule_id="icy", force="south", threshold=-10))
    tower.alerter.handle([tower.send("south", 1, -11)])
    assert [alert.rule for alert in tower.alerts("south")] == ["icy"]


def test_a_force_that_the_registry_does_not_know_is_judged_by_the_first_rule(tower: Watchtower) -> None:
    for kind in (REPORTS, ALERTS):
        tower.stream.create_topic(topic_of(kind, "lost"), PARTITIONS)
    tower.alerter.handle([tower.send("lost", 24, 26)])
    assert [alert.harmonyscore for alert in tower.alerts("lost")] == [24]
    assert tower.count("failed_total", kind="unknown-force") == 1


def test_the_lag_is_the_age_of_the_oldest_record_of_a_poll(tower: Watchtower) -> None:
    for partition in range(PARTITIONS):
        assert tower.alerter.start("reports.north", partition) is None
    first = tower.send("north", 90)
    tower.clock.advance(3)
    second = tower.send("north", 90, watcher="w-2")
    assert lags_s([second, first], tower.clock.now()) == {"reports.north": 3.0}
    tower.alerter.handle([first])
    assert tower.count("lag_seconds", topic="reports.north") == 3.0
    assert tower.count("lag_records", topic="reports.north") == 1
    tower.alerter.handle([second])
    tower.clock.advance(2)
    tower.alerter.handle([])
    assert tower.count("lag_seconds", topic="reports.north") == 0


def test_alerts_come_through_the_loop_on_the_embedded_stream_whatever_was_read_twice(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    dice = random.Random(seed)
    clock = SystemClock()
    stream = SqliteStream(tmp_path / "stream", StreamSettings(), clock)
    registry = open_registry(f"sqlite:///{tmp_path / 'registry.db'}", clock, "os:alice")
    registry.add_force("north")
    for kind in (REPORTS, ALERTS):
        stream.create_topic(topic_of(kind, "north"), PARTITIONS)
    expected = 0
    for number in range(60):
        scores = [dice.choice((5, 24.9, 25, 80)) for _ in range(3)]
        expected += sum(score < 25 for score in scores)
        report = {
            "watcher_id": f"w-{number % 7}",
            "report_id": f"r-{number}",
            "time": to_wire(clock.now()),
            "location": {"lat": 1, "lon": 2},
            "citizens": [{"name": f"c-{place}", "harmonyscore": score} for place, score in enumerate(scores)],
            "words": [],
        }
        raw = json.dumps(report).encode()
        parsed = parse(raw)
        assert isinstance(parsed, Parsed)
        value = canonical(parsed, raw, "north", clock.now(), str).value
        stream.append("reports.north", {partition_of(report["watcher_id"].encode(), PARTITIONS): [value]})
    for _ in range(2):  # the second one has no group, so it begins at the first record again
        stop = threading.Event()
        alerter = Alerter(stream, registry, AlertingSettings(), clock, Telemetry("alerting"))
        forces = Forces(lambda _force, made=alerter: made, clock, Telemetry("alerting"))
        reader = stream.reader(REPORTS, start=forces.start)
        loop = threading.Thread(target=follow, args=(reader, forces), kwargs={"clock": clock, "stop": stop})
        loop.start()
        deadline = clock.monotonic() + 10
        while sum(alerter.settled().values()) < 60 and clock.monotonic() < deadline:
            stop.wait(0.01)
        stop.set()
        loop.join()
    values = [v for p in range(PARTITIONS) for b in stream.read("alerts.north", p, 0) for v in b.values]
    ids = [msgspec.json.decode(value, type=AlertRecord).alert_id for value in values]
    assert len(ids) == 2 * expected
    assert len(set(ids)) == expected
    registry.close()
    stream.close()
