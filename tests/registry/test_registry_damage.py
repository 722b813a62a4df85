"""What a damaged, half-restored, missing or replaced file does: an error of the contract, told once, and never silence."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.registry.contract import RegistryBroken
from harmonywatch.registry.glance import Door, open_glance
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.registry.store import Registry, open_registry

DEADLINE_S = 10.0


def until(condition: Callable[[], bool]) -> None:
    clock, pause = SystemClock(), threading.Event()
    end = clock.monotonic() + DEADLINE_S
    while not condition():
        assert clock.monotonic() < end, "the condition did not come true"
        pause.wait(0.005)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def _torn(path: Path) -> None:
    """The first half of a copy: the schema is there, its pages are not."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _gone(path: Path) -> None:
    path.unlink()


def _emptied(path: Path) -> None:
    """A dump replayed as far as its tables."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM state")


def _without_tables(path: Path) -> None:
    path.unlink()
    path.touch()


DAMAGES = [_garbage, _torn, _gone, _emptied, _without_tables]


@pytest.fixture(params=["registry", "glance"])
def door(request: pytest.FixtureRequest, registry: Registry, url: str, clock: ManualClock) -> Iterator[Door]:
    registry.add_force("north")
    registry.add_relay("base", "north")
    door: Door = registry if request.param == "registry" else open_glance(url, clock)
    yield door
    door.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_of_the_contract_and_over_when_the_file_is_back(
    door: Door, database: Path, damage: Callable[[Path], None]
) -> None:
    version = door.version()
    shutil.copy(database, database.with_suffix(".backup"))
    damage(database)
    with pytest.raises(RegistryBroken, match=r"registry\.db"):
        door.version()
        door.keyring()
    if database.exists():
        with pytest.raises(RegistryBroken):
            door.keyring()
    shutil.copy(database.with_suffix(".backup"), database)
    assert door.version() == version and len(door.keyring()) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_door_that_is_opened_on_damage_says_so(
    registry: Registry, database: Path, url: str, damage: Callable[[Path], None]
) -> None:
    registry.close()
    damage(database)
    if damage in (_gone, _without_tables):
        open_glance(url, SystemClock()).close()  # nothing there: a new one is made
        return
    with pytest.raises(RegistryBroken, match=r"registry\.db"):
        open_glance(url, SystemClock()).version()


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_keyrings_thread_outlives_damage_tells_it_once_and_revokes_again_afterwards(
    registry: Registry, database: Path, url: str, damage: Callable[[Path], None]
) -> None:
    registry.add_force("north")
    issued = registry.add_relay("base", "north")
    backup = database.with_suffix(".backup")
    with capture_logs() as logs, KeyringCache(open_glance(url, SystemClock()), SystemClock(), 0.01) as cache:
        shutil.copy(database, backup)
        damage(database)
        until(lambda: cache.age_s() > 0.3)
        assert cache.peek(issued.key) is not None, "what is known serves on"
        backup.replace(database)
        until(lambda: cache.age_s() < 0.2)
        assert [entry["log_level"] for entry in logs] == ["warning", "info"]
        registry.revoke("relay", "base", "north")
        until(lambda: cache.peek(issued.key) is None)


def test_an_error_that_nobody_foresaw_does_not_end_the_thread_either(registry: Registry) -> None:
    class Odd:
        is_odd = False

        def version(self) -> int:
            if self.is_odd:
                raise ZeroDivisionError
            return registry.version()

        keyring = staticmethod(registry.keyring)

    source = Odd()
    registry.add_force("north")
    with capture_logs() as logs, KeyringCache(source, SystemClock(), 0.01) as cache:
        source.is_odd = True
        until(lambda: cache.age_s() > 0.1)
        source.is_odd = False
        until(lambda: cache.age_s() < 0.05)
    assert [entry.get("kind") for entry in logs] == ["ZeroDivisionError", None]


def test_a_backup_put_in_the_place_of_the_file_is_what_is_read_from_then_on(
    door: Door, registry: Registry, database: Path, url: str
) -> None:
    backup = database.with_suffix(".backup")
    cache = KeyringCache(door, SystemClock())
    old = registry.rotate("relay", "base", "north")
    shutil.copy(database, backup)
    lost = registry.add_watcher("d1", "north")
    registry.revoke("relay", "base", "north")
    cache.refresh()
    assert cache.peek(lost.key) is not None and cache.peek(old.key) is None
    backup.replace(database)
    cache.refresh()
    assert cache.peek(old.key) is not None, "the backup knows nothing of its revocation"
    assert cache.peek(lost.key) is None, "nor of a key issued later"
    again = open_registry(url, SystemClock(), "os:bob")
    again.revoke("relay", "base", "north")
    again.close()
    cache.refresh()
    assert cache.peek(old.key) is None
