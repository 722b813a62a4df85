"""The gateway as a service: listens, serves until told to stop, then drains.

Stopping, in this order: no new connections; idle ones are closed; requests under way are answered, each with `Connection:
close`, for at most `drain_s`; what is left is cut; the committers finish; the last watchers are enrolled. A stream that
breaks stops the service the same way, and `serve_gateway` raises: the process must not live on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import ssl
from collections.abc import Callable
from typing import Any

import structlog

from harmonywatch.gateway.budget import Budget
from harmonywatch.gateway.commit import Commits
from harmonywatch.gateway.company import Company
from harmonywatch.gateway.connection import SWEEP_S, Connection, Floor, Limits
from harmonywatch.gateway.door import Door, GatewayParts
from harmonywatch.gateway.enrolment import Roll
from harmonywatch.gateway.openapi import openapi
from harmonywatch.ops import tls_of
from harmonywatch.settings import BadSettings, GatewaySettings
from harmonywatch.stream.contract import StreamBroken
from harmonywatch.telemetry import Telemetry

HEADERS_S = 5.0
IDLE_S = 90.0
"""A watcher sends once a minute: it may keep its connection."""

LINGER_S = 0.002
"""README.md of this room has the measurement behind it."""

FILES_RESERVED = 200
"""Of the process's open files, those not meant for connections: segments, databases, libraries."""

BACKLOG = 1024

__all__ = ["GatewayParts", "serve_gateway"]


async def serve_gateway(parts: GatewayParts, stop: asyncio.Event, on_bound: Callable[[int], None]) -> None:
    """Serve until `stop` is set, then drain. `on_bound` is told the port once requests are taken. Run it on uvloop.

    Raises BadSettings (where it may not or cannot listen), StreamBroken.
    """
    tls = tls_of(parts.settings, "gateway")
    broken: list[BaseException] = []

    def on_broken(error: BaseException) -> None:
        broken.append(error)
        stop.set()

    commits = Commits(parts.stream, parts.clock, on_broken)
    roll = Roll(parts.enrolment, parts.telemetry)
    door = Door(parts, commits, roll, openapi(parts.report_schema))
    floor = _floor(parts, door)
    floor.sweep(asyncio.get_running_loop().time())
    server = await _listen(parts.settings, lambda: Connection(floor), tls)
    on_bound(server.sockets[0].getsockname()[1])
    enrolling = asyncio.create_task(roll.run(stop))
    sweeping = asyncio.create_task(_sweep(floor, door))
    try:
        await stop.wait()
        server.close()
        await _drain(floor, parts.settings.drain_s)
    finally:
        sweeping.cancel()
        await commits.close()
        await enrolling
        door.flush()
        door.close()
    await roll.enrol_waiting()
    if broken:
        raise StreamBroken(f"the gateway stopped: {broken[0]}") from broken[0]


async def _listen(
    settings: GatewaySettings, protocol: Callable[[], Connection], tls: ssl.SSLContext | None
) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"backlog": BACKLOG, "reuse_port": settings.shared_port}
    if tls is not None:
        options |= {"ssl": tls, "ssl_handshake_timeout": HEADERS_S}
    try:
        return await loop.create_server(protocol, settings.host, settings.port, **options)
    except OSError as error:
        hint = "; is another gateway running there?" if error.errno == errno.EADDRINUSE else ""
        raise BadSettings(f"gateway: cannot listen on {settings.host}:{settings.port}: {error}{hint}") from error


def _floor(parts: GatewayParts, door: Door) -> Floor:
    settings = parts.settings
    limits = Limits(
        body_bytes_max=settings.request_bytes_max,
        headers_s=min(HEADERS_S, settings.body_timeout_s),
        arrival_s=settings.body_timeout_s,
        idle_s=IDLE_S,
    )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Floor(
        answer=door.answer,
        on_bug=lambda error: _report_bug(parts.telemetry, error),
        limits=limits,
        connections_max=max(files - FILES_RESERVED, files // 2),
        arriving=Budget(settings.pending_bytes_max),
        clock=parts.clock,
        company=Company(LINGER_S),
    )


def _report_bug(telemetry: Telemetry, error: BaseException) -> None:
    telemetry.failed.labels("bug").inc()
    structlog.get_logger().error("a request failed", exc_info=error)


async def _sweep(floor: Floor, door: Door) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        floor.sweep(loop.time())
        door.flush()


async def _drain(floor: Floor, drain_s: float) -> None:
    """Wait for what is under way; cut what takes longer."""
    floor.draining = True
    for connection in tuple(floor.connections):
        connection.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(drain_s):
            while floor.connections:
                await floor.changed()
    for connection in tuple(floor.connections):
        connection.abort()
