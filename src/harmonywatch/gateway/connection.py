"""One connection of a watcher: bytes to requests, responses to bytes, on llhttp (through `httptools`).

Why not a framework: at 1,157 single reports a second the product may spend 400 CPU seconds a million reports, simulator
included. A bare aiohttp handler takes 124 of them, this takes some 50 (README.md of this room has the figures), and the
limits below need a hold on the connection itself.

The rules it keeps, each a limit with a name for what happens at it:

- a request's headers arrive within `headers_s` and take at most HEAD_BYTES_MAX, HEADERS_MAX of them: else 408, 431;
- a request is whole within `arrival_s` of its first byte: else 408. Time is cut short by up to a sweep, never long;
- until its handler asks for the body, only UNASKED_BYTES of it are read: nobody without a key fills memory;
- bodies beyond that share one budget: else 503; one body has at most `body_bytes_max`: else 413;
- requests may be pipelined, PIPELINE_MAX deep, and are answered in order: else 429;
- a sender who does not read answers is cut after `arrival_s`, an idle connection after `idle_s`;
- what llhttp refuses, and lengths or codings that two readers could understand differently, are 400.

After an error the rest of the connection's bytes mean nothing: they are read and dropped for LINGER_S, because closing at
once would reset the connection and take the answer with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import cast

import httptools

from harmonywatch.clock import Clock
from harmonywatch.gateway.answers import Problem, ProblemError, Response, problem_response
from harmonywatch.gateway.budget import Budget
from harmonywatch.gateway.company import Company

HEAD_BYTES_MAX = 16 << 10
HEADERS_MAX = 64
UNASKED_BYTES = 64 << 10
PIPELINE_MAX = 64
LINGER_S = 2.0
SWEEP_S = 0.25
NEVER = float("inf")

_ONCE_ONLY = frozenset((b"host", b"authorization", b"content-type", b"content-encoding", b"transfer-encoding"))
_KEPT = _ONCE_ONLY | {b"content-length", b"expect"}
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_TIMED_OUT = Problem(408, "timeout", "the request did not arrive whole in time")
_FLOOD = Problem(431, "too-large", f"more than {HEADERS_MAX} headers, or {HEAD_BYTES_MAX} bytes of them")
_PIPELINED = Problem(429, "too-many", f"more than {PIPELINE_MAX} requests at once on a connection", retry_after_s=1)
_CROWDED = Problem(503, "busy", "too many bytes are arriving at once", retry_after_s=1)
_GONE = Problem(400, "cut-off", "the connection ended within the request")
_BUG = Problem(500, "bug", "the gateway failed; the request may or may not have been stored")


@dataclass(frozen=True, slots=True)
class Limits:
    """See the header. Seconds, bytes."""

    body_bytes_max: int
    headers_s: float
    arrival_s: float
    idle_s: float


class Request:
    """One request whose headers were read; its body may still be on its way.

    `path`: without the query; `headers`: those of interest, names in lower case; `received_at`, `received_s`: wall and
    monotonic clock when the headers were read.
    """

    __slots__ = (
        "_chunks", "_connection", "_failure", "_waiter", "asked", "complete", "headers", "held_bytes", "keep_alive",
        "method", "path", "received_at", "received_s", "size_bytes",
    )  # fmt: skip

    def __init__(self, connection: Connection, method: str, path: str, headers: dict[bytes, bytes]) -> None:
        self._connection = connection
        self.method, self.path, self.headers = method, path, headers
        self.received_at: datetime = connection.floor.clock.now()
        self.received_s = connection.floor.clock.monotonic()
        self.keep_alive = True
        self.complete = False
        self.asked = False
        self.size_bytes = 0
        self.held_bytes = 0
        self._chunks: list[bytes] = []
        self._failure: Problem | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def body(self) -> bytes:
        """The whole body as sent. Raises ProblemError if it is too large, too late, cut off or not HTTP."""
        self.asked = True
        if not self.complete and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            self._connection.go_on(self)
            await self._waiter
        if self._failure is not None:
            raise ProblemError(self._failure)
        chunks, self._chunks = self._chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    # --- told by the connection

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.size_bytes += len(chunk)

    def finish(self) -> None:
        self.complete = True
        self._wake()

    def fail(self, problem: Problem) -> None:
        self._failure = problem
        self._chunks.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True)
class Floor:
    """What all connections share. `answer`: the handler; `on_bug`: told of what it should not have raised; `arriving`:
    budget of bodies."""

    answer: Callable[[Request], Coroutine[None, None, Response]]
    on_bug: Callable[[BaseException], None]
    limits: Limits
    connections_max: int
    arriving: Budget
    clock: Clock
    company: Company
    connections: set[Connection] = field(default_factory=set)
    draining: bool = False
    date: bytes = b""
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def sweep(self, now_s: float) -> None:
        """Cut what is about to be too late. Called every SWEEP_S with the event loop's time."""
        self.date = _http_date(self.clock.now())
        for connection in tuple(self.connections):
            connection.expire(now_s + SWEEP_S)

    async def changed(self) -> None:
        """Wait until some connection is gone."""
        self.lost.clear()
        await self.lost.wait()

    @property
    def idle_s(self) -> float:
        """Idle connections must go soon when there is little room for others."""
        return self.limits.idle_s if len(self.connections) * 2 < self.connections_max else min(1.0, self.limits.idle_s)


