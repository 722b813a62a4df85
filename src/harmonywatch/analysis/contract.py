"""What analysis asks of others, and how it fails.

*Catalog*: who knows the lake's files (the archive, put here by assemble). *Plan*: the files of one table that may hold
rows of a span of days. *Days*: such a span, both ends included, None = open. The promise that everything rests on: a
table is partitioned by `day`, the UTC date of its `time` (of `received_at` for rejects), so that a file outside the
days of a filter holds no row that passes it.

Errors, by who must act: `BadQuery` the analyst (with the place, where it is known), `Deadline` and `OutOfMemory` the
analyst too, by asking for less, `EngineFailed` nobody but us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

EngineName = Literal["duckdb", "spark"]
ENGINES: tuple[EngineName, ...] = ("duckdb", "spark")

REPORTS, ALERTS, REJECTS = "reports", "alerts", "rejects"
TABLES = (REPORTS, ALERTS, REJECTS)

TABLE_OF_VIEW = {
    "reports": REPORTS, "sightings": REPORTS, "heard": REPORTS, "repeats": REPORTS, "alerts": ALERTS, "rejects": REJECTS,
}  # fmt: skip
"""Every view that a query may name, with the table it reads."""

TIME_COLUMNS = {
    "reports": ("time", "day"), "sightings": ("time",), "heard": ("time",), "repeats": ("time",),
    "alerts": ("time", "day"), "rejects": ("received_at", "day"),
}  # fmt: skip
"""The columns of each view whose value fixes the day of the row's file."""


@dataclass(frozen=True, slots=True)
class Days:
    """A span of UTC days, both ends included; None = open."""

    first: date | None = None
    last: date | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Files of one table, as DuckDB may open them; `bytes` on disk together; `schema` of the whole table, `day` included,
    also when there is no file yet."""

    files: list[str]
    bytes: int
    schema: pa.Schema


class Planned(Protocol):
    """What a catalog answers with: anything that reads like a Plan."""

    @property
    def files(self) -> list[str]: ...

    @property
    def bytes(self) -> int: ...

    @property
    def schema(self) -> pa.Schema: ...


class Catalog(Protocol):
    """The lake's files. Reads one snapshot; any thread may call."""

    def plan(self, force: str, table: str, first_day: date | None, last_day: date | None) -> Planned:
        """The files of `table` (reports, alerts or rejects) with first_day <= day <= last_day. No table yet: no files."""

    def where(self, force: str, table: str) -> str:
        """The folder or URL of a table, whether it is there yet or not."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may take, and on which engine. `memory` as DuckDB writes it; `nice` is the priority given up to the
    alert path; `spark_properties`: a file in Spark's own form (master, archives, the store's credentials), "" = none;
    `store`: what S3 clients read from the environment (AWS_...), for a lake that is not a folder."""

    deadline_s: float = 60.0
    memory: str = "2GB"
    threads: int = 2
    nice: int = 10
    engine: EngineName = "duckdb"
    spark_properties: str = ""
    store: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine may use: memory as DuckDB writes it, threads, a folder to spill into, and how to reach the store."""

    memory: str
    threads: int
    spill_folder: str
    deadline_s: float
    store: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a query will read: days (distinct, of all tables; None = open towards the past or future), files, bytes."""

    days: tuple[tuple[str, Days], ...]
    files: int
    bytes: int


class QueryError(Exception):
    """Anything a query can fail with."""


class BadQuery(QueryError):
    """The analyst's text is refused or wrong. `line` and `column` count from 1; `near` is the text found there."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None, near: str = "") -> None:
        place = f" (line {line}, column {column}{f', near {near!r}' if near else ''})" if line is not None else ""
        super().__init__(reason + place)
        self.reason, self.line, self.column, self.near = reason, line, column, near


class Deadline(QueryError):
    """The query ran longer than it may."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"stopped after {deadline_s:g} s: ask for fewer days, or for a longer deadline")
        self.deadline_s = deadline_s


class OutOfMemory(QueryError):
    """The query needs more memory than it may take."""

    def __init__(self, memory: str) -> None:
        super().__init__(f"needs more than {memory} of memory: ask for fewer days or rows, or for more memory")
        self.memory = memory


class EngineFailed(QueryError):
    """The engine ended without an answer, for a reason that is not the query's text."""
