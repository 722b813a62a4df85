"""Records -> rows of the lake, in columns, in two steps: what each record says as it comes in (`Forms`), and what only
a whole commit knows (`report_rows` and its like): which records are repeats, and the tokens of everybody in it.

The records' own structs say what is read; here they are only made stricter. A name leaves here as a token; between
the two steps it is a number (`tokens.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from h3ronpy import cells_to_string  # type: ignore[import-untyped]
from h3ronpy.vector import coordinates_to_cells  # type: ignore[import-untyped]
from msgspec import Meta

from harmonywatch.archive.decoding import Form, columns_of, words_column
from harmonywatch.archive.schema import ALERTS_SCHEMA, CITIZEN, REJECTS_SCHEMA, REPORTS_SCHEMA
from harmonywatch.archive.sealing import Sealer
from harmonywatch.archive.tokens import Tokens, Who
from harmonywatch.report.record import ReportRecord
from harmonywatch.report.topics import AlertRecord, RejectRecord
from harmonywatch.report.words import Citizen

pc: Any = pyarrow.compute  # its stubs know too few of its overloads
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
H3_RESOLUTION = 9

Version = Annotated[int, Meta(ge=1)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]


class ReportIn(ReportRecord, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A report as it is archived: words stay JSON until they are columns."""

    v: Version
    lat: Latitude
    lon: Longitude
    words: msgspec.Raw  # type: ignore[assignment]


class AlertIn(AlertRecord, kw_only=True, gc=False, forbid_unknown_fields=True):
    """An alert as it is archived."""

    v: Version
    lat: Latitude
    lon: Longitude


