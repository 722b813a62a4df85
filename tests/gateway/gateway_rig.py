"""A real gateway on a real socket, in a thread of its own, and a client that sends exactly the bytes it is told."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import uvloop

from harmonywatch.clock import SystemClock
from harmonywatch.gateway.server import GatewayParts, serve_gateway
from harmonywatch.registry.contract import KeyInfo, NotFound, RegistryBusy
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.report.record import ReportRecord
from harmonywatch.report.schema import json_schema
from harmonywatch.report.topics import REJECTS, REPORTS, RejectRecord, topic_of
from harmonywatch.settings import GatewaySettings
from harmonywatch.stream.contract import Stream
from harmonywatch.telemetry import Telemetry

PARTITIONS = 4
WAIT_S = 10.0


def eventually(holds: Callable[[], Any], within_s: float = WAIT_S) -> Any:
    """The first true value of `holds`; fails after the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.005)
    return value


class Members:
    """Keys and watchers in memory: what the gateway asks of the registry. `busy`: it cannot be written now."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyInfo] = {}
        self.watchers: dict[str, set[str]] = {}
        self.calls: list[tuple[str, set[str], str]] = []
        self.busy = False

    def add(self, key: str, kind: Any, force: str | None, subject: str) -> str:
        self.keys[key] = KeyInfo(f"id-{key}", kind, force, subject)
        if force is not None:
            self.watchers.setdefault(force, set())
        return key

    def peek(self, key: str) -> KeyInfo | None:
        return self.keys.get(key)

    def find(self, key: str) -> KeyInfo | None:
        if self.busy:
            raise RegistryBusy("registry")
        return self.keys.get(key)

    def find_all(self, keys: Iterable[str]) -> dict[str, KeyInfo | None]:
        return {key: self.find(key) for key in keys}

    def known_watchers(self, force: str) -> set[str]:
        if force not in self.watchers:
            raise NotFound("force", force)
        return set(self.watchers[force])

    def enrol(self, force: str, watcher_ids: Any, via: str) -> int:
        if self.busy:
            raise RegistryBusy("registry")
        self.calls.append((force, set(watcher_ids), via))
        new = set(watcher_ids) - self.watchers[force]
        self.watchers[force] |= new
        return len(new)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Gateway:
    """A running gateway. `with Gateway(stream, members) as door:`"""

    stream: Stream
    members: Members
    settings: GatewaySettings = field(default_factory=lambda: GatewaySettings(port=0, drain_s=5, body_timeout_s=5))
    reasons: list[str] = field(default_factory=list)
    partitions: Callable[[str], int] = lambda _: PARTITIONS
    keys: KeyringCache | None = None
    port: int = 0
    error: BaseException | None = None

    def __enter__(self) -> Gateway:
        self.telemetry = Telemetry("gateway")
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._bound.wait(WAIT_S)
        if self.error is not None:
            self._thread.join()
            raise self.error
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_to_stop()
        self.join()

    def ask_to_stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the gateway did not stop"

    @property
    def stopped(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error
        finally:
            self._bound.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        numbers = itertools.count(1)
        parts = GatewayParts(
            settings=self.settings,
            stream=self.stream,
            keys=self.keys or self.members,
            enrolment=self.members,
            partitions=self.partitions,
            telemetry=self.telemetry,
            clock=SystemClock(),
            fresh_id=lambda: f"fresh-{next(numbers)}",
            report_schema=json_schema(),
            readiness=lambda: list(self.reasons),
        )
        await serve_gateway(parts, self._stop, self._set_port)

    def _set_port(self, port: int) -> None:
        self.port = port
        self._bound.set()

    # --- what a sender does

    def connect(self, tls: ssl.SSLContext | None = None) -> Wire:
        return Wire(self.port, tls)

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        with self.connect() as wire:
            return wire.ask(method, path, headers or {}, body)

    def send(self, body: bytes, key: str = "relay", media: str = "application/json", coding: str = "") -> Answer:
        return self.ask("POST", "/v1/reports", headers_of(key, media, coding), body)

    # --- what it left behind

    def reports(self, force: str = "north") -> list[ReportRecord]:
        return [msgspec.json.decode(value, type=ReportRecord) for value in self._values(topic_of(REPORTS, force))]

    def rejects(self, force: str = "north") -> list[RejectRecord]:
        return [msgspec.json.decode(v, type=RejectRecord) for v in self._values(topic_of(REJECTS, force))]

    def _values(self, topic: str) -> list[bytes]:
        if topic not in self.stream.topics():
            return []
        return [value for partition in range(PARTITIONS) for value in self._partition(topic, partition)]

    def _partition(self, topic: str, partition: int) -> list[bytes]:
        values: list[bytes] = []
        while batches := self.stream.read(topic, partition, len(values)):
            values.extend(value for batch in batches for value in batch.values)
        return values

    def metric(self, name: str, **labels: str) -> float:
        if not self.stopped:
            self.ask("GET", "/metrics")  # which hands over what was counted
        return self.telemetry.registry.get_sample_value(f"harmonywatch_{name}", labels) or 0.0


class Wire:
    """One connection, byte by byte."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.socket = tls.wrap_socket(plain, server_hostname="localhost") if tls else plain
        self._read = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        self.write(request(method, path, headers, body))
        return self.answer(head_only=method == "HEAD")

    def answer(self, head_only: bool = False) -> Answer:
        """The next response."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Answer(int(first.split(" ")[1]), headers, body)

    def closed(self) -> bool:
        """Wait for the end of the connection; True if nothing more was said."""
        try:
            return self._read == b"" and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"closed after {self._read!r}")
        self._read += data


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", *(f"{name}: {value}" for name, value in headers.items())]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def headers_of(key: str = "relay", media: str = "application/json", coding: str = "") -> dict[str, str]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": media}
    return headers | ({"Content-Encoding": coding} if coding else {})


def report(watcher_id: str = "W-1", **more: Any) -> bytes:
    members = {
        "watcher_id": watcher_id,
        "location": {"lat": 52.5, "lon": 13.4},
        "citizens": [{"name": "Ada Quell", "harmonyscore": 61.5}],
        "words": ["tram", "bread"],
    }
    return json.dumps(members | more).encode()


class HeldStream:
    """A stream whose appends wait for `release`, or raise what `fails` holds, or `fails_in` for the topic. Counts them."""

    def __init__(self, inner: Stream) -> None:
        self._inner = inner
        self.release = threading.Event()
        self.release.set()
        self.fails: BaseException | None = None
        self.fails_in: dict[str, BaseException] = {}
        self.appends: list[tuple[str, int]] = []

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        self.appends.append((topic, sum(len(values) for values in records.values())))
        assert self.release.wait(WAIT_S)
        if (error := self.fails or self.fails_in.get(topic)) is not None:
            raise error
        return self._inner.append(topic, records)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
