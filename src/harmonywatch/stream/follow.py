"""The one consumer loop. Alerting, dispatch and archiving are three handlers of it.

The protocol, and what a crash between two steps leaves:

1. `poll`: batches come in order within a partition.                 crash: nothing happened
2. `handle`: the handler acts, or gathers. [] lets time pass.         crash: gathered records are read again
3. the handler's effect becomes durable, with its own positions if     crash: effect and its position are one commit,
   it keeps them (lake, state database).                               or the effect repeats and carries an identity
4. `settled` positions are committed to the stream, now and then.      crash: older positions; step 1 reads again,
                                                                       the handler's own positions skip what is done
On a clean stop: `finish` makes the gathered durable, then step 4 once more.

So every record is handled at least once, and exactly once in effect: the handler's truth decides, the group's committed
positions are a hint for retention and lag. An exception of the handler ends the loop: the process stops and is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from harmonywatch.clock import Clock
from harmonywatch.stream.contract import Batch, Reader, TopicPartition

BEAT_S = 0.2
"""A handler is called at least this often, so that what waits for time (a flush, a rule change) is never late by more."""


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


def follow(
    reader: Reader,
    handler: Handler,
    *,
    clock: Clock,
    stop: threading.Event,
    commit_interval_s: float = 1.0,
    linger_s: float = 0.0,
) -> None:
    """Run the loop until `stop`. Closes the reader. Raises what the reader or the handler raise.

    `linger_s`: a pause after each poll that brought something, so that a handler in no hurry is woken less often.
    """
    committed: dict[TopicPartition, int] = {}
    due = clock.monotonic() + commit_interval_s
    try:
        while not stop.is_set():
            batches = reader.poll(BEAT_S)
            handler.handle(batches)
            if batches and linger_s:
                stop.wait(linger_s)
            if clock.monotonic() >= due:
                _commit(reader, handler, committed)
                due = clock.monotonic() + commit_interval_s
        handler.finish()
        _commit(reader, handler, committed)
    finally:
        reader.close()


def _commit(reader: Reader, handler: Handler, committed: dict[TopicPartition, int]) -> None:
    risen = {at: position for at, position in handler.settled().items() if position > committed.get(at, -1)}
    if risen:
        reader.commit(risen)
        committed.update(risen)
