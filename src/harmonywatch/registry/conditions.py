"""What a force set up: its rules and its channels, checked before they are stored."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection, select

from harmonywatch.registry.change import Change, require_force
from harmonywatch.registry.contract import (
    DEFAULT_RULE_ID,
    DEFAULT_THRESHOLD,
    AlreadyExists,
    Channel,
    ChannelKind,
    InvalidName,
    InvalidValue,
    Rule,
)
from harmonywatch.registry.engine import insert_new
from harmonywatch.registry.near import not_found
from harmonywatch.registry.rows import RULE_COLUMNS, moment, rule_of, rule_row, storable
from harmonywatch.registry.tables import channels, rules

RULE_ID_PATTERN = r"[a-z0-9][a-z0-9.-]{0,79}"
AREA_CORNERS_MAX = 10_000
WORDS_MAX = 1_000
SECRET_BYTES = 32


def default_rule(force: str) -> Rule:
    return Rule(rule_id=DEFAULT_RULE_ID, force=force, threshold=DEFAULT_THRESHOLD)


def add_rule(change: Change, rule: Rule) -> Rule:
    check_rule(rule)
    require_force(change.connection, rule.force)
    stamped = msgspec.structs.replace(rule, created_at=moment(change.now_us))
    if insert_new(change.connection, rules, [rule_row(stamped)]) == 0:
        raise AlreadyExists("rule", rule.rule_id, "remove it first, or choose another name")
    change.bump()
    said = ("rule_id", "force", "created_at")
    detail = {k: v for k, v in msgspec.structs.asdict(rule).items() if k not in said and v is not None}
    change.record("rule.add", rule.force, rule.rule_id, detail)
    return stamped


def remove_rule(change: Change, force: str, rule_id: str) -> None:
    require_force(change.connection, force)
    gone = change.connection.execute(rules.delete().where(rules.c.force == force, rules.c.rule_id == rule_id))
    if gone.rowcount == 0:
        ids = change.connection.execute(select(rules.c.rule_id).where(rules.c.force == force)).scalars().all()
        raise not_found("rule", rule_id, ids)
    change.bump()
    change.record("rule.remove", force, rule_id)


def rule_rows(connection: Connection) -> Sequence[Any]:
    """Rows of RULE_COLUMNS, of all forces, oldest first in each."""
    columns = [rules.c[name] for name in RULE_COLUMNS]
    return connection.execute(select(*columns).order_by(rules.c.force, rules.c.created_us, rules.c.rule_id)).all()


def read_rules(connection: Connection, force: str) -> list[Rule]:
    require_force(connection, force)
    return [rule for rule in map(rule_of, rule_rows(connection)) if rule.force == force]


def check_rule(rule: Rule) -> None:
    """Raises InvalidName or InvalidValue for a rule that means nothing."""

    def refuse(field: str, reason: str) -> InvalidValue:
        return InvalidValue(f"rule {rule.rule_id}", field, reason)

    if re.fullmatch(RULE_ID_PATTERN, rule.rule_id) is None:
        raise InvalidName("rule", rule.rule_id, "1 to 80 of a-z, 0-9, dot and hyphen, none of the last two first")
    if not math.isfinite(rule.threshold):
        raise refuse("threshold", "is not finite")
    if rule.confidence_least is not None and not 0 <= rule.confidence_least <= 1:
        raise refuse("confidence_least", "is outside 0..1")
    if rule.area is not None and (reason := _area_fault(rule.area)):
        raise refuse("area", reason)
    if rule.words is not None and (reason := _words_fault(rule.words)):
        raise refuse("words", reason)
    if rule.hours is not None:
        start, end = rule.hours
        if not (0 <= start <= 23 and 0 <= end <= 24) or start == end:
            raise refuse("hours", f"({start}, {end}): the first is 0..23, the second 0..24, and they differ")


def _area_fault(area: tuple[tuple[float, float], ...]) -> str | None:
    if len(area) > AREA_CORNERS_MAX:
        return f"has {len(area)} corners; the limit is {AREA_CORNERS_MAX}"
    if not all(-180 <= lon <= 180 and -90 <= lat <= 90 for lon, lat in area):
        return "holds a corner that is not [lon, lat] in degrees"
    return "has fewer than three different corners" if len(set(area)) < 3 else None


def _words_fault(words: tuple[str, ...]) -> str | None:
    if not 1 <= len(words) <= WORDS_MAX:
        return f"holds {len(words)} words, not 1..{WORDS_MAX}"
    return "holds an empty word, NUL or a lone surrogate" if any(not w or storable(w) != w for w in words) else None


def add_channel(change: Change, force: str, kind: ChannelKind, url: str, secret: str | None) -> Channel:
    _check_channel(kind, url)
    require_force(change.connection, force)
    if secret is None and kind == "webhook":
        secret = change.randomness(SECRET_BYTES).hex()
    channel_id = "c" + change.randomness(6).hex()
    channel = Channel(channel_id, force, kind, url, secret, True, moment(change.now_us))
    row = {"channel_id": channel_id, "force": force, "kind": kind, "url": url, "secret": secret, "enabled": True}
    change.connection.execute(channels.insert().values(row | {"created_us": change.now_us}))
    change.bump()
    change.record("channel.add", force, channel_id, {"kind": kind, "url": channel.shown_url})
    return channel


def remove_channel(change: Change, force: str, channel_id: str) -> None:
    require_force(change.connection, force)
    mine = (channels.c.force == force, channels.c.channel_id == channel_id)
    if change.connection.execute(channels.delete().where(*mine)).rowcount == 0:
        ids = change.connection.execute(select(channels.c.channel_id).where(channels.c.force == force)).scalars().all()
        raise not_found("channel", channel_id, ids)
    change.bump()
    change.record("channel.remove", force, channel_id)


def read_channels(connection: Connection, force: str) -> list[Channel]:
    require_force(connection, force)
    c = channels.c
    wanted = select(c.channel_id, c.force, c.kind, c.url, c.secret, c.enabled, c.created_us)
    rows = connection.execute(wanted.where(c.force == force).order_by(c.created_us, c.channel_id)).all()
    return [Channel(*row[:5], bool(row[5]), moment(row[6])) for row in rows]


def _check_channel(kind: ChannelKind, url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidValue("channel", "url", "is not a URL") from None
    if kind not in ("apprise", "webhook"):
        raise InvalidValue("channel", "kind", f"is {kind!r}, not apprise or webhook")
    if storable(url) != url or not parts.scheme or "://" not in url:
        raise InvalidValue("channel", "url", "is not a URL")
    if kind == "webhook" and (parts.scheme not in ("http", "https") or not host):
        raise InvalidValue("channel", "url", "of a webhook is http://HOST... or https://HOST...")
