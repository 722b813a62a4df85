"""A real Mosquitto, the MQTT service on a real stream in a thread of its own, and watchers of both protocol versions."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop
from gateway_rig import Members, eventually, report
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from engines.mosquitto import SERVICE, SERVICE_PASSWORD, Mosquitto, password_of
from harmonywatch.broker import Broker
from harmonywatch.clock import SystemClock
from harmonywatch.gateway.mqtt import MqttParts, MqttService
from harmonywatch.report.record import ReportRecord
from harmonywatch.report.topics import EVENTS, REJECTS, REPORTS, RejectRecord, WatcherRecord, topic_of
from harmonywatch.settings import MqttSettings
from harmonywatch.stream.contract import Stream
from harmonywatch.telemetry import Telemetry

PARTITIONS = 4
FORCES = ("north", "south")
WAIT_S = 15.0
V3, V5 = MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5

__all__ = ["V3", "V5", "FullFor", "Members", "Service", "Watcher", "eventually", "make_topics", "report", "values"]


class Watcher:
    """A client of the broker. `will`: what the broker says in its name when it is lost."""

    def __init__(self, broker: Mosquitto, force: str, user: str, version: Any = V5, will: bytes = b"") -> None:
        self.force, self.user = force, user
        self._acked: dict[int, str] = {}
        self._heard = threading.Condition()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=f"{force}-{user}", protocol=version)
        self.client.username_pw_set(user, password_of(user))
        self.client.max_inflight_messages_set(200)
        self.client.on_publish = self._on_publish
        if will:
            self.client.will_set(self.topic("state"), will, qos=1)
        answers: list[str] = []
        self.client.on_connect = lambda _c, _d, _f, reason, _p: answers.append(str(reason) if reason.is_failure else "")
        self.client.connect("127.0.0.1", broker.ports[force])
        self.client.loop_start()
        eventually(lambda: answers)
        if answers[0]:
            self.client.loop_stop()
            raise PermissionError(answers[0])

    def _on_publish(self, _client: Any, _data: Any, number: int, reason: Any, _properties: Any) -> None:
        with self._heard:
            self._acked[number] = "" if reason.value == 0 else str(reason)
            self._heard.notify_all()

    def topic(self, what: str = "reports", watcher: str = "", force: str = "") -> str:
        return f"forces/{force or self.force}/watchers/{watcher or self.user}/{what}"

    def publish(self, payload: bytes, topic: str = "", content_type: str = "") -> int:
        """Without waiting; the message's number."""
        properties = None
        if content_type:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ContentType = content_type
        return self.client.publish(topic or self.topic(), payload, qos=1, properties=properties).mid

    def told(self, number: int, within_s: float = WAIT_S) -> str | None:
        """What the broker said of the message: "" it has it, else why not; None: nothing in time."""
        with self._heard:
            self._heard.wait_for(lambda: number in self._acked, within_s)
            return self._acked.get(number)

    def send(self, payload: bytes, topic: str = "", content_type: str = "") -> str | None:
        return self.told(self.publish(payload, topic, content_type))

    def vanish(self) -> None:
        """The connection is cut, without leave."""
        self.client.on_disconnect = lambda *_: self.client.loop_stop()
        link: Any = self.client.socket()
        link.shutdown(2)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FullFor:
    """A stream that takes nothing for some topics, or holds every append until `release`. Counts what it was asked."""

    def __init__(self, inner: Stream) -> None:
        self._inner = inner
        self.refused: dict[str, BaseException] = {}
        self.release = threading.Event()
        self.release.set()
        self.appends: list[tuple[str, int]] = []

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        self.appends.append((topic, sum(map(len, records.values()))))
        assert self.release.wait(WAIT_S)
        if topic in self.refused:
            raise self.refused[topic]
        return self._inner.append(topic, records)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass
class Service:
    """The MQTT service over `stream`, ready unless told not to wait. `with Service(broker, stream) as service:`"""

    broker: Mosquitto
    stream: Any
    members: Members = field(default_factory=Members)
    settings: MqttSettings = field(default_factory=lambda: MqttSettings(session_s=600))
    ca: str = ""
    wait: bool = True
    error: BaseException | None = None

    def __enter__(self) -> Service:
        for force in FORCES:
            self.members.watchers.setdefault(force, set())
        self.telemetry = Telemetry("mqtt")
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._up.wait(WAIT_S)
        if self.wait:
            try:
                self.ready()
            except AssertionError:
                self.stop()
                raise AssertionError(f"{self.troubles()} {self.error!r}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ready(self) -> Service:
        eventually(lambda: not self.troubles(), WAIT_S)
        return self

    def troubles(self) -> list[str]:
        return [*self.service.reasons(), *self.service.degraded()]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the service did not stop"

    def metric(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(f"harmonywatch_{name}", labels) or 0.0

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.service = MqttService(
            MqttParts(
                settings=self.settings,
                broker=Broker.at(self.broker.url, SERVICE, SERVICE_PASSWORD, self.ca),
                stream=self.stream,
                enrolment=self.members,
                forces=lambda: dict.fromkeys(FORCES, PARTITIONS),
                telemetry=self.telemetry,
                clock=SystemClock(),
                fresh_id=lambda: f"fresh-{time.monotonic_ns()}",
                lines_max=1000,
            )
        )
        self._up.set()
        await self.service.run(self._stop)


def make_topics(stream: Stream) -> None:
    for force in FORCES:
        for kind in (REPORTS, REJECTS, EVENTS):
            stream.create_topic(topic_of(kind, force), PARTITIONS)


def values(stream: Stream, topic: str) -> list[bytes]:
    """Every record of a topic, partition by partition."""
    found: list[bytes] = []
    for partition in range(PARTITIONS):
        position = 0
        while batches := stream.read(topic, partition, position):
            for batch in batches:
                found += batch.values
                position = batch.position
    return found


def reports(stream: Stream, force: str = "north") -> list[ReportRecord]:
    return [msgspec.json.decode(value, type=ReportRecord) for value in values(stream, topic_of(REPORTS, force))]


def rejects(stream: Stream, force: str = "north") -> list[RejectRecord]:
    return [msgspec.json.decode(value, type=RejectRecord) for value in values(stream, topic_of(REJECTS, force))]


def states(stream: Stream, force: str = "north") -> list[WatcherRecord]:
    return [msgspec.json.decode(value, type=WatcherRecord) for value in values(stream, topic_of(EVENTS, force))]


def wait_reports(
    stream: Stream, count: int, force: str = "north", holds: Callable[[int], bool] | None = None
) -> list[Any]:
    """The force's reports once there are `count`."""
    eventually(lambda: (holds or (lambda n: n >= count))(len(reports(stream, force))), WAIT_S)
    return reports(stream, force)
