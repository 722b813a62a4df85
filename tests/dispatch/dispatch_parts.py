"""What the tests of dispatch share: alerts made by hand, a desk of forces and channels, a store in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import xxhash
from sqlalchemy import Engine, event

from harmonywatch.clock import Clock, ManualClock, micros, to_wire
from harmonywatch.dispatch.dispatcher import Dispatcher, DispatchParts
from harmonywatch.dispatch.store import IncidentStore, open_incidents
from harmonywatch.registry.contract import Channel, Force
from harmonywatch.registry.engine import open_engine
from harmonywatch.report.topics import ALERTS, DELIVERIES, EVENTS, AlertRecord, encode, topic_of
from harmonywatch.settings import DispatchSettings
from harmonywatch.stream.contract import Batch, Stream, TopicPartition, partition_of
from harmonywatch.telemetry import Telemetry

T0 = datetime(2026, 11, 23, 18, tzinfo=UTC)
RULE = "harmonyscore-below-25"
PARTITIONS = 4
FORCES = ("north", "south")


class WrongClock(ManualClock):
    """One whose wall time is set forward and back by whoever minds it."""

    off_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.off_s)


@dataclass
class PaperDesk:
    """A registry on paper: the tests write its forces and channels."""

    told_channels: list[Channel] = field(default_factory=list)
    told_version: int = 1
    age_max_s: float = 900.0

    def version(self) -> int:
        return self.told_version

    def forces(self) -> list[Force]:
        return [Force(name, PARTITIONS, T0, self.age_max_s) for name in FORCES]

    def channels(self, force: str) -> list[Channel]:
        return [channel for channel in self.told_channels if channel.force == force]


def alert(
    number: int,
    *,
    who: str = "Ada",
    watcher: str = "w-1",
    judged: datetime = T0,
    seen: datetime | None = None,
    force: str = "north",
    score: float = 12.5,
) -> AlertRecord:
    """Alert `number`: the same number is the same alert."""
    return AlertRecord(
        v=1,
        alert_id=xxhash.xxh3_128_hexdigest(f"{force}/{number}".encode()),
        force=force,
        rule=RULE,
        report_id=f"r-{number}",
        watcher_id=watcher,
        place=0,
        identity=f"name:{who}",
        name=who,
        harmonyscore=score,
        lat=52.5,
        lon=13.4,
        time=to_wire(seen or judged),
        received_at=to_wire(judged),
        judged_at=to_wire(judged),
    )


def make_topics(stream: Stream) -> None:
    for force in FORCES:
        for kind in (ALERTS, EVENTS, DELIVERIES):
            stream.create_topic(topic_of(kind, force), PARTITIONS)


def put(stream: Stream, alerts: Sequence[AlertRecord]) -> None:
    """Append the alerts as the alerter does: one append per force, each citizen in one partition."""
    by_force: dict[str, dict[int, list[bytes]]] = {}
    for each in alerts:
        partition = partition_of(each.identity.encode(), PARTITIONS)
        by_force.setdefault(each.force, {}).setdefault(partition, []).append(encode(each))
    for force, records in by_force.items():
        stream.append(topic_of(ALERTS, force), records)


def file_of(folder: Path) -> str:
    """The URL of a state in a file of its own."""
    return f"sqlite:///{folder / 'incidents.db'}"


state_url: Callable[[Path], str] = file_of
"""Where the state of a test is. `tests/cluster` puts a database of a server here, and runs the same tests."""


def careless(url: str) -> Engine:
    """An engine that does not wait for the disk, for crashes of the process and not of the machine."""
    engine = open_engine(url)
    said = "PRAGMA synchronous=OFF" if url.startswith("sqlite") else "SET synchronous_commit=off"

    def connected(connection: Any, _record: object) -> None:
        connection.execute(said)
        connection.commit()

    event.listen(engine, "connect", connected)
    return engine


class Room:
    """Stream, state, desk and a dispatcher that can be killed and made again, from the stored positions or older ones."""

    def __init__(self, stream: Stream, folder: Path, clock: Clock | None = None) -> None:
        self.stream, self.url = stream, state_url(folder)
        self.clock = clock or ManualClock(T0)
        self.desk = PaperDesk()
        self.settings = DispatchSettings()
        self.telemetry = Telemetry("dispatch")
        self.opener = open_incidents
        self.open()

    def open(self) -> None:
        self.store: IncidentStore = self.opener(self.url, self.settings)
        parts = DispatchParts(self.store, self.stream, self.desk, self.clock, self.telemetry)
        self.dispatcher = Dispatcher(parts)
        self.at: dict[TopicPartition, int] = {}

    def reopen(self) -> None:
        """As after a kill: nothing of the old one is used again."""
        self.store.close()
        self.open()

    def drain(self, most: int = 10_000) -> None:
        """Hand the dispatcher everything that it has not had, at most about `most` records of a partition at a time, as
        an old backlog: the stream's wall clock is not the test's."""
        for topic, partitions in self.stream.topics().items():
            for partition in range(partitions if topic.startswith(ALERTS) else 0):
                at = TopicPartition(topic, partition)
                if at not in self.at:
                    self.at[at] = self.dispatcher.start(topic, partition) or 0
                while batches := self.stream.read(topic, partition, self.at[at], most):
                    old = [Batch(b.topic, b.partition, b.base_offset, b.values, 0) for b in batches]
                    self.dispatcher.handle(old)
                    self.at[at] = batches[-1].position

    def tick(self, seconds: float = 0.0) -> None:
        """Time passes, then the handler is called with nothing."""
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)
        self.dispatcher.handle([])

    def advance_to(self, moment: datetime) -> None:
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(max(0.0, (micros(moment) - micros(self.clock.now())) / 1e6))


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)
