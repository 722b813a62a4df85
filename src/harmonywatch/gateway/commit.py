"""Group commit: the records of many requests become durable by one append, and only then are the requests answered.

One `Committer` a topic, with a thread of its own, because an append waits for a disk:

1. the event loop hands over a request's records with `submit`, which never waits;
2. the thread takes all that waits, up to GROUP_BYTES_MAX;
3. one `stream.append` makes the group durable, whole or not at all;
4. one call into the event loop settles every request of the group: done, or the stream's error.

A crash before 4 leaves records that nobody was told of: the senders send again, and the repeat is recognised. While a
group waits for the disk the next one gathers, so groups grow with the load by themselves; `company.py` lets requests
come together even before that.

A topic that is full, damaged, or fails in a way that nobody expected, is the trouble of that topic: its requests get the
error, nothing of them is acknowledged, and other topics go on. Only a medium that cannot be trusted (`StreamBroken`) ends
the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

import structlog

from harmonywatch.clock import Clock
from harmonywatch.report.topics import REPORTS
from harmonywatch.stream.contract import (
    ClosedStream,
    OutcomeUnknown,
    Stream,
    StreamBroken,
    StreamError,
    TopicDamaged,
)

GROUP_BYTES_MAX = 8 << 20
"""Beyond this an append gains nothing more from company, and its requests only wait longer."""

TROUBLE_SHOWN_S = 10.0
"""A full stream keeps readiness down this long after the last refused append; then the next request tries again. A
balancer that sends nothing to what is not ready must not keep it so for ever."""

DAMAGED_AGAIN_S = 1.0
"""A damaged topic is opened anew at most this often: it costs some milliseconds, and helps only once it was restored."""


class _Waiting(NamedTuple):
    records: Mapping[int, Sequence[bytes]]
    size_bytes: int
    settled: asyncio.Future[None]


OnBroken = Callable[[BaseException], None]
"""Called in the event loop when the stream can no longer be trusted: the process must stop."""


class Commits:
    """The committers of all topics, made when first needed. Used from the event loop."""

    def __init__(self, stream: Stream, clock: Clock, on_broken: OnBroken) -> None:
        self._stream = stream
        self._clock = clock
        self._on_broken = on_broken
        self._committers: dict[str, Committer] = {}

    async def append(
        self, topic: str, partitions: int, records: Mapping[int, Sequence[bytes]], size_bytes: int
    ) -> None:
        """Return when the records are durable; `partitions` of the topic, should it not be there yet.

        Raises what `Stream.append` raises, for every request of the group alike.
        """
        committer = self._committers.get(topic)
        if committer is None:
            committer = self._committers[topic] = Committer(
                self._stream, topic, partitions, self._clock, self._on_broken
            )
            committer.start()
        await committer.submit(records, size_bytes)

    def reasons(self) -> list[str]:
        """Why reports cannot be taken now, of no force; empty if those of some force can. Asks the stream: in a thread."""
        troubles = self._troubles()
        broken = [committer.broken for committer in self._committers.copy().values() if committer.broken is not None]
        if broken:
            return [f"the stream is broken: {broken[0]}"]
        try:
            reports = {topic for topic in self._stream.topics() if topic.startswith(REPORTS)}
        except StreamError as error:
            return [f"the stream cannot be read: {error}"]
        return list(troubles.values()) if troubles and reports <= troubles.keys() else []

    def degraded(self) -> list[str]:
        """Which topics take nothing now, and why."""
        return list(self._troubles().values())

    def _troubles(self) -> dict[str, str]:
        found = {topic: committer.trouble() for topic, committer in self._committers.copy().items()}
        return {topic: reason for topic, reason in found.items() if reason}

    async def close(self) -> None:
        """Commit what waits, then stop the threads."""
        for committer in self._committers.values():
            await committer.close()


class Committer:
    """The thread that appends to one topic."""

    def __init__(self, stream: Stream, topic: str, partitions: int, clock: Clock, on_broken: OnBroken) -> None:
        self._stream = stream
        self._topic = topic
        self._partitions = partitions
        self._clock = clock
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"commit {topic}", daemon=True)
        self._topic_is_there = False
        self.broken: StreamBroken | None = None
        self._trouble: tuple[float, StreamError] | None = None
        self._closed = False

    def start(self) -> None:
        self._thread.start()

    def submit(self, records: Mapping[int, Sequence[bytes]], size_bytes: int) -> asyncio.Future[None]:
        """Hand over; the future settles when the records are durable or the append failed. From the event loop."""
        settled = self._loop.create_future()
        if self.broken is not None or self._closed:
            settled.set_exception(ClosedStream() if self.broken is None else StreamBroken(str(self.broken)))
        else:
            self._queue.put(_Waiting(records, size_bytes, settled))
        return settled

    def trouble(self) -> str:
        """Why appends fail, "" if they do not."""
        trouble = self._trouble
        if trouble is not None and self._clock.monotonic() - trouble[0] < TROUBLE_SHOWN_S:
            return f"{self._topic} takes nothing now: {trouble[1]}"
        return ""

    async def close(self) -> None:
        """Commit what waits, then end the thread. Twice is once."""
        self._closed = True
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # --- in the thread

    def _run(self) -> None:
        held: _Waiting | None = None
        while (first := held or self._queue.get()) is not None:
            group, held = self._gather(first)
            error = self._append(group)
            self._loop.call_soon_threadsafe(self._settle, group, error)

    def _gather(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """All that waits, up to the bound, and the one that did not fit. A None (close) goes back for the end."""
        group, size_bytes = [first], first.size_bytes
        while True:
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                return group, None
            if waiting is None:
                self._queue.put(None)
                return group, None
            size_bytes += waiting.size_bytes
            if size_bytes > GROUP_BYTES_MAX:
                return group, waiting
            group.append(waiting)

    def _append(self, group: list[_Waiting]) -> StreamError | None:
        """Append the group's records together; the error, if any, is every request's."""
        records: dict[int, list[bytes]] = {}
        for waiting in group:
            for partition, values in waiting.records.items():
                records.setdefault(partition, []).extend(values)
        error: StreamError | None = self._hindrance()
        if error is None:
            try:
                self._make_topic()
                self._stream.append(self._topic, records)
            except StreamBroken as broken:
                self.broken = error = broken
            except (OutcomeUnknown, ClosedStream) as passing:
                return passing
            except StreamError as of_topic:
                error = of_topic
            except Exception as bug:  # noqa: BLE001 nobody is told that anything is durable, and other topics go on
                error = OutcomeUnknown(f"{type(bug).__name__}: {bug}")
                error.__cause__ = bug
            self._note(error)
        return error

    def _hindrance(self) -> StreamError | None:
        """What need not be tried."""
        if self.broken is not None:
            return StreamBroken(str(self.broken))
        trouble = self._trouble
        if trouble is None or not isinstance(trouble[1], TopicDamaged):
            return None
        return trouble[1] if self._clock.monotonic() - trouble[0] < DAMAGED_AGAIN_S else None

    def _make_topic(self) -> None:
        if not self._topic_is_there:
            self._stream.create_topic(self._topic, self._partitions)
            self._topic_is_there = True

    def _note(self, error: StreamError | None) -> None:
        """Remember the trouble, and tell when it begins and ends, not at every append."""
        before, log = self._trouble, structlog.get_logger()
        self._trouble = None if error is None else (self._clock.monotonic(), error)
        if error is not None and (before is None or type(before[1]) is not type(error)):
            kind, cause = type(error).__name__, error.__cause__
            log.error("a topic takes nothing", topic=self._topic, kind=kind, reason=str(error), exc_info=cause)
        elif error is None and before is not None:
            log.info("a topic takes records again", topic=self._topic)

    # --- in the event loop again

    def _settle(self, group: list[_Waiting], error: BaseException | None) -> None:
        for waiting in group:
            if waiting.settled.done():  # whoever waited was cancelled
                continue
            if error is None:
                waiting.settled.set_result(None)
            else:
                waiting.settled.set_exception(error)
        if error is not None and self.broken is not None:
            self._on_broken(self.broken)
