"""Records of one topic -> one Arrow table, in columns, with the poison set apart. Pure.

pyarrow's JSON reader is fast and sees a block, not records, so these rules keep one row one record:
1. Before it reads, every value must begin with `{`, end with `}` and hold no line feed, and there must be as many rows
   as values after. A value that could hold a bare `null` between two objects is decoded alone first: the reader does
   not survive that one.
2. What makes the block fail is found by bisecting; what it lets through (a member missing, a number not finite, a text
   that is no UTF-8) is found by checks over columns.
3. A record of a greater version is no poison: it stops the archiver (`NewerRecord`), nothing of its batch is stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.json as pj

from harmonywatch.report.record import VERSION

pc: Any = pyarrow.compute  # its stubs know too few of its overloads
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class NewerRecord(Exception):
    """A record's version is greater than this program knows. Update the archiver; nothing was skipped."""

    def __init__(self, version: int) -> None:
        super().__init__(f"a record has version {version}; this program reads up to {VERSION}. Update it first")
        self.version = version


@dataclass(frozen=True, slots=True)
class Form:
    """What the records of a topic look like: the JSON members as Arrow types, those that must be there, what else
    must hold of the columns (`wrong`: table -> True where a row is poison), and an exact decoder of one record."""

    members: pa.Schema
    required: tuple[str, ...]
    wrong: Callable[[pa.Table], Flags]
    decode_one: Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Decoded:
    """`table`: the good records in order; `index`: which value each row was; `poison`: the other values' indices."""

    table: pa.Table
    index: Ints
    poison: list[int]


def decode(values: Sequence[bytes], force: str, form: Form) -> Decoded:
    """Read the records of a batch of one force. Raises NewerRecord."""
    pieces: list[tuple[pa.Table, Ints]] = []
    poison: list[int] = []
    _bisect(values, 0, form, pieces, poison)
    if not pieces:
        return Decoded(form.members.empty_table(), np.empty(0, np.int64), poison)
    table = pa.concat_tables([piece for piece, _ in pieces]).combine_chunks()
    index = np.concatenate([at for _, at in pieces])
    _refuse_newer(table)
    bad = _bad_rows(table, force, form)
    if bad.any():
        poison += index[bad].tolist()
        table, index = table.filter(pa.array(~bad)), index[~bad]
    return Decoded(table, index, sorted(poison))


def _bisect(
    values: Sequence[bytes], first: int, form: Form, pieces: list[tuple[pa.Table, Ints]], poison: list[int]
) -> None:
    if not values:
        return
    table = _read_block(values, form)
    if table is not None:
        pieces.append((table, np.arange(first, first + len(values))))
    elif len(values) == 1:
        _refuse_newer_one(values[0])
        poison.append(first)
    else:
        half = len(values) // 2
        _bisect(values[:half], first, form, pieces, poison)
        _bisect(values[half:], first + half, form, pieces, poison)


def _read_block(values: Sequence[bytes], form: Form) -> pa.Table | None:
    """One row a value, or None where the block does not read so."""
    block = b"\n".join(values)
    between = len(values) - 1
    framed = block[:1] == b"{" and block[-1:] == b"}" and block.count(b"\n") == between == block.count(b"}\n{")
    if not framed or (b"null" in block and not all(_decodes(value, form) for value in values if b"null" in value)):
        return None
    try:
        table = pj.read_json(
            io.BytesIO(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(explicit_schema=form.members, unexpected_field_behavior="error"),
        )
        table.validate(full=True)
    except pa.ArrowException:
        return None
    return table if table.num_rows == len(values) else None


def _decodes(value: bytes, form: Form) -> bool:
    try:
        form.decode_one(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class _Versioned(msgspec.Struct):
    v: int = 0


_VERSIONED = msgspec.json.Decoder(_Versioned)


def _refuse_newer_one(value: bytes) -> None:
    try:
        version = _VERSIONED.decode(value).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if version > VERSION:
        raise NewerRecord(version)


def _refuse_newer(table: pa.Table) -> None:
    newest = pc.max(table["v"]).as_py()
    if newest is not None and newest > VERSION:
        raise NewerRecord(newest)


def _bad_rows(table: pa.Table, force: str, form: Form) -> Flags:
    bad = ~_true(pc.equal(table["force"], force)) | ~_true(pc.greater_equal(table["v"], 1))
    for name in form.required:
        column = table[name]
        if column.null_count:
            bad |= _true(pc.is_null(column))
    for field in form.members:
        if pa.types.is_floating(field.type):
            bad |= _not_finite(table[field.name])
    return bad | form.wrong(table)


def outside(column: Any, least: float, most: float) -> Flags:
    """True where a number is there and not within [least, most]."""
    return _true(pc.or_(pc.less(column, least), pc.greater(column, most)))


def _not_finite(column: Any) -> Flags:
    return _true(pc.invert(pc.is_finite(column)))


def rows_with(lists: Any, bad_elements: Flags) -> Flags:
    """Of a column of lists, and a flag for each of its elements: which lists hold a flagged element."""
    flags = np.zeros(len(lists), np.bool_)
    if bad_elements.any():
        flags[np.asarray(pc.list_parent_indices(lists))[bad_elements]] = True
    return flags


def finite_elements(column: Any) -> Flags:
    """True where a number is there and finite."""
    return _true(pc.is_finite(column))


def _true(column: Any) -> Flags:
    """A column of booleans as numpy, null as False."""
    flags: Flags = np.asarray(pc.fill_null(column, False)).astype(np.bool_, copy=False)
    return flags
