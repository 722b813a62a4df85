"""Keys: shown once, hashed, two live at most, revoked within a second; the cache that doors keep."""

from __future__ import annotations

import base64
import logging
import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.registry.contract import Issued, NotFound, RegistryBusy
from harmonywatch.registry.keyring import Keyring, KeyringCache
from harmonywatch.registry.store import Registry


def found(registry: Registry, issued: Issued) -> bool:
    return registry.keyring().find(issued.key) is not None


def test_a_key_says_whose_it_is(registry: Registry) -> None:
    registry.add_force("north")
    relay = registry.add_relay("base", "north")
    officer = registry.add_officer("ann", None, "supervisor")
    assert re.fullmatch(r"hw_r_[A-Za-z0-9_-]{43}", relay.key) and officer.key.startswith("hw_o_")
    keyring = registry.keyring()
    by_relay, by_officer = keyring.find(relay.key), keyring.find(officer.key)
    assert by_relay is not None and by_officer is not None
    assert (by_relay.kind, by_relay.force, by_relay.subject, by_relay.role) == ("relay", "north", "base", None)
    assert (by_officer.kind, by_officer.force, by_officer.role) == ("officer", None, "supervisor")
    assert by_relay.key_id == relay.key_id


@pytest.mark.parametrize("text", ["", "hw_r_", "x" * 48, "hw_r_" + "A" * 43, "hw_r_" + "\ud800" * 43, "ö" * 48])
def test_what_is_no_key_is_nobodys(registry: Registry, text: str) -> None:
    registry.add_force("north")
    registry.add_relay("base", "north")
    assert registry.keyring().find(text) is None
    assert KeyringCache(registry, SystemClock()).find(text) is None


def test_rotation_leaves_two_live_keys_and_revokes_the_oldest_beyond(registry: Registry) -> None:
    registry.add_force("north")
    first = registry.add_watcher("d1", "north")
    other = registry.add_watcher("d2", "north")
    second = registry.rotate("watcher", "d1", "north")
    assert found(registry, first) and found(registry, second)
    third = registry.rotate("watcher", "d1", "north")
    assert [found(registry, key) for key in (first, second, third, other)] == [False, True, True, True]
    entries = registry.keys("watcher", "d1", "north")
    assert [entry.key_id for entry in entries] == [first.key_id, second.key_id, third.key_id]
    assert [entry.revoked_at is None for entry in entries] == [False, True, True]


def test_revoking_takes_one_key_or_all_and_rotation_lets_in_again(registry: Registry) -> None:
    registry.add_force("north")
    first = registry.add_relay("base", "north")
    second = registry.rotate("relay", "base", "north")
    assert registry.revoke("relay", "base", "north", first.key_id) == 1
    assert not found(registry, first) and found(registry, second)
    assert registry.revoke("relay", "base", "north") == 1
    assert len(registry.keyring()) == 0
    assert registry.revoke("relay", "base", "north") == 0
    assert found(registry, registry.rotate("relay", "base", "north"))
    with pytest.raises(NotFound):
        registry.revoke("relay", "base", "north", "k000000000000")


