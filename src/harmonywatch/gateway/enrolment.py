"""Who a relay speaks for: a watcher that nobody knew is enrolled by its first report, outside the way of the answer.

The ids seen are gathered in memory and enrolled in batches, from a thread, about once a second. If the registry cannot
be written they wait and are tried again; were the process to die meanwhile, each watcher's next report enrols it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from harmonywatch.registry.contract import Enrolment, NotFound, RegistryError
from harmonywatch.telemetry import Telemetry

ENROL_INTERVAL_S = 1.0

WAITING_MAX = 200_000
"""Ids of a relay waiting at most; three times the first wave's fleet. One left out is enrolled by its next report."""

KNOWN_MAX = 1_000_000
"""Ids of a force remembered at most, some 100 MB. Beyond that repeats go to the registry, where they cost little."""


class Roll:
    """The watchers known to be enrolled, and those about to be. Used from the event loop."""

    def __init__(self, enrolment: Enrolment, telemetry: Telemetry) -> None:
        self._enrolment = enrolment
        self._failed = telemetry.failed.labels("enrol")
        self._known: dict[str, set[str]] = {}
        self._waiting: dict[tuple[str, str], set[str]] = {}

    def seen(self, force: str, relay: str, watcher_ids: Iterable[str]) -> None:
        """These watchers' reports were accepted through the relay. Never waits."""
        new = set(watcher_ids)
        new -= self._known.get(force, set())
        if not new:
            return
        waiting = self._waiting.setdefault((force, relay), set())
        if len(waiting) + len(new) <= WAITING_MAX:
            waiting |= new

    async def run(self, stop: asyncio.Event) -> None:
        """Enrol about once a second until `stop`, then once more."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(ENROL_INTERVAL_S):
                    await stop.wait()
            except TimeoutError:
                pass
            await self.enrol_waiting()

    async def enrol_waiting(self) -> None:
        """Enrol all that waits; what cannot be written goes on waiting."""
        batches, self._waiting = self._waiting, {}
        for (force, relay), watcher_ids in batches.items():
            try:
                await asyncio.to_thread(self._enrol, force, relay, watcher_ids)
            except NotFound:
                self._failed.inc()  # the force is gone, and its relays with it
            except RegistryError:
                self._failed.inc()
                self.seen(force, relay, watcher_ids)

    def _enrol(self, force: str, relay: str, watcher_ids: set[str]) -> None:
        """In a thread; the set it extends is replaced, not changed, so that the event loop may read on."""
        known = self._known.get(force)
        if known is None:
            known = self._enrolment.known_watchers(force)
        new = watcher_ids - known
        if new:
            self._enrolment.enrol(force, new, relay)
        self._known[force] = known | new if len(known) < KNOWN_MAX else known
