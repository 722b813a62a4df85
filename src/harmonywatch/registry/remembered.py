"""Rules, forces and channels in memory, so that the alert path never waits for the registry.

A reader of a SQLite registry waits while anybody commits (a question's audit entry, an enrolment), and a server may be
slow or away. So a thread beside asks for the version every `REVALIDATE_S`, reads again what changed, and whoever judges or
dispatches takes the last known state: a rule that is added or removed bites within a second, and while the registry cannot
be read the last known rules hold on (`age_s` grows meanwhile). Only the very first read is waited for, by `start`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from harmonywatch.clock import Clock
from harmonywatch.registry.contract import Channel, Force, Rule, RuleBook
from harmonywatch.registry.near import not_found
from harmonywatch.registry.revalidate import REVALIDATE_S, Revalidator

T = TypeVar("T")


class ChannelBook(Protocol):
    """What dispatch needs of the registry; a `Registry` is one, a `RememberedDesk` another."""

    def version(self) -> int: ...

    def forces(self) -> list[Force]: ...

    def channels(self, force: str) -> list[Channel]: ...


class Remembered(Generic[T]):
    """What `read` gave at the version that was seen just before. `known` costs nothing; safe for several threads."""

    def __init__(self, name: str, version: Callable[[], int], read: Callable[[], T], clock: Clock) -> None:
        self._version, self._read, self._clock = version, read, clock
        self._known: tuple[int, T] | None = None
        self._checked_at = float("-inf")
        self._revalidator = Revalidator(name, self.refresh, REVALIDATE_S)

    def start(self) -> None:
        """Read once, then keep fresh until `close`. Raises what the registry raises."""
        self.refresh()
        self._revalidator.start()

    def close(self) -> None:
        """Stop. Twice is once."""
        self._revalidator.close()

    def refresh(self) -> None:
        """The version first: a change in between is then read twice, never missed."""
        asked_at, version = self._clock.monotonic(), self._version()
        if self._known is None or self._known[0] != version:
            self._known = (version, self._read())
        self._checked_at = asked_at

    def known(self) -> tuple[int, T]:
        """The last version read, and what it gave."""
        assert self._known is not None, "ask after `start`"
        return self._known

    def age_s(self) -> float:
        """Seconds since the registry last confirmed what is in memory; infinite before the first time."""
        return self._clock.monotonic() - self._checked_at


class RememberedRules(Remembered[dict[str, list[Rule]]]):
    """A `RuleBook` that answers from memory."""

    def __init__(self, source: RuleBook, clock: Clock) -> None:
        super().__init__("rules", source.version, source.all_rules, clock)

    def version(self) -> int:
        return self.known()[0]

    def all_rules(self) -> dict[str, list[Rule]]:
        return self.known()[1]


class RememberedDesk(Remembered[dict[str, tuple[Force, list[Channel]]]]):
    """A `ChannelBook` that answers from memory."""

    def __init__(self, source: ChannelBook, clock: Clock) -> None:
        def read() -> dict[str, tuple[Force, list[Channel]]]:
            return {force.name: (force, source.channels(force.name)) for force in source.forces()}

        super().__init__("channels", source.version, read, clock)

    def version(self) -> int:
        return self.known()[0]

    def forces(self) -> list[Force]:
        return [force for force, _ in self.known()[1].values()]

    def channels(self, force: str) -> list[Channel]:
        """Raises NotFound."""
        by_force = self.known()[1]
        if force not in by_force:
            raise not_found("force", force, by_force)
        return by_force[force][1]
