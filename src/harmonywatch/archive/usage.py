"""How much of a force was received in a span of time, counted in its lake: exact, and at the cost of a few files.

The log of the table knows the bounds of `received_at` in each file; so most files count whole or not at all, and only of
those over which an end of the span lies the one column is read. What was sent again counts each time it was received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from harmonywatch.archive.lake import LakeTable
from harmonywatch.archive.parquet import DataFile
from harmonywatch.clock import micros


@dataclass(frozen=True, slots=True)
class Received:
    """`reports`: rows received in the span, those sent again too; `lake_bytes`: what these take in the lake now, a file that
    holds others as well by its share of rows; `files_read`: whose column had to be read."""

    reports: int
    lake_bytes: int
    files_read: int


def received(table: LakeTable, since: datetime, until: datetime) -> Received:
    """In [since, until). Raises OSError, pa.ArrowException where a file cannot be read."""
    reports = files_read = 0
    size_bytes = 0.0
    for file in table.files():
        rows, read = _rows(table, file, (micros(since), micros(until)))
        reports, files_read = reports + rows, files_read + read
        size_bytes += file.size_bytes * rows / max(1, file.rows)
    return Received(reports, round(size_bytes), files_read)


def _rows(table: LakeTable, file: DataFile, span_us: Sequence[int]) -> tuple[int, bool]:
    """How many, and whether the file was read for it."""
    since_us, until_us = span_us
    least, greatest = file.received_min_us, file.received_max_us
    if (least is not None and least >= until_us) or (greatest is not None and greatest < since_us):
        return 0, False
    if least is not None and greatest is not None and since_us <= least and greatest < until_us:
        return file.rows, False
    found = 0
    for batch in table.shelf.read(file.path, ["received_at"]):
        at_us = np.asarray(batch.column("received_at")).astype("datetime64[us]").astype(np.int64)
        found += int(np.count_nonzero((at_us >= since_us) & (at_us < until_us)))
    return found, True
