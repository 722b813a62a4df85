"""How far a topic was acknowledged, kept apart from its segments: a second witness against a log that lost its tail.

A write-ahead log ends at its first bad checksum: one flipped bit in it, or a segment copied without it, and everything
after is gone without an error. So each process notes, after a commit and before it answers, the ends that it acknowledged, in
a small mapped file. The file is not fsynced and two processes may overwrite each other's note: what stands there may be
too low, never too high. A segment that ends below it has lost acknowledged records.

Restoring a backup in which this file is newer than the segments: delete it, once you know what is missing.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

_ENTRY = struct.Struct("<q")


def mapped(path: Path, size_bytes: int) -> mmap.mmap:
    """The file's first bytes, shared; made of zeros if it is missing, with its room taken (a full disk would be SIGBUS)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size_bytes)
            else:
                os.ftruncate(descriptor, size_bytes)
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)


class Watermark:
    """The mapped file at `path`, made if it is missing."""

    def __init__(self, path: Path, partitions: int) -> None:
        self._partitions = partitions
        self._page = mapped(path, partitions * _ENTRY.size)

    def read(self) -> dict[int, int]:
        """By partition, an end that was acknowledged."""
        return {number: self._at(number) for number in range(self._partitions)}

    def rise(self, ends: Mapping[int, int]) -> None:
        for partition, end in ends.items():
            if end > self._at(partition):
                _ENTRY.pack_into(self._page, partition * _ENTRY.size, end)

    def close(self) -> None:
        self._page.close()

    def _at(self, partition: int) -> int:
        return int(_ENTRY.unpack_from(self._page, partition * _ENTRY.size)[0])
