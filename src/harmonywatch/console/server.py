"""The console as a service: listens, serves until told to stop, or until the stream fails.

Stopping, in this order: the live streams are told (`closed`, reason `stopping`) and end; no new connections; requests under
way have GRACE_S; the followers end; the last deliveries are recorded. An error of the stream stops the service the same
way, and `serve_console` raises it: the process must not live on showing nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import structlog
import uvicorn

from harmonywatch.console.app import ConsoleParts, make_app
from harmonywatch.console.guard import GuardedProtocol
from harmonywatch.console.hub import STOPPING, Hub
from harmonywatch.ops import tls_of
from harmonywatch.settings import BadSettings, ConsoleSettings

GRACE_S = 3
BACKLOG = 1024
UNTAKEN_MS = 30_000
"""A client that acknowledges nothing for so long is cut by the kernel: less may wait for it than `guard` looks at."""

__all__ = ["ConsoleParts", "serve_console"]


async def serve_console(parts: ConsoleParts, stop: asyncio.Event, on_bound: Callable[[int], None]) -> None:
    """Serve until `stop` is set. `on_bound` is told the port once requests are taken. Run it on uvloop.

    Raises BadSettings (where it may not or cannot listen) and what the stream raises.
    """
    tls_of(parts.settings, "console")
    listener = _listen(parts.settings)
    hub = Hub(parts.stream, parts.clock, parts.telemetry, parts.live)
    ending = asyncio.Event()
    try:
        following = await hub.open()
        server = _Server(_config(parts, hub), lambda: on_bound(listener.getsockname()[1]))
        serving = asyncio.create_task(server.serve([listener]))
        keeping = [
            asyncio.create_task(hub.deliveries.run(ending)),
            asyncio.create_task(hub.end_revoked(parts.keys, ending)),
        ]
        stopping = asyncio.create_task(stop.wait())
        watched: list[asyncio.Future[Any]] = [serving, stopping, *keeping, *following]
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        hub.end_all(STOPPING)
        server.should_exit = True
        await serving
    finally:
        ending.set()
        await asyncio.to_thread(hub.close)
        listener.close()
    await asyncio.gather(*following, *keeping)


def _config(parts: ConsoleParts, hub: Hub) -> uvicorn.Config:
    settings = parts.settings
    tls: dict[str, Any] = {}
    if settings.tls_cert:
        tls = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
    return uvicorn.Config(
        make_app(parts, hub),
        loop="none",
        http=cast("type[Any]", partial(GuardedProtocol, patience=parts.patience)),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
        **tls,
    )


def _listen(settings: ConsoleSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # inherited by what is accepted
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN_MS)
        listener.bind((settings.host, settings.port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise BadSettings(f"console: cannot listen on {settings.host}:{settings.port}: {error}") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the process that runs it and says when it listens."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        structlog.get_logger().info("listening", streams="/api/live")
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
