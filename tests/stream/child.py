"""A process of its own that appends to or follows a stream: `child.py MODE FOLDER SETTINGS ARGUMENTS...`.

It tells what it did line by line, each line written at once, so that what was told before a kill stays told.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from pathlib import Path

from harmonywatch.clock import SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream import segment
from harmonywatch.stream.contract import Stream, StreamError
from harmonywatch.stream.sqlite import SqliteStream

TOPIC = "reports.north"
PARTITIONS = 3


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def append(stream: Stream, writer: str, appends: str, seed: str) -> None:
    """Tells `acked PARTITION OFFSET VALUE` for each record."""
    draw = random.Random(seed)
    serial = 0
    for _ in range(int(appends)):
        records: dict[int, list[bytes]] = {}
        for partition in draw.sample(range(PARTITIONS), draw.randint(1, 2)):
            for _ in range(draw.randint(1, 4)):
                records.setdefault(partition, []).append(f"{writer}:{serial}:{partition}".encode())
                serial += 1
        given = stream.append(TOPIC, records)
        for partition, values in records.items():
            for at, value in enumerate(values):
                tell("acked", partition, given[partition] + at, value.decode())
    tell("done")


def liar(stream: Stream, writer: str, appends: str) -> None:
    """The control: acknowledges before the commit."""
    for serial in range(int(appends)):
        tell("acked", 0, serial, f"{writer}:{serial}:0")
        stream.append(TOPIC, {0: [f"{writer}:{serial}:0".encode()]})


def follow(stream: Stream, group: str) -> None:
    """Tells `read PARTITION OFFSET VALUE` until it reads `end` in each partition."""
    reader = stream.reader("reports.", group=group or None)
    tell("ready")
    ended: set[int] = set()
    while len(ended) < PARTITIONS:
        lines = []
        for batch in reader.poll(0.5):
            for at, value in enumerate(batch.values):
                if value == b"end":
                    ended.add(batch.partition)
                else:
                    lines.append(f"read {batch.partition} {batch.base_offset + at} {value.decode()}")
        if lines:
            tell("\n".join(lines))
    tell("done")


def faulty(stream: Stream, appends: str) -> None:
    """Appends whatever comes; tells `acked N` or `refused N ERROR`."""
    tell("ready")
    sys.stdin.readline()
    for serial in range(int(appends)):
        try:
            stream.append(TOPIC, {0: [str(serial).encode()]})
            tell("acked", serial)
        except StreamError as error:
            tell("refused", serial, type(error).__name__)


def latency(stream: Stream, seconds: str) -> None:
    """Tells its CPU share while idle, then the age of each record, which is the time at which its append began."""
    reader = stream.reader("reports.")
    reader.poll(0.1)
    tell("ready")
    begun, before = time.monotonic(), _cpu_s()
    reader.poll(float(seconds))
    tell("idle", (_cpu_s() - before) / (time.monotonic() - begun))
    while True:
        for batch in reader.poll(5.0):
            now = time.time()
            for value in batch.values:
                if value == b"end":
                    return
                tell("age", now - float(value))


def churn(stream: Stream, seconds: str) -> None:
    """A constant reader: from the beginning again and again; tells how many records it saw."""
    tell("ready")
    until, count = time.monotonic() + float(seconds), 0
    while time.monotonic() < until:
        reader = stream.reader("reports.")
        while batches := reader.poll(0.0):
            count += sum(len(batch.values) for batch in batches)
        reader.close()
    tell("saw", count)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


MODES = {each.__name__: each for each in (append, liar, follow, faulty, latency, churn)}


def main() -> None:
    mode, folder, settings, *arguments = sys.argv[1:]
    chosen = json.loads(settings)
    segment.SYNCHRONOUS = chosen.pop("synchronous", segment.SYNCHRONOUS)
    futex = chosen.pop("futex", True)
    stream = SqliteStream(Path(folder), StreamSettings(**chosen), SystemClock(), futex=futex)
    stream.create_topic(TOPIC, stream.topics().get(TOPIC, PARTITIONS))
    MODES[mode](stream, *arguments)


if __name__ == "__main__":
    main()
