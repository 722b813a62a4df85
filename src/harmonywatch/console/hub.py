"""One reading of the stream for all live streams of this process.

1. A follower thread per kind (alerts, events) polls; it makes each record an event, once, and silences repeats.
2. Once per poll it hands the events to the event loop.
3. There, alone, positions advance; per scope (a force, or all) with a client the events get their ids and become one
   `Parcel`, the same object for every client of the scope.
4. Each client has a queue, bounded by bytes; one that is full ends its stream, which then resumes by id from the log.

Because positions and clients change on the loop only, a client that joins at `vector` gets exactly what follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harmonywatch.clock import Clock
from harmonywatch.console.deliveries import Deliveries
from harmonywatch.console.events import LiveEvent, Recent, events_of, silence_repeats, told
from harmonywatch.console.past import remember
from harmonywatch.console.positions import Vector, write_id
from harmonywatch.console.reading import KindReading, ends_of
from harmonywatch.registry.contract import KeyFinder, KeyInfo
from harmonywatch.report.topics import ALERTS, EVENTS
from harmonywatch.stream.contract import PositionLost, Stream, TopicDamaged, TopicPartition
from harmonywatch.telemetry import Telemetry

POLL_S = 0.1
TOO_SLOW, REVOKED, STOPPING = "too-slow", "revoked", "stopping"


@dataclass(frozen=True, slots=True)
class LiveTerms:
    """How live streams are run. `heartbeat_s`: silence before one; `queue_bytes_max`: what may wait for one client
    (shared with all others of its scope); `revoked_check_s`: how often keys are looked at; `flush_interval_s`: of
    delivery records; `farewell_s`: time that a client has to take the last event."""

    heartbeat_s: float = 10.0
    queue_bytes_max: int = 8 << 20
    revoked_check_s: float = 0.25
    flush_interval_s: float = 0.2
    farewell_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Parcel:
    """Events of one poll for one scope, ready to be written."""

    wire: bytes
    events: list[LiveEvent]


class Client:
    """One live stream: whose it is, what waits for it, and whether and why it ends. Used on the event loop."""

    def __init__(self, key: str, officer: KeyInfo, scope: str | None, queue_bytes_max: int) -> None:
        self.key, self.officer, self.scope = key, officer, scope
        self.ending: str | None = None
        self.ended = asyncio.Event()
        self.awake = asyncio.Event()
        self._queue: deque[Parcel] = deque()
        self._room = queue_bytes_max

    def offer(self, parcel: Parcel) -> None:
        if self.ending is not None:
            return
        if len(parcel.wire) > self._room:
            self.end(TOO_SLOW)
            return
        self._room -= len(parcel.wire)
        self._queue.append(parcel)
        self.awake.set()

    def take(self) -> Parcel | None:
        if not self._queue:
            return None
        parcel = self._queue.popleft()
        self._room += len(parcel.wire)
        return parcel

    def end(self, reason: str) -> None:
        """What still waits is not written: the client's last id is the truth, from which it resumes."""
        if self.ending is None:
            self.ending = reason
            self._queue.clear()
            self.ended.set()
            self.awake.set()


class Hub:
    """See the header. `open` and `close` once each; all but the followers runs on the loop."""

    def __init__(self, stream: Stream, clock: Clock, telemetry: Telemetry, terms: LiveTerms) -> None:
        self.stream, self.clock, self.telemetry, self.terms = stream, clock, telemetry, terms
        self.vector = Vector()
        self.deliveries = Deliveries(stream, clock, telemetry, terms.flush_interval_s)
        self._clients: set[Client] = set()
        self._live: dict[str | None, set[Client]] = {}
        self._ended_for: str | None = None
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(2, "live")

    async def open(self) -> list[asyncio.Future[None]]:
        """Begin at the end of the log. The futures end only in an error of the stream, or after `close`."""
        loop = asyncio.get_running_loop()
        self.vector, unread = await asyncio.to_thread(ends_of, self.stream, (ALERTS, EVENTS))
        begins = (self.vector.of(None), unread)
        return [loop.run_in_executor(self._threads, self._follow, loop, kind, begins) for kind in (ALERTS, EVENTS)]

    def close(self) -> None:
        """Let the followers end. Twice is once."""
        self._stopping.set()
        self._threads.shutdown(wait=True)

    def enter(self, client: Client) -> None:
        self._clients.add(client)
        if self._ended_for is not None:
            client.end(self._ended_for)
        self.telemetry.streams_open.set(len(self._clients))

    def go_live(self, client: Client) -> Vector:
        """From now on the client's queue gets what follows the vector returned, of its scope."""
        self._live.setdefault(client.scope, set()).add(client)
        return self.vector.of(client.scope)

    def leave(self, client: Client) -> None:
        self._clients.discard(client)
        live = self._live.get(client.scope, set())
        live.discard(client)
        if not live:
            self._live.pop(client.scope, None)
        self.telemetry.streams_open.set(len(self._clients))

    def end_all(self, reason: str) -> None:
        """End every stream, also those still to come."""
        self._ended_for = reason
        for client in tuple(self._clients):
            client.end(reason)

    async def end_revoked(self, keys: KeyFinder, stop: asyncio.Event) -> None:
        """Until `stop`, end the streams of keys that are no longer what they were. Memory alone is asked."""
        while not stop.is_set():
            for client in tuple(self._clients):
                if keys.peek(client.key) != client.officer:
                    client.end(REVOKED)
            await asyncio.sleep(self.terms.revoked_check_s)

    def id_of(self, scope: str | None) -> bytes:
        """The id of a client that has everything of its scope."""
        return write_id(self.stream.id, scope, self.vector)

    # --- the followers' threads

    def _follow(self, loop: asyncio.AbstractEventLoop, kind: str, begins: tuple[Vector, set[str]]) -> None:
        recent = Recent()
        for at in begins[0].partitions():
            if at.topic.startswith(kind):
                with contextlib.suppress(PositionLost, TopicDamaged):  # a repeat more is told, and the reader says why
                    remember(self.stream, at, begins[0].get(at), recent)

        def found(at: TopicPartition, position: int) -> None:
            loop.call_soon_threadsafe(self.vector.advance, at, position)

        with contextlib.closing(KindReading(self.stream, kind, begins, found)) as reading:
            while not self._stopping.is_set():
                events = self._poll(reading, recent)
                if events:
                    loop.call_soon_threadsafe(self._dispatch, events)

    def _poll(self, reading: KindReading, recent: Recent) -> list[LiveEvent]:
        found: list[LiveEvent] = []
        for batch in reading.poll(POLL_S, self.clock, self.telemetry):
            events = events_of(batch)
            unread = sum(not event.body for event in events)
            if unread:
                self.telemetry.failed.labels("unreadable").inc(unread)
            silence_repeats(events, recent)
            found += events
        return found

    # --- the loop

    def _dispatch(self, events: list[LiveEvent]) -> None:
        theirs: dict[str | None, list[LiveEvent]] = {scope: [] for scope in self._live}
        pieces: dict[str | None, list[bytes]] = {scope: [] for scope in self._live}
        self.deliveries.stamp([event for event in events if event.force in theirs or None in theirs])
        for event in events:
            self.vector.advance(event.at, event.position)
            if event.body:
                for scope in (event.force, None):
                    if scope in theirs:
                        theirs[scope].append(event)
                        pieces[scope] += (b"id: ", self.id_of(scope), b"\n", told(event))
        for scope, clients in self._live.items():
            if theirs[scope]:
                parcel = Parcel(b"".join(pieces[scope]), theirs[scope])
                for client in clients:
                    client.offer(parcel)
