"""The services as processes: each function runs one until it is told to stop, and stands alone with what it needs.

`RUN` is what `harmonywatch run SERVICE` offers and what `up` starts. Errors that the operator must act on end in exit code
4 with the reason in the log; a stream or disk that broke in 3; the supervisor starts the service again either way. What
concerns one force ends no process: it is told in the log, in `/readyz` and in `/metrics` (stream/forces.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from harmonywatch import assemble
from harmonywatch.clock import Clock, micros
from harmonywatch.ops import NOT_RUNNING, DoorSettings, OpsServer
from harmonywatch.report.topics import ALERTS, DURABLE_GROUPS, REPORTS, archived_topics, force_of, topic_of
from harmonywatch.service import (
    EXIT_BROKEN,
    EXIT_BUG,
    EXIT_OPERATOR,
    AlreadyRunning,
    Stop,
    claim,
    note_place,
    stop_on_signals,
)
from harmonywatch.settings import BadSettings, Settings
from harmonywatch.stream.contract import (
    PositionLost,
    Stream,
    StreamBroken,
    StreamError,
    StreamFull,
    StreamReset,
    TopicDamaged,
)
from harmonywatch.stream.follow import follow
from harmonywatch.stream.forces import Forces, Handler
from harmonywatch.supervisor import MQTT, service_of
from harmonywatch.telemetry import Telemetry, configure_logging

if TYPE_CHECKING:
    from harmonywatch.registry.glance import Door

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another wants it. Python's 5 ms would be the tail of every alert: a thread
back from its fsync waits that long for one that decodes a large body."""

KEYS_AGE_MAX_S = 2.0
UPKEEP_S = 5.0
ARCHIVE_LINGER_S = 0.2
"""The archiver gathers for seconds: it need not be woken for every commit of the gateway."""

FLUSH_BYTES_LEAST = 8 << 20
"""What a force's archiver may gather, however many forces share `archive.flush_bytes`."""

Topics = str | tuple[str, ...]


def run(name: str, settings: Settings) -> int:
    """Run one service until SIGTERM; its exit code. `name`: of the service, or of one of its copies (`archive:2`)."""
    configure_logging(name, settings.log_level)
    log = structlog.get_logger()
    stop = stop_on_signals()
    sys.setswitchinterval(SWITCH_S)
    try:
        claim(settings.folder, name)
        RUN[service_of(name)](_as_copy(name, settings), stop, name)
    except Exception as error:
        if is_operators(error):
            log.error("the operator must act", reason=str(error), kind=type(error).__name__)
            return EXIT_OPERATOR
        log.exception("ended", reason=str(error), kind=type(error).__name__)
        return EXIT_BROKEN if isinstance(error, StreamBroken | StreamFull) else EXIT_BUG
    log.info("stopped")
    return 0


def _as_copy(name: str, settings: Settings) -> Settings:
    """The settings of one of several copies: they share the partitions of Kafka's topics, and the gateway's port.
    Raises BadSettings."""
    service = service_of(name)
    if name == service:
        return settings
    if service == MQTT:
        raise BadSettings(
            f"{name}: its sessions at the broker have one owner; another machine takes another mqtt.client_id"
        )
    if assemble.is_embedded(settings) and service in ("alerting", "dispatch", "archive"):
        raise BadSettings(f"{name}: the embedded stream has one {service}; copies need stream.url = kafka://...")
    return replace(settings, gateway=replace(settings.gateway, shared_port=True))


def is_operators(error: Exception) -> bool:
    """Whether it stays so until the operator acts."""
    return isinstance(error, (AlreadyRunning, StreamReset, PositionLost, TopicDamaged, *assemble.operator_errors()))


@contextlib.contextmanager
def _opened(settings: Settings) -> Iterator[tuple[Stream, Door]]:
    """The stream with the topics of every force, and the registry's door."""
    with contextlib.ExitStack() as opened:
        stream = assemble.open_stream(settings)
        opened.callback(stream.close)
        door = assemble.open_door(settings)
        opened.callback(door.close)
        assemble.ensure_all_topics(settings, stream, door)
        yield stream, door


