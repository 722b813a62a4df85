"""Forces, and who belongs to them: watchers, relays, officers, each with at most two live keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, select

from harmonywatch.registry.change import Change, require_force
from harmonywatch.registry.contract import (
    ALERT_AGE_MAX_S_DEFAULT,
    FORCE_NAME_PATTERN,
    ROLES,
    AlreadyExists,
    Force,
    InvalidName,
    InvalidValue,
    Issued,
    KeyEntry,
    KeyKind,
    NotFound,
    Role,
)
from harmonywatch.registry.engine import insert_new
from harmonywatch.registry.keyring import KEY_BYTES, hash_of, key_text
from harmonywatch.registry.near import not_found
from harmonywatch.registry.rows import enrolment_rows, moment
from harmonywatch.registry.tables import forces, keys, officers, relays, watchers
from harmonywatch.report.words import ID_LENGTH_MAX

LIVE_KEYS_MAX = 2
NAME_LENGTH_MAX = 200
"""Of relays and officers; a watcher's name is the id in its reports."""

PARTITIONS_MAX = 1024

_SUBJECTS: dict[KeyKind, tuple[Table, str]] = {
    "watcher": (watchers, "watcher_id"),
    "relay": (relays, "name"),
    "officer": (officers, "name"),
}


def add_force(change: Change, name: str, partitions: int) -> Force:
    if re.fullmatch(FORCE_NAME_PATTERN, name) is None:
        raise InvalidName("force", name, "2 to 41 of a-z, 0-9 and hyphen, a letter first (it names topics and folders)")
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise InvalidValue(f"force {name}", "partitions", f"is {partitions}, not in 1..{PARTITIONS_MAX}")
    row = {
        "name": name,
        "partitions": partitions,
        "alert_age_max_s": ALERT_AGE_MAX_S_DEFAULT,
        "created_us": change.now_us,
    }
    if insert_new(change.connection, forces, [row]) == 0:
        raise AlreadyExists("force", name)
    change.bump()
    change.record("force.add", name, name, {"partitions": partitions})
    return Force(name, partitions, moment(change.now_us), ALERT_AGE_MAX_S_DEFAULT)


def read_forces(connection: Connection) -> list[Force]:
    columns = (forces.c.name, forces.c.partitions, forces.c.created_us, forces.c.alert_age_max_s)
    rows = connection.execute(select(*columns).order_by(forces.c.name)).all()
    return [Force(name, partitions, moment(us), age_s) for name, partitions, us, age_s in rows]


def add_relay(change: Change, name: str, force: str) -> Issued:
    _require_name("relay", name)
    require_force(change.connection, force)
    row = {"force": force, "name": name, "created_us": change.now_us}
    if insert_new(change.connection, relays, [row]) == 0:
        raise AlreadyExists("relay", name, "rotate its key instead")
    return _issue_first(change, "relay", name, force, None)


def add_watcher(change: Change, watcher_id: str, force: str) -> Issued:
    """A watcher that a relay enrolled is there without a key: it gets its first one."""
    _require_name("watcher", watcher_id)
    require_force(change.connection, force)
    row = {"force": force, "watcher_id": watcher_id, "via": None, "enrolled_us": change.now_us}
    is_new = insert_new(change.connection, watchers, [row]) > 0
    if not is_new and read_keys(change.connection, "watcher", watcher_id, force):
        raise AlreadyExists("watcher", watcher_id, "rotate its key instead")
    return _issue_first(change, "watcher", watcher_id, force, None)


def add_officer(change: Change, name: str, force: str | None, role: Role) -> Issued:
    _require_name("officer", name)
    if role not in ROLES:
        raise InvalidValue(f"officer {name}", "role", f"is {role!r}, not one of {', '.join(ROLES)}")
    if force is not None:
        require_force(change.connection, force)
    row = {"name": name, "force": force, "role": role, "created_us": change.now_us}
    if insert_new(change.connection, officers, [row]) == 0:
        raise AlreadyExists("officer", name, "rotate the key instead")
    return _issue_first(change, "officer", name, force, role)


def enrol(change: Change, force: str, watcher_ids: Collection[str], via: str) -> int:
    """Raises no version: readers keep neither watchers nor their number in memory."""
    require_force(change.connection, force)
    rows = enrolment_rows(force, list(watcher_ids), via, change.now_us)
    new = insert_new(change.connection, watchers, rows)
    if new:
        change.record("watchers.enrol", force, via, {"new": new})
    return new


