"""An answer as text or file, batch by batch: table, json, csv, parquet. Nothing holds more than a batch (parquet: than a
row group).

Times are RFC 3339 in UTC with microseconds and Z, as everywhere in the product. In json and csv a nested value is JSON;
NaN and the infinities, which JSON has no word for, are null in json, and `NaN`, `Infinity` in csv.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from io import IOBase
from typing import Any, BinaryIO, Literal, Protocol, cast

import msgspec
import pyarrow as pa

from harmonywatch.clock import to_wire

Format = Literal["table", "json", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv", "parquet")

ROW_GROUP_ROWS = 100_000
COLUMN_WIDTH_MAX = 48
"""A wider value is written whole, and only its own row is out of line."""

_JSON = msgspec.json.Encoder(decimal_format="number")


class Batches(Protocol):
    """What can be written: an Answer, or anything like it."""

    @property
    def schema(self) -> pa.Schema: ...

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


def write(answer: Batches, form: Format, out: BinaryIO) -> int:
    """Writes the whole answer; the number of rows. Raises QueryError where the answer does, OSError where `out` does."""
    return _WRITERS[form](answer, out)


def _write_json(answer: Batches, out: BinaryIO) -> int:
    rows = 0
    for batch in answer:
        names = batch.schema.names
        columns = [plain_column(column) for column in batch.columns]
        lines = [_JSON.encode(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
        if lines:
            out.write(b"\n".join(lines) + b"\n")
        rows += batch.num_rows
    return rows


def _write_csv(answer: Batches, out: BinaryIO) -> int:
    out.write((",".join(_csv_quoted(name) for name in answer.schema.names) + "\r\n").encode())
    rows = 0
    for batch in answer:
        columns = [[_csv_field(value) for value in plain_column(column)] for column in batch.columns]
        lines = [",".join(fields) for fields in zip(*columns, strict=True)]
        if lines:
            out.write(("\r\n".join(lines) + "\r\n").encode())
        rows += batch.num_rows
    return rows


def _write_parquet(answer: Batches, out: BinaryIO) -> int:
    import pyarrow.parquet as pq

    rows, waiting, waiting_rows = 0, [], 0
    with pq.ParquetWriter(pa.PythonFile(cast(IOBase, out), "w"), answer.schema, compression="zstd") as writer:
        for batch in answer:
            waiting.append(batch)
            waiting_rows += batch.num_rows
            if waiting_rows >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting, answer.schema))
                rows, waiting, waiting_rows = rows + waiting_rows, [], 0
        writer.write_table(pa.Table.from_batches(waiting, answer.schema))
    return rows + waiting_rows


def _write_table(answer: Batches, out: BinaryIO) -> int:
    names = answer.schema.names
    right = [_is_number(field.type) for field in answer.schema]
    widths: list[int] = []
    rows = 0
    for batch in answer:
        columns = [[_cell(value) for value in plain_column(column)] for column in batch.columns]
        if not widths:
            widths = [
                max(len(name), *(min(len(cell), COLUMN_WIDTH_MAX) for cell in column or ("",)))
                for name, column in zip(names, columns, strict=True)
            ]
            out.write(_heading(names, widths, right))
        lines = [_line(cells, widths, right) for cells in zip(*columns, strict=True)]
        out.write("".join(lines).encode())
        rows += batch.num_rows
    if not widths:
        out.write(_heading(names, [len(name) for name in names], right))
    return rows


def _heading(names: list[str], widths: list[int], right: list[bool]) -> bytes:
    rule = "  ".join("-" * width for width in widths)
    return (_line(tuple(names), widths, right) + rule + "\n").encode()


def _line(cells: tuple[str, ...], widths: list[int], right: list[bool]) -> str:
    padded = (
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(padded).rstrip() + "\n"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else _json_text(value)
    # One row, one line; and nothing a citizen or watcher said may steer the reader's terminal.
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _csv_field(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _csv_quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return _csv_quoted(_json_text(value))


def _csv_quoted(text: str) -> str:
    """The empty text is quoted, to be told from null."""
    if text == "" or any(mark in text for mark in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _json_text(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = _JSON.encode(value).decode()
    return text[1:-1] if isinstance(value, bytes) else text


def plain_column(column: pa.Array[Any]) -> list[Any]:
    """The column's values as JSON has them: times as text; whole numbers beyond a double stay whole."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    values = column.to_pylist(maps_as_pydicts=None)
    convert = _converter(column.type)
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What turns values of the type into JSON's; None where they are that already."""
    types = pa.types
    if types.is_timestamp(kind):
        return _moment
    if types.is_nested(kind) or types.is_temporal(kind) or types.is_decimal(kind):
        return _plain
    return None


def _moment(value: datetime) -> str:
    return to_wire(value) if value.tzinfo is not None else value.isoformat(timespec="microseconds")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, date | clock_time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else value
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, pa.MonthDayNano):
        return {"months": value.months, "days": value.days, "nanoseconds": value.nanoseconds}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


_WRITERS: dict[Format, Callable[[Batches, BinaryIO], int]] = {
    "table": _write_table,
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
