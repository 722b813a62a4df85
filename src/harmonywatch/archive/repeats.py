"""Recognising what was stored before: sorted runs of hashes, in memory, the newest day of them.

A report is a *repeat* if an earlier record of its partition, received within the window, has the same identity and the
same content; a *conflict* if one has the same identity and none the same content. Earlier = lower offset, so the first
occurrence wins, also inside one batch. A record without identity is never either.

16 bytes a report (two hashes): 100 million reports a day are 1.6 GB, so the runs of closed hours may be spilled to files
and mapped, and only the pages that are looked at stay in memory. The lake is the truth: on start the index is rebuilt
from the lake's columns, and only what was committed is ever added.

Records are kept by the hour they were received in and forgotten by the hour, so something that came again up to an hour
after the window is still recognised. A clock that jumped must not empty the index: the median of a batch moves the
window, not its extremes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

HOUR_US = 3_600_000_000
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
SPILL_ROWS = 1 << 20
"""Runs below this, 16 MB, are not worth a file."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What recognising needs of some records, in the order of their offsets. `known`: False = has no identity."""

    identity: Ints
    content: Ints
    known: Flags
    partition: Ints
    received_us: Ints

    def keys(self) -> Ints:
        """Identities told apart by partition."""
        with np.errstate(over="ignore"):
            salt = (self.partition.astype(np.uint64) * _SPREAD).view(np.int64)
        return self.identity ^ salt

    def hours(self) -> Ints:
        return self.received_us // HOUR_US

    def take(self, keep: Flags) -> Batch:
        return Batch(
            self.identity[keep], self.content[keep], self.known[keep], self.partition[keep], self.received_us[keep]
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """Sorted by key, then content."""

    key: Ints
    content: Ints

    def find(self, key: Ints, content: Ints) -> tuple[Flags, Flags]:
        """For each: the key is here; the key is here with this content."""
        low = np.searchsorted(self.key, key, "left")
        high = np.searchsorted(self.key, key, "right")
        known = high > low
        return known, known & self._holds(low, high, content)

    def _holds(self, low: Ints, high: Ints, content: Ints) -> Flags:
        """Bisect each [low, high) for its content, all at once."""
        last = len(self.content) - 1
        low, end = low.copy(), high
        while (open_ := low < high).any():
            middle = np.minimum((low + high) // 2, last)
            less = self.content[middle] < content
            low, high = np.where(open_ & less, middle + 1, low), np.where(open_ & ~less, middle, high)
        found: Flags = (low < end) & (self.content[np.minimum(low, last)] == content)
        return found


class RepeatIndex:
    """The committed records of one topic within the window. `folder`: where big runs may be spilled, in files without a
    name, so that no crash leaves any behind; None = all in memory."""

    def __init__(self, window_s: float, folder: Path | None = None) -> None:
        self._window_us = int(window_s * 1_000_000)
        self._hours: dict[int, list[_Run]] = {}
        self._folder = folder

    def __len__(self) -> int:
        return sum(len(run.key) for runs in self._hours.values() for run in runs)

    def judge(self, batch: Batch) -> tuple[Flags, Flags]:
        """(repeat, conflict) of each record. Remembers nothing; hours that have passed the window are forgotten."""
        repeat, conflict = np.zeros(len(batch.known), np.bool_), np.zeros(len(batch.known), np.bool_)
        if batch.known.any():
            self._forget(int(np.median(batch.received_us)))
            repeat[batch.known], conflict[batch.known] = self._judge_known(batch.take(batch.known))
        return repeat, conflict

    def _judge_known(self, batch: Batch) -> tuple[Flags, Flags]:
        key, content = batch.keys(), batch.content
        order = np.argsort(key, kind="stable")
        known, same = np.zeros(len(key), np.bool_), np.zeros(len(key), np.bool_)
        for runs in self._hours.values():
            for run in runs:
                here, pair = run.find(key[order], content[order])
                known[order] |= here
                same[order] |= pair
        known_within, same_within = _within(key, content)
        repeat = same | same_within
        return repeat, (known | known_within) & ~repeat

    def add(self, batch: Batch) -> None:
        """Remember committed records (repeats left out: the first occurrence counts), and forget old hours."""
        batch = batch.take(batch.known)
        if not len(batch.content):
            return
        hours, key = batch.hours(), batch.keys()
        for hour in np.unique(hours).tolist():
            at = hours == hour
            self._put(hour, _sorted(key[at], batch.content[at]))
        self._forget(int(np.median(batch.received_us)))

    def _put(self, hour: int, run: _Run) -> None:
        """Merge runs of like size, so that their number stays logarithmic and each record is moved few times."""
        runs = self._hours.setdefault(hour, [])
        while runs and len(runs[-1].key) <= 2 * len(run.key):
            last = runs.pop()
            run = _sorted(np.concatenate([last.key, run.key]), np.concatenate([last.content, run.content]))
        runs.append(self._spilled(run))

    def _spilled(self, run: _Run) -> _Run:
        if self._folder is None or len(run.key) < SPILL_ROWS:
            return run
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            for column in (run.key, run.content):
                file.write(column.data)
            file.flush()
            mapped: Ints = np.memmap(file, np.int64, "r", shape=(2, len(run.key)))
        return _Run(mapped[0], mapped[1])

    def _forget(self, now_us: int) -> None:
        oldest = (now_us - self._window_us) // HOUR_US
        for hour in [hour for hour in self._hours if hour < oldest]:
            del self._hours[hour]


def _sorted(key: Ints, content: Ints) -> _Run:
    order = np.lexsort((content, key))
    return _Run(key[order], content[order])


def _within(key: Ints, content: Ints) -> tuple[Flags, Flags]:
    """Inside one batch: the same key came earlier; the same key and content came earlier."""
    place = np.arange(len(key))
    known, same = np.zeros(len(key), np.bool_), np.zeros(len(key), np.bool_)
    order = np.argsort(key, kind="stable")
    known[order[1:]] = key[order[1:]] == key[order[:-1]]
    if known.any():
        order = np.lexsort((place, content, key))
        later, earlier = order[1:], order[:-1]
        same[later] = (key[later] == key[earlier]) & (content[later] == content[earlier])
    return known, same
