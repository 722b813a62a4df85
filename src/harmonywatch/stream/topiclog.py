"""A topic of the embedded stream as one process appends to it, asks about it and lets go of what is old.

    T/partitions     how many partitions the topic has
    T/N.db           segment N, the highest takes the records (segment.py)
    T/ends           how far it was acknowledged (watermark.py)

Rolling, and what a crash between two steps leaves:
1. the full segment is sealed, in a transaction of its own.              crash: the next appender finds it sealed, goes to 2
2. while the sealed one is held, and if it still is the newest, the next crash: a draft that nobody reads
   one is made aside, from its heads, and linked to its name.
Holding matters: without it, a process that slept between looking and linking could make a segment again that others have
filled and retention has deleted.

Retention deletes whole sealed segments, oldest first, and only what every registered group has read; while it does, no
group can register.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from harmonywatch.clock import Clock, micros
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import (
    Bounds,
    ClosedStream,
    StreamBroken,
    StreamFull,
    TopicDamaged,
    UnknownTopic,
)
from harmonywatch.stream.framing import Packer, groups
from harmonywatch.stream.segment import (
    Fragment,
    Gone,
    Positions,
    Sealed,
    Segment,
    damage_of,
    delete,
    sync_folder,
    tend,
    translated,
    withdraw,
)
from harmonywatch.stream.watermark import Watermark

MEASURE_S = 1.0
"""Room and age are looked at this often, and again whenever an eighth of a segment was written."""

DRAFT_S = 3600
"""A draft of this age was left by a crash."""


class Health:
    """One stream in one process: closed, or broken for good. A disk that failed one topic's fsync is trusted with none;
    damage of one topic (`TopicDamaged`) is no reason to distrust it."""

    def __init__(self) -> None:
        self.closed = False
        self.broken = ""

    def check_open(self) -> None:
        if self.closed:
            raise ClosedStream

    @contextlib.contextmanager
    def latched(self) -> Iterator[None]:
        """What breaks in here stays broken until the process starts anew from disk."""
        self.check_open()
        if self.broken:
            raise StreamBroken(self.broken)
        try:
            yield
        except StreamBroken as error:
            self.broken = str(error)
            raise


def segment_paths(place: Path) -> list[Path]:
    """The segments of the topic at `place`, oldest first; never none."""
    for _ in range(3):  # a listing may miss both the segment that retention takes and the one that was just made
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(place) as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith(".db"))
            if names:
                return [place / name for name in names]
    raise UnknownTopic(place.name)


def following(path: Path) -> Path:
    return path.with_name(f"{int(path.stem) + 1:010}.db")


def folder_bytes(place: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                size += entry.stat().st_size
    return size


def remove_stale(paths: Iterable[Path], age_s: float) -> None:
    """What crashes left: files and folders that nobody touched for `age_s`."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > age_s:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_topic(place: Path, partitions: int, created_us: int) -> int:
    """Make the topic's folder whole or not at all; how many partitions it has, by whoever made it."""
    if not place.exists():
        draft = place.parent.parent / f"{place.name}.{secrets.token_hex(8)}.draft"
        try:
            with translated(place):
                draft.mkdir(mode=0o700)
                with (draft / "partitions").open("w") as file:
                    file.write(str(partitions))
                    file.flush()
                    os.fsync(file.fileno())
            Segment.make(draft / "0000000001.db", dict.fromkeys(range(partitions), 0), created_us)
            with translated(place):
                try:
                    draft.rename(place)
                except OSError:
                    if not place.exists():  # if it does, another process was first
                        raise
                sync_folder(place.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return partitions_of(place)


def partitions_of(place: Path) -> int:
    """Raises UnknownTopic, TopicDamaged."""
    try:
        return int((place / "partitions").read_text())
    except (OSError, ValueError) as error:
        if not place.is_dir():
            raise UnknownTopic(place.name) from None
        raise TopicDamaged(
            place.name, f"{place / 'partitions'} should hold its number of partitions: {error}"
        ) from None


class TopicLog:
    """One lock: appends of one process to one topic follow one another."""

    def __init__(
        self, place: Path, settings: StreamSettings, clock: Clock, positions: Positions, health: Health
    ) -> None:
        self.place, self.topic = place, place.name
        self._settings, self._clock, self._positions, self._health = settings, clock, positions, health
        self._lock = threading.Lock()
        self._packer = Packer()
        self._full = ""
        self._measure_due = -1.0
        self._measure_bytes = 0
        self._segment = self._open_newest()
        self._earliest: tuple[Path, dict[int, int]] | None = None
        partitions = partitions_of(place)
        if sorted(self._segment.starts) != list(range(partitions)):
            raise TopicDamaged(self.topic, f"it has {partitions} partitions, but {self._segment.path} has others")
        with translated(place, self.topic):
            self._watermark = Watermark(place / "ends", partitions)
        self._check_tail()

    def append(self, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        """See `contract.Stream.append`."""
        for partition in records:
            self.check_partition(partition)
        with self._lock, self._health.latched(), translated(self.place, self.topic):
            fragments = self._pack(records)
            self._check_room(fragments)
            given = self._commit(fragments)
            if len(given) == len(records):
                return given
            heads = self._segment.known_heads if given else self._segment.heads()
            return {partition: given.get(partition, heads[partition]) for partition in records}

    def bounds(self, partition: int) -> Bounds:
        self.check_partition(partition)
        with self._lock, translated(self.place, self.topic), damage_of(self.topic):
            self._health.check_open()
            earliest = self._oldest_starts()  # first: an end that is asked for later is never below it
            self._go_to_newest()
            return Bounds(earliest[partition], self._segment.heads()[partition])

    def size_bytes(self) -> int:
        return folder_bytes(self.place)

    def sweep(self) -> int:
        """Upkeep: copy long logs, delete what may go and what crashes left. Segments deleted."""
        with self._lock, self._health.latched():
            self._advance()
        for path in segment_paths(self.place):
            tend(path)
        remove_stale(self.place.glob("*.draft*"), DRAFT_S)
        return self._retire()

    def close(self) -> None:
        with self._lock:
            self._segment.close()
            self._watermark.close()

    def check_partition(self, partition: int) -> None:
        if partition not in self._segment.starts:
            raise UnknownTopic(self.topic, partition)

    def _pack(self, records: Mapping[int, Sequence[bytes]]) -> list[Fragment]:
        pack = self._packer.pack
        return [
            Fragment(partition, len(group), *pack(group))
            for partition, values in records.items()
            if values
            for group in groups(values)
        ]

    def _commit(self, fragments: Sequence[Fragment]) -> dict[int, int]:
        if not fragments:
            self._advance()
            return {}
        while True:
            try:
                given = self._segment.append(fragments, micros(self._clock.now()))
            except Sealed:
                self._advance()
                continue
            ends = dict(given)
            for fragment in fragments:
                ends[fragment.partition] += fragment.records
            self._watermark.rise(ends)
            return given

    def _check_room(self, fragments: Sequence[Fragment]) -> None:
        """Now and then: is the segment due to be closed, and is there room? Raises StreamFull."""
        self._measure_bytes += sum(len(fragment.data) for fragment in fragments)
        now = self._clock.monotonic()
        if now >= self._measure_due or self._measure_bytes >= self._settings.segment_bytes / 8:
            self._measure_due, self._measure_bytes = now + MEASURE_S, 0
            self._full = self._measure()
        if self._full:
            raise StreamFull(self._full, topic=self.topic)

    def _measure(self) -> str:
        """Close what is due, delete what may go; why there is no room, if there is none."""
        self._advance()
        limit = self._settings.retention_bytes
        full = self.size_bytes() > limit
        age_s = (micros(self._clock.now()) - self._segment.created_us) / 1e6
        due = full or self._segment.size_bytes() >= self._settings.segment_bytes or age_s >= self._settings.segment_s
        if due and self._segment.heads() != self._segment.starts:
            self._segment.seal()
            self._advance()
        if full:
            self._retire()
            full = self.size_bytes() > limit
        return f"{self.topic} is at its limit of {limit} bytes, unread" if full else ""

    def _retire(self) -> int:
        """Delete sealed segments, oldest first, that are read by all and over age or, together, over size."""
        deleted = 0
        for path, after in itertools.pairwise(segment_paths(self.place)):
            try:
                starts, sealed_us = self._glance(after)
            except Gone:  # another process retires as well
                continue
            aged = micros(self._clock.now()) - sealed_us > self._settings.retention_s * 1e6
            if not aged and self.size_bytes() <= self._settings.retention_bytes:
                break
            with self._positions.held():
                needed = self._positions.needed_from(self.topic)
                if needed is not None and any(needed.get(partition, 0) < end for partition, end in starts.items()):
                    break
                draft = withdraw(path)
            delete(path, draft)  # a large file takes long, and everybody's commits of positions would wait
            deleted += 1
        return deleted

    def _advance(self) -> None:
        """Go to the newest segment; make it if the newest is sealed."""
        while True:
            self._go_to_newest()
            if not self._segment.sealed():
                return
            with self._segment.held():
                if segment_paths(self.place)[-1] == self._segment.path:
                    made_us = micros(self._clock.now())
                    Segment.make(following(self._segment.path), self._segment.heads(), made_us)

    def _go_to_newest(self) -> None:
        if segment_paths(self.place)[-1] != self._segment.path:
            segment = self._open_newest()
            self._segment.close()
            self._segment = segment

    def _open_newest(self) -> Segment:
        while True:
            with contextlib.suppress(Gone):
                return Segment(segment_paths(self.place)[-1])

    def _oldest_starts(self) -> dict[int, int]:
        while True:
            path = segment_paths(self.place)[0]
            if self._earliest is None or self._earliest[0] != path:
                with contextlib.suppress(Gone):
                    self._earliest = path, self._glance(path)[0]
                continue
            return self._earliest[1]

    def _glance(self, path: Path) -> tuple[dict[int, int], int]:
        """Where a segment's partitions start, and when it was made, microseconds. Raises Gone."""
        segment = Segment(path)
        try:
            return segment.starts, segment.created_us
        finally:
            segment.close()

    def _check_tail(self) -> None:
        """Is everything here that was ever acknowledged? Raises TopicDamaged."""
        acknowledged = self._watermark.read()
        self._go_to_newest()
        for partition, head in self._segment.heads().items():
            if head < acknowledged[partition]:
                raise TopicDamaged(
                    self.topic,
                    f"[{partition}] ends at {head}, but was acknowledged to {acknowledged[partition]}: its "
                    f"newest segment or the log beside it lost records. Restore them; or accept the loss: delete "
                    f"{self.place / 'ends'}",
                )
