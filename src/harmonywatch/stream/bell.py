"""The bell: how a process learns that another one appended, without asking every topic's file.

One mapped page for the whole stream. Each topic has a slot in it; an appender, once its records are durable, puts fresh
random bytes there. A reader compares the page with what it saw last: a look costs a 4 KiB comparison, however many forces
there are. Two appenders that ring at once leave some value that differs from the old one, so nothing is missed. A ring can be
missing altogether (a crash between commit and ring), so readers look for themselves every `SAFETY_S` all the same.

Between looks a reader sleeps. On Linux it sleeps on the page itself (a futex): it costs nothing while nothing comes, and is
awake some 50 us after a ring. Elsewhere it looks every 1 to 5 ms. docs/adr/0003 has the figures of both.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import time
import zlib
from pathlib import Path

from harmonywatch.stream.watermark import mapped

PAGE_BYTES = 4096
SLOT_BYTES = 8
SAFETY_S = 1.0
TOPICS_SLOT = 1
"""Rung when a topic is made. Slot 0 holds the word that readers sleep on, changed by every ring."""
_FIRST_SLOT = 2
_SLOTS = PAGE_BYTES // SLOT_BYTES

ALL_KINDS = 0xFFFFFFFF
_SYSCALLS = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_WAIT_BITSET, _WAKE_BITSET = 9, 10


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def slot_of(topic: str) -> int:
    """The topic's slot; topics that share one wake each other's readers needlessly, which harms nobody."""
    return _FIRST_SLOT + zlib.crc32(topic.encode()) % (_SLOTS - _FIRST_SLOT)


def kind_bit(topic: str) -> int:
    """One of 32 bits for what stands before the topic's first dot: who waits for alerts sleeps on while reports come."""
    return 1 << zlib.crc32(topic.split(".", 1)[0].encode()) % 32


def rung(slot: int, before: bytes, now: bytes) -> bool:
    """Whether the slot differs between two looks."""
    at = slot * SLOT_BYTES
    return before[at : at + SLOT_BYTES] != now[at : at + SLOT_BYTES]


class Bell:
    """The mapped page at `path`, made if it is missing. `futex=False` forces looking at intervals.

    There is nothing to close: another thread may sleep on the page, so it stays mapped while anybody holds the bell.
    """

    def __init__(self, path: Path, *, futex: bool = True) -> None:
        self._page = mapped(path, PAGE_BYTES)
        self._number = _SYSCALLS.get(platform.machine()) if futex and sys.platform == "linux" else None
        self._libc = ctypes.CDLL(None, use_errno=True) if self._number is not None else None
        self._word = ctypes.c_uint32.from_buffer(self._page)  # keeps the page mapped under sleepers
        self._address = ctypes.c_void_p(ctypes.addressof(self._word))

    def ring(self, slot: int, kinds: int = ALL_KINDS) -> None:
        """Tell the readers of `kinds` that the slot's topic has more."""
        at = slot * SLOT_BYTES
        fresh = os.urandom(SLOT_BYTES + 4)
        self._page[at : at + SLOT_BYTES] = fresh[:SLOT_BYTES]
        self._page[0:4] = fresh[SLOT_BYTES:]
        libc = self._libc
        if libc is not None:
            libc.syscall(self._number, self._address, _WAKE_BITSET, 0x7FFFFFFF, None, None, ctypes.c_uint32(kinds))

    def look(self) -> bytes:
        """The page as it is now."""
        return self._page[:]

    def sleep(self, seen: bytes, kinds: int, interval_s: float, timeout_s: float) -> None:
        """Sleep until a ring for `kinds` after the look `seen`, at most `timeout_s`; may return early.

        `interval_s`: how long to sleep where there is nothing to sleep on.
        """
        libc = self._libc
        if libc is None:
            time.sleep(min(interval_s, timeout_s))
            return
        until = time.monotonic() + timeout_s
        deadline = _Timespec(int(until), int(until % 1 * 1e9))
        outcome = libc.syscall(
            self._number,
            self._address,
            _WAIT_BITSET,
            ctypes.c_uint32(struct.unpack_from("=I", seen)[0]),
            ctypes.byref(deadline),
            None,
            ctypes.c_uint32(kinds),
        )
        if outcome == -1 and ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            self._libc = None  # a kernel or sandbox without futexes: look at intervals from now on
