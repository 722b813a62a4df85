"""What an officer's program does: a plain socket that speaks HTTP/1.1 and reads server-sent events. And what the other
rooms do: write alerts and incident events to the stream."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from harmonywatch.clock import SystemClock, to_wire
from harmonywatch.report.topics import ALERTS, EVENTS, AlertRecord, EventRecord, encode, topic_of
from harmonywatch.stream.contract import Stream, partition_of

PARTITIONS = 4


class Told(NamedTuple):
    """One server-sent event."""

    id: str
    name: str
    data: Any


class Watch:
    """A live stream, as a client sees it."""

    def __init__(self, port: int, key: str, query: str = "", last_id: str = "", receive_bytes: int = 0) -> None:
        self._socket = socket.socket()
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        lines = [f"GET /api/live{query} HTTP/1.1", "Host: console", f"Authorization: Bearer {key}"]
        lines += [f"Last-Event-ID: {last_id}"] if last_id else []
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._response: http.client.HTTPResponse | None = None
        self.last_id = last_id

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._socket.close()

    def open(self) -> Watch:
        """Read the head; the stream must have been granted."""
        if self._response is None:
            self._response = http.client.HTTPResponse(self._socket)
            self._response.begin()
            assert self._response.status == 200, self._response.read()
            assert self._response.headers["content-type"].startswith("text/event-stream")
        return self

    def everything(self) -> Iterator[Told]:
        """Every event, heartbeats too, until the server ends the stream."""
        self.open()
        assert self._response is not None
        fields: dict[str, str] = {}
        while line := self._response.readline().decode():
            if line.strip():
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value
                continue
            self.last_id = fields.get("id", self.last_id)
            yield Told(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}

    def events(self) -> Iterator[Told]:
        """Every event but heartbeats."""
        return (told for told in self.everything() if told.name != "heartbeat")

    def ready(self) -> Watch:
        """The first heartbeat came: what happens from now on will be told."""
        assert next(self.everything()).name == "heartbeat"
        return self

    def take(self, count: int) -> list[Told]:
        return list(itertools.islice(self.events(), count))


def alert(number: int, force: str = "north") -> AlertRecord:
    now = to_wire(SystemClock().now())
    return AlertRecord(
        v=1,
        alert_id=f"{force}-{number:06d}",
        force=force,
        rule="harmonyscore-below-25",
        report_id=f"r-{number}",
        watcher_id="w-1",
        place=0,
        identity=f"name:Citizen {number}",
        name=f"Citizen {number}",
        harmonyscore=3.5,
        lat=47.1,
        lon=7.6,
        time=now,
        received_at=now,
        judged_at=now,
    )


def append_alerts(stream: Stream, *alerts: AlertRecord) -> None:
    for record in alerts:
        partition = partition_of(record.identity.encode(), PARTITIONS)
        stream.append(topic_of(ALERTS, record.force), {partition: [encode(record)]})


def append_event(stream: Stream, force: str, kind: str, incident: bytes, alert_id: str | None = None) -> None:
    incident_id = msgspec.json.decode(incident)["incident_id"]
    now = to_wire(SystemClock().now())
    record = EventRecord(1, kind, force, incident_id, now, msgspec.Raw(incident), alert_id)
    partition = partition_of(incident_id.encode(), PARTITIONS)
    stream.append(topic_of(EVENTS, force), {partition: [encode(record)]})


def get(
    port: int, path: str, key: str = "", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(
            "GET", path, headers={**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        )
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
