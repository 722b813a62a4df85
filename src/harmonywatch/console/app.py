"""The officers' API: which path does what. What a request may see is decided in `access`, how streams live in `live`."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer

from harmonywatch import ops
from harmonywatch.clock import Clock, from_wire
from harmonywatch.console import pages
from harmonywatch.console.access import Asker, asker
from harmonywatch.console.guard import Patience
from harmonywatch.console.hub import Client, Hub, LiveTerms
from harmonywatch.console.live import LiveStream, Wish
from harmonywatch.console.positions import NotAnId, read_id
from harmonywatch.console.problems import Problem, answer_with_problems
from harmonywatch.registry.contract import KeyFinder
from harmonywatch.report.problem import MEDIA_TYPE, problem_schema
from harmonywatch.settings import ConsoleSettings
from harmonywatch.stream.contract import Stream
from harmonywatch.telemetry import Telemetry

Listing = Callable[[str | None, datetime | None], Iterable[object]]
Page = Callable[[str | None, datetime | None, int, str | None], Sequence[object]]
Health = Callable[[], Mapping[str, Sequence[str]]]

API_VERSION = "1"
RECENT = timedelta(hours=1)
LIMIT_DEFAULT, LIMIT_MAX = 500, 10_000
HEALTH_KEPT_S = 1.0


@dataclass(frozen=True, slots=True)
class ConsoleParts:
    """What the console is made of. `alerts`: (force, or None for all; since, or None) -> things that msgspec encodes, oldest
    first; `incidents`: (the same two; most; id of the one before the page, or None) -> at most so many, the newest ones or
    those that come next, LookupError for an id that is not there; both read in a thread. `health`: why each *other*
    service is not ready (it must not ask the console, which asks it), called in a thread at most once a second."""

    settings: ConsoleSettings
    stream: Stream
    keys: KeyFinder
    telemetry: Telemetry
    clock: Clock
    alerts: Listing
    incidents: Page
    health: Health
    live: LiveTerms = field(default_factory=LiveTerms)
    patience: Patience = field(default_factory=Patience)


_bearer = HTTPBearer(auto_error=False, description="the key of an officer, as `officer add` printed it")
ForceWish = Annotated[
    str | None, Query(max_length=64, description="only this force; by default all that the key may see")
]
SinceWish = Annotated[str | None, Query(max_length=64, description="RFC 3339 with a zone; from then on")]
LimitWish = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="the newest so many")]
PageWish = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="at most so many")]
AfterWish = Annotated[
    str | None,
    Query(
        max_length=64, description="incident_id of the last one you have: those that opened next; empty: from the first"
    ),
]


def make_app(parts: ConsoleParts, hub: Hub) -> FastAPI:
    """The ASGI application. `hub` is opened and closed by the server."""
    app = FastAPI(
        title="harmonywatch console API",
        version=API_VERSION,
        description="What officers see: incidents, alerts, and both live. Times are RFC 3339 in UTC; errors are problem "
        "documents (RFC 9457) with a stable code.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # citizens' names go nowhere else
    )
    app.state.parts, app.state.hub, app.state.health = parts, hub, _KeptHealth(parts.health, parts.clock)
    answer_with_problems(app)
    guarded: dict[str, Any] = {"dependencies": [Depends(_bearer)], "responses": _REFUSALS}
    app.get("/api/live", response_class=Response, **guarded | {"responses": _REFUSALS | _LIVE})(live)
    app.get("/api/incidents", response_class=Response, **guarded)(incidents)
    app.get("/api/alerts", response_class=Response, **guarded)(alerts)
    for path in ("/healthz", "/metrics"):
        app.get(path, response_class=Response, include_in_schema=False)(operations)
    app.get(
        "/readyz", response_class=Response, responses={503: {"description": "the same, and a service is not ready"}}
    )(ready)
    app.get("/", include_in_schema=False)(front)
    app.get("/api/docs", include_in_schema=False)(docs)
    return app


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {MEDIA_TYPE: {"schema": problem_schema()}}}
    for status, meaning in {
        401: "no live key",
        403: "not the key of an officer, or another force's",
        404: "no such force",
        422: "a parameter is not what it should be",
        503: "not now; try again after Retry-After",
    }.items()
}
_LIVE: dict[int | str, dict[str, Any]] = {
    200: {"description": "events as they happen", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


async def live(
    request: Request,
    force: ForceWish = None,
    since: SinceWish = None,
    last_event_id: Annotated[
        str | None, Header(description="the last id received; nothing is missed, nothing told twice")
    ] = None,
) -> Response:
    """Alerts and incidents as they happen

    Server-sent events. `alert`: one bad score, with `delivered_at`; each alert_id once. `incident`: an incident changed;
    `kind` says how. `watcher`: one that reports by MQTT has come or gone; `kind` says which. `heartbeat`: every 10 seconds of
    silence. `gap`: what you missed is no longer kept in full. `closed`: the stream ends, for the `reason` given: `too-slow`,
    `revoked`, `stopping`.

    Each id says where you are: send the last one as Last-Event-ID and the stream goes on from there, over restarts, for as
    long as the log is kept (7 days). With `since` it begins with what was recorded from then on; else with what comes now.
    """
    parts, hub = request.app.state.parts, request.app.state.hub
    who = await _asker(request, force)
    try:
        mark = read_id(last_event_id) if last_event_id else None
    except NotAnId as error:
        raise Problem(400, "not-an-id", str(error)) from None
    client = Client(who.key, who.officer, who.scope, parts.live.queue_bytes_max)
    return _Streaming(LiveStream(hub, client, Wish(mark, _moment(since))))


class _Streaming(Response):
    """Lets a route answer with an ASGI application."""

    def __init__(self, application: LiveStream) -> None:
        super().__init__()
        self._application = application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application(scope, receive, send)


async def incidents(
    request: Request,
    force: ForceWish = None,
    since: SinceWish = None,
    limit: PageWish = LIMIT_DEFAULT,
    after: AfterWish = None,
) -> Response:
    """Incidents of all states, in the order they opened

    The newest ones, or, with `after`, the next ones: go on with the last `incident_id` until a page is empty. With `since`:
    those with an alert or a change from then on.
    """
    who = await _asker(request, force)
    wish = (who.scope, _moment(since), limit, after)
    try:
        return await _listed("incidents", lambda: request.app.state.parts.incidents(*wish))
    except LookupError:
        if after is None:
            raise  # a bug, then
        raise Problem(404, "no-such-incident", f"after: there is no incident {after!r}") from None


async def alerts(
    request: Request, force: ForceWish = None, since: SinceWish = None, limit: LimitWish = LIMIT_DEFAULT
) -> Response:
    """Recent alerts, oldest judged first

    Those judged at or after `since`; without it, of the last hour. `delivered_at` is null where nobody was handed it.
    """
    who = await _asker(request, force)
    parts = request.app.state.parts
    wish = (who.scope, _moment(since) or parts.clock.now() - RECENT)
    return await _listed("alerts", lambda: deque(parts.alerts(*wish), maxlen=limit))


async def _listed(name: str, listing: Callable[[], Iterable[object]]) -> Response:
    def read() -> bytes:
        return msgspec.json.encode({name: list(listing())})

    return Response(await asyncio.to_thread(read), headers={"Cache-Control": "no-store"}, media_type="application/json")


async def ready(request: Request) -> Response:
    """Whether every service can do its work

    `services` gives for each the reasons why not; none means ready.
    """
    services = dict(await asyncio.to_thread(request.app.state.health.ask))
    services["console"] = []
    status = "not ready" if any(services.values()) else "ready"
    body = {"status": status, "service": "console", "services": services, "reasons": _reasons(services)}
    return Response(msgspec.json.encode(body), 200 if status == "ready" else 503, media_type="application/json")


def _reasons(services: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{service}: {reason}" for service, reasons in services.items() for reason in reasons]


class _KeptHealth:
    """The health of the others, asked for at most once in HEALTH_KEPT_S, whoever probes us how often."""

    def __init__(self, health: Health, clock: Clock) -> None:
        self._health, self._clock = health, clock
        self._lock = threading.Lock()
        self._kept: tuple[float, Mapping[str, Sequence[str]]] | None = None

    def ask(self) -> Mapping[str, Sequence[str]]:
        with self._lock:
            if self._kept is None or self._clock.monotonic() - self._kept[0] >= HEALTH_KEPT_S:
                services = {name: list(reasons) for name, reasons in self._health().items()}
                self._kept = (self._clock.monotonic(), services)
            return self._kept[1]


async def operations(request: Request) -> Response:
    answer = await asyncio.to_thread(ops.answer_ops, request.url.path, request.app.state.parts.telemetry, list)
    assert answer is not None, "only routed for the paths that ops knows"
    return Response(answer.body, answer.status, media_type=answer.content_type)


async def front() -> Response:
    return HTMLResponse(pages.front_page(), headers=pages.HEADERS)


async def docs(request: Request) -> Response:
    return HTMLResponse(pages.docs_page(request.app.openapi()), headers=pages.HEADERS)


async def _asker(request: Request, force: str | None) -> Asker:
    parts = request.app.state.parts
    return await asker(request, parts.keys, parts.stream, force)


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else from_wire(text)
    except (ValueError, OverflowError):
        raise Problem(422, "invalid", f"since: {text!r} is no time with a zone; write 2026-11-23T18:00:00Z") from None
