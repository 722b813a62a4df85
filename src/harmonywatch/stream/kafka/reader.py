"""Follows topics on Kafka: all partitions of them, or as a member of a group those that the group gives.

How a partition begins, and what ends it:

1. It is assigned: by the group, or because its topic matches. `start` is asked, then the group's position, then the log;
   a position outside the log is lost, and the topic aside.
2. Its records come in order. One that does not follow the last is damage, never passed over: nobody here writes
   transactions or compacts, so offsets have no gaps.
3. It moves to another member, or one of its topic comes to us from another: the topic is aside (`PartitionsMoved`), because
   what was gathered of it, and the truth that its handler remembers, may be another's by now. Taken up, it begins anew.
4. Its topic is made anew under the same name: the brokers drew another id, and the positions mean nothing. Looked at every
   `IDENTITY_S`; what was read in between is that of the new topic, from its beginning on or not at all.

A reader of several names has a consumer for each, all in the same group. The group counts partitions, whatever topic they
are of: to one consumer for all names it would give the alerts and rejects, and to the worker beside it every report.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from harmonywatch.stream.contract import (
    Batch,
    Bounds,
    ClosedStream,
    PartitionsMoved,
    PositionLost,
    Start,
    StreamFull,
    TopicDamaged,
    TopicPartition,
)
from harmonywatch.stream.kafka.client import Fetched, Fetcher, Trouble
from harmonywatch.stream.starting import Aside, matches

if TYPE_CHECKING:
    from harmonywatch.stream.kafka.stream import KafkaStream

TAKE_RECORDS_MAX = 2000
"""Of one poll, some 3 MB of reports."""

SLICE_S = 0.2
"""A waiting poll looks this often whether the stream was closed."""

JOIN_S = 3.0
"""Making a reader waits so long for the group to give it partitions; later they come with the polls."""

ADOPT_S = 1.0
"""How often a reader without group looks for new topics; in a group the client library does, as often."""

IDENTITY_S = 2.0


def _consumers(topics: str | tuple[str, ...], group: str | None) -> tuple[str, ...]:
    """What each consumer of a reader subscribes to; "" for the one that is given partitions by hand."""
    if group is None:
        return ("",)
    return (topics,) if isinstance(topics, str) else topics


class KafkaReader:
    """See `contract.Reader` and the header."""

    def __init__(
        self, stream: KafkaStream, topics: str | tuple[str, ...], group: str | None, start: Start | None
    ) -> None:
        self._stream, self._topics, self._group, self._start = stream, topics, group, start
        self._owned: set[TopicPartition] = set()
        self._next: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._ids: dict[str, str] = {}
        self._aside = Aside()
        self._moved: set[str] = set()
        self._held: dict[TopicPartition, Batch] = {}
        self._joined: set[str] = set()
        self._closed = False
        self._adopt_due = 0.0
        self._identity_due = time.monotonic() + IDENTITY_S
        self._fetchers = {name: stream.fetcher(group, name) for name in _consumers(topics, group)}
        if group is None:
            self._adopt()
        else:
            self._join()

    def poll(self, timeout_s: float) -> list[Batch]:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_open()
            self._tell()
            now = time.monotonic()
            self._look_around(now)
            left_s = 0.0 if self._held else min(deadline - now, SLICE_S)
            self._take(left_s)
            self._tell()
            if self._held or time.monotonic() >= deadline:
                batches = list(self._held.values())
                self._held = {}
                return batches

    def set_aside(self, topics: Iterable[str]) -> None:
        self._check_open()
        for topic in topics:
            self._aside.add(topic)
            self._moved.discard(topic)
            self._halt(topic)

    def take_up(self, topics: Iterable[str]) -> None:
        self._check_open()
        for topic in topics:
            self._aside.discard(topic)
            self._moved.discard(topic)
            self._halt(topic)
            places = [at for at in self._owned if at.topic == topic]
            self._fetcher_of(topic).unassign(places)
            self._read_on(places)

    def assigned(self) -> frozenset[TopicPartition]:
        self._check_open()
        if self._group is None:
            self._adopt()
        return frozenset(self._owned)

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._check_open()
        if self._group is None:
            return
        risen = {at: to for at, to in positions.items() if at in self._owned and to > self._committed.get(at, -1)}
        for fetcher, places in self._by_fetcher(risen):
            positions = {at: risen[at] for at in places}
            fetcher.commit(positions)
            self._committed.update(positions)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fetcher in self._fetchers.values():
                fetcher.close()

    # --- whose consumer it is

    def _fetcher_of(self, topic: str) -> Fetcher:
        return next(fetcher for name, fetcher in self._fetchers.items() if matches(topic, name or self._topics))

    def _by_fetcher(self, places: Iterable[TopicPartition]) -> list[tuple[Fetcher, list[TopicPartition]]]:
        found: dict[Fetcher, list[TopicPartition]] = {}
        for at in places:
            found.setdefault(self._fetcher_of(at.topic), []).append(at)
        return [*found.items()]

    # --- what becomes ours, and what does not stay so

    def _join(self) -> None:
        for name, fetcher in self._fetchers.items():
            fetcher.subscribe([name], self._on_gained, self._on_lost)
        until = time.monotonic() + JOIN_S
        topics = self._stream.topics()
        awaited = {name for name in self._fetchers if any(matches(topic, name) for topic in topics)}
        while awaited - self._joined and time.monotonic() < until:
            self._take(SLICE_S / 4)

    def _on_gained(self, places: list[TopicPartition]) -> None:
        if self._closed:
            return
        self._joined |= {name for name in self._fetchers if any(matches(at.topic, name) for at in places)}
        shared = {at.topic for at in places} & {at.topic for at in self._owned}
        self._owned |= set(places)
        self._move(shared)
        self._read_on(places)

    def _on_lost(self, places: list[TopicPartition]) -> None:
        if self._closed:
            return
        self._owned -= set(places)
        for at in places:
            self._committed.pop(at, None)
        self._move({at.topic for at in places})

    def _move(self, topics: set[str]) -> None:
        for topic in topics:
            if topic not in self._aside:
                self._moved.add(topic)
                self._aside.add(topic)
            self._halt(topic)

    def _adopt(self) -> None:
        """Without a group: everything of the topics."""
        self._adopt_due = time.monotonic() + ADOPT_S
        known = {at.topic for at in self._owned}
        for topic, partitions in self._stream.topics().items():
            if matches(topic, self._topics) and topic not in known and topic not in self._aside:
                places = [TopicPartition(topic, partition) for partition in range(partitions)]
                self._owned |= set(places)
                self._read_on(places)

    # --- where it begins, and stops

    def _read_on(self, places: Sequence[TopicPartition]) -> None:
        """Hand the places to the client library; those of a topic that is aside, or gets so, stand still."""
        for topic in {at.topic for at in places}:
            if topic not in self._aside:
                with self._aside.contained(topic):
                    self._next |= self._beginnings([at for at in places if at.topic == topic])
        still = [at for at in places if at not in self._next]
        for fetcher, those in self._by_fetcher(places):
            fetcher.assign({at: self._next.get(at, 0) for at in those})
        for fetcher, those in self._by_fetcher(still):
            fetcher.pause(those)

    def _beginnings(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        topic = places[0].topic
        chosen = {at: position for at in places if self._start and (position := self._start(*at)) is not None}
        self._ids[topic] = self._stream.topic_id(topic)
        committed = self._stream.committed(self._group, topic) if self._group is not None else {}
        bounds = self._stream.bounds_of(places)
        for at in places:
            self._committed[at] = committed.get(at.partition, -1)
            position = chosen.setdefault(at, committed.get(at.partition, bounds[at].earliest))
            if not bounds[at].earliest <= position <= bounds[at].end:
                raise PositionLost(*at, position, bounds[at])
        return chosen

    def _halt(self, topic: str) -> None:
        """Nothing more of it, nor what is at hand."""
        self._stand_still(topic)
        for at in [at for at in self._held if at.topic == topic]:
            del self._held[at]

    def _stand_still(self, topic: str) -> None:
        for at in [at for at in self._next if at.topic == topic]:
            del self._next[at]
        self._fetcher_of(topic).pause([at for at in self._owned if at.topic == topic])

    # --- what comes

    def _take(self, timeout_s: float) -> None:
        """What is there of every consumer; while nothing is, the wait is shared out between them."""
        came = False
        for fetcher in self._fetchers.values():
            records, troubles = fetcher.take(TAKE_RECORDS_MAX, 0.0 if came else timeout_s / len(self._fetchers))
            for record in records:
                self._hold(record)
            for trouble in troubles:
                self._face(trouble)
            came = came or bool(records or troubles)

    def _hold(self, record: Fetched) -> None:
        at = TopicPartition(record.topic, record.partition)
        expected = self._next.get(at)
        if expected is None or record.offset < expected:
            return  # fetched before its topic was put aside or begun anew
        if record.offset > expected:
            with self._aside.contained(at.topic):
                raise TopicDamaged(at.topic, f"[{at.partition}]: records {expected} to {record.offset} are missing")
            self._stand_still(at.topic)
            return
        self._next[at] = expected + 1
        if at in self._held:
            self._held[at].values.append(record.value)
        else:
            self._held[at] = Batch(*at, record.offset, [record.value], record.appended_ms * 1000)

    def _face(self, trouble: Trouble) -> None:
        at = TopicPartition(trouble.topic, trouble.partition)
        if at not in self._next:
            return
        with self._aside.contained(at.topic):
            if trouble.lost:
                raise PositionLost(*at, self._next[at], self._stream.bounds(*at))
            raise trouble.error
        self._stand_still(at.topic)

    def _look_around(self, now: float) -> None:
        """A cluster that does not answer for now is no reason to stop: records come when it does."""
        with contextlib.suppress(StreamFull):
            if self._group is None and now >= self._adopt_due:
                self._adopt()
            if now >= self._identity_due:
                self._identity_due = now + IDENTITY_S
                self._check_identity()

    def _check_identity(self) -> None:
        read = sorted({at.topic for at in self._next})
        found = self._stream.topic_ids(read)
        for topic in read:
            if found.get(topic) == self._ids[topic]:
                continue
            with self._aside.contained(topic):
                if topic not in found:
                    raise TopicDamaged(topic, "the brokers have it no more")
                at = min(each for each in self._next if each.topic == topic)
                raise PositionLost(*at, self._next[at], Bounds(0, 0))
            self._stand_still(topic)

    def _tell(self) -> None:
        """What moved is told before anything is given; what is wrong with a topic after what others had at hand."""
        if self._moved:
            moved, self._moved = self._moved, set()
            raise PartitionsMoved(moved)
        if not self._held:
            self._aside.tell()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedStream
        self._stream.check_open()
