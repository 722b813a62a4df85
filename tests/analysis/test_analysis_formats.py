"""Answers as table, json, csv and parquet: every row, every type, nothing lost on the way that the form can hold."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harmonywatch.analysis.formats import FORMATS, Format, write

MOMENT = datetime(2026, 11, 23, 18, 4, 5, 123, tzinfo=UTC)


class Made:
    """An answer made by hand, which knows how many of its batches were taken."""

    def __init__(self, *batches: pa.RecordBatch) -> None:
        self.schema = batches[0].schema
        self._batches = batches
        self.taken = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.taken += 1
            yield batch


def batch_of(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def written(form: Format, *batches: pa.RecordBatch) -> bytes:
    out = io.BytesIO()
    assert write(Made(*batches), form, out) == sum(batch.num_rows for batch in batches)
    return out.getvalue()


EVERYTHING = batch_of(
    n=pa.array([1, None, 2**62]),
    x=pa.array([1.5, float("nan"), float("inf")]),
    text=['a "b", c', "", "line\nbreak\x1b[31m"],
    time=pa.array([MOMENT, None, MOMENT + timedelta(microseconds=1)], pa.timestamp("us", "UTC")),
    day=pa.array([date(2026, 11, 23), None, date(1970, 1, 1)]),
    words=pa.array([["a", "b"], [], None], pa.list_(pa.string())),
    who=pa.array([{"citizen": "t", "at": MOMENT}, None, None],
                 pa.struct([("citizen", pa.string()), ("at", pa.timestamp("us", "UTC"))])),
    huge=pa.array([Decimal(10) ** 30, None, Decimal(3)], pa.decimal128(38, 0)),
    exact=pa.array([Decimal("1.50"), None, Decimal("-2.25")], pa.decimal128(6, 2)),
    raw=pa.array([b"\x00\xff", None, b""]),
    yes=[True, False, None],
)  # fmt: skip


def test_json_is_one_object_a_line_with_wire_times_and_null_for_nan() -> None:
    lines = [json.loads(line) for line in written("json", EVERYTHING, EVERYTHING).splitlines()]
    assert len(lines) == 6
    assert lines[0] == {
        "n": 1, "x": 1.5, "text": 'a "b", c', "time": "2026-11-23T18:04:05.000123Z", "day": "2026-11-23",
        "words": ["a", "b"], "who": {"citizen": "t", "at": "2026-11-23T18:04:05.000123Z"}, "huge": 10**30, "exact": 1.5,
        "raw": "AP8=", "yes": True,
    }  # fmt: skip
    assert lines[1]["x"] is None
    assert lines[2]["x"] is None
    assert lines[2]["n"] == 2**62
    assert lines[1]["words"] == []


def test_csv_reads_back_and_tells_null_from_empty() -> None:
    text = written("csv", EVERYTHING).decode()
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(found) == 3
    assert found[0]["text"] == 'a "b", c'
    assert found[0]["time"] == "2026-11-23T18:04:05.000123Z"
    assert json.loads(found[0]["words"]) == ["a", "b"]
    assert found[1]["x"] == "NaN"
    assert found[1]["n"] == ""
    assert ',"",' in text  # the empty text
    assert found[2]["text"] == "line\nbreak\x1b[31m"


def test_parquet_reads_back_the_same() -> None:
    table = pq.read_table(io.BytesIO(written("parquet", EVERYTHING, EVERYTHING)))
    whole = pa.Table.from_batches([EVERYTHING, EVERYTHING])
    assert table.drop(["x"]).equals(whole.drop(["x"]))
    assert table.schema.names == whole.schema.names


def test_a_table_shows_every_row_on_a_line_of_its_own_and_cannot_steer_the_terminal() -> None:
    text = written("table", EVERYTHING, EVERYTHING).decode()
    assert len(text.splitlines()) == 2 + 6
    assert "\x1b" not in text
    assert "2026-11-23T18:04:05.000123Z" in text


def test_columns_line_up() -> None:
    lines = written("table", batch_of(name=["a", "long name"], n=[7, 12345])).decode().splitlines()
    assert lines == ["name           n", "---------  -----", "a              7", "long name  12345"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_answer_still_has_its_columns(form: Format) -> None:
    out = written(form, batch_of(a=pa.array([], pa.int64()), b=pa.array([], pa.string())))
    if form == "parquet":
        assert pq.read_table(io.BytesIO(out)).schema.names == ["a", "b"]
    else:
        assert out.split() == {"json": [], "csv": [b"a,b"], "table": [b"a", b"b", b"-", b"-"]}[form]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_rows_are_written_before_the_next_batch_is_taken(form: Format) -> None:
    made = Made(*[batch_of(n=[number]) for number in range(3)])

    class Watching(io.BytesIO):
        def write(self, data: Any) -> int:
            taken.append(made.taken)
            return super().write(data)

    taken: list[int] = []
    write(made, form, Watching())
    assert sorted(set(taken)) in ([1, 2, 3], [0, 1, 2, 3])
