"""Spark as an engine of questions: the only file that imports it. Runs in the sandbox's process, which starts a JVM.

In this order: (1) the text is judged and bound by DuckDB over the same tables without rows (`Model`), which also says
which columns and types the answer has; (2) it is said in Spark's dialect (`dialect.py`); (3) Spark's own parser reads
that, and its tree is judged (`spark_vetting.py`); (4) it runs over the planned files, the very ones that DuckDB would
read; (5) the answer takes on the columns and types of (1). So both engines answer a text alike, or Spark refuses it.

Spark itself knows no catalog, no file by its name and no table but the views: `spark.sql.runSQLOnFiles` is off, the
catalog is in memory.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pyarrow as pa

from harmonywatch.analysis.contract import (
    TABLE_OF_VIEW,
    BadQuery,
    Deadline,
    EngineFailed,
    OutOfMemory,
    Plan,
    QueryError,
    Room,
)
from harmonywatch.analysis.dialect import OTHERWISE, Columns, spark_of, spark_type
from harmonywatch.analysis.moments import Value
from harmonywatch.analysis.spark_vetting import vet_plan
from harmonywatch.analysis.views import spark_functions, sql_of

try:
    import pyspark.errors as errors
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import DataFrame, SparkSession
except ImportError:
    raise EngineFailed(
        "Spark is not installed here: `pip install 'harmonywatch[spark]'` brings it (and it needs Java 17 or newer); or "
        + OTHERWISE
    ) from None

FIXED = {
    "spark.app.name": "harmonywatch",
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.catalogImplementation": "in-memory",
    "spark.sql.runSQLOnFiles": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "64",
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "1000",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "8192",
}
"""What every session has, whatever the operator's file says. Files are looked up by the driver, below a thousand."""

LOCAL = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.sql.shuffle.partitions": "4"}
"""What a session on this machine has besides: nothing of it is seen from other machines."""

ANALYSTS = (
    errors.ParseException, errors.AnalysisException, errors.ArithmeticException, errors.NumberFormatException,
    errors.DateTimeException, errors.IllegalArgumentException, errors.ArrayIndexOutOfBoundsException,
    errors.SparkRuntimeException, errors.UnsupportedOperationException,
)  # fmt: skip
"""Errors that are about the analyst's text or what it computes."""


class Model(Protocol):
    """DuckDB over the same tables without a row: it judges a text, and knows what comes of it."""

    def columns(self) -> Columns: ...

    def run(self, sql: str, parameters: Mapping[str, Value]) -> pa.RecordBatchReader: ...


def open_session(room: Room, heap_bytes: int, properties: str = "") -> SparkSession:
    """Starts the JVM, which ends with this process. `properties`: the operator's file. Raises EngineFailed."""
    folder = Path(room.spill_folder)
    conf = SparkConf(loadDefaults=False)
    settings = FIXED | {
        "spark.driver.memory": f"{heap_bytes >> 20}m",
        "spark.driver.maxResultSize": f"{heap_bytes >> 20}m",
        "spark.local.dir": str(folder / "spark"),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
    }
    if properties:
        os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file '{properties}' pyspark-shell"
    else:
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        settings |= LOCAL | {"spark.master": f"local[{room.threads}]"}
    for key, value in settings.items():
        conf.set(key, value)
    told = folder / "spark.log"
    with told.open("wb") as log:  # the JVM must not write into the answer, which is our standard output
        try:
            gateway = launch_gateway(conf, {"stdout": subprocess.DEVNULL, "stderr": log})  # type: ignore[no-untyped-call, unused-ignore]
            return SparkSession(SparkContext(conf=conf, gateway=gateway))
        except Exception:  # noqa: BLE001 (whatever it is: the log says why)
            lines = [line for line in told.read_text("utf-8", "replace").splitlines() if "WARN" not in line]
            why = lines[-1].strip() if lines else "no word why"
            raise EngineFailed(f"Spark did not start; it needs Java 17 or newer: {why}") from None


