"""Records of one topic -> one Arrow table, with the poison set apart. Pure.

1. Each value is read by the exact decoder of its record; what that refuses is poison. So no record can spoil another.
2. Columns are made of many records at once. A record that fits its struct and no column (a time that is none, a number
   beyond 64 bits) makes them fail, and is found by bisecting.
3. A record of a greater version is no poison: it stops the archiver (`NewerRecord`), nothing of its batch is stored.

Words are more than half of a report's bytes, and nobody here looks at them: they pass from JSON to Arrow as bytes,
without a Python object for each (`words_column`).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harmonywatch.report.record import VERSION

Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_UNFIT = (pa.ArrowException, OverflowError, ValueError, msgspec.DecodeError)


class NewerRecord(Exception):
    """A record's version is greater than this program knows. Update the archiver; nothing was skipped."""

    def __init__(self, version: int) -> None:
        super().__init__(f"a record has version {version}; this program reads up to {VERSION}. Update it first")
        self.version = version


@dataclass(frozen=True, slots=True)
class Form:
    """What the records of a topic look like: their struct (with `v` and `force`), and how many of them become columns.
    `columns` raises pa.ArrowException, OverflowError, ValueError or msgspec.DecodeError if a record does not fit."""

    kind: type[msgspec.Struct]
    columns: Callable[[Sequence[Any]], pa.Table]


@dataclass(frozen=True, slots=True)
class Decoded:
    """`table`: the good records in order; `index`: which value each row was; `poison`: the other values' indices."""

    table: pa.Table
    index: Ints
    poison: list[int]


class Decoder:
    """Reads the records of one force in one form."""

    def __init__(self, force: str, form: Form) -> None:
        self._force, self._columns = force, form.columns
        self._read = msgspec.json.Decoder(form.kind).decode

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Some thousand at a time are cheapest. Raises NewerRecord."""
        with _uncollected():
            return self._decode(values)

    def _decode(self, values: Sequence[bytes]) -> Decoded:
        read = self._read
        try:
            records: list[Any] = [read(value) for value in values]
            index, poison = np.arange(len(values)), list[int]()
        except _UNREADABLE:
            records, index, poison = self._one_by_one(values)
        if any(record.v > VERSION for record in records):
            raise NewerRecord(max(record.v for record in records))
        if any(record.force != self._force for record in records):
            own = np.array([record.force == self._force for record in records], np.bool_)
            poison += index[~own].tolist()
            records, index = [record for record in records if record.force == self._force], index[own]
        tables: list[pa.Table] = []
        unfit: list[int] = []
        self._bisect(records, 0, tables, unfit)
        poison += index[unfit].tolist()
        table = pa.concat_tables(tables) if tables else self._columns([])
        return Decoded(table, np.delete(index, unfit), sorted(poison))

    def _one_by_one(self, values: Sequence[bytes]) -> tuple[list[Any], Ints, list[int]]:
        records, index, poison = [], [], []
        for number, value in enumerate(values):
            try:
                records.append(self._read(value))
                index.append(number)
            except _UNREADABLE:
                _refuse_newer(value)
                poison.append(number)
        return records, np.array(index, np.int64), poison

    def _bisect(self, records: Sequence[Any], first: int, tables: list[pa.Table], unfit: list[int]) -> None:
        if not records:
            return
        try:
            tables.append(self._columns(records))
        except _UNFIT:
            if len(records) == 1:
                unfit.append(first)
                return
            half = len(records) // 2
            self._bisect(records[:half], first, tables, unfit)
            self._bisect(records[half:], first + half, tables, unfit)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Lists and tuples by the thousand, gone at once and without a cycle: the collector's looking through them, and through
    all that lives, would be a fifth of the work."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Versioned(msgspec.Struct):
    v: int = 0


_VERSIONED = msgspec.json.Decoder(_Versioned)
_WORDS = msgspec.json.Decoder(list[str])


def _refuse_newer(value: bytes) -> None:
    try:
        version = _VERSIONED.decode(value).v
    except _UNREADABLE:
        return
    if version > VERSION:
        raise NewerRecord(version)


def columns_of(records: Sequence[Any], wanted: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Members of the records as Arrow arrays. `wanted`: by name of the column, the member and its type; times are text
    until here."""
    members = zip(*map(attrgetter(*(member for member, _ in wanted.values())), records), strict=True)
    values = list(members) if records else [()] * len(wanted)
    return {name: _array(each, kind) for (name, (_, kind)), each in zip(wanted.items(), values, strict=True)}


def _array(values: tuple[Any, ...], kind: Any) -> Any:
    return pa.array(values, pa.string()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(values, kind)


def words_column(texts: Sequence[msgspec.Raw]) -> Any:
    """JSON arrays of texts -> a column of lists of texts. Raises msgspec.DecodeError, pa.ArrowException."""
    plain = _plain_words(texts)
    return _escaped_words(texts) if plain is None else plain


def _plain_words(texts: Sequence[msgspec.Raw]) -> Any:
    """Without a Python object for each word; None unless the arrays hold nothing but texts without escapes, and none of the
    four signs of their frame in a text: then there are two quotes a word, a comma between two, and what is left when the
    signs are taken away is the words."""
    raw = b"".join(texts)
    if b"\\" in raw or not raw.count(b"[") == raw.count(b"]") == len(texts):
        return None
    raw.decode()  # raises ValueError: Arrow would not look
    signs = np.frombuffer(raw, np.uint8)
    lengths = np.fromiter((memoryview(text).nbytes for text in texts), np.int64, len(texts))
    quotes = np.flatnonzero(signs == ord('"'))
    upto = np.searchsorted(quotes, np.cumsum(lengths))
    commas = np.count_nonzero(signs == ord(","))
    if commas != len(quotes) // 2 - np.count_nonzero(lengths > len("[]")) or (upto % 2).any():
        return None
    ends = np.cumsum(quotes[1::2] - quotes[::2] - 1)
    data = raw.translate(None, b'"[],')
    if len(data) != (ends[-1] if len(ends) else 0):
        return None
    words: Any = pa.StringArray.from_buffers(len(ends), _offsets(ends), pa.py_buffer(data))
    lists: Any = pa.Array.from_buffers(pa.list_(pa.string()), len(texts), [None, _offsets(upto // 2)], children=[words])
    return lists


def _offsets(ends: Ints) -> pa.Buffer:
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends
    return pa.py_buffer(offsets.data)


def _escaped_words(texts: Sequence[msgspec.Raw]) -> Any:
    return pa.array([_WORDS.decode(text) for text in texts], pa.list_(pa.string()))
