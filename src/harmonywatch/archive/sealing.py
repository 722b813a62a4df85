"""Names become tokens before they reach the lake; keys stay outside of it.

One file per force in the folder of keys, `<force>.keys`: JSON, every version of the key, the newest used for writing.
The folder has mode 0700, the files 0600. A file appears whole or not at all, fsynced, and is never overwritten: losing
a key would make every token of the force meaningless, so a table remembers a check value of the key it is written with.

- `citizen` = `v<version>.` + base64url of AES-SIV(the identity, its kind in one letter): deterministic, so it can be
  joined and counted; it opens again with the key alone (`reveal`), so no table of names exists anywhere.
- `citizen_sealed` = the name, only where the identity does not hold it (a citizen_id stands beside, or the spelling
  differs from the normalised one). Deterministic too, bound to its token, so that columns of it compress.
- The bytes of rejects are sealed whole, bound to the reject's id.

The force is associated data everywhere: a token of one force never opens, nor repeats, in another.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode, urlsafe_b64decode
from binascii import b2a_base64
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from harmonywatch.report.words import identity_of

KEY_BITS = 512
_URL_SAFE = bytes.maketrans(b"+/", b"-_")

Token = tuple[str, str | None]
"""(citizen, citizen_sealed)."""


class NotSealedHere(Exception):
    """The text is no token of this force, or its key is not in the folder."""


class _KeyFile(msgspec.Struct):
    force: str
    keys: dict[int, str]


class Sealer:
    """Seals and opens for one force. Not for several threads at once."""

    def __init__(self, force: str, keys: dict[int, bytes]) -> None:
        self._force = force.encode()
        self._identity = self._bound(b"identity")
        self._ciphers = {version: AESSIV(key) for version, key in keys.items()}
        self._version = max(keys)
        self._writing = self._ciphers[self._version]
        self._mark = f"v{self._version}."

    def _bound(self, kind: bytes, *to: bytes) -> list[bytes]:
        """Associated data: one element, because each costs a pass of the cipher."""
        return [b"\x00".join((self._force, kind, *to))]

    def check_value(self) -> str:
        """A text that tells keys apart and gives nothing away; it belongs beside what is written with the key."""
        return self._mark + self._writing.encrypt(b"", self._bound(b"check")).hex()[:16]

    def token(self, name: str, citizen_id: str | None) -> Token:
        """The token of a citizen, and the sealed name where the token alone cannot restore it."""
        identity = identity_of(name, citizen_id)
        citizen = self._text(_short(identity), self._identity)
        if citizen_id is None and identity == "name:" + name:
            return citizen, None
        return citizen, self._text(name, self._bound(b"name", citizen.encode()))

    def _text(self, clear: str, bound_to: list[bytes]) -> str:
        sealed = self._writing.encrypt(clear.encode(), bound_to)
        return self._mark + b2a_base64(sealed, newline=False).translate(_URL_SAFE, b"=").decode()

    def reveal(self, citizen: str) -> str:
        """The identity (`id:...` or `name:...`) behind a token. Raises NotSealedHere."""
        return _long(self._open(citizen, self._identity))

    def name_of(self, citizen: str, citizen_sealed: str | None) -> str:
        """The name as the watcher spelled it. Raises NotSealedHere."""
        if citizen_sealed is None:
            return self.reveal(citizen).removeprefix("name:")
        return self._open(citizen_sealed, self._bound(b"name", citizen.encode()))

    def _open(self, text: str, bound_to: list[bytes]) -> str:
        mark, _, sealed = text.partition(".")
        try:
            cipher = self._ciphers[int(mark.removeprefix("v"))]
            return cipher.decrypt(urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)), bound_to).decode()
        except (InvalidTag, KeyError, ValueError) as error:
            raise NotSealedHere(f"not a token of this force, or its key is missing ({type(error).__name__})") from None

    def seal_bytes(self, clear: bytes, reject_id: str) -> bytes:
        """One byte of key version, then the sealed bytes; nothing is sealed as one byte alone."""
        version = bytes([self._version])
        return version + self._writing.encrypt(clear, self._bound(b"reject", reject_id.encode()))

    def open_bytes(self, sealed: bytes, reject_id: str) -> bytes:
        """What `seal_bytes` was given. Raises NotSealedHere."""
        try:
            return self._ciphers[sealed[0]].decrypt(sealed[1:], self._bound(b"reject", reject_id.encode()))
        except (InvalidTag, KeyError, IndexError, ValueError) as error:
            raise NotSealedHere(f"not bytes sealed for this force ({type(error).__name__})") from None


def _short(identity: str) -> str:
    """An identity as it is sealed: tokens are most of a fresh file of the lake, so each byte of them counts."""
    return identity[0] + identity[identity.index(":") + 1 :]


def _long(sealed: str) -> str:
    return {"n": "name:", "i": "id:"}[sealed[0]] + sealed[1:]


def open_sealer(folder: Path, force: str) -> Sealer:
    """The sealer of a force; its key is drawn if the force has none yet. Raises OSError, msgspec.DecodeError."""
    path = folder / f"{force}.keys"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(path, _KeyFile(force, {1: b64encode(AESSIV.generate_key(KEY_BITS)).decode()}))
    found = msgspec.json.decode(path.read_bytes(), type=_KeyFile)
    return Sealer(found.force, {version: b64decode(key) for version, key in found.keys.items()})


def _create(path: Path, content: _KeyFile) -> None:
    """The file, durable and whole; if another process was first, its file stands."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, msgspec.json.encode(content))
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
