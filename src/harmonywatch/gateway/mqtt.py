"""The door for watchers that report through an MQTT broker: one session a force, kept by the broker while we are away.

Of each message, in this order:

1. what arrives together is handled together
2. topic and bytes become records, rejects and states (`messages.py`)
3. all of it is durable (`commit.py`)          a crash before: the broker sends it again, nothing is there twice
4. the broker is told (PUBACK), in its order   a crash before: the broker sends it again, the repeat is recognised
5. the watchers are handed to the roll

While the stream takes nothing (full, outcome unknown) nothing is acknowledged: the session is ended and opened again after
a while, and the broker, which has kept everything, sends it again. The broker hands over at most `in_flight_max` messages
that are not acknowledged, so memory is bounded, and so is what one session carries: hence a session for each force, or one
whose topic is full would hold up the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass

import structlog

from harmonywatch.broker import Broker, BrokerAway, Message, Session, SessionTerms
from harmonywatch.clock import Clock
from harmonywatch.gateway.commit import Commits
from harmonywatch.gateway.company import Company
from harmonywatch.gateway.enrolment import Roll
from harmonywatch.gateway.messages import VIA, Office, Received, Sorted, filters, sort
from harmonywatch.gateway.meters import Meters
from harmonywatch.registry.contract import Enrolment
from harmonywatch.report.topics import EVENTS, REJECTS, REPORTS, topic_of
from harmonywatch.settings import MqttSettings
from harmonywatch.stream.contract import Stream, StreamBroken, StreamError
from harmonywatch.telemetry import Telemetry

INLINE_BYTES_MAX = 128 << 10
"""More than this at once is admitted in a thread, as in `door.py`."""

FORCES_S = 1.0
FLUSH_S = 0.25
DRAIN_S = 5.0
LINGER_S = 0.002
BACKOFF_LEAST_S, BACKOFF_MOST_S = 0.1, 5.0
STEADY_S = 10.0


@dataclass(frozen=True, slots=True)
class MqttParts:
    """What the service is made of. `forces`: every force with the partitions of its topics (asked in a thread);
    `lines_max`: of a message of NDJSON; `fresh_id`: draws ids for reports and rejects."""

    settings: MqttSettings
    broker: Broker
    stream: Stream
    enrolment: Enrolment
    forces: Callable[[], Mapping[str, int]]
    telemetry: Telemetry
    clock: Clock
    fresh_id: Callable[[], str]
    lines_max: int


class MqttService:
    """`run` it on an event loop; `reasons` and `degraded` may be asked from any thread."""

    def __init__(self, parts: MqttParts) -> None:
        self._parts = parts
        self._lines: dict[str, Line] = {}
        self._commits: Commits | None = None
        self._forces_known = False

    def reasons(self) -> list[str]:
        """Why reports cannot be taken now, of no force."""
        if self._commits is None or not self._forces_known:
            return ["starting"]
        troubles = self._troubles()
        return (troubles if len(troubles) == len(self._lines) else []) + self._commits.reasons()

    def degraded(self) -> list[str]:
        """Why those of some forces cannot."""
        return self._troubles() + (self._commits.degraded() if self._commits is not None else [])

    def _troubles(self) -> list[str]:
        return [f"{force}: {line.trouble}" for force, line in tuple(self._lines.items()) if line.trouble]

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, then what has arrived is made durable and acknowledged. Raises StreamBroken."""
        parts, broken = self._parts, list[BaseException]()

        def on_broken(error: BaseException) -> None:
            broken.append(error)
            stop.set()

        commits = self._commits = Commits(parts.stream, parts.clock, on_broken)
        roll, meters = Roll(parts.enrolment, parts.telemetry), Meters(parts.telemetry)
        desk = Desk(parts, commits, roll, meters, Company(LINGER_S))
        enrolling = asyncio.create_task(roll.run(stop))
        flushing = asyncio.create_task(_flush(meters))
        talking: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set():
                for force, partitions in (await self._forces()).items():
                    if force not in self._lines:
                        self._lines[force] = line = Line(desk, force, partitions)
                        talking.add(asyncio.create_task(line.run(stop)))
                self._forces_known = True
                await _wait(stop, FORCES_S)
        finally:
            stop.set()
            await asyncio.gather(*talking)
            flushing.cancel()
            await commits.close()
            await enrolling
            meters.flush()
        await roll.enrol_waiting()
        if broken:
            raise StreamBroken(f"the service stopped: {broken[0]}") from broken[0]

    async def _forces(self) -> Mapping[str, int]:
        try:
            return await asyncio.to_thread(self._parts.forces)
        except StreamBroken:
            raise
        except StreamError as error:
            structlog.get_logger().warning("the forces cannot be read now", reason=str(error))
            return {}


