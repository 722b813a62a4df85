"""The registry itself: every verb of the contract, over SQLAlchemy, on SQLite or PostgreSQL.

Each writing verb is one transaction (`change.py`), each reading verb one snapshot, fetched whole and let go.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TypeVar

import msgspec
from sqlalchemy import Connection, Engine, select

from harmonywatch.clock import Clock, micros
from harmonywatch.registry import conditions, members
from harmonywatch.registry.change import Change, Randomness, changing, require_force
from harmonywatch.registry.contract import (
    PARTITIONS_DEFAULT,
    AuditEntry,
    Channel,
    ChannelKind,
    Force,
    Issued,
    KeyEntry,
    KeyKind,
    Officer,
    Relay,
    Role,
    Rule,
    Watcher,
)
from harmonywatch.registry.engine import open_engine, reading
from harmonywatch.registry.keyring import EMPTY, Keyring
from harmonywatch.registry.migrate import migrate
from harmonywatch.registry.near import not_found
from harmonywatch.registry.rows import KEY_COLUMNS, key_changes, moment, rules_by_force
from harmonywatch.registry.tables import audit, keys, officers, relays, state, watchers

T = TypeVar("T")

AUDIT_LIMIT_DEFAULT = 1000


def open_registry(url: str, clock: Clock, actor: str, randomness: Randomness = secrets.token_bytes) -> Registry:
    """The registry at `url` (`sqlite:///PATH`, `postgresql+psycopg://...`), made or brought forward if need be.

    Raises SchemaTooNew, RegistryBusy, RegistryBroken.
    """
    engine = open_engine(url)
    try:
        migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return Registry(engine, clock, actor, randomness)


class Registry:
    """See `contract.py` for what each verb promises and raises. Safe for several threads."""

    def __init__(self, engine: Engine, clock: Clock, actor: str, randomness: Randomness = secrets.token_bytes) -> None:
        self._engine = engine
        self._clock = clock
        self._actor = actor
        self._randomness = randomness

    def acting_as(self, actor: str) -> Registry:
        """The same registry; what it writes is audited under `actor`. Closing one closes both."""
        return Registry(self._engine, self._clock, actor, self._randomness)

    def close(self) -> None:
        self._engine.dispose()

    def version(self) -> int:
        return self._read(lambda c: int(c.execute(select(state.c.version)).scalar_one()))

    # --- forces and their members

    def add_force(self, name: str, partitions: int = PARTITIONS_DEFAULT) -> Force:
        with self._changing() as change:
            force = members.add_force(change, name, partitions)
            conditions.add_rule(change, conditions.default_rule(name))
            return force

    def forces(self) -> list[Force]:
        return self._read(members.read_forces)

    def force(self, name: str) -> Force:
        by_name = {force.name: force for force in self.forces()}
        if name not in by_name:
            raise not_found("force", name, by_name)
        return by_name[name]

    def add_relay(self, name: str, force: str) -> Issued:
        with self._changing() as change:
            return members.add_relay(change, name, force)

    def add_watcher(self, watcher_id: str, force: str) -> Issued:
        with self._changing() as change:
            return members.add_watcher(change, watcher_id, force)

    def add_officer(self, name: str, force: str | None, role: Role) -> Issued:
        with self._changing() as change:
            return members.add_officer(change, name, force, role)

    def relays(self, force: str) -> list[Relay]:
        wanted = select(relays.c.name, relays.c.created_us).where(relays.c.force == force).order_by(relays.c.name)
        rows = self._read_of(force, lambda c: c.execute(wanted).all())
        return [Relay(name, force, moment(us)) for name, us in rows]

    def watchers(self, force: str) -> list[Watcher]:
        columns = (watchers.c.watcher_id, watchers.c.enrolled_us, watchers.c.via)
        wanted = select(*columns).where(watchers.c.force == force).order_by(watchers.c.watcher_id)
        rows = self._read_of(force, lambda c: c.execute(wanted).all())
        return [Watcher(watcher_id, force, moment(us), via) for watcher_id, us, via in rows]

    def officers(self) -> list[Officer]:
        c = officers.c
        wanted = select(c.name, c.force, c.role, c.created_us).order_by(c.name)
        return [Officer(*row[:3], moment(row[3])) for row in self._read(lambda c: c.execute(wanted).all())]

    def enrol(self, force: str, watcher_ids: Collection[str], via: str) -> int:
        with self.acting_as(f"relay:{via}")._changing() as change:
            return members.enrol(change, force, watcher_ids, via)

    def known_watchers(self, force: str) -> set[str]:
        wanted = select(watchers.c.watcher_id).where(watchers.c.force == force)
        return set(self._read_of(force, lambda c: c.execute(wanted).scalars().all()))

    # --- keys

    def rotate(self, kind: KeyKind, subject: str, force: str | None) -> Issued:
        with self._changing() as change:
            return members.rotate(change, kind, subject, force)

    def revoke(self, kind: KeyKind, subject: str, force: str | None, key_id: str | None = None) -> int:
        with self._changing() as change:
            return members.revoke(change, kind, subject, force, key_id)

    def keys(self, kind: KeyKind, subject: str, force: str | None) -> list[KeyEntry]:
        def found(connection: Connection) -> list[KeyEntry]:
            members.require_subject(connection, kind, subject, force)
            return members.read_keys(connection, kind, subject, force)

        return self._read(found)

    def keyring(self, since: Keyring | None = None) -> Keyring:
        older = since or EMPTY
        wanted = select(*(keys.c[name] for name in KEY_COLUMNS)).where(keys.c.version > older.version)
        with reading(self._engine) as connection:
            version = int(connection.execute(select(state.c.version)).scalar_one())
            rows = connection.execute(wanted).all()
        return older.changed(version, key_changes(rows))

    # --- rules and channels

    def rules(self, force: str) -> list[Rule]:
        return self._read(lambda c: conditions.read_rules(c, force))

    def all_rules(self) -> dict[str, list[Rule]]:
        with reading(self._engine) as connection:
            names = [force.name for force in members.read_forces(connection)]
            rows = conditions.rule_rows(connection)
        return rules_by_force(names, rows)

    def add_rule(self, rule: Rule) -> Rule:
        with self._changing() as change:
            return conditions.add_rule(change, rule)

    def remove_rule(self, force: str, rule_id: str) -> None:
        with self._changing() as change:
            conditions.remove_rule(change, force, rule_id)

    def channels(self, force: str) -> list[Channel]:
        return self._read(lambda c: conditions.read_channels(c, force))

    def add_channel(self, force: str, kind: ChannelKind, url: str, secret: str | None = None) -> Channel:
        with self._changing() as change:
            return conditions.add_channel(change, force, kind, url, secret)

    def remove_channel(self, force: str, channel_id: str) -> None:
        with self._changing() as change:
            conditions.remove_channel(change, force, channel_id)

    # --- audit

    def record_audit(
        self,
        action: str,
        force: str | None = None,
        target: str = "",
        detail: Mapping[str, object] | None = None,
        reason: str = "",
    ) -> int:
        with self._changing() as change:
            return change.record(action, force, target, detail, reason)

    def audit(
        self, force: str | None = None, since: datetime | None = None, limit: int = AUDIT_LIMIT_DEFAULT
    ) -> list[AuditEntry]:
        a = audit.c
        wanted = select(a.id, a.at_us, a.actor, a.action, a.force, a.target, a.detail, a.reason)
        if force is not None:
            wanted = wanted.where(a.force == force)
        if since is not None:
            wanted = wanted.where(a.at_us >= micros(since))
        rows = self._read(lambda c: c.execute(wanted.order_by(a.id.desc()).limit(limit)).all())
        return [
            AuditEntry(id_, moment(us), actor, action, owner, target, msgspec.json.decode(detail), reason)
            for id_, us, actor, action, owner, target, detail, reason in reversed(rows)
        ]

    # --- transactions

    def _changing(self) -> AbstractContextManager[Change]:
        return changing(self._engine, self._clock, self._actor, self._randomness)

    def _read(self, fetch: Callable[[Connection], T]) -> T:
        with reading(self._engine) as connection:
            return fetch(connection)

    def _read_of(self, force: str, fetch: Callable[[Connection], T]) -> T:
        """The same, of a force that must exist."""

        def fetch_checked(connection: Connection) -> T:
            require_force(connection, force)
            return fetch(connection)

        return self._read(fetch_checked)
