"""One handler a force, and which forces are aside: the loop's way to let one force fail without the others.

A force's handler is made when the force is first met. When it, or one of its topics, raises, the force is put *aside*: the
handler is dropped, the reader gives nothing more of the force's topics, and the reason is logged, counted and shown in
readiness. After a pause, of 1 s at first and of twice the last one then, up to 30 s, a fresh handler takes the force up
where its truth says. A force that worked for 30 s since is well again.

Used by the loop's thread; `degraded` and `all_aside` by any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from harmonywatch.clock import Clock
from harmonywatch.report.topics import force_of
from harmonywatch.stream.contract import WHOLE_STREAM, Batch, Reader, StreamFull, TopicPartition
from harmonywatch.telemetry import Telemetry

PAUSE_LEAST_S, PAUSE_MOST_S = 1.0, 30.0
WELL_S = 30.0

_LOG = structlog.get_logger(__name__)


class Handler(Protocol):
    """What a room does with records. Called by one thread."""

    def start(self, topic: str, partition: int) -> int | None:
        """The position that the handler's own truth holds, or None if it keeps none."""

    def handle(self, batches: list[Batch]) -> None:
        """Act on the batches, in order; called with [] when none came."""

    def settled(self) -> Mapping[TopicPartition, int]:
        """Positions below which every effect is durable."""

    def finish(self) -> None:
        """Make durable what is gathered: the loop is about to end."""


class NotBegun(Exception):
    """A handler could not be made or could not start: `error` says why. Travels through the reader to the loop."""

    def __init__(self, force: str, error: Exception) -> None:
        super().__init__(f"force {force}: {error}")
        self.force, self.error = force, error


@dataclass(frozen=True, slots=True)
class _Trouble:
    """`until_s`: monotonic; aside until then, or well again then. Frozen, because other threads look."""

    reason: str
    pause_s: float
    aside: bool
    until_s: float


def _nobody(_error: Exception) -> bool:
    return False