@dataclass(frozen=True, slots=True)
class Desk:
    """What every line shares."""

    parts: MqttParts
    commits: Commits
    roll: Roll
    meters: Meters
    company: Company

    async def store(self, force: str, partitions: int, found: Sorted) -> None:
        """Return when the reports are durable. Raises what `Stream.append` raises for them: acknowledging hangs on the
        reports alone, or a full topic of rejects, which anybody can fill, would have them sent again and again."""
        admission = found.admission

        def append(kind: str, records: Mapping[int, Sequence[bytes]]) -> Coroutine[None, None, None]:
            return self.commits.append(topic_of(kind, force), partitions, records, admission.size_bytes)

        beside = {
            kind: asyncio.create_task(append(kind, records))
            for kind, records in ((REJECTS, admission.rejects), (EVENTS, found.states))
            if records
        }
        try:
            if admission.records:
                await append(REPORTS, admission.records)
        finally:
            if beside:
                await asyncio.wait(beside.values())
        for kind, task in beside.items():
            lost = task.exception()
            if lost is None:
                continue
            if isinstance(lost, StreamBroken) or not isinstance(lost, StreamError):
                raise StreamBroken(str(lost)) from lost
            if kind == REJECTS:
                self.meters.lost(force, len(admission.verdicts), str(lost))
            else:
                structlog.get_logger().warning("states of watchers lost", force=force, reason=str(lost))

    def count(self, force: str, found: Sorted, size_bytes: int, since_s: float) -> None:
        """It is durable, or was not worth keeping."""
        if found.admission.records or found.admission.rejects:
            self.meters.stored(force, found.admission, size_bytes, self.parts.clock.monotonic() - since_s)
        if found.admission.watchers:
            self.roll.seen(force, VIA, found.admission.watchers)
        for code, count in found.dropped.items():
            self.parts.telemetry.refused.labels(force, code).inc(count)
            structlog.get_logger().warning("messages dropped", force=force, code=code, count=count)