class Connection(asyncio.Protocol):
    """The protocol object of one connection; the methods `on_...` are llhttp's callbacks."""

    def __init__(self, floor: Floor) -> None:
        self.floor = floor
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._queue: deque[Request | Problem] = deque()
        self._current: Request | None = None
        self._task: asyncio.Task[Response] | None = None
        self._arriving: Request | None = None
        self._in_head = self._head_is_new = False
        self._begun_s = 0.0
        self._deadline_s = NEVER
        self._write_deadline_s = NEVER
        self._deaf = False
        self._ended = False
        self._paused = False
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = self._head_bytes = self._head_bytes_more = 0
        self._ambiguous = ""

    # --- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)
        self.floor.connections.add(self)
        self._deadline_s = self._loop.time() + self.floor.limits.headers_s
        if len(self.floor.connections) > self.floor.connections_max:
            self._fail(Problem(503, "busy", "too many connections", retry_after_s=1))

    def connection_lost(self, _exc: Exception | None) -> None:
        self.floor.connections.discard(self)
        self.floor.lost.set()
        self._transport = self._parser = None
        self._deaf = True
        for request in self._queue:
            if isinstance(request, Request):
                self._release(request)
        self._queue.clear()
        if self._arriving is not None:
            self._arriving.fail(_GONE)
            self._arriving = None

    def eof_received(self) -> bool:
        if self._arriving is not None or self._in_head:
            self._fail(_GONE)
        self._deaf = self._ended = True
        return self._current is not None or bool(self._queue)  # True: the answer still goes out

    def pause_writing(self) -> None:
        self._write_deadline_s = self._loop.time() + self.floor.limits.arrival_s

    def resume_writing(self) -> None:
        self._write_deadline_s = NEVER
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._parser is None:
            return
        self._head_is_new = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # its request was queued as the last one
        except httptools.HttpParserError as error:
            self._fail(Problem(400, "not-http", f"not HTTP/1.1: {error}"))
        if self._in_head and not self._head_is_new:  # one header without end is no callback's business
            self._head_bytes_more += len(data)
            if self._head_bytes_more > HEAD_BYTES_MAX:
                self._fail(_FLOOD)
        self._next()
        self._balance()

    # --- llhttp's callbacks

    def on_message_begin(self) -> None:
        self._in_head = self._head_is_new = True
        self._url, self._headers, self._ambiguous = b"", {}, ""
        self._header_count = self._head_bytes = self._head_bytes_more = 0
        self._begun_s = self._loop.time()
        self._deadline_s = self._begun_s + self.floor.limits.headers_s

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes <= HEAD_BYTES_MAX:
            self._url += url
        else:
            self._fail(_FLOOD)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._head_bytes += len(name) + len(value)
        if self._header_count > HEADERS_MAX or self._head_bytes > HEAD_BYTES_MAX:
            self._fail(_FLOOD)
            return
        name = name.lower()
        if self._in_head and name in _KEPT:
            if name in self._headers and name in _ONCE_ONLY:
                self._ambiguous = f"the header {name.decode()} is there twice"
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        if self._deaf or parser is None:
            return
        version = parser.get_http_version()
        problem = self._head_problem(version)
        if problem is not None:
            self._fail(problem)
            return
        request = Request(self, parser.get_method().decode(), _path(self._url), self._headers)
        request.keep_alive = version == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
        self._deadline_s = self._begun_s + self.floor.limits.arrival_s
        self._arriving = request
        self._queue.append(request)

    def on_body(self, chunk: bytes) -> None:
        request = self._arriving
        if self._deaf or request is None:
            return
        request.feed(chunk)
        if request.size_bytes > self.floor.limits.body_bytes_max:
            self._fail(self._too_large())
        elif request.size_bytes > UNASKED_BYTES:
            more = request.size_bytes - request.held_bytes
            if self.floor.arriving.take(more):
                request.held_bytes += more
            else:
                self._fail(_CROWDED)

    def on_message_complete(self) -> None:
        if self._deaf or self._arriving is None:
            return
        self._deadline_s = NEVER
        self._arriving.finish()
        self._arriving = None

    # --- what the floor and requests ask

    def go_on(self, request: Request) -> None:
        """The handler wants the body now."""
        if _length(request) > self.floor.limits.body_bytes_max:
            self._fail(self._too_large())
            return
        if request.headers.get(b"expect", b"").lower() == b"100-continue" and not request.size_bytes:
            self._write(_CONTINUE)
        self._balance()

    def expire(self, now_s: float) -> None:
        """Act on what has run out of time."""
        if self._transport is None:
            return
        if now_s >= self._write_deadline_s:
            self._transport.abort()
        elif now_s < self._deadline_s or self._paused:
            return
        elif self._deaf or self._transport.is_closing():
            self._transport.abort()
        elif self._arriving is not None or self._in_head:
            self._fail(_TIMED_OUT)
        elif self._begun_s == 0.0:
            self._fail(_TIMED_OUT)  # connected and said nothing
        else:
            self._transport.close()

    def drain(self) -> None:
        """Answer what has begun, then close; at once if nothing has."""
        if self._transport is not None and not (self._current or self._queue or self._in_head or self._arriving):
            self._transport.close()

    def abort(self) -> None:
        """Cut, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    # --- inside

    def _head_problem(self, version: str) -> Problem | None:
        """Headers that two readers of the same bytes could understand differently are refused."""
        coding = self._headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
            return Problem(400, "not-http", "the only Transfer-Encoding taken here is chunked, in HTTP/1.1")
        if coding is not None and b"content-length" in self._headers:
            return Problem(400, "not-http", "both Content-Length and Transfer-Encoding")
        if self._ambiguous:
            return Problem(400, "not-http", self._ambiguous)
        if version == "1.1" and b"host" not in self._headers:
            return Problem(400, "not-http", "the header host is missing")
        if len(self._queue) >= PIPELINE_MAX:
            return _PIPELINED
        return None

    def _too_large(self) -> Problem:
        return Problem(413, "too-large", f"the body has more than {self.floor.limits.body_bytes_max} bytes")

    def _fail(self, problem: Problem) -> None:
        """What comes from here on cannot be read. The request that is arriving gets the problem as its answer; without
        one the problem is an answer of its own."""
        if self._deaf:
            return
        self._deaf = True
        self._deadline_s = NEVER
        if self._arriving is not None:
            self._arriving.keep_alive = False
            self._arriving.fail(problem)
            self._arriving = None
        else:
            self._queue.append(problem)
        self._in_head = False
        self._next()

    def _next(self) -> None:
        """Handle the next request, unless one is being handled or the sender does not read."""
        if self._current is not None or not self._queue or self._write_deadline_s != NEVER:
            return
        following = self._queue.popleft()
        if isinstance(following, Problem):
            self._respond(problem_response(following), head_only=False, last=True)
            self._leave()
            return
        self._current = following
        self.floor.company.join(self._begin, max(following.size_bytes, _length(following)))

    def _begin(self) -> None:
        assert self._current is not None
        self._task = self._loop.create_task(self.floor.answer(self._current))
        self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[Response]) -> None:
        request, self._current, self._task = self._current, None, None
        assert request is not None
        self._release(request)
        if self._transport is None:
            if not task.cancelled():
                task.exception()  # seen, or asyncio complains
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self.floor.on_bug(error)
        response = task.result() if error is None else problem_response(_BUG)
        last = error is not None or not request.complete or not request.keep_alive or self.floor.draining
        last = last or (self._deaf and not self._queue)
        self._respond(response, head_only=request.method == "HEAD", last=last)
        if last:
            self._leave()
            return
        if not self._queue and not self._in_head:
            self._deadline_s = self._loop.time() + self.floor.idle_s
        self._next()
        self._balance()

    def _release(self, request: Request) -> None:
        self.floor.arriving.give(request.held_bytes)
        request.held_bytes = 0

    def _respond(self, response: Response, *, head_only: bool, last: bool) -> None:
        lines = [
            _STATUS_LINES[response.status],
            f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\nDate: ".encode(),
            self.floor.date,
        ]
        lines.extend(f"\r\n{name}: {value}".encode() for name, value in response.headers)
        lines.append(b"\r\nConnection: close\r\n\r\n" if last else b"\r\n\r\n")
        if not head_only:
            lines.append(response.body)
        self._write(b"".join(lines))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _leave(self) -> None:
        """The last answer is written: let the sender read it, then go."""
        unread = self._arriving is not None or self._deaf
        self._deaf = True
        self._arriving = None
        for request in self._queue:
            if isinstance(request, Request):
                self._release(request)
        self._queue.clear()
        self._deadline_s = self._loop.time() + LINGER_S
        if self._transport is None:
            return
        if self._ended or not unread:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._balance()

    def _balance(self) -> None:
        """Read on, or let TCP hold the sender back."""
        if self._transport is None or self._transport.is_closing():
            return
        unasked = self._arriving is not None and not self._arriving.asked
        ahead = (unasked and self._arriving is not None and self._arriving.size_bytes > UNASKED_BYTES) or (
            len(self._queue) >= PIPELINE_MAX // 4
        )
        wanted = not self._deaf and ahead
        if wanted == self._paused:
            return
        self._paused = wanted
        if wanted:
            self._transport.pause_reading()
            return
        self._transport.resume_reading()
        if self._deadline_s != NEVER and not self._deaf:
            self._deadline_s = max(self._deadline_s, self._loop.time() + self.floor.limits.arrival_s)


def _length(request: Request) -> int:
    """Content-Length, 0 without one; llhttp lets through nothing but digits."""
    return int(request.headers.get(b"content-length", b"0"))


def _path(url: bytes) -> str:
    """The path of a request target, in origin or absolute form; "" for one that has none."""
    if not url.startswith(b"/"):
        try:
            url = httptools.parse_url(url).path or b""
        except httptools.HttpParserInvalidURLError:
            return ""
    return url.partition(b"?")[0].decode("latin-1")


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _http_date(moment: datetime) -> bytes:
    """RFC 9110's date; by hand, because strftime follows the locale."""
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02d} {month} {moment.year} {moment:%H:%M:%S} GMT".encode()