def _gateway(settings: Settings, stop: Stop, name: str) -> None:
    from harmonywatch.gateway.server import GatewayParts, serve_gateway
    from harmonywatch.registry.keyring import KeyringCache
    from harmonywatch.report.schema import json_schema

    with _opened(settings) as (stream, door), KeyringCache(door, assemble.CLOCK) as keys:
        lag = ArchiveLag(stream, assemble.CLOCK, settings.stream.retention_s / 2)
        parts = GatewayParts(
            settings=settings.gateway,
            stream=stream,
            keys=keys,
            enrolment=door,
            partitions=lambda force: stream.topics()[topic_of(REPORTS, force)],
            telemetry=Telemetry("gateway"),
            clock=assemble.CLOCK,
            fresh_id=assemble.fresh_id,
            report_schema=json_schema(),
            readiness=lambda: stale(keys.age_s()) + lag.reasons(),
            degraded=lag.degraded,
        )

        def bound(port: int) -> None:
            _note_door(settings, name, settings.gateway, port)

        _serve(lambda asked: serve_gateway(parts, asked, bound), stop)


def _mqtt(settings: Settings, stop: Stop, name: str) -> None:
    from harmonywatch.gateway.mqtt import MqttParts, MqttService

    broker, telemetry = assemble.open_broker(settings), Telemetry("mqtt")
    with _opened(settings) as (stream, door):
        service = MqttService(
            MqttParts(
                settings=settings.mqtt,
                broker=broker,
                stream=stream,
                enrolment=door,
                forces=lambda: {force_of(t): n for t, n in stream.topics().items() if t.startswith(REPORTS)},
                telemetry=telemetry,
                clock=assemble.CLOCK,
                fresh_id=assemble.fresh_id,
                lines_max=settings.gateway.request_lines_max,
            )
        )
        ops = OpsServer(telemetry, service.reasons, service.degraded, settings.ops)
        try:
            note_place(settings.folder, name, ops_port=ops.start())
            _serve(service.run, stop)
        finally:
            ops.close()


def _alerting(settings: Settings, stop: Stop, name: str) -> None:
    from harmonywatch.alerting.alerter import Alerter
    from harmonywatch.registry.remembered import RememberedRules

    telemetry = Telemetry("alerting")
    with _opened(settings) as (stream, door), contextlib.closing(RememberedRules(door, assemble.CLOCK)) as rules:
        rules.start()
        Follower(settings, stream, telemetry, stop, name).run(
            lambda _force: Alerter(stream, rules, settings.alerting, assemble.CLOCK, telemetry),
            "alerting",
            REPORTS,
            commit_interval_s=settings.alerting.commit_interval_s,
        )


def _dispatch(settings: Settings, stop: Stop, name: str) -> None:
    from harmonywatch.dispatch.dispatcher import Dispatcher, DispatchParts
    from harmonywatch.dispatch.notify import Notifier, NotifierParts
    from harmonywatch.registry.remembered import RememberedDesk

    stream, registry = assemble.open_stream(settings), assemble.open_registry(settings, "service:dispatch")
    store, telemetry = assemble.open_incidents(settings), Telemetry("dispatch")
    desk = RememberedDesk(registry, assemble.CLOCK)
    desk.start()
    notifier = Notifier(
        NotifierParts(store, stream, desk, assemble.CLOCK, telemetry, settings.dispatch.retry_most_s, random.random)
    )
    notifier.start()
    parts = DispatchParts(store, stream, desk, assemble.CLOCK, telemetry, notifier.wake)
    try:
        Follower(settings, stream, telemetry, stop, name).run(
            lambda _force: Dispatcher(parts),
            "dispatch",
            ALERTS,
            ready=lambda: [str(notifier.failure)] if notifier.failure else [],
        )
    finally:
        notifier.stop()
        desk.close()
        stream.close()
        store.close()
        registry.close()


