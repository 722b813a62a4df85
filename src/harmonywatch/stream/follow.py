"""The one consumer loop. Alerting, dispatch and archiving are three kinds of handler of it; each force has its own handler
(forces.py), so that what goes wrong with one force holds up no other.

The protocol, and what a crash between two steps leaves:

1. `poll`: batches come in order within a partition.                 crash: nothing happened
2. `handle`: the handler acts, or gathers. [] lets time pass.         crash: gathered records are read again
3. the handler's effect becomes durable, with its own positions if     crash: effect and its position are one commit,
   it keeps them (lake, state database).                               or the effect repeats and carries an identity
4. `settled` positions are committed to the stream, now and then.      crash: older positions; step 1 reads again,
                                                                       the handler's own positions skip what is done
On a clean stop: `finish` makes the gathered durable, then step 4 once more.

So every record is handled at least once, and exactly once in effect: the handler's truth decides, the group's committed
positions are a hint for retention and lag. An exception of a handler, or of a topic, drops that force's handler with all
it gathered, as a crash would; after a pause a fresh one begins where the truth says. What concerns the whole stream ends
the loop: the process stops and is started again.
"""

from __future__ import annotations

import threading

from harmonywatch.clock import Clock
from harmonywatch.report.topics import force_of
from harmonywatch.stream.contract import WHOLE_STREAM, Batch, PartitionsMoved, Reader
from harmonywatch.stream.forces import Forces, NotBegun

BEAT_S = 0.2
"""A handler is called at least this often, so that what waits for time (a flush, a rule change) is never late by more."""


def follow(
    reader: Reader,
    forces: Forces,
    *,
    clock: Clock,
    stop: threading.Event,
    commit_interval_s: float = 1.0,
    linger_s: float = 0.0,
) -> None:
    """Run the loop until `stop`. Closes the reader, which was made with `forces.start`. Raises WHOLE_STREAM's errors.

    `linger_s`: a pause after each poll that brought something, so that a handler in no hurry is woken less often.
    """
    due = clock.monotonic() + commit_interval_s
    try:
        while not stop.is_set():
            batches = _poll(reader, forces)
            forces.handle(batches, reader)
            if batches and linger_s:
                stop.wait(linger_s)
            forces.take_up_due(reader)
            if clock.monotonic() >= due:
                forces.commit(reader)
                due = clock.monotonic() + commit_interval_s
        forces.finish(reader)
        forces.commit(reader)
    finally:
        reader.close()


def _poll(reader: Reader, forces: Forces) -> list[Batch]:
    """What came; what went wrong with a topic is its force's."""
    try:
        return reader.poll(BEAT_S)
    except WHOLE_STREAM:
        raise
    except PartitionsMoved as moved:
        forces.begin_anew(moved.topics, reader)
    except NotBegun as failed:
        forces.put_aside(failed.force, failed.error, reader)
    except Exception as error:
        topic = getattr(error, "topic", "")
        if not topic:
            raise
        forces.put_aside(force_of(topic), error, reader, topic)
    return []
