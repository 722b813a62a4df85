"""Requests are handled in company: each waits a moment for others, if requests are frequent.

A request that wakes the process for itself alone costs three times what it costs right after another one: memory and
branches are cold, threads are woken, a commit is its own (README.md of this room has the figures). So the event loop
itself stands still for `linger_s`, and what arrived meanwhile is read and handled in one go. Who comes alone is handled
at once, and under full load there is company enough without waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

COMPANY_ENOUGH = 8
COMPANY_ENOUGH_BYTES = 16 << 10
"""So many together, or one with so many reports in it, have spread the cost of waking already."""


class Company:
    """Gathers what is to begin. Used from the event loop; 0 = nobody waits."""

    def __init__(self, linger_s: float) -> None:
        self._linger_s = linger_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[], None]] = []
        self._size_bytes = 0
        self._last_s = 0.0

    def join(self, begin: Callable[[], None], size_bytes: int = 0) -> None:
        """`begin` is called soon, after those that joined before; `size_bytes`: about what it will handle."""
        self._waiting.append(begin)
        self._size_bytes += size_bytes
        if len(self._waiting) == 1:
            self._loop.call_soon(self._linger)

    def _linger(self) -> None:
        alone = len(self._waiting) < COMPANY_ENOUGH and self._size_bytes < COMPANY_ENOUGH_BYTES
        if alone and time.monotonic() - self._last_s < self._linger_s:
            time.sleep(self._linger_s)  # on purpose, see above; threads run on
        self._loop.call_soon(self._begin_all)  # once the event loop has read what arrived

    def _begin_all(self) -> None:
        waiting, self._waiting, self._size_bytes = self._waiting, [], 0
        self._last_s = time.monotonic()
        for begin in waiting:
            begin()
