"""The schema: made from nothing, left alone when current, refused when it is from the future; how files are opened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.registry.contract import RegistryBroken, RegistryBusy, SchemaTooNew
from harmonywatch.registry.engine import open_engine, reading, writing
from harmonywatch.registry.glance import open_glance
from harmonywatch.registry.keyring import hash_of
from harmonywatch.registry.migrate import MIGRATIONS, migrate
from harmonywatch.registry.migrations import SCHEMA_HEAD
from harmonywatch.registry.store import Registry, open_registry
from harmonywatch.registry.tables import metadata


def test_the_steps_make_the_tables_that_the_program_uses(registry: Registry, url: str) -> None:
    registry.version()
    engine = open_engine(url)
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_of_the_first_release_is_brought_forward_with_all_that_it_holds(
    url: str, clock: ManualClock
) -> None:
    """`0001` is what 0.1.0 made. What stands here is what it wrote: neither is ever changed."""
    engine = open_engine(url)
    migrate(engine, head="0001")
    with writing(engine) as connection:
        for statement in FIRST_RELEASE:
            connection.execute(text(statement), {"hash": hash_of(OLD_KEY)})
    engine.dispose()
    registry = open_registry(url, clock, "os:bob")
    assert [(force.name, force.partitions, force.alert_age_max_s) for force in registry.forces()] == [("north", 4, 900)]
    assert registry.known_watchers("north") == {"d1"}
    info = registry.keyring().find(OLD_KEY)
    assert info is not None and (info.kind, info.subject, info.key_id) == ("relay", "base", "k1")
    [rule] = registry.rules("north")
    assert (rule.rule_id, rule.threshold, rule.hours, rule.enabled) == ("night", 25.5, (22, 6), True)
    assert [(entry.id, entry.actor, entry.detail) for entry in registry.audit()] == [(1, "os:alice", {"partitions": 4})]
    registry.add_watcher("d1", "north")
    assert registry.version() == 8 and registry.audit()[-1].id == 2
    door = open_glance(url, clock)
    assert door.all_rules() == registry.all_rules() and door.keyring().find(OLD_KEY) == info
    door.close()
    registry.close()


OLD_KEY = "hw_r_" + "A" * 43
FIRST_RELEASE = (
    "INSERT INTO forces (name, partitions, alert_age_max_s, created_us) VALUES ('north', 4, 900, 1795456800000000)",
    "INSERT INTO watchers (force, watcher_id, via, enrolled_us) VALUES ('north', 'd1', 'base', 1795456800000001)",
    "INSERT INTO relays (force, name, created_us) VALUES ('north', 'base', 1795456800000002)",
    "INSERT INTO keys (key_id, hash, kind, force, subject, role, created_us, revoked_us, version) "
    "VALUES ('k1', :hash, 'relay', 'north', 'base', NULL, 1795456800000003, NULL, 7)",
    "INSERT INTO rules (force, rule_id, threshold, confidence_least, area, words, hours, enabled, created_us) "
    "VALUES ('north', 'night', 25.5, NULL, NULL, NULL, '[22,6]', true, 1795456800000004)",
    "INSERT INTO audit (at_us, actor, action, force, target, detail, reason) "
    "VALUES (1795456800000005, 'os:alice', 'force.add', 'north', 'north', '{\"partitions\": 4}', '')",
    "UPDATE state SET version = 7",
)


def test_the_constant_names_the_last_step() -> None:
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_HEAD]


def test_opening_again_changes_nothing(registry: Registry, url: str, database: Path) -> None:
    registry.add_force("north")
    before = database.read_bytes()
    for _ in range(2):
        again = open_registry(url, SystemClock(), "os:bob")
        assert [force.name for force in again.forces()] == ["north"]
        again.close()
    assert database.read_bytes() == before


def test_a_step_that_fails_leaves_the_old_schema_whole(url: str, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    (steps / "versions").mkdir(parents=True)
    body = "revision = '1'\ndown_revision = None\nfrom alembic import op\nimport sqlalchemy as sa\n"
    body += "def upgrade():\n    op.create_table('half', sa.Column('a', sa.Integer))\n    raise ZeroDivisionError\n"
    (steps / "versions" / "one.py").write_text(body)
    engine = open_engine(url)
    with pytest.raises(ZeroDivisionError):
        migrate(engine, head="1", folder=steps)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT name FROM sqlite_master")).all() == []
    migrate(engine)
    engine.dispose()


def test_a_database_from_the_future_is_refused_and_left_alone(registry: Registry, url: str, database: Path) -> None:
    registry.close()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = database.read_bytes()
    with pytest.raises(SchemaTooNew, match="9999"):
        open_registry(url, SystemClock(), "os:alice")
    assert database.read_bytes() == before


def test_files_are_the_owners_alone_and_on_the_rollback_journal(registry: Registry, url: str, database: Path) -> None:
    registry.add_force("north")
    assert {path.name for path in database.parent.iterdir()} == {"registry.db", "registry.db-journal"}
    assert [oct(path.stat().st_mode & 0o777) for path in database.parent.iterdir()] == ["0o600", "0o600"]
    engine = open_engine(url)
    with reading(engine) as connection:
        pragmas = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    engine.dispose()
    assert pragmas == ["truncate", 2, 1, 5000]


def test_a_writer_waits_at_its_start_and_says_busy_when_it_waited_too_long(url: str) -> None:
    holder, waiter = open_engine(url), open_engine(url, busy_timeout_s=0.05)
    with writing(holder) as connection:
        connection.execute(text("CREATE TABLE t (a INTEGER)"))
        with pytest.raises(RegistryBusy), writing(waiter) as late:
            late.execute(text("SELECT 1"))
    with writing(waiter) as late:
        late.execute(text("INSERT INTO t VALUES (1)"))
    with pytest.raises(ZeroDivisionError), writing(holder) as connection:
        connection.execute(text("INSERT INTO t VALUES (2)"))
        raise ZeroDivisionError
    with reading(holder) as connection, reading(waiter) as other:
        assert (
            connection.execute(text("SELECT a FROM t")).all() == other.execute(text("SELECT a FROM t")).all() == [(1,)]
        )
    holder.dispose()
    waiter.dispose()


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(os.urandom(4096))
    with pytest.raises(RegistryBroken, match=r"registry\.db"):
        open_registry(f"sqlite:///{path}", SystemClock(), "os:alice")
    assert len(path.read_bytes()) == 4096
    with pytest.raises(RegistryBroken):
        open_registry("sqlite://", SystemClock(), "os:alice")
    with pytest.raises(RegistryBroken):
        open_registry(f"sqlite:///{tmp_path}", SystemClock(), "os:alice")
