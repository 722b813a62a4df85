"""Keys: how they are made and hashed, the immutable keyring, and the cache that a door keeps of it.

Only the SHA-256 of a key is stored. Slow hashes (argon2, scrypt) exist because people choose guessable passwords; a key
here is 256 random bits, so nobody can try them all however fast the hash is, and a fast one can be looked up for every
request. A dictionary lookup by hash leaks at most timing about hashes, from which no key can be made.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Protocol

from harmonywatch.clock import Clock
from harmonywatch.registry.contract import KeyInfo, KeyKind, RegistryError
from harmonywatch.registry.revalidate import REVALIDATE_S, Revalidator

KEY_BYTES = 32
KEY_TEXT_LENGTH = len("hw_w_") + 43


def key_text(kind: KeyKind, random: bytes) -> str:
    """`hw_w_...`, `hw_r_...` or `hw_o_...` with the 256 bits in base64url: found by scanners of leaked secrets."""
    assert len(random) == KEY_BYTES
    return f"hw_{kind[0]}_" + base64.urlsafe_b64encode(random).decode().rstrip("=")


def hash_of(key: str) -> bytes | None:
    """What the registry stores of a key; None for a text that cannot be one."""
    if len(key) != KEY_TEXT_LENGTH or not key.startswith("hw_") or not key.isascii():
        return None
    return hashlib.sha256(key.encode()).digest()


class Keyring:
    """Every live key at one version. Immutable: a later state is another keyring."""

    __slots__ = ("_by_hash", "version")

    def __init__(self, version: int, by_hash: Mapping[bytes, KeyInfo]) -> None:
        self.version = version
        self._by_hash = MappingProxyType(dict(by_hash))

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, key: str) -> KeyInfo | None:
        """Whose the key is, None if nobody's."""
        digest = hash_of(key)
        return None if digest is None else self._by_hash.get(digest)

    def changed(self, version: int, changes: Mapping[bytes, KeyInfo | None]) -> Keyring:
        """The keyring at a later version; None marks a key that is no longer live."""
        by_hash = dict(self._by_hash)
        for digest, info in changes.items():
            if info is None:
                by_hash.pop(digest, None)
            else:
                by_hash[digest] = info
        return Keyring(version, by_hash)


EMPTY = Keyring(0, {})


class KeySource(Protocol):
    """Where a cache reads keys: a Registry or a Glance."""

    def version(self) -> int: ...

    def keyring(self, since: Keyring | None = None) -> Keyring: ...


class KeyringCache:
    """The keyring in memory, at most `REVALIDATE_S` behind the registry; a `KeyFinder`. Safe for several threads.

    `start` (or `with`) reads it and revalidates it from a thread of its own, so that `peek` never waits for a disk.
    While the registry cannot be read the last keyring serves on (whoever cannot read it cannot have revoked either),
    `age_s` grows, and readiness should fail above a second or two.
    """

    def __init__(self, source: KeySource, clock: Clock, revalidate_s: float = REVALIDATE_S) -> None:
        self._source = source
        self._clock = clock
        self._keyring = EMPTY
        self._checked_at: float | None = None
        self._reading = threading.Lock()
        self._revalidator = Revalidator("keyring", self.refresh, revalidate_s)

    def start(self) -> None:
        """Read the keyring, then keep it fresh until `close`. Raises what the registry raises."""
        self.refresh()
        self._revalidator.start()

    def close(self) -> None:
        """Stop revalidating. Twice is once."""
        self._revalidator.close()

    def __enter__(self) -> KeyringCache:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def peek(self, key: str) -> KeyInfo | None:
        """From memory alone; None may also mean that the key is too new: then ask `find`."""
        return self._keyring.find(key)

    def find(self, key: str) -> KeyInfo | None:
        """Whose the key is now. Looks at the registry first if memory is too old or knows no such key.

        Raises RegistryBusy or RegistryBroken only when memory has no answer.
        """
        if self.age_s() < self._age_max_s() and (info := self._keyring.find(key)) is not None:
            return info
        if hash_of(key) is None:
            return None
        try:
            self.refresh()
        except RegistryError:
            if (info := self._keyring.find(key)) is not None:
                return info
            raise
        return self._keyring.find(key)

    def find_all(self, keys: Iterable[str]) -> dict[str, KeyInfo | None]:
        """As `find`, with one look at the registry for all of them, also if memory knows them. Raises what it raises."""
        wanted = list(keys)
        if any(hash_of(key) is not None for key in wanted):
            self.refresh()
        return {key: self._keyring.find(key) for key in wanted}

    def refresh(self) -> None:
        """Ask for the version and, if it rose, for what changed. Raises what the registry raises."""
        with self._reading:
            asked_at = self._clock.monotonic()
            version = self._source.version()
            if version != self._keyring.version:
                # lower: a backup was restored, and what is newer than ours is not what changed
                self._keyring = self._source.keyring(self._keyring if version > self._keyring.version else None)
            self._checked_at = asked_at

    def age_s(self) -> float:
        """Seconds since the registry last confirmed what is in memory; infinite before the first time."""
        checked_at = self._checked_at
        return float("inf") if checked_at is None else self._clock.monotonic() - checked_at

    def _age_max_s(self) -> float:
        """Without a thread each caller revalidates; beside one, only if it fell behind, still within 1 s."""
        revalidate_s = self._revalidator.interval_s
        return 3 * revalidate_s if self._revalidator.is_running else revalidate_s
