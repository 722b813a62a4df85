"""The registry's contract: who belongs to which force, which key is whose, which rules and channels a force has.

*Force*: the tenant; every other thing belongs to one. *Watcher*, *relay*: what may send reports, each with keys of its
own. *Officer*: a person with a role, for one force or, with force None, for all. *Key*: 256 random bits shown once, in
`Issued`; the registry keeps only a hash. *Keyring*: an immutable snapshot of the live keys. *Version*: a number that
rises with every change of forces, keys, rules or channels; equal versions mean equal answers. *Actor*: who did it:
`os:alice` (command line), `officer:NAME`, `relay:NAME`. The registry audits every change in its own transaction.

What is promised, and tested in `tests/registry/`:

1. A change, its audit entry and the version it makes commit together and are durable when the method returns.
2. A subject has at most two live keys: `rotate` issues one and revokes the oldest beyond two. After `revoke` none of
   the named keys is in any keyring read later; a `KeyringCache` learns of it within 250 ms, of a new key at once.
3. Neither a key nor anything it can be computed from stands in the database, a log, a `repr` or an error.
4. The audit only grows: the database itself refuses UPDATE and DELETE; ids strictly increase in the order of commits.
5. Any number of processes may open, migrate, read and write at once.

Enrolment (a watcher's first report through a relay) is audited by the batch and does not raise the version: it changes
neither keys nor rules. `harmonywatch.registry.store.open_registry` makes the registry (a door or a judge, which must
start fast, takes the few verbs of `harmonywatch.registry.glance.open_glance`); what follows are its verbs,
each raising the errors named at its end, and any of them `RegistryBusy` or `RegistryBroken`:

    registry.acting_as(actor) -> Registry             the same registry; what it writes is audited under that actor
    registry.version() -> int                         one small read, about 0.1 ms
    registry.close()

    add_force(name, partitions=4) -> Force            with the rule DEFAULT_RULE_ID; InvalidName, AlreadyExists
    forces() -> list[Force];  force(name) -> Force    NotFound (with near names)

    add_relay(name, force) -> Issued                  NotFound(force), InvalidName, AlreadyExists
    add_watcher(watcher_id, force) -> Issued          the same; a watcher enrolled without a key gets its first one
    add_officer(name, force | None, role) -> Issued   the same; names of officers are unique over all forces
    relays(force) -> list[Relay];  watchers(force) -> list[Watcher];  officers() -> list[Officer]
    rotate(kind, subject, force) -> Issued            NotFound. Also how a revoked subject is let in again
    revoke(kind, subject, force, key_id=None) -> int  all live keys of the subject, or one; how many were. NotFound
    keys(kind, subject, force) -> list[KeyEntry]      live and revoked, oldest first
    enrol(force, watcher_ids, via) -> int             `via`: the relay's name; how many were new. Repeats cost nothing
    known_watchers(force) -> set[str]
    keyring(since=None) -> Keyring                    `since`: an older keyring; then only what changed is read

    rules(force) -> list[Rule];  all_rules() -> dict[str, list[Rule]]     every force is a key, also one without rules
    add_rule(rule) -> Rule                            InvalidValue, NotFound(force), AlreadyExists
    remove_rule(force, rule_id)                       NotFound. The default rule may go too: it is audited
    channels(force) -> list[Channel]
    add_channel(force, kind, url, secret=None) -> Channel   a webhook without a secret is given one; InvalidValue
    remove_channel(force, channel_id)                 NotFound

    record_audit(action, force=None, target="", detail=None, reason="") -> int      id of the entry; for query and ask
    audit(force=None, since=None, limit=1000) -> list[AuditEntry]   the newest `limit`, oldest first; all forces if None

For an officer `force` is None or the officer's own in `rotate`, `revoke` and `keys`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from harmonywatch.clock import EPOCH

FORCE_NAME_PATTERN = r"[a-z][a-z0-9-]{1,40}"
"""Names topics, folders and views, so: lower case, digits, hyphens; 2 to 41 characters."""

DEFAULT_RULE_ID = "harmonyscore-below-25"
DEFAULT_THRESHOLD = 25.0
"""Every new force has this one rule: harmonyscore < 25, strict, no other condition (design, words)."""

PARTITIONS_DEFAULT, PARTITIONS_KAFKA = 4, 12
"""Of a force's topics, by engine (design, decisions)."""

ALERT_AGE_MAX_S_DEFAULT = 900.0
"""An alert whose report's `time` is older is stored and shown, never paged as fresh: a squad sent after a quarter of an
hour finds nobody. Per force, because a force may know better."""

KeyKind = Literal["watcher", "relay", "officer"]
Role = Literal["officer", "analyst", "supervisor", "administrator"]
ROLES: tuple[Role, ...] = ("officer", "analyst", "supervisor", "administrator")
ChannelKind = Literal["apprise", "webhook"]


@dataclass(frozen=True, slots=True)
class Force:
    """`partitions` of its topics, fixed for their generation; `alert_age_max_s`: older alerts are not fresh."""

    name: str
    partitions: int
    created_at: datetime
    alert_age_max_s: float = ALERT_AGE_MAX_S_DEFAULT


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """Whose a live key is. `force` is None only for an officer of all forces; `role` only set for officers."""

    key_id: str
    kind: KeyKind
    force: str | None
    subject: str
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key, this once. `key` is what the subject sends as bearer token; nobody can show it again."""

    key_id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key as the registry remembers it; `revoked_at` None while it is live."""

    key_id: str
    kind: KeyKind
    force: str | None
    subject: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Watcher:
    """`via`: the relay whose report enrolled it, None if an administrator added it."""

    watcher_id: str
    force: str
    enrolled_at: datetime
    via: str | None


