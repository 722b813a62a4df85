"""The topics and the forms of what travels on them. Rooms do not import one another: they meet here.

Per force: `reports.<force>` (key: watcher; canonical records), `alerts.<force>` (key: citizen's identity, so that one
worker owns a citizen), `rejects.<force>` (key: the sender), `events.<force>` (key: incident, what changed; and watcher, as
it comes and goes; for live screens) and `deliveries.<force>` (key: alert; when an alert first reached a screen or channel).
Positions, retention, quota and erasure are per force. Records of `alerts` may repeat (at least once): readers drop by
`alert_id`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from harmonywatch.report.record import VERSION

REPORTS, ALERTS, REJECTS, EVENTS, DELIVERIES = "reports.", "alerts.", "rejects.", "events.", "deliveries."

DURABLE_GROUPS: dict[str, tuple[str, ...]] = {
    "alerting": (REPORTS,),
    "dispatch": (ALERTS,),
    "archive": (REPORTS, ALERTS, REJECTS),
}
"""The groups whose unread records retention never deletes, with the topics each reads."""


def topic_of(kind: str, force: str) -> str:
    return kind + force


def archived_topics(force: str) -> list[str]:
    """Those whose positions the lake keeps."""
    return [topic_of(kind, force) for kind in DURABLE_GROUPS["archive"]]


def force_of(topic: str) -> str:
    return topic.split(".", 1)[1]


class AlertRecord(msgspec.Struct, gc=False, omit_defaults=True):
    """One bad score of one citizen in one report, for one rule. `place`: index of the citizen in the report;
    `identity`: see `words.identity_of`; times RFC 3339; `rule`: the rule's id."""

    v: int
    alert_id: str
    force: str
    rule: str
    report_id: str
    watcher_id: str
    place: int
    identity: str
    name: str
    harmonyscore: float
    lat: float
    lon: float
    time: str
    received_at: str
    judged_at: str
    citizen_id: str | None = None
    confidence: float | None = None
    clock_suspect: bool = False


class RejectRecord(msgspec.Struct, gc=False, omit_defaults=True):
    """A refused report with its bytes (standard base64). `sender`: subject of the key; `line`: 1-based line of an NDJSON
    request; `source`: `gateway`, or `stream` for a record that a consumer could not decode (then with partition and
    offset in its topic)."""

    v: int
    reject_id: str
    force: str
    source: Literal["gateway", "stream"]
    sender: str
    received_at: str
    code: str
    pointer: str
    reason: str
    bytes: str
    line: int | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None


class EventRecord(msgspec.Struct, gc=False, omit_defaults=True):
    """An incident changed. `kind`: opened, joined, reopened, acknowledged, dispatched, resolved, lapsed, ...; `incident`: the
    incident as the command line prints it, JSON text; `alert_id`: the occurrence that did it, if one did."""

    v: int
    kind: str
    force: str
    incident_id: str
    at: str
    incident: msgspec.Raw
    alert_id: str | None = None


WatcherChange = Literal["watcher-online", "watcher-offline"]


class WatcherRecord(msgspec.Struct, gc=False):
    """On `events.<force>` too, told apart by `kind`: a watcher's broker says that it has come or gone (its last will)."""

    v: int
    kind: WatcherChange
    force: str
    watcher_id: str
    at: str


class DeliveryRecord(msgspec.Struct, gc=False):
    """An alert was handed to a channel or live stream for the first time by this process."""

    v: int
    alert_id: str
    delivered_at: str
    by: str


_ENCODER = msgspec.json.Encoder()


def encode(record: AlertRecord | RejectRecord | EventRecord | WatcherRecord | DeliveryRecord) -> bytes:
    """The record's bytes on its topic."""
    return _ENCODER.encode(record)


__all__ = [
    "ALERTS", "DELIVERIES", "DURABLE_GROUPS", "EVENTS", "REJECTS", "REPORTS", "VERSION",
    "AlertRecord", "DeliveryRecord", "EventRecord", "RejectRecord", "WatcherChange", "WatcherRecord",
    "archived_topics", "encode", "force_of", "topic_of",
]  # fmt: skip