class RejectIn(RejectRecord, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A reject as it is archived: its bytes are out of their base64."""

    v: Version
    bytes: bytes  # type: ignore[assignment]


_OF_THE_COMMIT = ("repeat", "conflict", "topic", "partition", "offset", "day")
_MADE = ("h3", "citizens", "citizen", "citizen_sealed", "words", "bytes", *_OF_THE_COMMIT)
NUMBER = pa.field("number", pa.int32())


class Forms:
    """How the records of one force become columns."""

    def __init__(self, sealer: Sealer, tokens: Tokens) -> None:
        self._sealer, self._tokens = sealer, tokens
        self.report = Form(ReportIn, self._reports)
        self.alert = Form(AlertIn, self._alerts)
        self.reject = Form(RejectIn, self._rejects)

    def _reports(self, records: Sequence[ReportIn]) -> pa.Table:
        columns = _said(records, REPORTS_SCHEMA)
        columns["h3"] = cells(columns["lat"], columns["lon"])
        columns["words"] = words_column([record.words for record in records])
        seen = [citizen for record in records for citizen in record.citizens]
        numbers = self._tokens.number(_whom(seen))
        fields = [CITIZEN.field("harmonyscore"), CITIZEN.field("confidence")]
        parts = columns_of(seen, {field.name: (field.name, field.type) for field in fields}).values()
        columns["citizens"] = _lists(
            [len(record.citizens) for record in records], _struct([pa.array(numbers), *parts], [NUMBER, *fields])
        )
        return pa.table(columns)

    def _alerts(self, records: Sequence[AlertIn]) -> pa.Table:
        columns = _said(records, ALERTS_SCHEMA)
        columns["h3"] = cells(columns["lat"], columns["lon"])
        return pa.table(columns | {"number": pa.array(self._tokens.number(_whom(records)))})

    def _rejects(self, records: Sequence[RejectIn]) -> pa.Table:
        columns = _said(records, REJECTS_SCHEMA)
        sealed = [self._sealer.seal_bytes(record.bytes, record.reject_id) for record in records]
        columns["bytes"] = pa.array(sealed, pa.binary())
        return pa.table(columns)


def _whom(citizens: Sequence[Citizen | AlertIn]) -> list[Who]:
    return [each.name if each.citizen_id is None else (each.name, each.citizen_id) for each in citizens]


def _said(records: Sequence[Any], schema: pa.Schema) -> dict[str, Any]:
    """The columns that are members of the records, as they stand."""
    fields = [field for field in schema if field.name not in _MADE]
    return columns_of(records, {field.name: (field.name.removeprefix("origin_"), field.type) for field in fields})


def report_rows(table: pa.Table, marks: tuple[Flags, Flags], tokens: Tokens) -> pa.Table:
    """Rows of `reports`, in one chunk. `marks`: which are repeats, which are conflicts."""
    repeat, conflict = marks
    columns = _columns_of(table, day_of="time")
    columns["repeat"], columns["conflict"] = pa.array(repeat), pa.array(conflict)
    if repeat.any():
        columns = {
            name: column if name in _KEPT_OF_A_REPEAT else _blank(column, repeat) for name, column in columns.items()
        }
    columns["citizens"] = _with_tokens(_whole(columns["citizens"]), tokens)
    return pa.table([columns[name] for name in REPORTS_SCHEMA.names], names=REPORTS_SCHEMA.names)


_KEPT_OF_A_REPEAT = frozenset(
    {
        "report_id", "watcher_id", "time", "received_at", "clock_suspect", "repeat", "conflict", "identity", "content",
        "partition", "offset", "day",
    }
)  # fmt: skip


def _blank(column: Any, repeat: Flags) -> Any:
    """The column without what repeats say: their content is stored already, their rows say only that they came."""
    column = _whole(column)
    if not pa.types.is_list(column.type):
        return pc.if_else(pa.array(~repeat), column, pa.scalar(None, column.type))
    offsets, again = np.asarray(column.offsets), np.flatnonzero(repeat)
    lengths = np.diff(offsets)
    lengths[again] = 0
    starts, ends = [0, *offsets[again + 1].tolist()], [*offsets[again].tolist(), offsets[-1]]
    kept = [column.values.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]
    return _lists(lengths, pa.concat_arrays(kept), mask=pa.array(repeat))


def _whole(column: Any) -> Any:
    """As one array that begins at its first element."""
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _with_tokens(citizens: Any, tokens: Tokens) -> Any:
    seen = citizens.values
    parts = [*tokens.columns(np.asarray(seen.field(0))), seen.field(1), seen.field(2)]
    fields = [pa.field(field.name, part.type) for field, part in zip(CITIZEN, parts, strict=True)]
    mask = citizens.is_null() if citizens.null_count else None
    return pa.ListArray.from_arrays(citizens.offsets, _struct(parts, fields), mask=mask)


def alert_rows(table: pa.Table, repeat: Flags, tokens: Tokens) -> pa.Table:
    """Rows of `alerts`."""
    columns = _columns_of(table, day_of="time")
    columns["citizen"], columns["citizen_sealed"] = tokens.columns(np.asarray(columns.pop("number")))
    columns["repeat"] = pa.array(repeat)
    return pa.table([columns[name] for name in ALERTS_SCHEMA.names], names=ALERTS_SCHEMA.names)


def reject_rows(table: pa.Table, topic: str) -> pa.Table:
    """Rows of `rejects` from records of its own topic."""
    columns = _columns_of(table, day_of="received_at")
    columns["topic"] = pa.array([topic] * table.num_rows, pa.string())
    return pa.table([columns[name] for name in REJECTS_SCHEMA.names], names=REJECTS_SCHEMA.names)


def poison_rows(records: list[RejectRecord], values: list[bytes], sealer: Sealer) -> pa.Table:
    """Rows of `rejects` for records that could not be decoded: `records` say which, `values` are their bytes."""
    columns = _said(records, REJECTS_SCHEMA)
    columns |= {name: columns[f"origin_{name}"] for name in ("topic", "partition", "offset")}
    sealed = [sealer.seal_bytes(value, record.reject_id) for record, value in zip(records, values, strict=True)]
    columns |= {"bytes": pa.array(sealed, pa.binary()), "day": columns["received_at"].cast(pa.date32())}
    return pa.table([columns[name] for name in REJECTS_SCHEMA.names], schema=REJECTS_SCHEMA)


def _columns_of(table: pa.Table, day_of: str) -> dict[str, Any]:
    columns = {name: table[name] for name in table.column_names}
    return columns | {"day": columns[day_of].cast(pa.date32())}


def cells(lat: Any, lon: Any) -> Any:
    """H3 cells of resolution 9 as hexadecimal text."""
    if not len(lat):
        return pa.array([], pa.string())
    found = coordinates_to_cells(np.asarray(lat), np.asarray(lon), H3_RESOLUTION)
    return pa.array(cells_to_string(found)).cast(pa.string())


def _struct(parts: list[Any], fields: list[pa.Field[Any]]) -> Any:
    return pa.StructArray.from_arrays(parts, fields=fields)


def _lists(lengths: Sequence[int] | npt.NDArray[np.int32], elements: Any, mask: Any = None) -> Any:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    lists: Any = pa.ListArray
    return lists.from_arrays(pa.array(offsets), elements, mask=mask)
