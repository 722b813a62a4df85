"""`lake verify`: the proof that every accepted report is in the lake exactly once.

What is counted, in this order, so that it holds while the archiver runs: first the lake's version and the positions in
it, then the stream's ends.

- accepted: records of `reports.<force>` below the stored positions. Offsets have no gap, so this is the sum of the
  positions; it is never less than what an earlier proof saw (the watermark), so a lake that was set back shows.
- stored: distinct (partition, offset) below the positions in `reports`, and poison records in `rejects`.
- missing = accepted - stored.
- repeated: rows beyond the first of an offset, wherever it is, and rows beyond the first of an identity and content within
  the window where `repeat` is false; also of an identity alone where `conflict` is false too.
- repeats: rows with `repeat`. lag: records on the stream that are not committed yet: no fault.

Offsets are counted day by day (`tally.py`): a day whose files are those of the last clean proof, all there and as long as
they were, is not read again, unless `everything` is asked for. Identities are compared in slices of hash values, so that
memory stays bounded, and only from the watermark on: the days before were proven, and files do not change but by
rewrites, which offsets cover. Watermark and days are small files in the lake's folder, or beside the state for a remote
lake.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from harmonywatch.archive.lake import Lake, LakeTable
from harmonywatch.archive.parquet import DataFile
from harmonywatch.archive.schema import ALERTS, REJECTS, REPORTS
from harmonywatch.archive.tally import Count, Day, below, count, union
from harmonywatch.report import topics
from harmonywatch.report.topics import archived_topics, topic_of
from harmonywatch.stream.contract import Stream, StreamReset, TopicPartition, partitions_in

Ints = npt.NDArray[np.int64]

SLICE_ROWS = 8_000_000
"""Identities compared at a time: 32 bytes each, some 250 MB."""

KINDS = {REPORTS: topics.REPORTS, ALERTS: topics.ALERTS, REJECTS: topics.REJECTS}


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The proof for one table of a force; `reports` is the one that `lake verify` prints. `unreadable`: files that the
    table names and that could not be read; their rows count as missing."""

    force: str
    accepted: int
    stored: int
    missing: int
    repeated: int
    repeats: int
    lag: int
    table: str = REPORTS
    unreadable: int = 0

    @property
    def clean(self) -> bool:
        return self.missing == 0 and self.repeated == 0


class Watermark(msgspec.Struct, frozen=True):
    """What earlier proofs saw. `positions`: by topic and partition (`reports.north/0`); `proven_us`: identities of what
    was received before this were compared."""

    stream_id: str
    positions: dict[str, int]
    proven_us: int = 0


Days = dict[str, dict[str, Day]]
"""By table and ISO date: the days of the last clean proof."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Where the watermarks and days are kept, one file of each a force."""

    folder: Path

    def read(self, force: str) -> Watermark | None:
        path = self.folder / f"{force}.verified.json"
        return msgspec.json.decode(path.read_bytes(), type=Watermark) if path.exists() else None

    def read_days(self, force: str) -> Days:
        """Nothing if the file is not ours: then all is read again."""
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode((self.folder / f"{force}.days.json").read_bytes(), type=Days)
        return {}

    def write(self, force: str, watermark: Watermark, days: Days) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._put(f"{force}.days.json", msgspec.json.encode(days))
        self._put(f"{force}.verified.json", msgspec.json.encode(watermark))

    def _put(self, name: str, content: bytes) -> None:
        draft = self.folder / f".{name}.{os.getpid()}"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.folder / name)


@dataclass(frozen=True, slots=True)
class Terms:
    """`window_s`: within which repeats are recognised; `everything`: read all files, also those of days proven before."""

    window_s: float
    everything: bool = False


def verify(lake: Lake, stream: Stream, force: str, watch: Watch, terms: Terms) -> list[Verdict]:
    """One verdict per table, `reports` first. Raises StreamReset, LakeUnavailable, OSError."""
    stream_id = stream.id_of(archived_topics(force))
    watermark = watch.read(force) or Watermark(stream_id, {})
    if watermark.stream_id != stream_id:
        raise StreamReset(watermark.stream_id, stream_id, f"the proof of {force}")
    opened = {name: lake.open(force, name) for name in KINDS}
    for table in opened.values():
        if table is not None and table.mark().stream_id != stream_id:
            raise StreamReset(table.mark().stream_id, stream_id, table.where)
    days: Days = {} if terms.everything else watch.read_days(force)
    counts = {name: _counted(name, force, table, days.get(name, {})) for name, table in opened.items()}
    proof = _Proof(stream, force, watermark, int(terms.window_s * 1e6))
    verdicts = [proof.of(name, opened[name], counts) for name in KINDS]
    if all(verdict.clean for verdict in verdicts):
        watch.write(force, proof.next_watermark(), {name: counted.days for name, counted in counts.items()})
    return verdicts


