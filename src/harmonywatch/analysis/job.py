"""What the parent tells the sandbox, and what the sandbox tells when it ends: two JSON lines."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import date, datetime

import msgspec
import pyarrow as pa

from harmonywatch.analysis.contract import (
    BadQuery,
    Deadline,
    EngineFailed,
    Limits,
    OutOfMemory,
    Plan,
    QueryError,
)
from harmonywatch.analysis.moments import Value


class Table(msgspec.Struct, frozen=True):
    """A Plan on its way: `schema` is Arrow's own form, in base64."""

    files: list[str]
    bytes: int
    schema: str


class Parameter(msgspec.Struct, frozen=True):
    """A typed value; times are RFC 3339 text. `kind`: timestamp, date or plain."""

    kind: str
    value: str | int | float | bool | None


class Job(msgspec.Struct, frozen=True):
    """One query."""

    sql: str
    parameters: dict[str, Parameter]
    tables: dict[str, Table]
    limits: Limits
    spill_folder: str


class Ending(msgspec.Struct, frozen=True):
    """How a query ended: `done`, or the kind of the error with its facts."""

    kind: str
    reason: str = ""
    line: int | None = None
    column: int | None = None
    near: str = ""


def packed(plans: Mapping[str, Plan]) -> dict[str, Table]:
    return {
        name: Table(plan.files, plan.bytes, base64.b64encode(plan.schema.serialize()).decode())
        for name, plan in plans.items()
    }


def unpacked(tables: Mapping[str, Table]) -> dict[str, Plan]:
    return {
        name: Plan(table.files, table.bytes, pa.ipc.read_schema(pa.py_buffer(base64.b64decode(table.schema))))
        for name, table in tables.items()
    }


def packed_value(value: Value) -> Parameter:
    if isinstance(value, datetime):
        return Parameter("timestamp", value.isoformat())
    if isinstance(value, date):
        return Parameter("date", value.isoformat())
    return Parameter("plain", value)


def unpacked_value(parameter: Parameter) -> Value:
    if parameter.kind == "timestamp":
        return datetime.fromisoformat(str(parameter.value))
    if parameter.kind == "date":
        return date.fromisoformat(str(parameter.value))
    return parameter.value


def ending_of(error: QueryError) -> Ending:
    """The error, for the wire."""
    if isinstance(error, BadQuery):
        return Ending("bad-query", error.reason, error.line, error.column, error.near)
    if isinstance(error, Deadline):
        return Ending("deadline")
    if isinstance(error, OutOfMemory):
        return Ending("out-of-memory")
    return Ending("failed", str(error))


def error_of(ending: Ending, limits: Limits) -> QueryError | None:
    """The error that the wire told of; None if all went well."""
    if ending.kind == "done":
        return None
    if ending.kind == "bad-query":
        return BadQuery(ending.reason, ending.line, ending.column, ending.near)
    if ending.kind == "deadline":
        return Deadline(limits.deadline_s)
    if ending.kind == "out-of-memory":
        return OutOfMemory(limits.memory)
    return EngineFailed(ending.reason)
