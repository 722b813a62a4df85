"""Records -> rows of the lake, in columns: no loop over records, only over distinct citizens.

A name leaves here as a token. Where a form is described (`REPORT`, `ALERT`, `REJECT`), the record's own struct is the
truth: a test holds the two together.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
from h3ronpy import cells_to_string  # type: ignore[import-untyped]
from h3ronpy.vector import coordinates_to_cells  # type: ignore[import-untyped]

from harmonywatch.archive.decoding import Decoded, Flags, Form, Ints, finite_elements, outside, rows_with
from harmonywatch.archive.schema import ALERTS_SCHEMA, CITIZEN, REJECTS_SCHEMA, REPORTS_SCHEMA, TIME
from harmonywatch.archive.sealing import Sealer
from harmonywatch.report.record import ReportRecord
from harmonywatch.report.topics import AlertRecord, RejectRecord

pc: Any = pyarrow.compute  # its stubs know too few of its overloads
H3_RESOLUTION = 9
_TEXT, _NUMBER, _WHOLE, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()

_SEEN: list[pa.Field[Any]] = [
    pa.field("name", _TEXT),
    pa.field("harmonyscore", _NUMBER),
    pa.field("citizen_id", _TEXT),
    pa.field("confidence", _NUMBER),
]
_REPORT_MEMBERS: dict[str, Any] = {
    "v": _WHOLE, "force": _TEXT, "report_id": _TEXT, "watcher_id": _TEXT, "lat": _NUMBER, "lon": _NUMBER,
    "citizens": pa.list_(pa.struct(_SEEN)), "words": pa.list_(_TEXT), "device_time": TIME, "sequence": _WHOLE,
    "accuracy_m": _NUMBER, "altitude_m": _NUMBER, "heading_deg": _NUMBER, "speed_mps": _NUMBER, "battery": _NUMBER,
    "signal_dbm": _NUMBER, "firmware": _TEXT, "model": _TEXT, "schema_version": _TEXT, "extra": _TEXT, "time": TIME,
    "received_at": TIME, "content": _WHOLE, "clock_suspect": _FLAG, "identity": _WHOLE,
}  # fmt: skip
_ALERT_MEMBERS: dict[str, Any] = {
    "v": _WHOLE, "alert_id": _TEXT, "force": _TEXT, "rule": _TEXT, "report_id": _TEXT, "watcher_id": _TEXT,
    "place": pa.int32(), "identity": _TEXT, "name": _TEXT, "harmonyscore": _NUMBER, "lat": _NUMBER, "lon": _NUMBER,
    "time": TIME, "received_at": TIME, "judged_at": TIME, "citizen_id": _TEXT, "confidence": _NUMBER,
    "clock_suspect": _FLAG,
}  # fmt: skip
_REJECT_MEMBERS: dict[str, Any] = {
    "v": _WHOLE, "reject_id": _TEXT, "force": _TEXT, "source": _TEXT, "sender": _TEXT, "received_at": TIME,
    "code": _TEXT, "pointer": _TEXT, "reason": _TEXT, "bytes": _TEXT, "line": _WHOLE, "topic": _TEXT,
    "partition": pa.int32(), "offset": _WHOLE,
}  # fmt: skip


def _nowhere(table: pa.Table) -> Flags:
    return outside(table["lat"], -90, 90) | outside(table["lon"], -180, 180)


def _wrong_report(table: pa.Table) -> Flags:
    citizens, words = table["citizens"].combine_chunks(), table["words"].combine_chunks()
    seen, heard = pc.list_flatten(citizens), pc.list_flatten(words)
    faulty = ~finite_elements(pc.struct_field(seen, "harmonyscore")) | _null(pc.struct_field(seen, "name"))
    faulty |= _null(seen)
    return _nowhere(table) | rows_with(citizens, faulty) | rows_with(words, _null(heard))


def _wrong_reject(table: pa.Table) -> Flags:
    """Bytes that are no base64; a reject is rare, so one by one."""
    return np.array([not _is_base64(text) for text in table["bytes"].to_pylist()], np.bool_)


def _is_base64(text: str | None) -> bool:
    try:
        msgspec.convert(text, bytes)
    except (msgspec.ValidationError, ValueError):
        return False
    return True


def _null(column: Any) -> Flags:
    return np.asarray(pc.is_null(column)).astype(np.bool_, copy=False)


def _required(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind) if field.required)


REPORT = Form(
    pa.schema(_REPORT_MEMBERS), _required(ReportRecord), _wrong_report, msgspec.json.Decoder(ReportRecord).decode
)
ALERT = Form(pa.schema(_ALERT_MEMBERS), _required(AlertRecord), _nowhere, msgspec.json.Decoder(AlertRecord).decode)
REJECT = Form(
    pa.schema(_REJECT_MEMBERS), _required(RejectRecord), _wrong_reject, msgspec.json.Decoder(RejectRecord).decode
)


def report_rows(
    decoded: Decoded, partition: Ints, offset: Ints, marks: tuple[Flags, Flags], sealer: Sealer
) -> pa.Table:
    """Rows of `reports`. `partition`, `offset`: of each row; `marks`: which are repeats, which are conflicts."""
    table, (repeat, conflict) = decoded.table, marks
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in REPORTS_SCHEMA.names}
    columns |= _stamped(table["time"], partition, offset)
    columns["h3"] = cells(table["lat"], table["lon"])
    columns["clock_suspect"] = pc.fill_null(table["clock_suspect"], False)
    columns["citizens"] = _sealed_citizens(table["citizens"].combine_chunks(), sealer)
    columns["repeat"], columns["conflict"] = pa.array(repeat), pa.array(conflict)
    rows = pa.table([columns[name] for name in REPORTS_SCHEMA.names], schema=REPORTS_SCHEMA)
    return _without_payload(rows, repeat) if repeat.any() else rows


_KEPT_OF_A_REPEAT = frozenset(
    {
        "report_id", "watcher_id", "time", "received_at", "clock_suspect", "repeat", "conflict", "identity", "content",
        "partition", "offset", "day",
    }
)  # fmt: skip


def _without_payload(rows: pa.Table, repeat: Flags) -> pa.Table:
    """A repeat's content is stored already: its row says only that it came, when, and which record it was."""
    said, again = rows.filter(pa.array(~repeat)), rows.filter(pa.array(repeat))
    for place, field in enumerate(rows.schema):
        if field.name not in _KEPT_OF_A_REPEAT:
            again = again.set_column(place, field, pa.nulls(len(again), field.type))
    return pa.concat_tables([said, again])


