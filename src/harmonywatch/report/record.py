"""The canonical record: what the gateway puts on `reports.<force>`, and every consumer reads.

One JSON object, each known member once, optional members left out when they are null, `extra` = one JSON text with the
unknown members verbatim. So consumers decode a fixed shape, partially or in columns, and can never read the same bytes
differently. Within a version `v` only optional members are added.

The object is written in two parts. The head is what the watcher said: its hash is `content`, so that a report sent
again has the same `content`, whenever it arrives. The tail is what the gateway adds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import xxhash

from harmonywatch.clock import to_wire
from harmonywatch.report.wire import Parsed
from harmonywatch.report.words import Citizen

VERSION = 1
PAST_MAX = timedelta(days=30)
FUTURE_MAX = timedelta(minutes=5)
"""A device time is believed within [received_at - 30 days, received_at + 5 minutes] (design, clocks)."""


class ReportHead(msgspec.Struct, gc=False, omit_defaults=True):
    """What the watcher said. `device_time` as sent, in UTC; degrees, metres, m/s, dBm as in the wire form."""

    v: int
    force: str
    report_id: str
    watcher_id: str
    lat: float
    lon: float
    citizens: list[Citizen]
    words: list[str]
    device_time: str | None = None
    sequence: int | None = None
    accuracy_m: float | None = None
    altitude_m: float | None = None
    heading_deg: float | None = None
    speed_mps: float | None = None
    battery: float | None = None
    signal_dbm: float | None = None
    firmware: str | None = None
    model: str | None = None
    schema_version: str | None = None
    extra: str | None = None


class ReportTail(msgspec.Struct, gc=False, omit_defaults=True):
    """What the gateway adds. `identity`: hash of (watcher_id, report_id), signed 64 bits, or None where the id was
    given here and is never deduplicated; `content`: hash of the head; `time`: device time if credible, else
    `received_at` with `clock_suspect`."""

    time: str
    received_at: str
    content: int
    clock_suspect: bool = False
    identity: int | None = None


class ReportRecord(ReportHead, kw_only=True, gc=False, omit_defaults=True):
    """The whole record, for those who decode all of it."""

    time: str
    received_at: str
    content: int
    clock_suspect: bool = False
    identity: int | None = None


_ENCODER = msgspec.json.Encoder()


def canonical(parsed: Parsed, raw: bytes, force: str, received_at: datetime, fresh_id: Callable[[], str]) -> Sealed:
    """Make the canonical record of a parsed report.

    `raw`: the bytes it was parsed from (an id is derived from them where the watcher gave a time or sequence but no
    report_id); `received_at`: aware UTC; `fresh_id`: draws an id for a report that has nothing to recognise it by.
    """
    report, extra, device_time = parsed
    report_id, deduplicated = report.report_id, True
    if report_id is None:
        deduplicated = device_time is not None or report.sequence is not None
        report_id = "d-" + xxhash.xxh3_128_hexdigest(raw.strip()) if deduplicated else fresh_id()
    where, version = report.location, report.schema_version
    said_at = None if device_time is None else to_wire(device_time)
    head = _ENCODER.encode(
        ReportHead(
            VERSION, force, report_id, report.watcher_id, where.lat, where.lon, report.citizens, report.words,
            said_at, report.sequence, where.accuracy_m, where.altitude_m,
            report.heading_deg, report.speed_mps, report.battery, report.signal_dbm, report.firmware, report.model,
            None if version is None else str(version), extra,
        )
    )  # fmt: skip
    received = to_wire(received_at)
    suspect = device_time is not None and not received_at - PAST_MAX <= device_time <= received_at + FUTURE_MAX
    tail = _ENCODER.encode(
        ReportTail(
            received if said_at is None or suspect else said_at,
            received,
            _signed(xxhash.xxh3_64_intdigest(head)),
            suspect,
            identity_hash(report.watcher_id, report_id) if deduplicated else None,
        )
    )
    return Sealed(report.watcher_id, report_id, head[:-1] + b"," + tail[1:])


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """A canonical record ready for the stream: its key (the watcher), the report's id, the bytes."""

    watcher_id: str
    report_id: str
    value: bytes


def identity_hash(watcher_id: str, report_id: str) -> int:
    """Signed 64-bit hash of a report's identity within its force."""
    return _signed(xxhash.xxh3_64_intdigest(f"{watcher_id}\x00{report_id}".encode()))


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned
