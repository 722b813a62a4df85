"""The bell: how a process learns that another one appended, without asking every topic's file.

One mapped page for the whole stream. An appender, once its records are durable, puts fresh random bytes into the slot of
the topic; a reader compares the page with what it saw last. So a look costs a 4 KiB comparison however many forces there
are. Two appenders that ring at once leave some value that differs from the old one: nothing is missed. A ring can be
missing altogether (a crash between commit and ring), so readers look for themselves every `SAFETY_S` all the same.
"""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

PAGE_BYTES = 4096
SLOT_BYTES = 8
SAFETY_S = 1.0
_SLOTS = PAGE_BYTES // SLOT_BYTES
TOPICS_SLOT = 0
"""Rung when a topic is made."""


def slot_of(topic: str) -> int:
    """The topic's slot; topics that share one wake each other's readers needlessly, which harms nobody."""
    return 1 + zlib.crc32(topic.encode()) % (_SLOTS - 1)


class Bell:
    """The mapped page at `path`, made if it is missing."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < PAGE_BYTES:
                os.ftruncate(descriptor, PAGE_BYTES)
            self._page = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)

    def ring(self, slot: int) -> None:
        at = slot * SLOT_BYTES
        self._page[at : at + SLOT_BYTES] = os.urandom(SLOT_BYTES)

    def look(self) -> bytes:
        """The page as it is now."""
        return self._page[:]

    def close(self) -> None:
        self._page.close()


def rung(slot: int, before: bytes, now: bytes) -> bool:
    """Whether the slot differs between two looks."""
    at = slot * SLOT_BYTES
    return before[at : at + SLOT_BYTES] != now[at : at + SLOT_BYTES]
