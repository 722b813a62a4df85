"""That an alert reached a live stream: recorded once per process, on `deliveries.<force>`, in batches.

Hand-overs are noted on the event loop and appended from a thread, at most `flush_interval_s` later. What a full stream
does not take waits, up to WAITING_MAX records; beyond that the oldest are dropped and counted: an alert that was seen
and not recorded as seen is a lesser evil than a console that stops. A broken stream ends `run`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque

from harmonywatch.clock import Clock, from_wire, to_wire
from harmonywatch.console.events import LiveEvent, Recent
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import DELIVERIES, DeliveryRecord, encode, topic_of
from harmonywatch.stream.contract import OutcomeUnknown, Stream, StreamFull, TopicDamaged, UnknownTopic, partition_of
from harmonywatch.telemetry import Telemetry

BY = "live"
WAITING_MAX = 100_000


class Deliveries:
    """Notes hand-overs (`handed`, on the loop) and records them (`run`)."""

    def __init__(self, stream: Stream, clock: Clock, telemetry: Telemetry, flush_interval_s: float) -> None:
        self._stream, self._clock, self._telemetry = stream, clock, telemetry
        self._flush_interval_s = flush_interval_s
        self._first = Recent()
        self._waiting: deque[tuple[str, DeliveryRecord]] = deque(maxlen=WAITING_MAX)

    def stamp(self, events: list[LiveEvent]) -> None:
        """These events are handed to a client now, or were before: give each alert the time of its first hand-over."""
        now = to_wire(self._clock.now())
        for event in events:
            if event.is_alert and not event.delivered_at:
                event.delivered_at = self._first.get(event.alert_id) or now

    def handed(self, events: list[LiveEvent]) -> None:
        """These events were written to a client."""
        now = None
        for event in events:
            if event.handed or not event.alert_id or not event.body:
                continue
            event.handed = True
            if self._first.add(event.alert_id, event.delivered_at):
                now = now or self._clock.now()
                self._observe(event, (now - from_wire(event.received_at)).total_seconds())
                if len(self._waiting) == WAITING_MAX:
                    self._telemetry.failed.labels("delivery-dropped").inc()
                self._waiting.append((event.force, DeliveryRecord(VERSION, event.alert_id, event.delivered_at, BY)))

    def _observe(self, event: LiveEvent, took_s: float) -> None:
        self._telemetry.deliver_s.labels(event.force).observe(max(took_s, 0.0))

    async def run(self, stop: asyncio.Event) -> None:
        """Record until `stop`, and then what is left. Raises StreamBroken, ClosedStream."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(self._flush_interval_s):
                    await stop.wait()
            except TimeoutError:
                pass  # time to flush
            await self._flush()

    async def _flush(self) -> None:
        by_force: defaultdict[str, list[DeliveryRecord]] = defaultdict(list)
        while self._waiting:
            force, record = self._waiting.popleft()
            by_force[force].append(record)
        for force, records in by_force.items():
            try:
                await asyncio.to_thread(self._append, topic_of(DELIVERIES, force), records)
            except (StreamFull, OutcomeUnknown, TopicDamaged):
                self._telemetry.failed.labels("delivery-deferred").inc()
                self._waiting.extendleft((force, record) for record in reversed(records))
            except UnknownTopic:
                self._telemetry.failed.labels("delivery-dropped").inc(len(records))

    def _append(self, topic: str, records: list[DeliveryRecord]) -> None:
        partitions = self._stream.topics().get(topic)
        if partitions is None:
            raise UnknownTopic(topic)
        by_partition: defaultdict[int, list[bytes]] = defaultdict(list)
        for record in records:
            by_partition[partition_of(record.alert_id.encode(), partitions)].append(encode(record))
        self._stream.append(topic, by_partition)