def rotate(change: Change, kind: KeyKind, subject: str, force: str | None) -> Issued:
    """One key more; the oldest beyond two is revoked, so whoever still sends with the last one has time to change."""
    owner, role = _owner(change.connection, kind, subject, force)
    issued = _issue(change, kind, subject, owner, role)
    live = [entry.key_id for entry in read_keys(change.connection, kind, subject, owner) if entry.revoked_at is None]
    beyond = live[:-LIVE_KEYS_MAX]
    _mark_revoked(change, beyond)
    change.bump()
    change.record("key.rotate", owner, f"{kind} {subject}", {"key_id": issued.key_id, "revoked": beyond})
    return issued


def revoke(change: Change, kind: KeyKind, subject: str, force: str | None, key_id: str | None) -> int:
    owner, _ = _owner(change.connection, kind, subject, force)
    entries = read_keys(change.connection, kind, subject, owner)
    if key_id is not None and key_id not in (known := [entry.key_id for entry in entries]):
        raise not_found(f"key of {kind} {subject}", key_id, known)
    ids = [entry.key_id for entry in entries if entry.revoked_at is None and key_id in (None, entry.key_id)]
    _mark_revoked(change, ids)
    change.bump()
    change.record("key.revoke", owner, f"{kind} {subject}", {"revoked": ids})
    return len(ids)


def read_keys(connection: Connection, kind: KeyKind, subject: str, force: str | None) -> list[KeyEntry]:
    """Live and revoked, oldest first."""
    columns = (keys.c.key_id, keys.c.kind, keys.c.force, keys.c.subject, keys.c.created_us, keys.c.revoked_us)
    mine = and_(keys.c.kind == kind, keys.c.subject == subject)
    if kind != "officer":
        mine = and_(mine, keys.c.force == force)
    rows = connection.execute(select(*columns).where(mine).order_by(keys.c.serial)).all()
    return [KeyEntry(*row[:4], moment(row[4]), None if row[5] is None else moment(row[5])) for row in rows]


def require_subject(connection: Connection, kind: KeyKind, subject: str, force: str | None) -> None:
    """Raises NotFound with near names."""
    _owner(connection, kind, subject, force)


def _owner(connection: Connection, kind: KeyKind, subject: str, force: str | None) -> tuple[str | None, Role | None]:
    """The force and role that the subject's keys carry. Raises NotFound."""
    table, column = _SUBJECTS[kind]
    name = table.c[column]
    if kind != "officer":
        if force is None:
            raise NotFound("force", "")
        require_force(connection, force)
        among: ColumnElement[bool] = table.c.force == force
    else:
        among = name.is_not(None) if force is None else table.c.force == force
    wanted: Sequence[Any] = (table.c.force, table.c.role) if kind == "officer" else (table.c.force,)
    row = connection.execute(select(*wanted).where(among, name == subject)).first()
    if row is None:
        raise not_found(kind, subject, connection.execute(select(name).where(among)).scalars().all())
    return row[0], row[1] if kind == "officer" else None


def _issue_first(change: Change, kind: KeyKind, subject: str, force: str | None, role: Role | None) -> Issued:
    issued = _issue(change, kind, subject, force, role)
    change.bump()
    change.record(f"{kind}.add", force, subject, {"key_id": issued.key_id} | ({"role": role} if role else {}))
    return issued


def _issue(change: Change, kind: KeyKind, subject: str, force: str | None, role: Role | None) -> Issued:
    key = key_text(kind, change.randomness(KEY_BYTES))
    key_id = "k" + change.randomness(6).hex()
    row = {
        "key_id": key_id,
        "hash": hash_of(key),
        "kind": kind,
        "force": force,
        "subject": subject,
        "role": role,
        "created_us": change.now_us,
        "version": change.version,
    }
    change.connection.execute(keys.insert().values(row))
    return Issued(key_id, key)


def _mark_revoked(change: Change, key_ids: Sequence[str]) -> None:
    if key_ids:
        values = {"revoked_us": change.now_us, "version": change.version}
        change.connection.execute(keys.update().where(keys.c.key_id.in_(key_ids)).values(values))


def _require_name(what: KeyKind, name: str) -> None:
    most = ID_LENGTH_MAX if what == "watcher" else NAME_LENGTH_MAX
    if not (1 <= len(name) <= most and name.isprintable() and name == name.strip()):
        raise InvalidName(what, name, f"1 to {most} printable characters, no blank at either end")