class Line:
    """The sessions of one force, one after the other."""

    def __init__(self, desk: Desk, force: str, partitions: int) -> None:
        self._desk, self._force, self._partitions = desk, force, partitions
        self._log = structlog.get_logger().bind(force=force)
        self.trouble = "not connected yet"

    async def run(self, stop: asyncio.Event) -> None:
        """Keep a session open until `stop`."""
        clock, backoff_s = self._desk.parts.clock, BACKOFF_LEAST_S
        while not stop.is_set():
            began_s = clock.monotonic()
            try:
                await self._talk(stop)
            except Exception as error:  # noqa: BLE001  also a bug: it must not stop the lines of other forces
                known = isinstance(error, BrokerAway | StreamError)
                self.trouble = str(error) or type(error).__name__
                self._desk.parts.telemetry.failed.labels("mqtt" if known else "bug").inc()
                self._log.warning("session ended, will be opened again", reason=self.trouble, exc_info=not known)
                backoff_s = BACKOFF_LEAST_S if clock.monotonic() - began_s > STEADY_S else backoff_s
                await _wait(stop, max(backoff_s, getattr(error, "retry_after_s", 0.0)))
                backoff_s = min(2 * backoff_s, BACKOFF_MOST_S)

    async def _talk(self, stop: asyncio.Event) -> None:
        """One session, until `stop`. Raises BrokerAway, StreamError."""
        parts = self._desk.parts
        terms = SessionTerms(
            f"{parts.settings.client_id}-{self._force}", parts.settings.session_s, parts.settings.in_flight_max
        )
        intake = Intake(self._desk, self._force, self._partitions)
        session = Session(parts.broker, terms, on_message=intake.arrived)
        handling = asyncio.create_task(intake.run(session))
        ending = [asyncio.create_task(work) for work in (session.ended(), stop.wait())]
        try:
            await session.open()
            await session.subscribe(filters(self._force))
            self.trouble = ""
            self._log.info("subscribed", broker=f"{parts.broker.host}:{parts.broker.port}")
            await asyncio.wait((handling, *ending), return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                intake.finish()  # also after a lost connection: a broker that died may have nothing left of it
            await _ended(handling)
            if not stop.is_set():
                raise BrokerAway(await session.ended())
        finally:
            session.close()
            for task in (handling, *ending):
                task.cancel()


class Intake:
    """The messages of one session: arrived, durable, acknowledged, always in this order. Used from the event loop."""

    def __init__(self, desk: Desk, force: str, partitions: int) -> None:
        self._desk, self._force, self._partitions = desk, force, partitions
        self._arrived: list[Message] = []
        self._since_s = 0.0
        self._awake = asyncio.Event()
        self._finishing = False
        self._groups: deque[tuple[list[int], asyncio.Task[None]]] = deque()
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def arrived(self, message: Message) -> None:
        """Never waits."""
        self._arrived.append(message)
        if len(self._arrived) == 1:
            self._since_s = self._desk.parts.clock.monotonic()
            self._desk.company.join(self._awake.set)

    def finish(self) -> None:
        """Ask `run` to end once what has arrived is handled; for as long as DRAIN_S allows."""
        self._finishing = True
        self._awake.set()

    async def run(self, session: Session) -> None:
        """Handle what arrives. Raises the stream's error; nothing is acknowledged from then on."""
        while not (self._finishing and not self._arrived):
            waking = asyncio.create_task(self._awake.wait())
            await asyncio.wait((waking, self._failed), return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()
            if self._failed.done():
                break
            self._awake.clear()
            await self._take(session)
        if self._groups and not self._failed.done():
            await asyncio.wait([task for _, task in self._groups], timeout=DRAIN_S)
        if self._failed.done():
            raise self._failed.result()

    async def _take(self, session: Session) -> None:
        messages, since_s = self._arrived, self._since_s
        self._arrived = []
        if messages:
            size_bytes = sum(len(message.payload) for message in messages)
            found = await self._sorted(messages, size_bytes)
            task = asyncio.create_task(self._store(found, size_bytes, since_s))
            self._groups.append(([message.number for message in messages], task))
            task.add_done_callback(lambda done: self._acknowledge(session, done))

    async def _sorted(self, messages: list[Message], size_bytes: int) -> Sorted:
        parts = self._desk.parts
        office = Office(self._force, self._partitions, parts.clock.now(), parts.fresh_id, parts.lines_max)
        received = [Received(message.topic, message.payload, message.content_type) for message in messages]
        if size_bytes <= INLINE_BYTES_MAX:
            return sort(received, office)
        return await asyncio.to_thread(sort, received, office)

    async def _store(self, found: Sorted, size_bytes: int, since_s: float) -> None:
        await self._desk.store(self._force, self._partitions, found)
        self._desk.count(self._force, found, size_bytes, since_s)

    def _acknowledge(self, session: Session, done: asyncio.Task[None]) -> None:
        """In the order of arrival, as MQTT wants it (5, 4.6); after a failure nothing more."""
        error = done.exception()
        if error is not None and not self._failed.done():
            self._failed.set_result(error)
        while self._groups and self._groups[0][1].done() and not self._failed.done():
            numbers, _ = self._groups.popleft()
            for number in numbers:
                session.ack(number)


async def _ended(task: asyncio.Task[None]) -> None:
    """The task's end, or its error; at most DRAIN_S from now."""
    await asyncio.wait((task,), timeout=DRAIN_S)
    if task.done():
        task.result()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


async def _flush(meters: Meters) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        meters.flush()
