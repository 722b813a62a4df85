"""One change of the registry: a write transaction with its time, its actor, its version and its audit entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from harmonywatch.clock import Clock, micros
from harmonywatch.registry.engine import writing
from harmonywatch.registry.near import not_found
from harmonywatch.registry.rows import json_text, storable
from harmonywatch.registry.tables import audit, forces, state

Randomness = Callable[[int], bytes]
"""That many random bytes; `secrets.token_bytes` outside tests."""


@dataclass(frozen=True, slots=True)
class Change:
    """`version` is the one that this change makes."""

    connection: Connection
    actor: str
    now_us: int
    version: int
    randomness: Randomness

    def record(
        self,
        action: str,
        force: str | None,
        target: str,
        detail: Mapping[str, object] | None = None,
        reason: str = "",
    ) -> int:
        """Write the audit entry; its id."""
        row = {
            "at_us": self.now_us,
            "actor": storable(self.actor),
            "action": action,
            "force": None if force is None else storable(force),
            "target": storable(target),
            "detail": json_text(detail or {}),
            "reason": storable(reason),
        }
        key = self.connection.execute(audit.insert().values(row)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def bump(self) -> None:
        """Make the new version: whoever holds an older one reads again."""
        self.connection.execute(state.update().values(version=self.version))


@contextmanager
def changing(engine: Engine, clock: Clock, actor: str, randomness: Randomness) -> Iterator[Change]:
    """1. Begin, alone. 2. The caller's writes and its audit entry. 3. Commit, durable. A crash in between: nothing was.

    The caller bumps the version if what readers keep in memory has changed.
    """
    with writing(engine) as connection:
        version = int(connection.execute(select(state.c.version).with_for_update()).scalar_one())
        yield Change(connection, actor, micros(clock.now()), version + 1, randomness)


def require_force(connection: Connection, name: str) -> None:
    """Raises NotFound with near names unless there is such a force."""
    names = connection.execute(select(forces.c.name)).scalars().all()
    if name not in names:
        raise not_found("force", name, names)
