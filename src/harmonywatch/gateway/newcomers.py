"""Keys that memory does not know yet: one look at the registry answers all who wait for it.

A key may be new, so that an unknown one is worth a look; but anybody can send as many unknown keys as he likes. So there is
one look at a time, in a thread of its own: who asks while one is under way waits for the next, together with all others.
However many ask, known keys and the operator's pages wait for none of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from harmonywatch.registry.contract import KeyFinder, KeyInfo


class Keys(KeyFinder, Protocol):
    """What a door with many strangers asks of the keys."""

    def find_all(self, keys: Iterable[str]) -> Mapping[str, KeyInfo | None]:
        """As `find`, with one look at the registry for all. Raises RegistryError."""


class Newcomers:
    """Used from the event loop."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "newcomers")
        self._waiting: dict[str, asyncio.Future[KeyInfo | None]] = {}
        self._looking = False

    async def find(self, key: str) -> KeyInfo | None:
        """Whose the key is, by a look that began after this call. Raises RegistryError."""
        known = self._waiting.get(key)
        if known is None:
            known = self._waiting[key] = self._loop.create_future()
            if not self._looking:
                self._look()
        return await asyncio.shield(known)  # others may wait for it too

    def close(self) -> None:
        self._thread.shutdown()

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._looking = bool(waiting)
        if waiting:
            look = self._loop.run_in_executor(self._thread, self._keys.find_all, list(waiting))
            look.add_done_callback(partial(self._tell, waiting))

    def _tell(
        self,
        waiting: Mapping[str, asyncio.Future[KeyInfo | None]],
        look: asyncio.Future[Mapping[str, KeyInfo | None]],
    ) -> None:
        error = look.exception()
        for key, known in waiting.items():
            if error is None:
                known.set_result(look.result().get(key))
            else:
                known.set_exception(error)
                known.exception()  # seen, should all who waited be gone
        self._look()
