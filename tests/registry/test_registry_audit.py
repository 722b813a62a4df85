"""The audit: every act leaves an entry in its own transaction, and the database lets nobody take one back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from harmonywatch.clock import ManualClock
from harmonywatch.registry.contract import AlreadyExists, Rule
from harmonywatch.registry.store import Registry


def test_every_administrative_act_leaves_an_entry(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_relay("base", "north")
    registry.add_watcher("d1", "north")
    registry.add_officer("ann", "north", "analyst")
    registry.rotate("watcher", "d1", "north")
    registry.revoke("relay", "base", "north")
    registry.enrol("north", ["d1", "d2", "d3"], "base")
    registry.enrol("north", ["d2"], "base")
    registry.add_rule(Rule(rule_id="x", force="north", threshold=5.0))
    registry.remove_rule("north", "x")
    channel = registry.add_channel("north", "webhook", "http://127.0.0.1:9/")
    registry.remove_channel("north", channel.channel_id)
    entries = registry.audit()
    assert [entry.action for entry in entries] == [
        *("force.add", "rule.add", "relay.add", "watcher.add", "officer.add", "key.rotate", "key.revoke"),
        *("watchers.enrol", "rule.add", "rule.remove", "channel.add", "channel.remove"),
    ]
    assert {entry.actor for entry in entries} == {"os:alice", "relay:base"}
    assert {entry.force for entry in entries} == {"north"}
    ids = [entry.id for entry in entries]
    assert ids == sorted(set(ids))
    enrolled = next(entry for entry in entries if entry.action == "watchers.enrol")
    assert (enrolled.target, enrolled.detail) == ("base", {"new": 2})


def test_a_refused_act_leaves_neither_change_nor_entry_nor_version(registry: Registry) -> None:
    registry.add_force("north")
    before = (registry.audit(), registry.version(), registry.all_rules())
    with pytest.raises(AlreadyExists):
        registry.add_force("north")
    assert (registry.audit(), registry.version(), registry.all_rules()) == before


def test_a_question_is_recorded_whatever_it_holds_and_raises_no_version(registry: Registry) -> None:
    version = registry.version()
    asked = registry.acting_as("officer:ann")
    first = asked.record_audit("query", "north", "SELECT '\x00\ud800'", {"rows": 3, "seconds": 0.5}, reason="case 7")
    second = asked.record_audit("ask", None)
    assert second > first and registry.version() == version
    entry = registry.audit()[0]
    assert (entry.actor, entry.action, entry.force, entry.reason) == ("officer:ann", "query", "north", "case 7")
    assert entry.target == "SELECT '\\x00\\ud800'" and entry.detail == {"rows": 3, "seconds": 0.5}


def test_the_audit_is_read_by_force_and_time_the_newest_of_it_oldest_first(
    registry: Registry, clock: ManualClock
) -> None:
    for n in range(6):
        registry.record_audit("query", ("north", "south")[n % 2], str(n))
        clock.advance(60)
    targets = [entry.target for entry in registry.audit(limit=3)]
    assert targets == ["3", "4", "5"]
    assert [entry.target for entry in registry.audit("south")] == ["1", "3", "5"]
    since = registry.audit()[2].at
    assert [entry.target for entry in registry.audit("north", since=since)] == ["2", "4"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'os:mallory'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 1",
        "INSERT OR REPLACE INTO audit VALUES (1, 0, 'os:mallory', 'query', NULL, '', '{}', '')",
        "REPLACE INTO audit VALUES (1, 0, 'os:mallory', 'query', NULL, '', '{}', '')",
        "INSERT INTO audit VALUES (1, 0, 'm', 'query', NULL, '', '{}', '') ON CONFLICT DO UPDATE SET actor = 'm'",
    ],
)
def test_the_database_itself_refuses_to_change_the_audit(registry: Registry, database: Path, statement: str) -> None:
    registry.record_audit("query", "north", "SELECT 1")
    before = registry.audit()
    with (
        closing(sqlite3.connect(database, isolation_level=None)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="the audit only grows"),
    ):
        connection.execute(statement)
    assert registry.audit() == before
