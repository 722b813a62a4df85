"""What a server does that a file does not: it goes away and comes back, keeps locks, holds a password, is spoken to lightly."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from structlog.testing import capture_logs
from test_registry_damage import until
from test_registry_migrations import (  # noqa: F401 (the same, on this engine)
    test_a_database_of_the_first_release_is_brought_forward_with_all_that_it_holds,
)
from test_registry_remembered import (  # noqa: F401 (the same, on this engine)
    running,
    test_alerts_and_incidents_go_on_while_the_registry_is_held,
)

from engines.postgres import Postgres
from harmonywatch import assemble
from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.registry.contract import RegistryBroken, RegistryBusy, Rule, SchemaTooNew
from harmonywatch.registry.engine import open_engine, reading, writing
from harmonywatch.registry.glance import Door, open_glance
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.registry.light_postgres import PostgresLink
from harmonywatch.registry.migrate import migrate
from harmonywatch.registry.postgres import without_driver
from harmonywatch.registry.remembered import RememberedRules
from harmonywatch.registry.store import Registry, open_registry
from harmonywatch.registry.tables import metadata
from harmonywatch.settings import Settings, load


@pytest.fixture
def server(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's connection to the test's database."""
    with psycopg.connect(without_driver(url), autocommit=True) as connection:
        yield connection


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    """Of an embedded profile whose state is on the server."""
    settings, _ = load({"data": str(tmp_path / "data"), "state": url}, {})
    assemble.prepare(settings)
    return settings


@pytest.fixture
def hold(server: psycopg.Connection[Any]) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def held() -> Iterator[None]:
        with server.transaction():
            server.execute("LOCK TABLE state, forces, rules, channels, keys IN ACCESS EXCLUSIVE MODE")
            yield

    return held


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that the test may kill."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["registry", "glance"])
def door(request: pytest.FixtureRequest, registry: Registry, url: str, clock: ManualClock) -> Iterator[Door]:
    registry.add_force("north")
    registry.add_relay("base", "north")
    door: Door = registry if request.param == "registry" else open_glance(url, clock)
    yield door
    door.close()


# --- the schema


def test_the_steps_make_the_tables_that_the_program_uses(registry: Registry, url: str) -> None:
    registry.version()
    engine = open_engine(url)
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_step_that_fails_leaves_nothing_behind(url: str, tmp_path: Path, server: psycopg.Connection[Any]) -> None:
    steps = tmp_path / "steps"
    (steps / "versions").mkdir(parents=True)
    body = "revision = '1'\ndown_revision = None\nfrom alembic import op\nimport sqlalchemy as sa\n"
    body += "def upgrade():\n    op.create_table('half', sa.Column('a', sa.Integer))\n    raise ZeroDivisionError\n"
    (steps / "versions" / "one.py").write_text(body)
    engine = open_engine(url)
    with pytest.raises(ZeroDivisionError):
        migrate(engine, head="1", folder=steps)
    assert server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == []
    migrate(engine)
    engine.dispose()


def test_a_database_from_the_future_is_refused(registry: Registry, url: str, server: psycopg.Connection[Any]) -> None:
    registry.close()
    server.execute("UPDATE alembic_version SET version_num = '9999'")
    for opened in (lambda: open_registry(url, SystemClock(), "os:alice"), lambda: open_glance(url, SystemClock())):
        with pytest.raises(SchemaTooNew, match="9999"):
            opened()


def test_processes_that_bring_one_database_forward_at_once_do_it_once(url: str) -> None:
    program = (
        "import sys\n"
        "from harmonywatch.clock import SystemClock\n"
        "from harmonywatch.registry.glance import open_glance\n"
        "sys.stdin.readline()\n"
        "print(open_glance(sys.argv[1], SystemClock()).version())\n"
    )
    command = [sys.executable, "-c", program, url]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=60)[0].strip() for racer in racers] == ["1"] * 4


# --- what stands in it


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'os:mallory'",
        "UPDATE audit SET actor = 'os:mallory' WHERE id = 99",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "INSERT INTO audit VALUES (1, 0, 'm', 'query', NULL, '', '{}', '') ON CONFLICT (id) DO UPDATE SET actor = 'm'",
    ],
)
def test_the_database_itself_refuses_to_change_the_audit(
    registry: Registry, server: psycopg.Connection[Any], statement: str
) -> None:
    registry.record_audit("query", "north", "SELECT 1")
    before = registry.audit()
    with pytest.raises(psycopg.IntegrityError, match="the audit only grows"):
        server.execute(statement)  # type: ignore[call-overload]
    assert registry.audit() == before


