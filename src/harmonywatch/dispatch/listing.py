"""What the command line asks: alerts and incidents as the live path has them, oldest judged first, each id once.

Alerts of the live path are those that the stream still keeps: 7 days (`stream.retention_s`). Older ones are in the lake,
view `alerts`, for ever. A sweep in the middle of a listing takes the oldest away; the listing goes on with what is left.

Alerts are read from the stream itself: `alerts.<force>`, merged over partitions and forces, with the first delivery of each
from `deliveries.<force>`. Within a partition `judged_at` does not fall, but for two alerters at once or a clock set back:
REORDER_S of patience mends that. An alert repeated on its topic lies in the same partition and is dropped by its id.

Memory: about 120 bytes per alert listed, and as much per delivery, for telling repeats and joining; `--since` narrows
what is read, not only what is shown.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from harmonywatch.clock import Clock, micros
from harmonywatch.dispatch.incident import Act, AmbiguousIncident, Incident, NoIncident, NotAllowed, Verb
from harmonywatch.dispatch.told import ToldIncident, told, wire
from harmonywatch.report.topics import ALERTS, DELIVERIES, AlertRecord, DeliveryRecord, force_of, topic_of
from harmonywatch.stream.contract import Batch, PositionLost, Stream, TopicPartition, partitions_in

if TYPE_CHECKING:  # listing alerts needs no database, and SQLAlchemy would be most of the command's time
    from harmonywatch.dispatch.store import IncidentStore

REORDER_S = 5.0
SKEW_S = 5.0
"""An alert is appended just after it is judged; the clocks of two processes of one machine differ by less than this."""

RECENT_MAX = 1_000_000
"""Ids remembered by `follow_alerts`, which never ends: hours of repeats at any rate seen."""

OFFICER_VERBS: tuple[Verb, ...] = ("acknowledge", "dispatch", "release", "resolve", "reopen", "note")

_ALERT = msgspec.json.Decoder(AlertRecord)
_DELIVERY = msgspec.json.Decoder(DeliveryRecord)


class ListedAlert(msgspec.Struct, frozen=True, gc=False):
    """The alert of the command line's door, and more; `delivered_at` null where nobody was handed it yet."""

    alert_id: str
    force: str
    report_id: str
    watcher_id: str
    name: str
    harmonyscore: float
    lat: float
    lon: float
    time: str
    received_at: str
    judged_at: str
    delivered_at: str | None
    rule: str
    place: int
    identity: str
    citizen_id: str | None
    confidence: float | None
    clock_suspect: bool


def list_alerts(stream: Stream, force: str | None = None, since: datetime | None = None) -> Iterator[ListedAlert]:
    """Every alert that the stream keeps now, oldest judged first. `since`: judged at or after."""
    ends = _ends(stream, force)
    yield from _merged(stream, ends, since, {at: set() for at in ends})


def follow_alerts(
    stream: Stream, stop: threading.Event, force: str | None = None, since: datetime | None = None
) -> Iterator[ListedAlert]:
    """The same, then each new one as it comes, until `stop`."""
    ends = _ends(stream, force)
    seen: dict[TopicPartition, set[bytes]] = {at: set() for at in ends}
    since_text = None if since is None else wire(micros(since))
    yield from _merged(stream, ends, since, seen)
    recent = dict.fromkeys(key for keys in seen.values() for key in keys)
    seen.clear()
    for batch in _coming(stream, stop, ALERTS if force is None else [topic_of(ALERTS, force)], ends):
        for key, alert in _decoded(batch):
            if key not in recent and (since_text is None or alert.judged_at >= since_text):
                recent[key] = None
                yield _listed(alert, None)
        while len(recent) > RECENT_MAX:
            del recent[next(iter(recent))]