class Forces:
    """See the header. `open_handler`: of a force; `is_operators`: whether only the operator can help after an error."""

    def __init__(
        self,
        open_handler: Callable[[str], Handler],
        clock: Clock,
        telemetry: Telemetry,
        is_operators: Callable[[Exception], bool] = _nobody,
    ) -> None:
        self._open_handler, self._clock, self._telemetry = open_handler, clock, telemetry
        self._is_operators = is_operators
        self._handlers: dict[str, Handler] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._topics: dict[str, set[str]] = {}

    # --- any thread

    def degraded(self) -> list[str]:
        """Which forces are aside or under watch, and why; one sentence each."""
        now_s = self._clock.monotonic()
        return [
            f"force {force}: {trouble.reason}; "
            + (f"tried again in {max(0.0, trouble.until_s - now_s):.0f} s" if trouble.aside else "taken up again")
            for force, trouble in sorted(self._troubles.copy().items())
        ]

    def all_aside(self) -> bool:
        """Whether there are forces, and nothing is done for any."""
        aside = {force for force, trouble in self._troubles.copy().items() if trouble.aside}
        return bool(aside) and not set(self._handlers.copy()) - aside

    # --- the reader's way in

    def start(self, topic: str, partition: int) -> int | None:
        """The reader's `Start`. Raises NotBegun, and what concerns the whole stream."""
        force = force_of(topic)
        self._topics.setdefault(force, set()).add(topic)
        trouble = self._troubles.get(force)
        if trouble is not None and trouble.aside:  # the topic is new; it is taken up with the others of its force
            raise NotBegun(force, RuntimeError(trouble.reason))
        try:
            if force not in self._handlers:
                self._handlers[force] = self._open_handler(force)
            return self._handlers[force].start(topic, partition)
        except WHOLE_STREAM:
            raise
        except Exception as error:
            raise NotBegun(force, error) from error

    # --- the loop's steps

    def handle(self, batches: list[Batch], reader: Reader) -> None:
        """Each force's batches to its handler, and [] to those without."""
        by_force: dict[str, list[Batch]] = {}
        for batch in batches:
            by_force.setdefault(force_of(batch.topic), []).append(batch)
        assert by_force.keys() <= self._handlers.keys(), "records of a force that was not started, or is aside"
        for force in [*self._handlers]:
            with self._contained(force, reader):
                self._handlers[force].handle(by_force.get(force, []))

    def finish(self, reader: Reader) -> None:
        """What one force cannot finish is read again by the next process."""
        for force in [*self._handlers]:
            with self._contained(force, reader):
                self._handlers[force].finish()

    def commit(self, reader: Reader) -> None:
        """Tell the stream what is settled. A hint: if the stream has no room for it now, the next round tells it."""
        settled: dict[TopicPartition, int] = {}
        for force in [*self._handlers]:
            with self._contained(force, reader):
                settled |= self._handlers[force].settled()
        risen = {at: position for at, position in settled.items() if position > self._committed.get(at, -1)}
        if not risen:
            return
        try:
            reader.commit(risen)
        except StreamFull as error:
            self._telemetry.failed.labels("commit").inc()
            _LOG.warning("positions are committed later", reason=str(error))
        else:
            self._committed |= risen

    def put_aside(self, force: str, error: Exception, reader: Reader, topic: str = "") -> None:
        """Drop the force's handler and, for a while, the force. `topic`: which went wrong, if it was one; it may be one
        that the reader could not even begin, and must be taken up again all the same."""
        if topic:
            self._topics.setdefault(force, set()).add(topic)
        before = self._troubles.get(force)
        if before is not None and before.aside:
            return  # another of its topics
        pause_s = PAUSE_LEAST_S if before is None else min(2 * before.pause_s, PAUSE_MOST_S)
        reason = str(error) or type(error).__name__
        self._troubles[force] = _Trouble(reason, pause_s, True, self._clock.monotonic() + pause_s)
        self._drop(force)
        reader.set_aside(self._topics_of(force, reader))
        self._telemetry.failed.labels("force-aside").inc()
        self._telemetry.aside.labels(force).set(1)
        told = {"force": force, "reason": reason, "kind": type(error).__name__, "pause_s": pause_s}
        if self._is_operators(error):
            _LOG.error("the operator must act: a force is aside until then", **told)
        else:
            _LOG.error("a force is aside", **told, exc_info=error)

    def take_up_due(self, reader: Reader) -> None:
        """Forces that were aside for long enough are taken up; those that worked for long enough since are well."""
        now_s = self._clock.monotonic()
        for force, trouble in [*self._troubles.items()]:
            if now_s < trouble.until_s:
                continue
            if trouble.aside:
                self._troubles[force] = _Trouble(trouble.reason, trouble.pause_s, False, now_s + WELL_S)
                reader.take_up(self._topics_of(force, reader))
            else:
                del self._troubles[force]
                self._telemetry.aside.labels(force).set(0)
                _LOG.info("a force is well again", force=force)

    def begin_anew(self, topics: Iterable[str], reader: Reader) -> None:
        """Other workers have partitions of these topics now: forget what was gathered, and begin with what is left."""
        for topic in topics:
            self._topics.setdefault(force_of(topic), set()).add(topic)
        for force in {force_of(topic) for topic in topics}:
            trouble = self._troubles.get(force)
            if trouble is None or not trouble.aside:
                self._drop(force)
                reader.take_up(self._topics_of(force, reader))

    @contextlib.contextmanager
    def _contained(self, force: str, reader: Reader) -> Iterator[None]:
        try:
            yield
        except WHOLE_STREAM:
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, the other forces go on
            self.put_aside(force, error, reader)

    def _drop(self, force: str) -> None:
        self._handlers.pop(force, None)
        self._committed = {at: position for at, position in self._committed.items() if force_of(at.topic) != force}

    def _topics_of(self, force: str, reader: Reader) -> set[str]:
        """All that were ever the reader's: what it lost meanwhile may come back, and must not find itself aside."""
        assigned = {at.topic for at in reader.assigned() if force_of(at.topic) == force}
        return self._topics.setdefault(force, set()) | assigned
