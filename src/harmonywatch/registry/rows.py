"""Rows of the state database as the contract's values, and back. Pure, and free of any database library."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from harmonywatch.clock import EPOCH, micros
from harmonywatch.registry.contract import InvalidName, KeyInfo, Rule
from harmonywatch.report.words import ID_LENGTH_MAX

KEY_COLUMNS = ("hash", "revoked_us", "key_id", "kind", "force", "subject", "role")
RULE_COLUMNS = (
    "rule_id",
    "force",
    "threshold",
    "confidence_least",
    "area",
    "words",
    "hours",
    "enabled",
    "created_us",
)

Row = Sequence[Any]


def moment(us: int) -> datetime:
    """The time that `micros` counted."""
    return EPOCH + timedelta(microseconds=us)


def key_changes(rows: Sequence[Row]) -> dict[bytes, KeyInfo | None]:
    """By hash, from rows of KEY_COLUMNS: whose a live key is, None for a revoked one."""
    return {bytes(row[0]): KeyInfo(*row[2:]) if row[1] is None else None for row in rows}


def rule_of(row: Row) -> Rule:
    """From a row of RULE_COLUMNS."""
    rule_id, force, threshold, confidence_least, area, words, hours, enabled, created_us = row
    return Rule(
        rule_id=rule_id,
        force=force,
        threshold=threshold,
        confidence_least=confidence_least,
        area=None if area is None else msgspec.json.decode(area, type=tuple[tuple[float, float], ...]),
        words=None if words is None else msgspec.json.decode(words, type=tuple[str, ...]),
        hours=None if hours is None else msgspec.json.decode(hours, type=tuple[int, int]),
        enabled=bool(enabled),
        created_at=moment(created_us),
    )


def rule_row(rule: Rule) -> dict[str, Any]:
    """Its columns; the conditions that are lists as JSON text."""
    return {
        "rule_id": rule.rule_id,
        "force": rule.force,
        "threshold": rule.threshold,
        "confidence_least": rule.confidence_least,
        "area": json_text(rule.area),
        "words": json_text(rule.words),
        "hours": json_text(rule.hours),
        "enabled": rule.enabled,
        "created_us": micros(rule.created_at),
    }


def rules_by_force(forces: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Rule]]:
    """Every force is a key; rules in the order of the rows."""
    by_force: dict[str, list[Rule]] = {force: [] for force in forces}
    for row in rows:
        rule = rule_of(row)
        by_force[rule.force].append(rule)
    return by_force


def json_text(value: object) -> str | None:
    """JSON for a text column; None stays null."""
    return None if value is None else msgspec.json.encode(value).decode()


def storable(text: str) -> str:
    """The text with what no engine takes (NUL, lone surrogates) written as escapes; for the audit, which must not fail
    because somebody asked something odd."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def enrolment_rows(force: str, watcher_ids: Sequence[str], via: str, now_us: int) -> list[dict[str, Any]]:
    """Rows of `watchers`, sorted: neighbours share pages. Raises InvalidName for what no engine takes."""
    for watcher_id in watcher_ids:
        if not 1 <= len(watcher_id) <= ID_LENGTH_MAX or storable(watcher_id) != watcher_id:
            raise InvalidName("watcher", watcher_id, f"1 to {ID_LENGTH_MAX} characters, neither NUL nor lone surrogate")
    return [{"force": force, "watcher_id": w, "via": via, "enrolled_us": now_us} for w in sorted(set(watcher_ids))]
