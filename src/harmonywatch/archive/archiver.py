"""The archive as a handler of `follow`: gathers records by topic, and stores them when it is time.

When: the oldest gathered record is `flush_interval_s` old and the reader has caught up, or has been held that long, or
`flush_bytes` are gathered. While a backlog is read, records are old already when they come: then the time held decides,
so that catching up makes few big commits and not many small ones. Gathered bytes of all topics together stay below
twice `flush_bytes` and one poll.

`start` answers with the lake's own positions, also for topics that appear later. Anything that goes wrong is raised: the
process ends, is started again, and begins at the lake's positions. Nothing gathered is ever kept over an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harmonywatch.archive.lake import Addition, Lake, append
from harmonywatch.archive.tables import Folders, Intake, Stored, open_intake
from harmonywatch.clock import Clock, micros
from harmonywatch.settings import ArchiveSettings
from harmonywatch.stream.contract import Batch, TopicPartition
from harmonywatch.telemetry import Telemetry

CAUGHT_UP_US = 1_000_000
"""A batch appended less than this ago means that the reader is at the end of the topic."""


class RecordsSkipped(Exception):
    """The reader handed in a batch that does not follow the one before: a bug, or a stream that lost records."""

    def __init__(self, batch: Batch, expected: int) -> None:
        super().__init__(f"{batch.topic}[{batch.partition}]: expected offset {expected}, got {batch.base_offset}")


@dataclass(slots=True)
class _Gathering:
    """What waits for the next commit of a topic."""

    intake: Intake
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    next: dict[TopicPartition, int] = field(default_factory=dict)
    bytes: int = 0
    since_s: float = 0.0
    oldest_us: int = 0
    newest_us: int = 0

    def add(self, batch: Batch, now_s: float) -> None:
        at = TopicPartition(batch.topic, batch.partition)
        if batch.base_offset != self.next[at]:
            raise RecordsSkipped(batch, self.next[at])
        if not self.intake.records:
            self.since_s, self.oldest_us = now_s, batch.appended_us
        self.next[at] = batch.position
        self.bytes += sum(map(len, batch.values))
        self.oldest_us = min(self.oldest_us, batch.appended_us)
        self.newest_us = max(self.newest_us, batch.appended_us)
        self.intake.add(batch)

    def addition(self) -> tuple[Addition, Stored]:
        moved = [at for at, position in self.next.items() if position != self.committed[at]]
        return self.intake.addition({at: self.committed[at] for at in moved}, {at: self.next[at] for at in moved})

    def stored(self) -> None:
        self.intake.remember()
        self.intake.forget()
        self.committed.update(self.next)
        self.bytes, self.newest_us = 0, 0


class Archiver:
    """See the header. `stream_id`: of what is read, see `Stream.id_of`. Several archivers may share the topics between them."""

    def __init__(
        self,
        lake: Lake,
        folders: Folders,
        stream_id: str,
        settings: ArchiveSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._lake, self._folders, self._stream_id = lake, folders, stream_id
        self._settings, self._clock, self._telemetry = settings, clock, telemetry
        self._topics: dict[str, _Gathering] = {}

    def start(self, topic: str, partition: int) -> int:
        """The lake's position. Raises StreamReset, KeyChanged, LakeUnavailable, OSError."""
        if topic not in self._topics:
            intake = open_intake(topic, self._lake, self._folders, self._stream_id, self._settings)
            self._topics[topic] = _Gathering(intake)
        gathering, at = self._topics[topic], TopicPartition(topic, partition)
        position = gathering.intake.position(partition)
        gathering.committed[at] = gathering.next[at] = position
        return position

    def handle(self, batches: list[Batch]) -> None:
        """Gather, and store what is due. Raises WriterFenced, NewerRecord, LakeUnavailable, RecordsSkipped, OSError."""
        now_s = self._clock.monotonic()
        for batch in batches:
            self._topics[batch.topic].add(batch, now_s)
        fresh = {batch.topic for batch in batches}
        waiting = {topic: gathered for topic, gathered in self._topics.items() if gathered.intake.records}
        if any(self._due(gathered, topic in fresh) for topic, gathered in waiting.items()):
            ripe_s = self._clock.monotonic() - self._settings.flush_interval_s / 2
            self._store(
                gathered
                for topic, gathered in waiting.items()
                if gathered.since_s <= ripe_s or self._due(gathered, topic in fresh)
            )
        self._stay_below(2 * self._settings.flush_bytes)
        self._tell_lag()

    def _due(self, gathered: _Gathering, fresh: bool) -> bool:
        if gathered.bytes >= self._settings.flush_bytes:
            return True
        if self._clock.monotonic() - gathered.since_s >= self._settings.flush_interval_s:
            return True
        now_us = micros(self._clock.now())
        caught_up = not fresh or gathered.newest_us >= now_us - CAUGHT_UP_US
        return caught_up and now_us - gathered.oldest_us >= self._settings.flush_interval_s * 1_000_000

    def _stay_below(self, limit: int) -> None:
        while sum(gathered.bytes for gathered in self._topics.values()) > limit:
            self._store([max(self._topics.values(), key=lambda gathered: gathered.bytes)])

    def _store(self, topics: Iterable[_Gathering]) -> None:
        began = self._clock.monotonic()
        topics = list(topics)
        additions = [gathered.addition() for gathered in topics]
        append([addition for addition, _ in additions])
        for gathered, (_, stored) in zip(topics, additions, strict=True):
            gathered.stored()
            force = gathered.intake.force
            self._telemetry.accepted.labels(force).inc(stored.rows)
            self._telemetry.repeated.labels(force).inc(stored.repeats)
            if stored.poison:
                self._telemetry.refused.labels(force, "poison").inc(stored.poison)
        self._telemetry.commit_s.labels("archive").observe(self._clock.monotonic() - began)

    def _tell_lag(self) -> None:
        now_us = micros(self._clock.now())
        for topic, gathered in self._topics.items():
            waiting = gathered.intake.records
            self._telemetry.lag_records.labels(topic).set(waiting)
            self._telemetry.lag_s.labels(topic).set((now_us - gathered.oldest_us) / 1e6 if waiting else 0.0)

    def settled(self) -> Mapping[TopicPartition, int]:
        """The positions that the lake holds, durably."""
        return {at: position for gathered in self._topics.values() for at, position in gathered.committed.items()}

    def finish(self) -> None:
        """Store everything that is gathered."""
        if waiting := [gathered for gathered in self._topics.values() if gathered.intake.records]:
            self._store(waiting)
