"""Who asks, and what they may see. A force never sees another: the scope comes from the key, `?force=` only narrows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param

from harmonywatch.console.problems import Problem
from harmonywatch.registry.contract import KeyFinder, KeyInfo, RegistryBroken, RegistryBusy
from harmonywatch.report.topics import ALERTS
from harmonywatch.stream.contract import Stream


@dataclass(frozen=True, slots=True)
class Asker:
    """An officer with the key that was shown. `scope`: the force asked about, None for all."""

    key: str
    officer: KeyInfo
    scope: str | None


async def asker(request: Request, keys: KeyFinder, stream: Stream, force: str | None) -> Asker:
    """Who asks. Raises Problem: 401 without a live key, 403 for another kind of key or another force, 404, 503."""
    scheme, key = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() != "bearer" or not key:
        raise _unauthorised("no-key", "send Authorization: Bearer <officer key>")
    officer = keys.peek(key) or await _find(keys, key)
    if officer is None:
        raise _unauthorised("unknown-key", "this key is not, or no longer, valid")
    if officer.kind != "officer":
        raise Problem(403, "not-an-officer", f"this is the key of a {officer.kind}; the API is for officers")
    if force is not None and officer.force not in (None, force):
        raise Problem(403, "not-your-force", f"this key is for the force {officer.force} only")
    if force is not None and officer.force is None and ALERTS + force not in await asyncio.to_thread(stream.topics):
        raise Problem(404, "no-such-force", f"there is no force {force!r}")
    return Asker(key, officer, officer.force or force)


async def _find(keys: KeyFinder, key: str) -> KeyInfo | None:
    try:
        return await asyncio.to_thread(keys.find, key)
    except (RegistryBusy, RegistryBroken) as error:
        raise Problem(503, "registry", f"keys cannot be read now: {error}", {"Retry-After": "1"}) from None


def _unauthorised(code: str, detail: str) -> Problem:
    return Problem(401, code, detail, {"WWW-Authenticate": 'Bearer realm="harmonywatch console"'})