def alert_rows(decoded: Decoded, partition: Ints, offset: Ints, repeat: Flags, sealer: Sealer) -> pa.Table:
    """Rows of `alerts`."""
    table = decoded.table
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in ALERTS_SCHEMA.names}
    columns |= _stamped(table["time"], partition, offset)
    columns["h3"] = cells(table["lat"], table["lon"])
    columns["clock_suspect"] = pc.fill_null(table["clock_suspect"], False)
    citizen, sealed = _tokens(table["name"].combine_chunks(), table["citizen_id"].combine_chunks(), sealer)
    columns["citizen"], columns["citizen_sealed"], columns["repeat"] = citizen, sealed, pa.array(repeat)
    return pa.table([columns[name] for name in ALERTS_SCHEMA.names], schema=ALERTS_SCHEMA)


def reject_rows(decoded: Decoded, topic: str, partition: Ints, offset: Ints, sealer: Sealer) -> pa.Table:
    """Rows of `rejects` from records of its own topic."""
    table = decoded.table
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in REJECTS_SCHEMA.names}
    for name in ("topic", "partition", "offset"):
        columns[f"origin_{name}"] = table[name]
    columns |= _stamped(table["received_at"], partition, offset)
    columns["topic"] = pa.array([topic] * table.num_rows, pa.string())
    clear = (msgspec.convert(text, bytes) for text in table["bytes"].to_pylist())
    ids: list[Any] = table["reject_id"].to_pylist()
    sealed = [sealer.seal_bytes(each, reject_id) for each, reject_id in zip(clear, ids, strict=True)]
    columns["bytes"] = pa.array(sealed, pa.binary())
    return pa.table([columns[name] for name in REJECTS_SCHEMA.names], schema=REJECTS_SCHEMA)


