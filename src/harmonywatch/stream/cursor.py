"""Reads one topic's segments in the order of their commits, from given positions by partition.

A sealed segment is left for the next only when its rows are all read, and only if the next starts where they ended: so
a segment that lost rows, or is missing, is noticed even in partitions that got nothing since.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from harmonywatch.stream.contract import Batch, Bounds, PositionLost, TopicDamaged
from harmonywatch.stream.framing import CorruptBlob, Packer, proof_of
from harmonywatch.stream.segment import Gone, Row, Segment
from harmonywatch.stream.starting import tail
from harmonywatch.stream.topiclog import following, segment_paths

TAKE_BYTES_MAX = 8 << 20
"""Unpacked bytes taken from a topic at once: some 5,000 reports, enough to drain fast, too little to hurt."""


class Cursor:
    """Used by one thread. Raises PositionLost if retention overtook it, TopicDamaged."""

    def __init__(self, place: Path, positions: dict[int, int]) -> None:
        self._place, self._topic, self._positions = place, place.name, positions
        self._packer = Packer()
        self._segment = self._find()
        self._row = self._segment.row_before(positions)

    def take(self, bytes_max: int = TAKE_BYTES_MAX) -> list[Batch]:
        """The next batches, about `bytes_max` unpacked, and at least one; [] at the end."""
        while True:
            sealed = self._segment.sealed()  # asked before the rows: what is read after a seal is all there is
            rows = self._segment.rows_after(self._row, bytes_max)
            if rows:
                batches = [batch for row in rows if (batch := self._batch(row)) is not None]
                self._row = rows[-1].id
                if batches:
                    return batches
            elif not self._goes_on(sealed):
                return []

    def close(self) -> None:
        self._segment.close()

    def _batch(self, row: Row) -> Batch | None:
        wanted = self._positions.get(row.partition)
        end = row.base_offset + row.records
        if row.proof != proof_of(*row[1:6], row.data):
            raise self._damaged(f"{self._segment.path}: row {row.id} is not what was written")
        if wanted is None or end <= wanted:
            return None
        if row.base_offset > wanted:
            raise self._damaged(f"[{row.partition}]: records {wanted} to {row.base_offset} are missing")
        try:
            values = self._packer.unpack(row.framing, row.data, row.records)
        except CorruptBlob as error:
            raise self._damaged(f"[{row.partition}] at {row.base_offset}: {error}") from None
        self._positions[row.partition] = end
        return tail(Batch(self._topic, row.partition, row.base_offset, values, row.appended_us), wanted)

    def _goes_on(self, sealed: bool) -> bool:
        """With all rows read: is there a next segment? Then go to it."""
        path = following(self._segment.path)
        if not sealed:
            if path.exists() and not self._segment.sealed():
                raise self._damaged(f"{self._segment.path} lost its end: it has a successor, but is not sealed")
            return False
        try:
            segment = Segment(path)
        except Gone:
            if int(segment_paths(self._place)[-1].stem) <= self._segment.number:
                return False  # nobody has made the next one yet
            self._check_kept()
            raise self._damaged(f"{path} is missing") from None
        self._check_joined(segment)
        self._segment.close()
        self._segment, self._row = segment, 0
        return True

    def _check_joined(self, segment: Segment) -> None:
        for partition, position in self._positions.items():
            if position < segment.starts[partition]:
                segment.close()
                raise self._damaged(
                    f"[{partition}]: records {position} to {segment.starts[partition]} are missing "
                    f"at the end of {self._segment.path}"
                )

    def _damaged(self, reason: str) -> TopicDamaged:
        return TopicDamaged(self._topic, reason)

    def _check_kept(self) -> None:
        """Raises PositionLost if retention deleted what comes next."""
        for path in segment_paths(self._place):
            with contextlib.suppress(Gone):
                oldest = Segment(path)
                starts, heads = oldest.starts, oldest.heads()
                oldest.close()
                for partition, position in self._positions.items():
                    if position < starts[partition]:
                        bounds = Bounds(starts[partition], heads[partition])
                        raise PositionLost(self._topic, partition, position, bounds)
                return

    def _find(self) -> Segment:
        """The newest segment that holds every wanted record, or comes before one that does."""
        for path in reversed(segment_paths(self._place)):
            try:
                segment = Segment(path)
            except Gone:
                continue
            if all(segment.starts[partition] <= position for partition, position in self._positions.items()):
                return segment
            segment.close()
        self._check_kept()
        return self._find()  # retention was at work between the two looks