@dataclass(frozen=True, slots=True)
class Relay:
    name: str
    force: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Officer:
    name: str
    force: str | None
    role: Role
    created_at: datetime


class Rule(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """When a harmonyscore is bad: strictly below `threshold`, and every condition that is not None holds.

    `rule_id`: slug, unique in the force. `confidence_least`: 0-1, the citizen's confidence is at least this; a citizen
    without confidence fails the condition. `area`: ring of [lon, lat] in WGS84 degrees, three corners or more, closed
    or not, not across 180 degrees; the report's location lies inside. `words`: at least one of them was heard, compared
    casefolded. `hours`: from <= hour < to of the report's `time` in UTC; (22, 6) spans midnight; `to` may be 24.
    `created_at` is stamped by the registry.
    """

    rule_id: str
    force: str
    threshold: float
    confidence_least: float | None = None
    area: tuple[tuple[float, float], ...] | None = None
    words: tuple[str, ...] | None = None
    hours: tuple[int, int] | None = None
    enabled: bool = True
    created_at: datetime = EPOCH


@dataclass(frozen=True, slots=True)
class Channel:
    """Where a force's incidents are told. `url` and `secret` (key of the HMAC that signs a webhook) are secrets: show
    `shown_url` instead."""

    channel_id: str
    force: str
    kind: ChannelKind
    url: str = field(repr=False)
    secret: str | None = field(repr=False)
    enabled: bool
    created_at: datetime

    @property
    def shown_url(self) -> str:
        """Enough to recognise it by. In apprise's URLs even the host may be a token, so only the scheme is shown."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}/..." if self.kind == "webhook" else f"{parts.scheme}://..."


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act. `id` strictly increases; `target`: what it was done to; `detail`: JSON members, never a key."""

    id: int
    at: datetime
    actor: str
    action: str
    force: str | None
    target: str
    detail: Mapping[str, object]
    reason: str


# --- ports: the slices of the registry that the other rooms need ----------------------------------------------------


class KeyFinder(Protocol):
    """What a door needs. `harmonywatch.registry.keyring.KeyringCache` is one."""

    def peek(self, key: str) -> KeyInfo | None:
        """From memory alone, at once; None may also mean that the key is too new: then ask `find`."""

    def find(self, key: str) -> KeyInfo | None:
        """Whose the key is, None if nobody's. An unknown key costs a small read: keep it off an event loop."""


class Enrolment(Protocol):
    """What the gateway needs to know and enrol watchers."""

    def known_watchers(self, force: str) -> set[str]:
        """Every watcher of the force. Raises NotFound."""

    def enrol(self, force: str, watcher_ids: Collection[str], via: str) -> int:
        """Make the unknown among them watchers of the force; how many were new."""


class RuleBook(Protocol):
    """What alerting needs: read again when the version changed."""

    def version(self) -> int: ...

    def all_rules(self) -> dict[str, list[Rule]]: ...


class AuditLog(Protocol):
    """What query, ask and reveal need."""

    def record_audit(
        self,
        action: str,
        force: str | None = None,
        target: str = "",
        detail: Mapping[str, object] | None = None,
        reason: str = "",
    ) -> int: ...


# --- errors, by who must act ----------------------------------------------------------------------------------------


class RegistryError(Exception):
    """Anything the registry raises."""


class NotFound(RegistryError):
    """The caller named what is not there. `near`: names like it, best first."""

    def __init__(self, what: str, name: str, near: tuple[str, ...] = ()) -> None:
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"no {what} {name!r}{hint}")
        self.what, self.name, self.near = what, name, near


class AlreadyExists(RegistryError):
    """The caller adds what is there."""

    def __init__(self, what: str, name: str, advice: str = "") -> None:
        super().__init__(f"{what} {name!r} exists already" + (f"; {advice}" if advice else ""))
        self.what, self.name = what, name


class InvalidName(RegistryError):
    """The caller's name breaks the rule for such names."""

    def __init__(self, what: str, name: str, rule: str) -> None:
        super().__init__(f"{name!r} cannot name a {what}: {rule}")
        self.what, self.name, self.rule = what, name, rule


class InvalidValue(RegistryError):
    """The caller's rule or channel has a field that means nothing."""

    def __init__(self, what: str, field_name: str, reason: str) -> None:
        super().__init__(f"{what}: {field_name} {reason}")
        self.what, self.field, self.reason = what, field_name, reason


class SchemaTooNew(RegistryError):
    """The operator runs an older harmonywatch than the one that wrote the database."""

    def __init__(self, where: str, revision: str) -> None:
        super().__init__(
            f"{where} is at schema revision {revision}, unknown here: upgrade harmonywatch, or restore a backup"
        )
        self.where, self.revision = where, revision


class RegistryBroken(RegistryError):
    """The operator must look at the disk, the file or the server: what was written last may not be there."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class RegistryBusy(RegistryError):
    """Time will help: another process held the database longer than the busy timeout. Nothing was written."""

    def __init__(self, where: str, retry_after_s: float = 1.0) -> None:
        super().__init__(f"{where} is busy")
        self.where, self.retry_after_s = where, retry_after_s
