"""A small HTTP/1.1 client for one thing: many small POSTs over kept connections, at little CPU a request.

Rules it keeps: one request at a time on a connection, no pipelining; a request is answered exactly once, by
`on_answer` (the gateway spoke) or `on_failure` (connection lost, timed out, could not connect); nothing is sent again
by this file: retrying is the sender's decision. Connections are opened when needed, up to `size`, and
reopened with backoff.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 0.5
ANSWER_BYTES_MAX = 64 << 20


@dataclass(eq=False)
class Request:
    """Bytes to be POSTed: `head` up to and with the blank line, `body`; `attempts` are the ground truth's numbers."""

    target: int
    head: bytes
    body: bytes
    attempts: list[int]
    first_s: float
    batch: bool
    tries: int = 0
    sent_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """Status, seconds to wait as asked by Retry-After (None: not asked), and the body."""

    status: int
    retry_after_s: float | None
    body: bytes


@dataclass(frozen=True)
class Listener:
    """Who is told: (request, answer, latency in seconds) or (request, what happened)."""

    on_answer: Callable[[Request, Answer, float], None]
    on_failure: Callable[[Request, str], None]


@dataclass(frozen=True)
class Door:
    """Where to POST. `path` is that of the reports."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    @classmethod
    def at(cls, url: str, ca: str | None = None) -> Door:
        """The reports' door of the gateway at `url` (http or https; `ca`: PEM file to trust). Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the http:// or https:// URL of a gateway")
        tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        path = parts.path.rstrip("/")
        path = path if path.endswith("/v1/reports") else path + "/v1/reports"
        return cls(parts.hostname, parts.port or (443 if tls else 80), path, tls)

    def head(self, key: str, content_type: str, encoding: str | None = None) -> bytes:
        """The request's head, up to where the length of the body goes."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Authorization: Bearer {key}",
            f"Content-Type: {content_type}",
        ]
        if encoding:
            lines.append(f"Content-Encoding: {encoding}")
        return "\r\n".join([*lines, "Content-Length: "]).encode()


class Pool:
    """The connections to one door. `submit` never blocks; `waiting` tells how many requests have no connection yet."""

    def __init__(self, door: Door, size: int, timeout_s: float, listener: Listener) -> None:
        self.listener, self.timeout_s = listener, timeout_s
        self.waiting: deque[Request] = deque()
        self._door, self._size = door, size
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, request: Request) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                connection.send(request)
                return
        self.waiting.append(request)
        self._connect_more()

    def sweep(self, oldest_s: float) -> None:
        """Ends requests without answer for `timeout_s`, and those waiting for a connection since before `oldest_s`."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            request = connection.request
            if request is not None and now - request.sent_s > self.timeout_s:
                connection.abort("timed out")
        while self.waiting and self.waiting[0].first_s < oldest_s:
            self.listener.on_failure(self.waiting.popleft(), "no connection")
        self._connect_more()

    async def close(self) -> None:
        self._closed = True
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in list(self._open):
            connection.abort("closed")

    def _connect_more(self) -> None:
        room = self._size - len(self._open) - len(self._connecting)
        wanted = min(room, len(self.waiting) - len(self._connecting))
        for _ in range(0 if self._closed else wanted):
            task = asyncio.ensure_future(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        """Opens one connection, however long it takes, as long as somebody waits for it."""
        backoff_s = RECONNECT_MIN_S
        while self.waiting:
            try:
                await asyncio.wait_for(self._dial(), self.timeout_s)
                return
            except (OSError, TimeoutError) as error:
                if self.waiting:
                    kind = type(error).__name__
                    self.listener.on_failure(self.waiting.popleft(), f"no connection: {kind}")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, RECONNECT_MAX_S)

    async def _dial(self) -> None:
        door = self._door
        loop, name = asyncio.get_running_loop(), door.host if door.tls else None
        await loop.create_connection(
            lambda: _Connection(self), door.host, door.port, ssl=door.tls, server_hostname=name
        )

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)
        self.free(connection)

    def free(self, connection: _Connection) -> None:
        """The connection can take the next request."""
        if self.waiting and connection.usable():
            connection.send(self.waiting.popleft())
        elif connection.usable():
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self.waiting:
            self._connect_more()


class _Connection(asyncio.Protocol):
    """One kept connection. httptools calls the `on_...` methods with the parts of an answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._retry_after_s: float | None = None
        self._keep = True
        self.request: Request | None = None

    def usable(self) -> bool:
        return self._keep and self.request is None and self._transport is not None and not self._transport.is_closing()

    def send(self, request: Request) -> None:
        assert self._transport is not None
        self.request = request
        request.tries += 1
        request.sent_s = self._loop.time()
        self._transport.write(request.head + request.body)

    def abort(self, reason: str) -> None:
        """Closes at once; a request under way fails for that reason."""
        self._keep = False
        self._fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, reason: str) -> None:
        request, self.request = self.request, None
        if request is not None:
            self._pool.listener.on_failure(request, reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by shape, not by class.
        self._transport = cast("asyncio.Transport", transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort("an answer that is not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep = False
        self._fail(f"connection lost: {type(exc).__name__}" if exc else "connection closed")
        self._pool.lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            # A date is as good as "later": the backoff decides then.
            self._retry_after_s = float(value) if value.strip().isdigit() else None

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > ANSWER_BYTES_MAX:
            self.abort("an answer without end")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), self._retry_after_s, b"".join(self._body))
        self._body, self._size, self._retry_after_s = [], 0, None
        self._keep = self._keep and self._parser.should_keep_alive()
        request, self.request = self.request, None
        if request is not None:
            self._pool.listener.on_answer(request, answer, self._loop.time() - request.sent_s)
        if not self._keep and self._transport is not None:
            self._transport.close()
        if self.usable():
            self._pool.free(self)