class SparkEngine:
    """The views of one query in a session of its own, begun by `start` when the text is known to be good. For one query at
    a time and one thread, `interrupt` apart."""

    def __init__(self, start: Callable[[], SparkSession], plans: Mapping[str, Plan], model: Model, room: Room) -> None:
        self._start, self._plans, self._model, self._room = start, plans, model, room
        self._session: SparkSession | None = None
        self._group = f"harmonywatch-{uuid4()}"
        self._interrupted = threading.Event()
        self._columns = model.columns()

    def run(self, sql: str, parameters: Mapping[str, Value]) -> pa.RecordBatchReader:
        """The answer, made whole before it is given. Raises QueryError."""
        shape = self._model.run(sql, parameters).schema
        text = spark_of(sql, self._columns)
        session = self._session = self._session or self._opened()
        try:
            parser = session._jsparkSession.sessionState().sqlParser()
            vet_plan(parser.parsePlan(text).toJSON())
            session.sparkContext.setJobGroup(self._group, "a question to the archive", interruptOnCancel=True)
            if self._interrupted.is_set():
                raise Deadline(self._room.deadline_s)
            answer = session.sql(text, args={name: _zoned(value) for name, value in parameters.items()}).toArrow()
        except Exception as error:  # noqa: BLE001 (py4j's errors have no common kind)
            raise self._translated(error) from None
        return shaped(answer, shape).to_reader()

    def _opened(self) -> SparkSession:
        session = self._start().newSession()
        try:
            for statement in spark_functions():
                session.sql(statement)
            for table, plan in self._plans.items():
                self._open_table(session, table, plan)
        except (
            errors.PySparkException
        ) as error:  # nothing of the analyst's has run yet: a file is gone, or not as it was
            raise EngineFailed(_first_line(error)) from None
        return session

    def _open_table(self, session: SparkSession, table: str, plan: Plan) -> None:
        columns = self._columns[f"lake_{table}"]
        schema = ", ".join(f"`{name}` {spark_type(kind)}" for name, kind in columns.items())
        _read(session, plan.files, schema).select(*columns).createOrReplaceTempView(f"lake_{table}")
        for view in (view for view, read in TABLE_OF_VIEW.items() if read == table):
            session.sql(spark_of(sql_of(view), self._columns)).createOrReplaceTempView(view)

    def batches(self, reader: pa.RecordBatchReader, sql: str) -> Iterator[pa.RecordBatch]:  # noqa: ARG002
        """The batches of an answer."""
        yield from reader

    def interrupt(self) -> None:
        """Stops what runs, from another thread."""
        self._interrupted.set()
        if self._session is not None:
            self._session.sparkContext.cancelJobGroup(self._group)

    def _translated(self, error: Exception) -> QueryError:
        text = str(error)
        if isinstance(error, QueryError):
            return error
        if self._interrupted.is_set():
            return Deadline(self._room.deadline_s)
        if "OutOfMemoryError" in text or "maxResultSize" in text:
            return OutOfMemory(self._room.memory)
        if isinstance(error, ANALYSTS):
            return BadQuery(f"Spark: {_first_line(error)}; {OTHERWISE}")
        return EngineFailed(_first_line(error))


def _read(session: SparkSession, files: list[str], schema: str) -> DataFrame:
    """The files as rows. Names are taken as they are, and a folder above the table is no partition."""
    if not files:
        return session.createDataFrame([], schema)
    paths = [file.replace("s3://", "s3a://", 1) for file in files]
    reader = session.read.schema(schema).option("basePath", paths[0].rsplit("/day=", 1)[0])
    return reader.option("__globPaths__", "false").parquet(*paths)


def shaped(answer: pa.Table, shape: pa.Schema) -> pa.Table:
    """The answer with the names and types that DuckDB would give it. Raises BadQuery where that is not possible."""
    if answer.num_columns != len(shape):
        raise BadQuery(f"Spark answers with {answer.num_columns} columns instead of {len(shape)}; {OTHERWISE}")
    try:
        columns = [answer.column(place).cast(field.type) for place, field in enumerate(shape)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadQuery(f"Spark's answer has other types: {error}; {OTHERWISE}") from None
    return pa.Table.from_arrays(columns, schema=shape)


def _zoned(value: Value) -> Value:
    """A time without a zone is UTC, as in DuckDB's session."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