def _archive(settings: Settings, stop: Stop, name: str) -> None:
    give_way(settings.archive.nice)  # before its libraries load: they count their threads only once

    from harmonywatch.archive.archiver import Archiver
    from harmonywatch.archive.compact import keep_compact
    from harmonywatch.archive.tables import Folders

    stream, telemetry, lake = assemble.open_stream(settings), Telemetry("archive"), assemble.open_lake(settings)
    folders = Folders(settings.keys_folder, settings.folder / "archive-index")

    def forces() -> list[str]:
        return [force_of(topic) for topic in stream.topics() if topic.startswith(REPORTS)]

    def archiver(force: str) -> Archiver:
        share = max(FLUSH_BYTES_LEAST, settings.archive.flush_bytes // max(1, len(forces())))
        terms = replace(settings.archive, flush_bytes=share)
        return Archiver(lake, folders, stream.id_of(archived_topics(force)), terms, assemble.CLOCK, telemetry)

    def failed(error: Exception) -> None:
        telemetry.failed.labels("compact").inc()
        structlog.get_logger().warning("compaction failed, the next round tries again", reason=str(error))

    upkeep = Upkeep(stream, telemetry)
    for task, work, interval_s in (
        ("compact", lambda: keep_compact(lake, forces, settings.archive, stop.event, failed), UPKEEP_S),
        ("upkeep", upkeep.tend, UPKEEP_S),
    ):
        threading.Thread(target=keep, args=(work, stop, telemetry, interval_s), name=task, daemon=True).start()
    try:
        Follower(settings, stream, telemetry, stop, name).run(
            archiver, "archive", DURABLE_GROUPS["archive"], linger_s=ARCHIVE_LINGER_S
        )
    finally:
        stream.close()


def _console(settings: Settings, stop: Stop, name: str) -> None:
    from harmonywatch.console.server import ConsoleParts, serve_console
    from harmonywatch.registry.keyring import KeyringCache

    with _opened(settings) as (stream, door), KeyringCache(door, assemble.CLOCK) as keys:
        parts = ConsoleParts(
            settings=settings.console,
            stream=stream,
            keys=keys,
            telemetry=Telemetry("console"),
            clock=assemble.CLOCK,
            alerts=lambda force, since: assemble.alerts_of(stream, force, since),
            incidents=partial(assemble.incidents_of, settings),
            health=lambda: _hindrances(settings, keys.age_s()),
        )

        def bound(port: int) -> None:
            _note_door(settings, name, settings.console, port)

        _serve(lambda asked: serve_console(parts, asked, bound), stop)


def _note_door(settings: Settings, name: str, door: DoorSettings, port: int) -> None:
    note_place(settings.folder, name, host=door.host, port=port, ops_port=port, tls=bool(door.tls_cert))
    structlog.get_logger().info("listening", host=door.host, port=port)


def stale(keys_age_s: float) -> list[str]:
    """Why a door with keys of this age should not be relied on: revocation must bite within a second."""
    if keys_age_s <= KEYS_AGE_MAX_S:
        return []
    return [f"the registry was last read {keys_age_s:.0f} s ago: a key revoked since is still taken"]


def _hindrances(settings: Settings, keys_age_s: float) -> dict[str, list[str]]:
    """By service, but the console: why it does nothing. One that works for some forces only is not hindered."""
    found = assemble.health_of_services(settings, besides="console")
    if not assemble.is_embedded(settings):  # the others may run on another host
        found = {name: health for name, health in found.items() if health.status != NOT_RUNNING}
    hindered = {name: [] if health.works else health.reasons or [health.status] for name, health in found.items()}
    return hindered | ({"keys": reasons} if (reasons := stale(keys_age_s)) else {})


def keep(work: Callable[[], object], stop: Stop, telemetry: Telemetry, interval_s: float) -> None:
    """Do background work again and again until stop, `interval_s` apart. Whatever it raises, the thread goes on, and says
    so: one that ended unseen would be missed only when the disk is full."""
    name = threading.current_thread().name
    while not stop.event.wait(interval_s):
        try:
            work()
        except Exception as error:  # noqa: BLE001 see above
            telemetry.failed.labels(name).inc()
            structlog.get_logger().error("background work failed, it goes on", work=name, exc_info=error)


class Upkeep:
    """Retention and upkeep, where the stream is ours to keep (a broker keeps itself). What fails is told when it changes,
    not every time."""

    def __init__(self, stream: Stream, telemetry: Telemetry) -> None:
        self._sweep = getattr(stream, "sweep", None)
        self._telemetry = telemetry
        self._told = ""

    def tend(self) -> None:
        if self._sweep is None:
            return
        log = structlog.get_logger()
        try:
            deleted = self._sweep()
        except StreamError as error:
            self._telemetry.failed.labels("upkeep").inc()
            if str(error) != self._told:
                log.error("stream upkeep failed", reason=str(error))
            self._told = str(error)
            return
        self._told = ""
        if deleted:
            log.info("segments deleted", count=deleted)


class Follower:
    """Handlers following the stream, one a force, with their operations port beside them."""

    def __init__(self, settings: Settings, stream: Stream, telemetry: Telemetry, stop: Stop, name: str) -> None:
        self._settings, self._stream, self._telemetry, self._stop, self._name = settings, stream, telemetry, stop, name

    def run(
        self,
        open_handler: Callable[[str], Handler],
        group: str,
        topics: Topics,
        *,
        commit_interval_s: float = 1.0,
        linger_s: float = 0.0,
        ready: Callable[[], list[str]] = list,
    ) -> None:
        """Blocks until stop."""
        forces = Forces(open_handler, assemble.CLOCK, self._telemetry, is_operators)

        def reasons() -> list[str]:
            return ready() + (["every force is aside"] if forces.all_aside() else [])

        ops = OpsServer(self._telemetry, reasons, forces.degraded, self._settings.ops)
        try:
            reader = self._stream.reader(topics, group=group, start=forces.start)
            note_place(self._settings.folder, self._name, ops_port=ops.start())
            structlog.get_logger().info("following", topics=topics)
            follow(
                reader,
                forces,
                clock=assemble.CLOCK,
                stop=self._stop.event,
                commit_interval_s=commit_interval_s,
                linger_s=linger_s,
            )
        finally:
            ops.close()


class ArchiveLag:
    """The gateway's reasons not to be ready, or degraded: the archive is so far behind on a force that retention would soon
    stop its intake. Asked again every `ASK_S`; from any thread."""

    ASK_S = 5.0

    def __init__(self, stream: Stream, clock: Clock, limit_s: float) -> None:
        self._stream, self._clock, self._limit_s = stream, clock, limit_s
        self._due = 0.0
        self._found: dict[str, str] = {}
        self._lock = threading.Lock()

    def reasons(self) -> list[str]:
        """Those of all forces, if there is one for each."""
        found = self._look()
        return list(found.values()) if all(found.values()) else []

    def degraded(self) -> list[str]:
        return [reason for reason in self._look().values() if reason]

    def _look(self) -> dict[str, str]:
        """By topic, why it is behind; "" if it is not."""
        with self._lock:
            if self._clock.monotonic() >= self._due:
                self._found = self._ask()
                self._due = self._clock.monotonic() + self.ASK_S
            return self._found

    def _ask(self) -> dict[str, str]:
        try:
            topics = {topic: count for topic, count in self._stream.topics().items() if topic.startswith(REPORTS)}
        except StreamError as error:
            return {"": f"the stream cannot be read: {error}"}
        return {topic: self._reason(topic, partitions) for topic, partitions in topics.items()}

    def _reason(self, topic: str, partitions: int) -> str:
        try:
            committed = self._stream.committed("archive", topic)
            lag_s = max(self._lag_s(topic, number, committed.get(number)) for number in range(partitions))
        except StreamError as error:
            return f"how far the archive is behind on {topic} cannot be told: {error}"
        if lag_s <= self._limit_s:
            return ""
        return f"the archive is {lag_s:.0f} s behind on {topic}; the limit is {self._limit_s:.0f} s"

    def _lag_s(self, topic: str, partition: int, committed: int | None) -> float:
        """Age of the oldest record that the archive has not told to have; of the oldest kept, if it never told."""
        position = self._stream.bounds(topic, partition).earliest if committed is None else committed
        batches = self._stream.read(topic, partition, position, 1)
        return (micros(self._clock.now()) - batches[0].appended_us) / 1e6 if batches else 0.0


def _serve(server: Callable[[asyncio.Event], Any], stop: Stop) -> None:
    """Run an asynchronous service on uvloop until stop."""
    import uvloop

    async def main() -> None:
        asked, loop = asyncio.Event(), asyncio.get_running_loop()
        stop.on_stop(lambda: _wake(loop, asked))
        await server(asked)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def give_way(nice: int) -> None:
    """The alert path never waits for this process (design, guarantee 4): it runs on what the others leave, and its libraries
    have one thread each, so that a flush never holds every core."""
    os.nice(nice)
    for pool in ("OMP_NUM_THREADS", "TOKIO_WORKER_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(pool, "1")


def _wake(loop: asyncio.AbstractEventLoop, asked: asyncio.Event) -> None:
    loop.call_soon_threadsafe(asked.set)


RUN: dict[str, Callable[[Settings, Stop, str], None]] = {
    "gateway": _gateway,
    "mqtt": _mqtt,
    "alerting": _alerting,
    "dispatch": _dispatch,
    "console": _console,
    "archive": _archive,
}