def test_an_officers_key_is_rotated_with_the_officers_force_or_none(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_force("south")
    registry.add_officer("ann", "north", "analyst")
    for force in ("north", None):
        issued = registry.rotate("officer", "ann", force)
        info = registry.keyring().find(issued.key)
        assert info is not None and (info.force, info.role) == ("north", "analyst")
    with pytest.raises(NotFound):
        registry.rotate("officer", "ann", "south")
    assert registry.revoke("officer", "ann", None) == 2


def test_the_same_watcher_id_in_two_forces_is_two_subjects(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_force("south")
    north, south = registry.add_watcher("d1", "north"), registry.add_watcher("d1", "south")
    registry.revoke("watcher", "d1", "north")
    assert not found(registry, north) and found(registry, south)


def test_a_keyring_brought_forward_equals_one_read_whole(registry: Registry) -> None:
    registry.add_force("north")
    keyring, issued = registry.keyring(), []
    for n in range(5):
        issued.append(registry.add_watcher(f"d{n}", "north"))
        issued.append(registry.rotate("watcher", f"d{n}", "north"))
        if n % 2:
            registry.revoke("watcher", f"d{n - 1}", "north")
        keyring, whole = registry.keyring(keyring), registry.keyring()
        assert keyring.version == whole.version == registry.version() and len(keyring) == len(whole)
        assert [keyring.find(key.key) for key in issued] == [whole.find(key.key) for key in issued]


def test_neither_a_key_nor_anything_like_it_is_in_the_file_or_a_log(
    registry: Registry, database: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    registry.add_force("north")
    issued = [registry.add_watcher(f"d{n}", "north") for n in range(3)] + [registry.add_relay("base", "north")]
    issued.append(registry.rotate("watcher", "d0", "north"))
    registry.keyring()
    stored = b"".join(path.read_bytes() for path in database.parent.iterdir())
    assert issued[0].key_id.encode() in stored, "the scan looks at the right file"
    said = caplog.text + "".join(capfd.readouterr()) + repr(issued) + repr(registry.audit())
    for one in issued:
        secret = one.key[5:]
        raw = base64.urlsafe_b64decode(secret + "=")
        for likeness in (one.key.encode(), secret.encode()[:12], secret.encode()[-12:], raw[:8], raw[-8:]):
            assert likeness not in stored
        assert raw.hex()[:16].encode() not in stored and secret[:12] not in said and raw.hex()[:16] not in said


def test_a_cache_learns_of_a_new_key_at_once_and_of_a_revocation_after_250_ms(registry: Registry) -> None:
    clock = ManualClock(SystemClock().now())
    cache = KeyringCache(registry, clock)
    registry.add_force("north")
    issued = registry.add_relay("base", "north")
    assert cache.peek(issued.key) is None and cache.age_s() == float("inf")
    assert cache.find(issued.key) is not None and cache.peek(issued.key) is not None
    later = registry.rotate("relay", "base", "north")
    assert cache.peek(later.key) is None and cache.find(later.key) is not None
    registry.revoke("relay", "base", "north")
    clock.advance(0.2)
    assert cache.find(later.key) is not None, "served from memory"
    clock.advance(0.05)
    assert cache.find(later.key) is None and cache.peek(issued.key) is None


def test_a_cache_reads_keys_only_when_the_version_changed(registry: Registry) -> None:
    class Counted:
        reads = 0

        def version(self) -> int:
            return registry.version()

        def keyring(self, since: Keyring | None = None) -> Keyring:
            self.reads += 1
            return registry.keyring(since)

    registry.add_force("north")
    clock, source = ManualClock(SystemClock().now()), Counted()
    cache = KeyringCache(source, clock)
    for _ in range(20):
        clock.advance(1)
        assert cache.find("hw_r_" + "A" * 43) is None
    registry.enrol("north", ["d1"], "base")
    assert cache.find("hw_r_" + "A" * 43) is None and source.reads == 1
    registry.add_relay("base", "north")
    cache.refresh()
    assert source.reads == 2


def test_a_cache_serves_on_while_the_database_is_held_and_says_how_old_it_is(
    registry: Registry, database: Path
) -> None:
    registry.add_force("north")
    issued = registry.add_relay("base", "north")

    class Held:
        is_held = False

        def version(self) -> int:
            if self.is_held:
                raise RegistryBusy(str(database))
            return registry.version()

        def keyring(self, since: Keyring | None = None) -> Keyring:
            return registry.keyring(since)

    clock, source = ManualClock(SystemClock().now()), Held()
    cache = KeyringCache(source, clock)
    cache.refresh()
    source.is_held = True
    clock.advance(3)
    assert cache.find(issued.key) is not None and cache.age_s() == 3
    with pytest.raises(RegistryBusy):
        cache.find("hw_r_" + "A" * 43)


def test_many_threads_may_ask_a_started_cache(registry: Registry) -> None:
    registry.add_force("north")
    issued = [registry.add_watcher(f"d{n}", "north") for n in range(20)]
    wrong: list[str] = []
    with KeyringCache(registry, SystemClock(), revalidate_s=0.001) as cache:

        def ask(mine: list[Issued]) -> None:
            for _ in range(50):
                wrong.extend(one.key_id for one in mine if cache.find(one.key) is None)
                if cache.find("hw_r_" + "A" * 43) is not None:
                    wrong.append("nobody")

        threads = [threading.Thread(target=ask, args=(issued[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    cache.close()
    assert wrong == []


def test_a_stored_hash_is_no_key(registry: Registry, database: Path) -> None:
    registry.add_force("north")
    registry.add_relay("base", "north")
    with closing(sqlite3.connect(database)) as connection:
        ((digest,),) = connection.execute("SELECT hash FROM keys").fetchall()
    assert len(digest) == 32
    assert registry.keyring().find("hw_r_" + digest.hex()[:43]) is None
