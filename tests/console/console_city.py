"""A console on a real socket, over a real stream and a real registry."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from harmonywatch.clock import SystemClock
from harmonywatch.console.hub import LiveTerms
from harmonywatch.console.server import ConsoleParts, serve_console
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.registry.store import Registry, open_registry
from harmonywatch.report.topics import ALERTS, DELIVERIES, EVENTS, topic_of
from harmonywatch.settings import ConsoleSettings, StreamSettings
from harmonywatch.stream.contract import Stream
from harmonywatch.stream.memory import MemoryStream
from harmonywatch.stream.sqlite import SqliteStream
from harmonywatch.telemetry import Telemetry

PARTITIONS = 4
DEADLINE_S = 10.0


def make_force(registry: Registry, stream: Stream, force: str) -> None:
    registry.add_force(force, PARTITIONS)
    make_topics(stream, force)


def make_topics(stream: Stream, force: str) -> None:
    for kind in (ALERTS, EVENTS, DELIVERIES):
        stream.create_topic(topic_of(kind, force), PARTITIONS)


@dataclass
class Running:
    """A console in a thread with an event loop of its own."""

    parts: ConsoleParts
    port: int = 0
    error: BaseException | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _bound: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Running:
        self._thread = threading.Thread(target=self._run, name="console")
        self._thread.start()
        assert self._bound.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error
        return self

    def stop(self) -> None:
        assert self._thread is not None
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def on_loop(self, act: Callable[[], object]) -> None:
        """Do this on the console's event loop, which does nothing else meanwhile."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(act)

    def wait_ended(self) -> BaseException | None:
        assert self._thread is not None
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            self.error = error
        finally:
            self._bound.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await serve_console(self.parts, self._stop, self._on_bound)

    def _on_bound(self, port: int) -> None:
        self.port = port
        self._bound.set()


@dataclass
class City:
    """Two forces, north and south, with the console over them. `stream` is the writers' own handle."""

    registry: Registry
    stream: Stream
    parts: ConsoleParts
    started: list[Running] = field(default_factory=list)

    def console(self, **changes: object) -> Running:
        """Start a console whose parts differ in what is named."""
        running = Running(replace(self.parts, **changes)).start()  # type: ignore[arg-type]
        self.started.append(running)
        return running

    def officer(self, name: str, force: str | None) -> str:
        return self.registry.add_officer(name, force, "officer").key


def build_city(folder: Path, engine: str, made_registry: Path) -> Iterator[City]:
    clock = SystemClock()
    shutil.copy(made_registry, folder / "registry.db")
    registry = open_registry(f"sqlite:///{folder / 'registry.db'}", clock, "os:test")
    stream: Stream = MemoryStream() if engine == "memory" else SqliteStream(folder / "stream", StreamSettings(), clock)
    for force in ("north", "south"):
        make_topics(stream, force)
    with KeyringCache(registry, clock) as keys:
        parts = ConsoleParts(
            settings=ConsoleSettings(port=0),
            stream=stream,
            keys=keys,
            telemetry=Telemetry("console"),
            clock=clock,
            alerts=lambda _force, _since: [],
            incidents=lambda _force, _since, _limit, _after: [],
            health=dict,
            live=LiveTerms(),
        )
        city = City(registry, stream, parts)
        try:
            yield city
        finally:
            for running in city.started:
                running.stop()
    stream.close()
    registry.close()
