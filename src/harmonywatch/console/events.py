"""From records of the stream to server-sent events: encoded once each, whatever number of clients gets them. Pure.

An alert's data is its record with `delivered_at`, which is known only when the event is handed to somebody: `told` puts it
in. An incident's is the incident as the command line prints it, with `kind` (what happened) and `at` (when); a watcher's,
when it comes or goes, is the record. Topics may repeat a record: `Recent` tells. A record that cannot be read has no event,
but keeps its place, so that positions stay whole; one of a later version stops the service.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import ALERTS, EventRecord, WatcherRecord, force_of
from harmonywatch.stream.contract import Batch, StreamError, TopicPartition

SEEN_MAX = 50_000
"""Ids remembered against repeats: a repeat follows a crash, within seconds; this is hours of the busiest night."""


class RecordTooNew(StreamError):
    """A later harmonywatch wrote this record; showing half of it would mislead an officer."""

    def __init__(self, at: TopicPartition, offset: int, version: int) -> None:
        super().__init__(
            f"{at.topic}[{at.partition}] at {offset}: record version {version}, this console reads {VERSION}; upgrade it"
        )
        self.at, self.offset, self.version = at, offset, version


class LiveEvent(msgspec.Struct, gc=False):
    """One record on its way to clients. `body`: the event without its id and, of an alert, without its end, empty = nothing
    to tell; `position`: next to read after it; of an alert also `alert_id`, `received_at` and, once it was handed to
    somebody, `delivered_at`; `key` tells repeats."""

    at: TopicPartition
    position: int
    force: str
    key: str = ""
    body: bytes = b""
    alert_id: str = ""
    received_at: str = ""
    delivered_at: str = ""
    handed: bool = False

    @property
    def is_alert(self) -> bool:
        return self.at.topic.startswith(ALERTS)


class Recent:
    """The last SEEN_MAX keys, each with a text."""

    def __init__(self, most: int = SEEN_MAX) -> None:
        self._most = most
        self._texts: dict[str, str] = {}

    def add(self, key: str, text: str = "") -> bool:
        """Remember; False if it is remembered already (the first text stays)."""
        if key in self._texts:
            return False
        self._texts[key] = text
        if len(self._texts) > self._most:
            del self._texts[next(iter(self._texts))]
        return True

    def get(self, key: str) -> str | None:
        return self._texts.get(key)


class _AlertHead(msgspec.Struct, gc=False):
    v: int
    alert_id: str
    received_at: str


class _EventHead(msgspec.Struct, gc=False):
    kind: str


_ALERT = msgspec.json.Decoder(_AlertHead)
_EVENT_HEAD = msgspec.json.Decoder(_EventHead)
_EVENT = msgspec.json.Decoder(EventRecord)
_WATCHER = msgspec.json.Decoder(WatcherRecord)
_TEXT = msgspec.json.Encoder()


def events_of(batch: Batch) -> list[LiveEvent]:
    """The records of a batch, in order, repeats included. Raises RecordTooNew."""
    at, force = TopicPartition(batch.topic, batch.partition), force_of(batch.topic)
    read = _read_alert if batch.topic.startswith(ALERTS) else _read_event
    found = []
    for offset, value in enumerate(batch.values, batch.base_offset):
        event = LiveEvent(at, offset + 1, force)
        found.append(event)
        try:
            version = read(event, value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if version > VERSION:
            raise RecordTooNew(at, offset, version)
    return found


def told(event: LiveEvent) -> bytes:
    """The event as it is written, its id aside. An alert's `delivered_at` must be known by now."""
    if not event.is_alert:
        return event.body
    return event.body + b',"delivered_at":' + _TEXT.encode(event.delivered_at) + b"}\n\n"


def silence_repeats(events: Iterable[LiveEvent], recent: Recent) -> None:
    """Empty the body of every event that was told before."""
    for event in events:
        if event.body and not recent.add(event.key):
            event.body = b""


def _read_alert(event: LiveEvent, value: bytes) -> int:
    head = _ALERT.decode(value)
    event.key = event.alert_id = head.alert_id
    event.received_at = head.received_at
    event.body = _begun(b"alert", value.strip()[:-1])
    return head.v


def _read_event(event: LiveEvent, value: bytes) -> int:
    of_watcher = _EVENT_HEAD.decode(value).kind.startswith("watcher-")
    return _read_watcher(event, value) if of_watcher else _read_incident(event, value)


def _read_watcher(event: LiveEvent, value: bytes) -> int:
    record = _WATCHER.decode(value)
    event.key = f"{record.force} {record.watcher_id} {record.kind} {record.at}"
    event.body = sse(b"watcher", value.strip())
    return record.v


def _read_incident(event: LiveEvent, value: bytes) -> int:
    record = _EVENT.decode(value)
    event.key = f"{record.incident_id} {record.kind} {record.at} {record.alert_id}"
    incident = bytes(record.incident).strip()
    change = b'{"kind":' + _TEXT.encode(record.kind) + b',"at":' + _TEXT.encode(record.at)
    event.body = sse(b"incident", change + (b"}" if incident in (b"{}", b"null") else b"," + incident[1:]))
    return record.v


def sse(name: bytes, data: bytes) -> bytes:
    """An event without an id. `data`: JSON, so a line break in it is only a blank."""
    return _begun(name, data) + b"\n\n"


def _begun(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data.replace(b"\r", b" ").replace(b"\n", b" ")
