"""Positive control, for tests only: a gateway that acknowledges before the commit.

Python imports a file of this name by itself from PYTHONPATH. In the process of the gateway or of the MQTT service, and
nowhere else, an append to the stream returns at once, and the records go to the disk a little later from a thread: what
every guarantee of the door forbids. The product has no such switch; the tests that kill it must see acknowledged reports
lost.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

LATE_S = 0.5


def _acknowledge_early() -> None:
    from harmonywatch.stream.sqlite import SqliteStream

    honest = SqliteStream.append
    queue: SimpleQueue[tuple[float, Any, str, Mapping[int, Sequence[bytes]]]] = SimpleQueue()

    def write() -> None:
        while True:
            due, stream, topic, records = queue.get()
            time.sleep(max(0.0, due - time.monotonic()))
            honest(stream, topic, records)

    def early(self: Any, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        queue.put((time.monotonic() + LATE_S, self, topic, records))
        return dict.fromkeys(records, 0)

    threading.Thread(target=write, daemon=True, name="late").start()
    SqliteStream.append = early  # type: ignore[method-assign]


if "run" in sys.orig_argv and {"gateway", "mqtt"} & set(sys.orig_argv):
    _acknowledge_early()
