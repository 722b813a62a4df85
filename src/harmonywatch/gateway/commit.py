"""Group commit: the records of many requests become durable by one append, and only then are the requests answered.

One `Committer` a topic, with a thread of its own, because an append waits for a disk:

1. the event loop hands over a request's records with `submit`, which never waits;
2. the thread takes all that waits, up to GROUP_BYTES_MAX;
3. one `stream.append` makes the group durable, whole or not at all;
4. one call into the event loop settles every request of the group: done, or the stream's error.

A crash before 4 leaves records that nobody was told of: the senders send again, and the repeat is recognised. While a
group waits for the disk the next one gathers, so groups grow with the load by themselves; `company.py` lets requests
come together even before that.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from harmonywatch.clock import Clock
from harmonywatch.stream.contract import ClosedStream, OutcomeUnknown, Stream, StreamBroken, StreamFull

GROUP_BYTES_MAX = 8 << 20
"""Beyond this an append gains nothing more from company, and its requests only wait longer."""

TROUBLE_SHOWN_S = 10.0
"""A full stream keeps readiness down this long after the last refused append; then the next request tries again. A
balancer that sends nothing to what is not ready must not keep it so for ever."""


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
        """Why records cannot be taken now; empty if they can."""
        return [reason for committer in self._committers.values() if (reason := committer.trouble()) is not None]

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
        self._broken: BaseException | None = None
        self._full: tuple[float, str] | None = None
        self._closed = False

    def start(self) -> None:
        self._thread.start()

    def submit(self, records: Mapping[int, Sequence[bytes]], size_bytes: int) -> asyncio.Future[None]:
        """Hand over; the future settles when the records are durable or the append failed. From the event loop."""
        settled = self._loop.create_future()
        if self._broken is not None or self._closed:
            settled.set_exception(ClosedStream() if self._broken is None else StreamBroken(str(self._broken)))
        else:
            self._queue.put(_Waiting(records, size_bytes, settled))
        return settled

    def trouble(self) -> str | None:
        """Why appends fail, if they do."""
        if self._broken is not None:
            return f"the stream is broken: {self._broken}"
        if self._full is not None and self._clock.monotonic() - self._full[0] < TROUBLE_SHOWN_S:
            return f"the stream takes nothing now: {self._full[1]}"
        return None

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

    def _append(self, group: list[_Waiting]) -> BaseException | None:
        """Append the group's records together; the error, if any, is every request's."""
        records: dict[int, list[bytes]] = {}
        for waiting in group:
            for partition, values in waiting.records.items():
                records.setdefault(partition, []).extend(values)
        try:
            if self._broken is not None:
                return StreamBroken(str(self._broken))
            if not self._topic_is_there:
                self._stream.create_topic(self._topic, self._partitions)
                self._topic_is_there = True
            self._stream.append(self._topic, records)
        except StreamFull as error:
            self._full = (self._clock.monotonic(), str(error))
            return error
        except (OutcomeUnknown, ClosedStream) as error:
            return error
        except Exception as error:  # noqa: BLE001  whatever it is, acknowledging on would be a lie
            self._broken = error
            return StreamBroken(str(error))
        self._full = None
        return None

    # --- in the event loop again

    def _settle(self, group: list[_Waiting], error: BaseException | None) -> None:
        for waiting in group:
            if waiting.settled.done():  # whoever waited was cancelled
                continue
            if error is None:
                waiting.settled.set_result(None)
            else:
                waiting.settled.set_exception(error)
        if error is not None and self._broken is not None:
            self._on_broken(self._broken)
