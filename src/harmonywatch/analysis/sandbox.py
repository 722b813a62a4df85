"""The process in which other people's SQL runs: `python -I -m harmonywatch.analysis.sandbox FD`.

A job (one JSON line) comes on stdin, the answer leaves as one Arrow IPC stream on stdout, and last of all the ending
(one JSON line) on the file descriptor FD. The process gives up its priority, may not fill the disk nor leave a core, has
an empty environment, and ends by itself: at the deadline (interrupted, then, half a second later, cut), when it has
grown past its memory, and when its parent closes stdin or dies.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Protocol

import msgspec
import psutil  # type: ignore[import-untyped,unused-ignore]
import pyarrow as pa

from harmonywatch.analysis.contract import BadQuery, Deadline, OutOfMemory, Plan, QueryError, Room
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.job import Ending, Job, ending_of, unpacked, unpacked_value
from harmonywatch.analysis.moments import Value

WATCH_INTERVAL_S = 0.05
GRACE_S = 0.5
MEMORY_BESIDE_BYTES = 512 << 20
"""The interpreter, Arrow's buffers and what the engine does not count, beside the engine's own limit."""

ADDRESSES_BESIDE_BYTES = 8 << 30
"""Reserved but unused addresses of allocators and thread stacks; this limit only stops what grows faster than the watch."""

FILE_BYTES_MAX = 8 << 30
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def main() -> None:
    """Runs one job. The exit status is 0 whenever an ending was told."""
    _confine()
    ending_fd = int(sys.argv[1])
    teller = _Teller(ending_fd)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    job = msgspec.json.decode(line, type=Job)
    os.nice(job.limits.nice)
    addresses = 2 * bytes_of(job.limits.memory) + ADDRESSES_BESIDE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    warden = _Warden(job, teller)
    warden.start()
    try:
        _answer(job, warden)
        teller.tell(Ending("done"))
    except QueryError as error:
        teller.tell(ending_of(error))
    except MemoryError:
        teller.tell(Ending("out-of-memory"))
    except BrokenPipeError:
        teller.tell(Ending("failed", "nobody reads the answer"))
    os._exit(0)  # the engine's threads may still be busy with what was interrupted


class Answering(Protocol):
    """What an engine is to a sandbox."""

    def run(self, sql: str, parameters: Mapping[str, Value]) -> pa.RecordBatchReader: ...

    def batches(self, reader: pa.RecordBatchReader, sql: str) -> Iterator[pa.RecordBatch]: ...

    def interrupt(self) -> None: ...


def _opened(job: Job) -> Answering:
    limits, plans = job.limits, unpacked(job.tables)
    room = Room(limits.memory, limits.threads, job.spill_folder, limits.deadline_s, limits.store)
    if limits.engine == "duckdb":
        return Engine(plans, room)
    from harmonywatch.analysis.spark import SparkEngine, open_session

    model = Engine({table: Plan([], 0, plan.schema) for table, plan in plans.items()}, room)
    start = partial(open_session, room, bytes_of(limits.memory), limits.spark_properties)
    return SparkEngine(start, plans, model, room)


def _answer(job: Job, warden: _Warden) -> None:
    engine = _opened(job)
    warden.engine = engine
    parameters = {name: unpacked_value(value) for name, value in job.parameters.items()}
    reader = engine.run(job.sql, parameters)
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        try:
            with pa.ipc.new_stream(pa.PythonFile(out, "w"), reader.schema) as writer:
                for batch in engine.batches(reader, job.sql):
                    writer.write_batch(batch)
        except pa.ArrowInvalid as error:
            raise BadQuery(f"the answer has no form in Arrow: {error}") from None


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
    os.umask(0o077)


def bytes_of(memory: str) -> int:
    """`2GB` -> 2,000,000,000."""
    text = memory.strip().upper()
    digits = text.rstrip("KMGTIB ")
    return int(float(digits) * UNITS[text[len(digits) :].strip()])


class _Teller:
    """Tells the ending, once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._told = False

    def tell(self, ending: Ending) -> None:
        with self._lock:
            if not self._told:
                self._told = True
                try:
                    os.write(self._fd, msgspec.json.encode(ending) + b"\n")
                except BrokenPipeError:
                    os._exit(1)


class _Warden(threading.Thread):
    """Ends the process when its time, its memory or its parent's interest is over."""

    def __init__(self, job: Job, teller: _Teller) -> None:
        super().__init__(daemon=True)
        self.engine: Answering | None = None
        self._teller = teller
        self._job = job
        self._memory_bytes = bytes_of(job.limits.memory) + MEMORY_BESIDE_BYTES

    def run(self) -> None:
        process = psutil.Process()
        deadline = time.monotonic() + self._job.limits.deadline_s
        while True:
            readable, _, _ = select.select([0], [], [], WATCH_INTERVAL_S)
            if readable and not os.read(0, 1):
                os._exit(1)
            if process.memory_info().rss > self._memory_bytes:
                self._end(OutOfMemory(self._job.limits.memory))
            late_s = time.monotonic() - deadline
            if late_s > GRACE_S:
                self._end(Deadline(self._job.limits.deadline_s))
            if late_s > 0 and self.engine is not None:
                self.engine.interrupt()

    def _end(self, error: QueryError) -> None:
        self._teller.tell(ending_of(error))
        os._exit(0)


if __name__ == "__main__":
    main()
