"""The parent's end of a sandbox: starts it, hands it the job, reads Arrow batches as they come, and makes sure it ends.

The process is started before the query is planned, so that both load at once. An answer is complete only when the
sandbox said so: a stream that stops short raises, it never passes for a shorter answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from io import IOBase
from typing import cast

import msgspec
import pyarrow as pa

from harmonywatch.analysis.contract import Cost, Deadline, EngineFailed, EngineName, Limits, Plan, QueryError
from harmonywatch.analysis.job import Ending, Job, error_of, packed, packed_value
from harmonywatch.analysis.moments import Value
from harmonywatch.analysis.spill import Spill

KILL_AFTER_S = 1.0
"""The sandbox ends itself by half a second after the deadline; if it does not, it is killed at a whole one."""


class Sandbox:
    """A process that waits for its one job. `close` ends it and what it started, whatever it does."""

    def __init__(self, engine: EngineName = "duckdb") -> None:
        self._told, theirs = os.pipe()
        self._spill = Spill()
        self.spill_folder = self._spill.folder
        environment = {"LANG": "C.UTF-8", "TZ": "UTC", "PATH": ""}
        if engine == "spark":  # it has to find Java
            environment |= {name: os.environ[name] for name in ("PATH", "JAVA_HOME") if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "harmonywatch.analysis.sandbox", str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs,),
                env=environment,
                cwd=self.spill_folder,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout
        self._killed_late = False
        self._timer: threading.Timer | None = None

    def begin(self, job: Job) -> None:
        """Hands over the job; from now on the deadline runs."""
        with contextlib.suppress(BrokenPipeError):  # it died already: the ending will say so
            self._stdin.write(msgspec.json.encode(job) + b"\n")
            self._stdin.flush()
        self._timer = threading.Timer(job.limits.deadline_s + KILL_AFTER_S, self._kill_late)
        self._timer.daemon = True
        self._timer.start()

    def ending(self, limits: Limits) -> QueryError | None:
        """How it ended; waits for it. None: well."""
        with os.fdopen(os.dup(self._told), "rb") as told:
            line = told.readline()
        if line:
            return error_of(msgspec.json.decode(line, type=Ending), limits)
        status = self._process.wait()
        if self._killed_late:
            return Deadline(limits.deadline_s)
        return EngineFailed(f"the query's process ended with status {status}: the query may be too much for the engine")

    def close(self) -> None:
        """Ends the process and removes its traces. Twice does no harm."""
        if self._timer is not None:
            self._timer.cancel()
        self._kill()
        self._process.wait()
        for file in (self._stdin, self.stdout):
            with contextlib.suppress(BrokenPipeError):
                file.close()
        if self._told >= 0:
            os.close(self._told)
            self._told = -1
        self._spill.close()

    def _kill_late(self) -> None:
        self._killed_late = True
        self._kill()

    def _kill(self) -> None:
        """The process and its JVM. Once it has been waited for, its number may be another's."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Answer:
    """An answer on its way. Iterate once over its Arrow batches, or take `table()`; use it in a `with`, or close it.

    `schema`: of the batches; `cost`: what is read for it. Iterating raises QueryError.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits, cost: Cost) -> None:
        self._sandbox, self._limits, self.cost = sandbox, limits, cost
        try:
            self._reader = pa.ipc.open_stream(cast(IOBase, sandbox.stdout))
        except (pa.ArrowInvalid, OSError):
            error = sandbox.ending(limits) or EngineFailed("the query's process gave no answer")
            sandbox.close()
            raise error from None
        self.schema: pa.Schema = self._reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            with contextlib.suppress(pa.ArrowInvalid, OSError):  # cut short: the ending below says why
                yield from self._reader
            error = self._sandbox.ending(self._limits)
            if error is not None:
                raise error
        finally:
            self.close()

    def table(self) -> pa.Table:
        """The whole answer in memory."""
        return pa.Table.from_batches(list(self), self.schema)

    def reader(self) -> pa.RecordBatchReader:
        """The answer for whoever reads Arrow as it comes (DuckDB, Polars); reading it to its end closes it."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def close(self) -> None:
        """Stops the query if it still runs."""
        self._sandbox.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer(sandbox: Sandbox, sql: str, values: Mapping[str, Value], plans: Mapping[str, Plan], terms: Terms) -> Answer:
    """Runs the query in the sandbox, which is closed if it cannot. Raises QueryError."""
    parameters = {name: packed_value(value) for name, value in values.items()}
    sandbox.begin(Job(sql, parameters, packed(plans), terms.limits, sandbox.spill_folder))
    return Answer(sandbox, terms.limits, terms.cost)


class Terms(msgspec.Struct, frozen=True):
    """On which terms a query runs."""

    limits: Limits
    cost: Cost
