"""One client's live stream: its past first, if it asks for it, then what comes, without a gap or a repeat between.

What is written, in order:
1. a heartbeat with the id of where the stream begins: whoever is cut off before the first event can still resume;
2. where the log no longer holds what the client missed, an event `gap` that says so;
3. the past, from Last-Event-ID or `since` up to the hub's positions, in rounds, until little is left; then the client goes
   live at those positions, and the little is read while its queue fills;
4. the live events; after `heartbeat_s` of silence a heartbeat;
5. when the stream ends for a reason of ours, an event `closed` that names it. It has no id: the client resumes from the
   last event it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import msgspec
from starlette.types import Message, Receive, Scope, Send

from harmonywatch.clock import to_wire
from harmonywatch.console.events import LiveEvent, sse, told
from harmonywatch.console.hub import TOO_SLOW, Client, Hub
from harmonywatch.console.past import bounds_of, past_events, vector_since
from harmonywatch.console.positions import STREAM_DIGITS, Mark, Vector, write_id
from harmonywatch.report.topics import force_of
from harmonywatch.stream.contract import PositionLost

NEAR_RECORDS = 2_000
"""So little is read faster than a queue fills."""

PORTIONS = 32
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a client wants to begin: after `mark` (it was here before), or `since`, else now."""

    mark: Mark | None = None
    since: datetime | None = None


class LiveStream:
    """An ASGI answer that lasts until the client goes, or its stream ends."""

    def __init__(self, hub: Hub, client: Client, wish: Wish) -> None:
        self._hub, self._client, self._wish = hub, client, wish
        self._gap = ""

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self._hub.enter(self._client)
        writing = asyncio.create_task(self._write(send))
        tasks = [writing, asyncio.create_task(_until_gone(receive)), asyncio.create_task(self._until_overdue())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.leave(self._client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks[1:], return_exceptions=True)
        try:
            await writing
        except asyncio.CancelledError:
            if not writing.cancelled():
                raise

    async def _until_overdue(self) -> None:
        """A client that does not even take the farewell is left."""
        await self._client.ended.wait()
        await asyncio.sleep(self._hub.terms.farewell_s)

    async def _write(self, send: Send) -> None:
        try:
            await self._catch_up(send)
            await self._go_on(send)
        except PositionLost:  # retention went faster than the client: it comes again and is told of the gap
            self._client.end(TOO_SLOW)
        farewell = msgspec.json.encode({"reason": self._client.ending, "resume": "with Last-Event-ID"})
        await send(_chunk(sse(b"closed", farewell)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    # --- the past

    async def _catch_up(self, send: Send) -> None:
        vector = await self._beginning()
        scope, client = self._client.scope, self._client
        first = b"id: " + write_id(self._hub.stream.id, scope, vector) + b"\n" + self._heartbeat()
        await send(_chunk(first + (sse(b"gap", self._gap.encode()) if self._gap else b"")))
        near = False
        while not near and client.ending is None:
            target = self._hub.vector.of(scope)
            near = vector.behind(target) <= NEAR_RECORDS
            if near:
                target = self._hub.go_live(client)
            portions = past_events(self._hub.stream, vector.of(scope), target)
            while client.ending is None and (events := await asyncio.to_thread(_some, portions)):
                await self._tell_past(send, events, vector)
            for at in target.partitions():
                vector.advance(at, max(vector.get(at), target.get(at)))

    async def _tell_past(self, send: Send, events: list[LiveEvent], vector: Vector) -> None:
        pieces: list[bytes] = []
        self._hub.deliveries.stamp(events)
        for event in events:
            vector.advance(event.at, event.position)
            if event.body:
                pieces += (b"id: ", write_id(self._hub.stream.id, self._client.scope, vector), b"\n", told(event))
        if pieces:
            await send(_chunk(b"".join(pieces)))
            self._hub.deliveries.handed(events)

    async def _beginning(self) -> Vector:
        hub, scope, wish = self._hub, self._client.scope, self._wish
        now = hub.vector.of(scope)
        if wish.mark is not None:
            if wish.mark.stream != hub.stream.id[:STREAM_DIGITS]:
                self._tell_gap("the stream was replaced; this one begins now")
                return now
            return await self._kept(_marked(wish.mark, now, scope))
        if wish.since is not None:
            return await asyncio.to_thread(vector_since, hub.stream, now, wish.since)
        return now

    async def _kept(self, vector: Vector) -> Vector:
        """The vector, moved to what the log still holds."""
        bounds = await asyncio.to_thread(bounds_of, self._hub.stream, vector.partitions())
        lost = 0
        for at, (earliest, end) in bounds.items():
            kept = min(max(vector.get(at), earliest), end)
            lost += abs(kept - vector.get(at))
            vector.advance(at, kept)
        if lost:
            self._tell_gap(f"{lost} records after this id are no longer kept; the archive has them")
        return vector

    def _tell_gap(self, reason: str) -> None:
        self._gap = msgspec.json.encode({"reason": reason}).decode()

    # --- what comes

    async def _go_on(self, send: Send) -> None:
        client, hub = self._client, self._hub
        while client.ending is None:
            while (parcel := client.take()) is not None:
                await send(_chunk(parcel.wire))
                hub.deliveries.handed(parcel.events)
            if client.ending is not None:
                return
            client.awake.clear()
            try:
                async with asyncio.timeout(hub.terms.heartbeat_s):
                    await client.awake.wait()
            except TimeoutError:
                if not client.awake.is_set():  # so the client has all of its scope that the hub has
                    await send(_chunk(b"id: " + hub.id_of(client.scope) + b"\n" + self._heartbeat()))

    def _heartbeat(self) -> bytes:
        return sse(b"heartbeat", msgspec.json.encode({"at": to_wire(self._hub.clock.now())}))


def _marked(mark: Mark, now: Vector, scope: str | None) -> Vector:
    """Where a client of the scope goes on: after its mark. A topic that the mark does not name is new since then, and
    wanted from its first record, unless the mark is of another, narrower scope: then from now."""
    vector = now.of(scope)
    for at in now.partitions():
        if mark.scope in (None, force_of(at.topic)):
            vector.advance(at, mark.vector.get(at))
    return vector


def _some(portions: Iterator[list[LiveEvent]]) -> list[LiveEvent]:
    """The next few portions, as one."""
    return [event for portion in islice(portions, PORTIONS) for event in portion]


def _chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