def _coming(
    stream: Stream, stop: threading.Event, topics: str | list[str], ends: dict[TopicPartition, int]
) -> Iterator[Batch]:
    """What comes after `ends`, until `stop`. Retention that overtakes a reader who stood still takes it along."""
    positions = dict(ends)

    def start(topic: str, partition: int) -> int:
        at = TopicPartition(topic, partition)
        return max(positions.get(at, 0), stream.bounds(*at).earliest)

    reader = stream.reader(topics, start=start)
    try:
        while not stop.is_set():
            try:
                batches = reader.poll(0.2)
            except PositionLost as lost:
                reader.take_up([lost.topic])
                continue
            for batch in batches:
                positions[TopicPartition(batch.topic, batch.partition)] = batch.position
                yield batch
    finally:
        reader.close()


def list_incidents(
    store: IncidentStore, force: str | None = None, since: datetime | None = None
) -> Iterator[ToldIncident]:
    """Every incident, of all states, in the order they opened. `since`: with an alert or a change from then on."""
    after: tuple[int, str] | None = None
    since_us = None if since is None else micros(since)
    while page := store.incidents(force, since_us, after):
        yield from map(told, page)
        after = (page[-1].opened_us, page[-1].incident_id)


def page_of_incidents(
    store: IncidentStore,
    force: str | None = None,
    since: datetime | None = None,
    limit: int = 500,
    after: str | None = None,
) -> list[ToldIncident]:
    """At most `limit` of the same, in the same order, at the cost of those.

    `after` None: the newest ones. Else the whole id of an incident: those that opened next after it, however far it lies
    back; "": the first ones of all. Raises NoIncident for an id that is not there, or is another force's.
    """
    since_us = None if since is None else micros(since)
    if after is None:
        return [told(incident) for incident in store.newest_incidents(force, since_us, limit)]
    if not after:
        return [told(incident) for incident in store.incidents(force, since_us, None, limit)]
    try:
        last = store.incident(after)
    except AmbiguousIncident:
        raise NoIncident(after) from None
    if last.incident_id != after or force not in (None, last.force):
        raise NoIncident(after)
    return [told(incident) for incident in store.incidents(force, since_us, (last.opened_us, after), limit)]


def change_incident(store: IncidentStore, incident_id: str, act: Act, expected_version: int | None = None) -> Incident:
    """An officer's act; see `IncidentStore.change` for what it raises. `act.by`: the officer's name."""
    if act.verb not in OFFICER_VERBS:
        raise NotAllowed(store.incident(incident_id), act.verb, "only time makes it so")
    return store.change(incident_id, act, expected_version)


def officer_act(verb: Verb, officer: str, clock: Clock, note: str = "", reason: str | None = None) -> Act:
    """An act of now."""
    return Act(verb=verb, by=officer, at_us=micros(clock.now()), note=note, reason=reason)


# --- alerts from the stream


def _ends(stream: Stream, force: str | None) -> dict[TopicPartition, int]:
    """Where the alerts of now end, by partition."""
    wanted = {topic: partitions for topic, partitions in stream.topics().items() if topic.startswith(ALERTS)}
    if force is not None:
        wanted = {topic_of(ALERTS, force): partitions_in(stream, topic_of(ALERTS, force))}
    ats = [TopicPartition(topic, p) for topic, partitions in sorted(wanted.items()) for p in range(partitions)]
    return {at: stream.bounds(*at).end for at in ats}


def _merged(
    stream: Stream, ends: dict[TopicPartition, int], since: datetime | None, seen: dict[TopicPartition, set[bytes]]
) -> Iterator[ListedAlert]:
    delivered: dict[bytes, str] = {}
    for force in sorted({force_of(at.topic) for at in ends}):
        _read_deliveries(stream, force, since, delivered)
    lists = [_in_order(_once(stream, at, end, since, seen[at])) for at, end in ends.items()]
    for _, _, key, alert in heapq.merge(*lists):
        yield _listed(alert, delivered.get(key))


_Entry = tuple[str, str, bytes, AlertRecord]
"""(judged_at, alert_id, key, alert): the order is decided before the last one is looked at."""


