"""What the dispatchers of one process share: the roster of forces and channels, and looks at the state that serve all.

Each force has a dispatcher of its own, so that what goes wrong in one force stays there. What would be asked of the
registry or the state once per force and tick is asked here once per tick. Used by one thread.
"""

from __future__ import annotations

from typing import Protocol

from harmonywatch.clock import Clock, micros
from harmonywatch.dispatch.store import IncidentStore
from harmonywatch.registry.contract import ALERT_AGE_MAX_S_DEFAULT, Channel, Force, RegistryError

DESK_INTERVAL_S = 0.5
"""How often changed channels and ages are looked for."""

OVERDUE_INTERVAL_S = 1.0
PENDING_INTERVAL_S = 0.2
"""How often officers' events are looked for: they should see what another one did within a blink."""


class Desk(Protocol):
    """What dispatch asks of the registry; a `Registry` is one."""

    def version(self) -> int: ...

    def forces(self) -> list[Force]: ...

    def channels(self, force: str) -> list[Channel]: ...


class Roster:
    """The forces' ages and channels in memory, read again when the registry changed. Used by one thread."""

    def __init__(self, desk: Desk, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock
        self._version: int | None = None
        self._due = clock.monotonic()
        self._ages_us: dict[str, int] = {}
        self._channels: dict[str, list[Channel]] = {}

    def refresh(self) -> None:
        """A registry that cannot be read is no reason to stop, once it was read: its last word holds."""
        if self._clock.monotonic() < self._due:
            return
        try:
            version = self._desk.version()
            if version != self._version:
                forces = self._desk.forces()
                self._channels = {force.name: self._desk.channels(force.name) for force in forces}
                self._ages_us = {force.name: int(force.alert_age_max_s * 1e6) for force in forces}
                self._version = version
        except RegistryError:
            if self._version is None:
                raise
        self._due = self._clock.monotonic() + DESK_INTERVAL_S

    def age_max_us(self, force: str) -> int:
        return self._ages_us.get(force, int(ALERT_AGE_MAX_S_DEFAULT * 1e6))

    def channel_ids(self, force: str) -> list[str]:
        return [channel.channel_id for channel in self._channels.get(force, ()) if channel.enabled]

    def channel(self, force: str, channel_id: str) -> Channel | None:
        found = (channel for channel in self._channels.get(force, ()) if channel.channel_id == channel_id)
        return next((channel for channel in found if channel.enabled), None)


class Office:
    """See the header. Raises RegistryBusy, RegistryBroken."""

    def __init__(self, store: IncidentStore, desk: Desk, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self.roster = Roster(desk, clock)
        self._pending_due = self._overdue_due = clock.monotonic()
        self._pending: set[str] = set()
        self._overdue: set[str] = set()

    def take_pending(self, forces: set[str]) -> set[str]:
        """Which of these forces have events that wait to be published; each is told so once per look."""
        if self._clock.monotonic() >= self._pending_due:
            self._pending = self._store.pending_forces(micros(self._clock.now()))
            self._pending_due = self._clock.monotonic() + PENDING_INTERVAL_S
        return _taken(self._pending, forces)

    def take_overdue(self, forces: set[str]) -> set[str]:
        """The same for incidents that lapse. Forgets, on the way, what is old enough."""
        now_us = micros(self._clock.now())
        if self._clock.monotonic() >= self._overdue_due:
            self._store.upkeep.tick(now_us, self._clock.monotonic())
            self._overdue = self._store.overdue_forces(now_us)
            self._overdue_due = self._clock.monotonic() + OVERDUE_INTERVAL_S
        return _taken(self._overdue, forces)


def _taken(waiting: set[str], forces: set[str]) -> set[str]:
    found = waiting & forces
    waiting -= found
    return found