def test_neither_a_key_nor_anything_like_it_is_in_any_table(
    registry: Registry, server: psycopg.Connection[Any]
) -> None:
    registry.add_force("north")
    issued = [registry.add_watcher("d1", "north"), registry.add_relay("base", "north")]
    issued.append(registry.rotate("watcher", "d1", "north"))
    tables = [row[0] for row in server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    stored = "".join(str(server.execute(f"SELECT t::text FROM {table} t").fetchall()) for table in tables)  # type: ignore[call-overload]  # noqa: S608
    assert issued[0].key_id in stored, "the scan looks at the right tables"
    for one in issued:
        raw = base64.urlsafe_b64decode(one.key[5:] + "=")
        for likeness in (one.key, one.key[5:17], one.key[-12:], raw.hex()[:16], raw.hex()[-16:]):
            assert likeness not in stored


# --- locks


def test_a_writer_that_waits_too_long_says_busy_and_readers_do_not_wait_at_all(
    door: Door, registry: Registry, server: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("harmonywatch.registry.light_postgres.SESSION", "SET lock_timeout = 200")
    monkeypatch.setattr("harmonywatch.registry.engine.SESSION", "SET lock_timeout = 200")
    clock = SystemClock()
    opened: Door = open_glance(url, clock) if door is not registry else open_registry(url, clock, "os:bob")
    version = opened.version()
    with server.transaction():
        server.execute("UPDATE state SET version = version + 1")
        with pytest.raises(RegistryBusy):
            opened.enrol("north", ["d1"], "base")
        with pytest.raises(RegistryBusy):
            opened.record_audit("query")
        began = clock.monotonic()
        assert opened.version() == version and len(opened.keyring()) == 1 and list(opened.all_rules()) == ["north"]
        assert clock.monotonic() - began < 1
    assert opened.version() == version + 1 and opened.enrol("north", ["d1"], "base") == 1
    opened.close()


def test_what_is_read_is_one_snapshot_whatever_is_written_meanwhile(url: str, registry: Registry) -> None:
    """A rule of a force that was not there yet, a key newer than its version: neither may ever be seen."""
    stop, failed = threading.Event(), []
    doors: list[Door] = [open_glance(url, SystemClock()), registry]

    def read(door: Door) -> None:
        while not stop.is_set():
            try:
                door.all_rules()
                keyring = door.keyring()
                if len(keyring) != max(0, keyring.version - 1) // 2:
                    failed.append((keyring.version, len(keyring)))
            except Exception as error:  # noqa: BLE001 (told by the test)
                failed.append(error)

    threads = [threading.Thread(target=read, args=(door,)) for door in doors]
    for thread in threads:
        thread.start()
    writer = open_registry(url, SystemClock(), "os:bob")
    for number in range(60):  # each force makes one version (its rule with it), each relay one more
        writer.add_force(f"force-{number}")
        writer.add_relay("base", f"force-{number}")
    stop.set()
    for thread in threads:
        thread.join(20)
    for door in (writer, doors[0]):
        door.close()
    assert failed == []


# --- a server that is away


def test_the_keyring_and_the_rules_outlive_a_killed_server_and_follow_it_when_it_is_back(own_server: Postgres) -> None:
    clock = SystemClock()
    url = own_server.database()
    registry = open_registry(url, clock, "os:alice")
    registry.add_force("north")
    issued = registry.add_relay("base", "north")
    door, other = open_glance(url, clock), open_glance(url, clock)
    rules = RememberedRules(door, clock)
    rules.start()
    with capture_logs() as logs, KeyringCache(other, clock, 0.05) as cache:
        own_server.kill()
        until(lambda: cache.age_s() > 0.6 and rules.age_s() > 0.6)
        assert cache.peek(issued.key) is not None and list(rules.all_rules()) == ["north"], "what is known serves on"
        for ask in (registry.version, door.version, lambda: door.enrol("north", ["d1"], "base")):
            with pytest.raises(RegistryBroken):
                ask()
        own_server.start()
        until(lambda: cache.age_s() < 0.3 and rules.age_s() < 0.5)
        assert sorted(entry["log_level"] for entry in logs) == ["info", "info", "warning", "warning"]
        registry.revoke("relay", "base", "north")
        registry.add_rule(Rule(rule_id="x", force="north", threshold=5.0))
        until(lambda: cache.peek(issued.key) is None and len(rules.all_rules()["north"]) == 2)
    rules.close()
    assert door.enrol("north", ["d1"], "base") == 1
    for opened in (door, other, registry):
        opened.close()


def test_a_connection_that_the_server_ended_while_idle_is_made_anew(
    door: Door, server: psycopg.Connection[Any]
) -> None:
    version = door.version()
    for _ in range(3):
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'harmonywatch'")
        until(lambda: not _connected(server))
        assert door.version() == version


def _connected(server: psycopg.Connection[Any]) -> bool:
    found = server.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'harmonywatch'").fetchall()
    return bool(found)


@pytest.mark.parametrize("damage", ["DELETE FROM state", "DROP TABLE keys, rules", "ALTER TABLE state DROP version"])
def test_a_database_restored_by_half_is_an_error_of_the_contract(
    door: Door, server: psycopg.Connection[Any], damage: str
) -> None:
    server.execute(damage)  # type: ignore[call-overload]
    with pytest.raises(RegistryBroken):
        door.keyring()


def test_no_error_tells_the_password(url: str, postgres: Postgres) -> None:
    password = url.partition("://")[2].partition("@")[0].partition(":")[2]
    assert password
    wrong = [url.replace(f":{postgres.port}/", ":1/"), url + "-not-there", url.replace(password, "wrong" + password)]
    for address in wrong:
        attempts: list[Callable[[], object]] = [
            lambda of=address: open_registry(of, SystemClock(), "os:alice"),  # type: ignore[misc]
            lambda of=address: PostgresLink(of).ask("SELECT 1"),  # type: ignore[misc]
        ]
        for attempt in attempts:
            with pytest.raises(RegistryBroken) as error:
                attempt()
            assert password not in str(error.value) and "postgresql://127.0.0.1" in str(error.value)


# --- lightness


def test_the_light_view_loads_no_heavy_library(registry: Registry, url: str) -> None:
    registry.add_force("north")
    program = (
        "import sys\n"
        "from harmonywatch.clock import SystemClock\n"
        "from harmonywatch.registry.glance import open_glance\n"
        "from harmonywatch.registry.keyring import KeyringCache\n"
        "door = open_glance(sys.argv[1], SystemClock())\n"
        "with KeyringCache(door, SystemClock()): pass\n"
        "door.enrol('north', ['d1'], 'base')\n"
        "assert list(door.all_rules()) == ['north']\n"
        "assert not {'sqlalchemy', 'alembic', 'sqlite3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)


def test_without_its_driver_it_says_what_to_install(url: str) -> None:
    program = (
        "import sys\n"
        "sys.modules['psycopg'] = None\n"
        "from harmonywatch.clock import SystemClock\n"
        "from harmonywatch.registry.contract import RegistryBroken\n"
        "from harmonywatch.registry.glance import open_glance\n"
        "from harmonywatch.registry.store import open_registry\n"
        "for opened in (lambda: open_glance(sys.argv[1], SystemClock()),\n"
        "               lambda: open_registry(sys.argv[1], SystemClock(), 'x')):\n"
        "    try:\n"
        "        opened()\n"
        "    except RegistryBroken as error:\n"
        "        assert 'harmonywatch[distributed]' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)


def test_a_url_without_a_driver_means_ours(url: str) -> None:
    plain = without_driver(url)
    registry = open_registry(plain, SystemClock(), "os:alice")
    registry.add_force("north")
    door = open_glance(plain, SystemClock())
    assert list(door.all_rules()) == ["north"]
    door.close()
    registry.close()


def test_writing_sees_what_it_waited_for(url: str) -> None:
    """READ COMMITTED: two that lock the same row one after the other lose no update."""
    engines = [open_engine(url) for _ in range(2)]
    with writing(engines[0]) as connection:
        connection.execute(text("CREATE TABLE tally (n INTEGER)"))
        connection.execute(text("INSERT INTO tally VALUES (0)"))

    def count(of: int) -> None:
        for _ in range(100):
            with writing(engines[of]) as mine:
                n = mine.execute(text("SELECT n FROM tally FOR UPDATE")).scalar_one()
                mine.execute(text("UPDATE tally SET n = :n"), {"n": n + 1})

    threads = [threading.Thread(target=count, args=(of,)) for of in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engines[0]) as connection:
        assert connection.execute(text("SELECT n FROM tally")).scalar_one() == 200
    for engine in engines:
        engine.dispose()