def _once(stream: Stream, at: TopicPartition, end: int, since: datetime | None, seen: set[bytes]) -> Iterator[_Entry]:
    """A partition's alerts in the order of the topic, repeats left out."""
    since_text = None if since is None else wire(micros(since))
    for batch in _batches(stream, at, end, since):
        for key, alert in _decoded(batch):
            if key not in seen and (since_text is None or alert.judged_at >= since_text):
                seen.add(key)
                yield alert.judged_at, alert.alert_id, key, alert


def _in_order(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    """By judged_at, provided that nothing comes more than REORDER_S after what is younger."""
    waiting: list[_Entry] = []
    for entry in entries:
        heapq.heappush(waiting, entry)
        if len(waiting) > 1 and waiting[0][0] != entry[0]:
            horizon = _earlier(entry[0])
            while waiting[0][0] < horizon:
                yield heapq.heappop(waiting)
    while waiting:
        yield heapq.heappop(waiting)


def _earlier(judged_at: str) -> str:
    return wire(micros(datetime.fromisoformat(judged_at)) - int(REORDER_S * 1e6))


def _batches(stream: Stream, at: TopicPartition, end: int, since: datetime | None) -> Iterator[Batch]:
    """The partition up to `end`, from the first batch that may hold something judged since."""
    position = stream.bounds(*at).earliest
    if since is not None:
        position = _first_appended(stream, at, position, end, micros(since) - int(SKEW_S * 1e6))
    while position < end:
        try:
            batches = stream.read(at.topic, at.partition, position)
        except PositionLost as lost:  # swept while we read: what is gone is in the lake
            if lost.bounds.earliest <= position:
                raise
            position = lost.bounds.earliest
            continue
        if not batches:
            return
        for batch in batches:
            position = batch.position
            if batch.position > end:
                yield Batch(at.topic, at.partition, batch.base_offset, batch.values[: end - batch.base_offset], 0)
                return
            yield batch


def _first_appended(stream: Stream, at: TopicPartition, earliest: int, end: int, since_us: int) -> int:
    """Bisect: the first offset appended at or after `since_us`; some twenty small reads instead of a week of alerts."""
    low, high = earliest, end
    while low < high:
        middle = (low + high) // 2
        try:
            batches = stream.read(at.topic, at.partition, middle, 1)
        except PositionLost:  # swept meanwhile, so it was old
            low = middle + 1
            continue
        if batches and batches[0].appended_us < since_us:
            low = max(middle + 1, batches[0].position)
        else:
            high = middle
    return low


def _decoded(batch: Batch) -> Iterator[tuple[bytes, AlertRecord]]:
    """Alerts with their ids as bytes. What does not decode was never an alert of ours; the archive isolates it."""
    for value in batch.values:
        try:
            alert = _ALERT.decode(value)
            key = bytes.fromhex(alert.alert_id)
        except (ValueError, RecursionError):
            continue
        yield key, alert


def _read_deliveries(stream: Stream, force: str, since: datetime | None, delivered: dict[bytes, str]) -> None:
    """The first delivery of each alert."""
    topic = topic_of(DELIVERIES, force)
    for partition in range(stream.topics().get(topic, 0)):
        at = TopicPartition(topic, partition)
        for batch in _batches(stream, at, stream.bounds(*at).end, since):
            for value in batch.values:
                try:
                    delivery = _DELIVERY.decode(value)
                    key = bytes.fromhex(delivery.alert_id)
                except (ValueError, RecursionError):
                    continue
                if key not in delivered or delivery.delivered_at < delivered[key]:
                    delivered[key] = delivery.delivered_at


def _listed(alert: AlertRecord, delivered_at: str | None) -> ListedAlert:
    return ListedAlert(
        alert.alert_id,
        alert.force,
        alert.report_id,
        alert.watcher_id,
        alert.name,
        alert.harmonyscore,
        alert.lat,
        alert.lon,
        alert.time,
        alert.received_at,
        alert.judged_at,
        delivered_at,
        alert.rule,
        alert.place,
        alert.identity,
        alert.citizen_id,
        alert.confidence,
        alert.clock_suspect,
    )