def _counted(name: str, force: str, table: LakeTable | None, remembered: dict[str, Day]) -> Count:
    """Rows of `rejects` say of which topic they are: poison lies there too."""
    topic = None if name == REJECTS else topic_of(KINDS[name], force)
    return Count() if table is None else count(table, topic, remembered)


class _Proof:
    def __init__(self, stream: Stream, force: str, watermark: Watermark, window_us: int) -> None:
        self._stream, self._force, self._watermark, self._window_us = stream, force, watermark, window_us
        self._positions: dict[str, int] = dict(watermark.positions)
        self._proven_us = watermark.proven_us

    def of(self, name: str, table: LakeTable | None, counts: Mapping[str, Count]) -> Verdict:
        topic = topic_of(KINDS[name], self._force)
        places = [TopicPartition(topic, p) for p in range(partitions_in(self._stream, topic))]
        positions = self._raised({at: table.position(at) if table else 0 for at in places})
        ends = {at: self._stream.bounds(*at).end for at in places}
        stored = repeated = 0
        for at, position in positions.items():
            found = [
                held for kind in {name, REJECTS} for held in counts[kind].held.get(f"{at.topic}/{at.partition}", [])
            ]
            intervals = union([held.offsets for held in found])
            stored += below(intervals, position)
            repeated += sum(held.rows for held in found) - int((intervals[:, 1] - intervals[:, 0]).sum())
        if name == REPORTS and table is not None:
            repeated += self._repeated_identities(table)
        accepted, own = sum(positions.values()), counts[name]
        lag = sum(max(0, ends[at] - positions[at]) for at in places)
        missing = accepted - stored
        return Verdict(self._force, accepted, stored, missing, repeated, own.repeats, lag, name, own.unreadable)

    def _raised(self, positions: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Never below what an earlier proof saw, and remembered for the next."""
        raised = {}
        for at, position in positions.items():
            key = f"{at.topic}/{at.partition}"
            raised[at] = self._positions[key] = max(position, self._positions.get(key, 0))
        return raised

    def _repeated_identities(self, table: LakeTable) -> int:
        since_us = self._watermark.proven_us - self._window_us
        files = [file for file in table.files() if file.received_max_us is None or file.received_max_us >= since_us]
        slices = max(1, -(-sum(file.rows for file in files) // SLICE_ROWS))
        repeated = 0
        for number in range(slices):
            rows = list(_identities(table, files, since_us, (number, slices)))
            if rows:
                columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
                repeated += _beyond_first(columns, self._window_us)
        newest = [file.received_max_us for file in files if file.received_max_us is not None]
        self._proven_us = max([self._proven_us, *newest])
        return repeated

    def next_watermark(self) -> Watermark:
        return Watermark(self._watermark.stream_id, self._positions, self._proven_us)


def _identities(
    table: LakeTable, files: Sequence[DataFile], since_us: int, part: tuple[int, int]
) -> Iterator[tuple[Ints, ...]]:
    """(identity, content, partition, conflict, received) of rows that are no repeats, in one slice of hash values."""
    columns = ["identity", "content", "partition", "conflict", "received_at", "repeat"]
    for file in files:
        for rows in _readable(table, file, columns):
            kept = pc.and_(pc.is_valid(rows["identity"]), pc.invert(rows["repeat"]))
            found = pa.table(rows).filter(kept)
            identity = np.asarray(found["identity"], dtype=np.int64)
            received = np.asarray(found["received_at"].cast(pa.int64()), dtype=np.int64)
            here = (received >= since_us) & (identity % part[1] == part[0])
            others = (np.asarray(found[name]).astype(np.int64)[here] for name in ("content", "partition", "conflict"))
            yield identity[here], *others, received[here]


def _beyond_first(columns: list[Ints], window_us: int) -> int:
    """Rows that follow one like them within the window: same identity and content, or same identity and neither is
    marked as a conflict."""
    identity, content, partition, conflict, received = columns
    same = _followers((received, content, identity, partition), window_us)
    plain = conflict == 0
    alone = _followers((received[plain], identity[plain], partition[plain]), window_us)
    whole = np.zeros(len(identity), np.bool_)
    whole[np.flatnonzero(plain)[alone]] = True
    whole[same] = True
    return int(whole.sum())


def _followers(keys: tuple[Ints, ...], window_us: int) -> Ints:
    """Indices of rows whose predecessor (by all keys, the first being the time) has equal keys and is near in time."""
    order = np.lexsort(keys)
    received, rest = keys[0][order], [key[order] for key in keys[1:]]
    near = received[1:] - received[:-1] <= window_us
    for key in rest:
        near &= key[1:] == key[:-1]
    return order[1:][near]


def _readable(table: LakeTable, file: DataFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file; of one that cannot be read none: the tally of offsets has reported it."""
    try:
        yield from table.shelf.read(file.path, columns)
    except (OSError, pa.ArrowException):
        return
