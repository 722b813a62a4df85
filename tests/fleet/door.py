"""A gateway's HTTP door for the fleet's tests: real sockets, honest verdicts, and faults on demand.

It accepts what parses as a report with the four required fields, refuses the rest with a pointer and a reason, and
keeps every line it accepted, in order, by key.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import zstandard
from aiohttp import web


class Place(msgspec.Struct):
    """Unknown members are fine here and below, as at the real door."""

    lat: float
    lon: float


class Seen(msgspec.Struct):
    name: str
    harmonyscore: float


class Said(msgspec.Struct):
    watcher_id: str
    location: Place
    citizens: list[Seen]
    words: list[str]


DECODER = msgspec.json.Decoder(Said)
Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class DoorDouble:
    """`fault` may answer (or kill) a request before it is judged; None lets it pass."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys
        self.lines: dict[str, list[bytes]] = defaultdict(list)
        self.rejects: list[bytes] = []
        self.requests: list[tuple[str, int]] = []
        self.fault: Fault | None = None
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0, ssl: Any = None) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/reports", self.post)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=ssl)
        await site.start()
        address = self._runner.addresses[0]
        self.url = f"{'https' if ssl else 'http'}://127.0.0.1:{address[1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def post(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key not in self.keys:
            return web.json_response({"title": "unknown key"}, status=401)
        if self.fault is not None and (answer := await self.fault(request)) is not None:
            return answer
        body = await request.read()
        if request.headers.get("Content-Encoding") == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        elif request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.requests.append((request.content_type, len(body)))
        if request.content_type == "application/json":
            return self._single(key, body)
        return self._batch(key, body)

    def _single(self, key: str, body: bytes) -> web.Response:
        reason = refusal(body)
        if reason is not None:
            self.rejects.append(body)
            return web.json_response({"title": "refused", "pointer": reason[0], "reason": reason[1]}, status=422)
        self.lines[key].append(body)
        return web.json_response({"report_id": "x", "status": "accepted"}, status=202)

    def _batch(self, key: str, body: bytes) -> web.Response:
        rejected = []
        lines = body.removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, 1):
            reason = refusal(line)
            if reason is None:
                self.lines[key].append(line)
            else:
                self.rejects.append(line)
                rejected.append({"line": number, "pointer": reason[0], "reason": reason[1]})
        return web.json_response({"accepted": len(lines) - len(rejected), "rejected": rejected})


def refusal(line: bytes) -> tuple[str, str] | None:
    """(pointer, reason), or None for a good report."""
    try:
        report = DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return "", str(error)
    if abs(report.location.lat) > 90:
        return "/location/lat", "out of range"
    return None
