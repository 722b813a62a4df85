"""The handler of the group `dispatch`: alerts in, incidents out.

The protocol for one poll, and what a crash between two steps leaves:

1. The alerts are decoded; one that does not decode is counted and left to the archiver.
2. The store decides and writes, positions included, in one commit.      crash before: nothing happened; after: the
                                                                         events wait in their outbox
3. Events are appended to `events.<force>`.                              crash: appended again, by whoever finds them
                                                                         in the outbox 5 s later (at least once)
4. Events known to be on the stream leave the outbox with the next commit, or when a second has passed.
5. The notifier is woken if channels are to be told; it has its own thread and outbox.

The truth about positions is the store's; the group's committed ones are a hint for retention and lag. Full topics and
unknown outcomes of step 3 do not stop dispatching: the outbox holds the events until there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import structlog

from harmonywatch.clock import Clock, from_wire, micros
from harmonywatch.dispatch.incident import Sighting, subject_of
from harmonywatch.dispatch.office import Desk, Office
from harmonywatch.dispatch.store import IncidentStore, Poll, Recorded
from harmonywatch.dispatch.writing import EventKey, PendingEvent
from harmonywatch.registry.rows import storable
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import EVENTS, AlertRecord, force_of, topic_of
from harmonywatch.stream.contract import WHOLE_STREAM, Batch, Stream, StreamError, TopicPartition, partition_of
from harmonywatch.stream.lag import tell_lag
from harmonywatch.telemetry import Telemetry

HOUSEKEEPING_INTERVAL_S = 1.0
OUTBOX_PAUSE_S = 1.0
"""Events that the stream did not take are tried again after this."""


PLACES, WATCHER_ID_LENGTH_MAX = 2**31, 640
"""More than a report can hold, and all that fits PostgreSQL: its integers, and 2,704 bytes of a key with four a letter."""

CAUGHT_UP_S = 5.0
"""Incidents lapse only while the alerts at hand are younger than this: an older backlog may hold what keeps them open."""

_LOG = structlog.get_logger(__name__)
_ALERT = msgspec.json.Decoder(AlertRecord)


class AlertTooNew(Exception):
    """The operator must upgrade: an alert of a greater version may mean something else by the same words."""

    def __init__(self, at: TopicPartition, offset: int, version: int) -> None:
        super().__init__(
            f"{at.topic}[{at.partition}] offset {offset} is of version {version}; "
            f"this harmonywatch reads up to {VERSION}: upgrade it"
        )
        self.at, self.offset, self.version = at, offset, version


def _nobody() -> None:
    """Wakes no notifier."""


@dataclass(frozen=True)
class DispatchParts:
    """What the dispatchers of a process work with. `wake`: called when there is something to notify."""

    store: IncidentStore
    stream: Stream
    desk: Desk
    clock: Clock
    telemetry: Telemetry
    wake: Callable[[], None] = field(default=_nobody)

    @cached_property
    def office(self) -> Office:
        """One for all dispatchers that are made of these parts."""
        return Office(self.store, self.desk, self.clock)


class Dispatcher:
    """A `Handler` (see `stream.follow`) of one force's alerts, or of several forces'. Called by one thread. Raises
    StreamReset when made on another stream's state."""

    def __init__(self, parts: DispatchParts) -> None:
        self._parts = parts
        self._store, self._stream, self._clock = parts.store, parts.stream, parts.clock
        self._telemetry = parts.telemetry
        self._office, self._roster = parts.office, parts.office.roster
        self._forces: set[str] = set()
        self._positions = self._store.positions(self._stream.id)
        self._begun: dict[TopicPartition, int] = {}
        self._settled: dict[TopicPartition, int] = {}
        self._published: list[EventKey] = []
        self._partitions: dict[str, int] = {}
        self._housekeeping_due = self._outbox_rests_s = self._clock.monotonic()

    def start(self, topic: str, partition: int) -> int | None:
        """The store's position: read anew, because another worker may have gone on."""
        self._positions = self._store.positions(self._stream.id)
        at = TopicPartition(topic, partition)
        self._forces.add(force_of(topic))
        self._begun[at] = self._positions.get(at, self._stream.bounds(topic, partition).earliest)
        return self._positions.get(at)

    def handle(self, batches: list[Batch]) -> None:
        """One poll, one commit. Raises AlertTooNew, StreamReset, RegistryError, and what appends raise."""
        self._roster.refresh()
        if batches:
            self._record(batches)
        monotonic = self._clock.monotonic()
        if monotonic >= self._outbox_rests_s and (forces := self._office.take_pending(self._forces)):
            self._sweep_outbox(forces)
        if monotonic >= self._housekeeping_due:
            self._keep_house(batches)
            self._housekeeping_due = monotonic + HOUSEKEEPING_INTERVAL_S

    def settled(self) -> Mapping[TopicPartition, int]:
        return self._settled

    def finish(self) -> None:
        """Nothing is gathered between polls but what the outbox still holds."""
        self._clear_outbox()

    # --- one poll

    def _record(self, batches: list[Batch]) -> None:
        sightings: list[tuple[TopicPartition, int, Sighting]] = []
        spans: dict[TopicPartition, tuple[int, int]] = {}
        for batch in batches:
            at = TopicPartition(batch.topic, batch.partition)
            spans[at] = (spans[at][0] if at in spans else batch.base_offset, batch.position)
            sightings += self._sightings(at, batch)
        now = self._clock.now()
        poll = Poll(spans, sightings, micros(now), self._roster.channel_ids, self._published)
        began = self._clock.monotonic()
        recorded = self._store.record(poll, self._stream.id)
        self._telemetry.commit_s.labels("incidents").observe(self._clock.monotonic() - began)
        self._published = []
        self._settled.update({at: end for at, (_, end) in spans.items()})
        self._tell(recorded)
        for batch in batches:
            force = force_of(batch.topic)
            self._telemetry.received.labels(force).inc(len(batch.values))
            self._telemetry.lag_s.labels(batch.topic).set(max(0.0, (micros(now) - batch.appended_us) / 1e6))

    def _sightings(self, at: TopicPartition, batch: Batch) -> list[tuple[TopicPartition, int, Sighting]]:
        force = force_of(batch.topic)
        age_max_us = self._roster.age_max_us(force)
        found = []
        for offset, value in enumerate(batch.values, batch.base_offset):
            try:
                alert = _ALERT.decode(value)
                if alert.v > VERSION:
                    raise AlertTooNew(at, offset, alert.v)
                found.append((at, offset, sighting_of(alert, force, age_max_us)))
            except (ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
                if (version := _version_of(value)) > VERSION:
                    raise AlertTooNew(at, offset, version) from None
                self._telemetry.failed.labels("undecodable").inc()
        return found

    def _tell(self, recorded: Recorded) -> None:
        for change in recorded.outcome.changes:
            self._telemetry.incidents.labels(change.incident.force, change.kind).inc()
        for occurrence in recorded.outcome.occurrences:
            self._telemetry.accepted.labels(occurrence.sighting.force).inc()
        for repeat in recorded.outcome.repeated:
            self._telemetry.repeated.labels(repeat.force).inc()
        self._publish(recorded.events)
        if recorded.notified:
            self._parts.wake()

    # --- events

    def _publish(self, events: Sequence[PendingEvent]) -> None:
        """Append what is committed, force by force; what the stream has no room for stays in the outbox."""
        by_force: dict[str, list[PendingEvent]] = {}
        for event in events:
            by_force.setdefault(event.force, []).append(event)
        for force, theirs in by_force.items():
            topic = topic_of(EVENTS, force)
            if topic not in self._partitions:
                self._partitions = self._stream.topics()
            records: dict[int, list[bytes]] = {}
            for event in theirs:
                partition = partition_of(event.key.incident_id.encode(), self._partitions.get(topic, 1))
                records.setdefault(partition, []).append(event.body)
            try:
                self._stream.append(topic, records)
            except WHOLE_STREAM:
                raise
            except StreamError as error:  # the incidents stand, and the channels are told: the rest waits in the outbox
                _LOG.warning("events kept for later", force=force, events=len(theirs), reason=str(error))
                self._telemetry.failed.labels("events-append").inc()
                self._outbox_rests_s = self._clock.monotonic() + OUTBOX_PAUSE_S
                continue
            self._published += [event.key for event in theirs]

    def _sweep_outbox(self, forces: set[str]) -> None:
        """Events of officers, and of workers that died with theirs."""
        ours = set(self._published)
        pending = self._store.pending_events(micros(self._clock.now()), sorted(forces))
        found = [event for event in pending if event.key not in ours]
        if found:
            self._publish(found)
            self._clear_outbox()

    def _clear_outbox(self) -> None:
        self._store.published(self._published)
        self._published = []

    # --- now and then

    def _keep_house(self, batches: list[Batch]) -> None:
        now_us = micros(self._clock.now())
        self._clear_outbox()
        caught_up = all(now_us - batch.appended_us < CAUGHT_UP_S * 1e6 for batch in batches)
        if caught_up and (overdue := self._office.take_overdue(self._forces)):
            self._tell(self._store.lapse(now_us, sorted(overdue)))
        tell_lag(self._stream, self._telemetry, self._begun | self._settled, caught_up=not batches)


class _Version(msgspec.Struct, gc=False):
    v: int


def _version_of(value: bytes) -> int:
    try:
        return msgspec.json.decode(value, type=_Version).v
    except (ValueError, RecursionError):
        return 0


def sighting_of(alert: AlertRecord, force: str, age_max_us: int) -> Sighting:
    """The alert as incidents see it. The force is the topic's, whatever the record says; texts are made such that every
    engine takes them. Raises ValueError for what no alerter makes: an id that is not 32 hexadecimal digits, a time that is
    none, a place or watcher that no engine takes."""
    key, identity, watcher_id = bytes.fromhex(alert.alert_id), storable(alert.identity), storable(alert.watcher_id)
    if len(key) != 16 or alert.v < 1 or not 0 <= alert.place < PLACES or len(watcher_id) > WATCHER_ID_LENGTH_MAX:
        raise ValueError("not an alert of ours")
    time_us, judged_us = micros(from_wire(alert.time)), micros(from_wire(alert.judged_at))
    return Sighting(
        key=key,
        alert_id=key.hex(),
        subject=subject_of(force, identity, alert.rule),
        force=force,
        identity=identity,
        rule=storable(alert.rule),
        name=storable(alert.name),
        watcher_id=watcher_id,
        report_id=storable(alert.report_id),
        place=alert.place,
        harmonyscore=alert.harmonyscore,
        lat=alert.lat,
        lon=alert.lon,
        time_us=time_us,
        received_us=micros(from_wire(alert.received_at)),
        judged_us=judged_us,
        late=judged_us - time_us > age_max_us,
    )