def poison_rows(records: list[RejectRecord], values: list[bytes], sealer: Sealer) -> pa.Table:
    """Rows of `rejects` for records that could not be decoded: `records` say which, `values` are their bytes."""
    whole = [msgspec.structs.asdict(record) for record in records]
    columns: dict[str, Any] = {
        name: pa.array([each[name] for each in whole], REJECTS_SCHEMA.field(name).type)
        for name in REJECTS_SCHEMA.names
        if name in RejectRecord.__struct_fields__ and name not in ("bytes", "received_at")
    }
    received = pc.cast(pc.strptime([each["received_at"] for each in whole], "%Y-%m-%dT%H:%M:%S", "us"), TIME)
    sealed = [sealer.seal_bytes(value, record.reject_id) for record, value in zip(records, values, strict=True)]
    columns |= {"received_at": received, "day": received.cast(pa.date32()), "bytes": pa.array(sealed, pa.binary())}
    for name in ("topic", "partition", "offset"):
        columns[f"origin_{name}"] = columns[name]
    return pa.table([columns[name] for name in REJECTS_SCHEMA.names], schema=REJECTS_SCHEMA)


def _stamped(time: Any, partition: Ints, offset: Ints) -> dict[str, Any]:
    return {
        "partition": pa.array(partition.astype(np.int32)),
        "offset": pa.array(offset),
        "day": time.cast(pa.date32()),
    }


def cells(lat: Any, lon: Any) -> Any:
    """H3 cells of resolution 9 as hexadecimal text."""
    if not len(lat):
        return pa.array([], pa.string())
    found = coordinates_to_cells(np.asarray(lat), np.asarray(lon), H3_RESOLUTION)
    return pa.array(cells_to_string(found)).cast(pa.string())


def _sealed_citizens(citizens: Any, sealer: Sealer) -> Any:
    seen = pc.list_flatten(citizens)
    field = pc.struct_field
    citizen, sealed = _tokens(field(seen, "name"), field(seen, "citizen_id"), sealer)
    parts = [citizen, sealed, field(seen, "harmonyscore"), field(seen, "confidence")]
    lengths = pc.fill_null(pc.list_value_length(citizens), 0)
    offsets = np.concatenate(([0], np.cumsum(np.asarray(lengths), dtype=np.int64))).astype(np.int32)
    lists: Any = pa.ListArray
    return lists.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(parts, fields=list(CITIZEN)))


def _tokens(names: Any, ids: Any, sealer: Sealer) -> tuple[Any, Any]:
    """Tokens and sealed names of a column of citizens; each distinct (name, id) is sealed once."""
    name_codes, id_codes = names.dictionary_encode(), ids.dictionary_encode()
    known_ids = [*id_codes.dictionary.to_pylist(), None]
    of_id = np.asarray(pc.fill_null(id_codes.indices, len(known_ids) - 1), dtype=np.int64)
    pairs = np.asarray(name_codes.indices, dtype=np.int64) * len(known_ids) + of_id
    distinct, inverse = np.unique(pairs, return_inverse=True)
    known_names = name_codes.dictionary.to_pylist()
    tokens = [
        sealer.token(known_names[name], known_ids[citizen_id])
        for name, citizen_id in zip(
            (distinct // len(known_ids)).tolist(), (distinct % len(known_ids)).tolist(), strict=True
        )
    ]
    at: Any = pa.array(inverse)
    citizen = pa.array([token for token, _ in tokens], pa.string()).take(at)
    return citizen, pa.array([sealed for _, sealed in tokens], pa.string()).take(at)
