"""What a message from the broker says, and what becomes of it. Pure.

The topic names the force and the watcher, and the broker's access list vouches for both: what stands in the bytes must
agree. `forces/<force>/watchers/<id>/reports`: one report, or with the content type of NDJSON (MQTT 5) one a line.
`forces/<force>/watchers/<id>/state`: `online` or `offline`, the latter usually the watcher's last will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from harmonywatch.clock import to_wire
from harmonywatch.gateway.admit import Admission, Terms, TooManyLinesError, admit_lines, admit_single
from harmonywatch.registry.contract import KeyInfo
from harmonywatch.report.topics import VERSION, WatcherChange, WatcherRecord, encode
from harmonywatch.report.words import ID_LENGTH_MAX
from harmonywatch.stream.contract import partition_of

SHARE = "harmonywatch"
NDJSON_TYPE = "application/x-ndjson"
VIA = "mqtt"
"""Whose watchers they are in the registry: that of a relay with this name."""

BAD_TOPIC, BAD_STATE = "bad-topic", "bad-state"
"""Counted and dropped: there is nobody whose reject it could be, or nothing worth keeping."""

_CHANGES: dict[bytes, WatcherChange] = {b"online": "watcher-online", b"offline": "watcher-offline"}


class Received(NamedTuple):
    """A message as it came from the broker. `content_type`: "" unless the sender gave one."""

    topic: str
    payload: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Office:
    """What sorting needs to know besides the messages; see `Terms`."""

    force: str
    partitions: int
    received_at: datetime
    fresh_id: Callable[[], str]
    lines_max: int


@dataclass(slots=True)
class Sorted:
    """What became of some messages of one force. `states`: records for `events.<force>`, by partition; `dropped`: how
    many, by code."""

    admission: Admission = field(default_factory=Admission)
    states: dict[int, list[bytes]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


def filters(force: str) -> list[str]:
    """What to subscribe to for a force: shared, so that several services divide the messages among them."""
    return [f"$share/{SHARE}/forces/{force}/watchers/+/{what}" for what in ("reports", "state")]


def sort(messages: Sequence[Received], office: Office) -> Sorted:
    """Admit, refuse or drop each message, in their order."""
    found = Sorted()
    for message in messages:
        watcher_id, what = _place(message.topic, office.force)
        if what == "reports":
            _add_reports(found.admission, message, watcher_id, office)
        elif what == "state":
            _add_state(found, message.payload, watcher_id, office)
        else:
            found.dropped[BAD_TOPIC] += 1
    return found


def _place(topic: str, force: str) -> tuple[str, str]:
    """(watcher_id, `reports` or `state`), ("", "") for a topic that is neither."""
    parts = topic.split("/")
    if len(parts) == 5 and parts[:3] == ["forces", force, "watchers"] and 0 < len(parts[3]) <= ID_LENGTH_MAX:
        return parts[3], parts[4]
    return "", ""


def _add_reports(into: Admission, message: Received, watcher_id: str, office: Office) -> None:
    owner = KeyInfo(VIA, "watcher", office.force, watcher_id)
    terms = Terms(owner, office.force, office.received_at, office.partitions, office.fresh_id)
    try:
        many = message.content_type == NDJSON_TYPE
        one = admit_lines(message.payload, terms, office.lines_max) if many else admit_single(message.payload, terms)
    except TooManyLinesError:
        one = admit_single(message.payload, terms)  # which it is not: so it is kept as one reject
    for mine, its in ((into.records, one.records), (into.rejects, one.rejects)):
        for partition, values in its.items():
            mine.setdefault(partition, []).extend(values)
    into.verdicts += one.verdicts
    into.accepted += one.accepted
    into.size_bytes += one.size_bytes
    if one.accepted:
        into.watchers.add(watcher_id)


def _add_state(found: Sorted, payload: bytes, watcher_id: str, office: Office) -> None:
    change = _CHANGES.get(payload)
    if change is None:
        found.dropped[BAD_STATE] += 1
        return
    record = encode(WatcherRecord(VERSION, change, office.force, watcher_id, to_wire(office.received_at)))
    found.states.setdefault(partition_of(watcher_id.encode(), office.partitions), []).append(record)
    found.admission.size_bytes += len(record)
