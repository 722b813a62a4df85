"""The columns of the lake: three tables per force, LAKE/<force>/{reports,alerts,rejects}, each partitioned by `day`.

Columns are added, never retyped or removed. Times are UTC microseconds. `topic`, `partition`, `offset` say which record
of the stream a row is: every record below the stored positions is exactly one row (a poison record's row is in
`rejects`). Nothing here is a name in clear: `citizen` is the token of an identity, `citizen_sealed` what the token
alone cannot restore (see `sealing.py`).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

REPORTS, ALERTS, REJECTS = "reports", "alerts", "rejects"

TIME = pa.timestamp("us", tz="UTC")

CITIZEN = pa.struct(
    [
        pa.field("citizen", pa.string()),
        pa.field("citizen_sealed", pa.string()),
        pa.field("harmonyscore", pa.float64()),
        pa.field("confidence", pa.float64()),
    ]
)

_REPORTS: list[pa.Field[Any]] = [
    # which report
    pa.field("report_id", pa.string()),
    pa.field("watcher_id", pa.string()),
    # when: as judged credible, as sent, as received
    pa.field("time", TIME),
    pa.field("device_time", TIME),
    pa.field("received_at", TIME),
    pa.field("clock_suspect", pa.bool_()),
    # where: degrees, cell of resolution 9 as hexadecimal text, metres
    pa.field("lat", pa.float64()),
    pa.field("lon", pa.float64()),
    pa.field("h3", pa.string()),
    pa.field("accuracy_m", pa.float64()),
    pa.field("altitude_m", pa.float64()),
    # the watcher itself
    pa.field("heading_deg", pa.float64()),
    pa.field("speed_mps", pa.float64()),
    pa.field("battery", pa.float64()),
    pa.field("signal_dbm", pa.float64()),
    pa.field("sequence", pa.int64()),
    pa.field("firmware", pa.string()),
    pa.field("model", pa.string()),
    pa.field("schema_version", pa.string()),
    # what it heard and saw; null in a repeat's row, empty where nothing was
    pa.field("words", pa.list_(pa.string())),
    pa.field("citizens", pa.list_(CITIZEN)),
    # unknown members, one JSON text, verbatim
    pa.field("extra", pa.string()),
    # sent before with the same content (payload left out, hidden by the view); same id with other content
    pa.field("repeat", pa.bool_()),
    pa.field("conflict", pa.bool_()),
    # hashes by which repeats are recognised; identity null = never deduplicated
    pa.field("identity", pa.int64()),
    pa.field("content", pa.int64()),
    # which record of the stream
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    # UTC date of `time`
    pa.field("day", pa.date32()),
]
REPORTS_SCHEMA = pa.schema(_REPORTS)

_ALERTS: list[pa.Field[Any]] = [
    # which alert, by which rule, of which citizen (index in its report)
    pa.field("alert_id", pa.string()),
    pa.field("rule", pa.string()),
    pa.field("report_id", pa.string()),
    pa.field("watcher_id", pa.string()),
    pa.field("place", pa.int32()),
    pa.field("citizen", pa.string()),
    pa.field("citizen_sealed", pa.string()),
    pa.field("harmonyscore", pa.float64()),
    pa.field("confidence", pa.float64()),
    # where and when
    pa.field("lat", pa.float64()),
    pa.field("lon", pa.float64()),
    pa.field("h3", pa.string()),
    pa.field("time", TIME),
    pa.field("received_at", TIME),
    pa.field("judged_at", TIME),
    pa.field("clock_suspect", pa.bool_()),
    # the topic may hold an alert twice: the later row is marked, hidden by the view
    pa.field("repeat", pa.bool_()),
    # which record of the stream
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    # UTC date of `time`
    pa.field("day", pa.date32()),
]
ALERTS_SCHEMA = pa.schema(_ALERTS)

_REJECTS: list[pa.Field[Any]] = [
    # which reject, from whom, when
    pa.field("reject_id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("sender", pa.string()),
    pa.field("received_at", TIME),
    # why
    pa.field("code", pa.string()),
    pa.field("pointer", pa.string()),
    pa.field("reason", pa.string()),
    # the bytes that came, encrypted whole
    pa.field("bytes", pa.binary()),
    pa.field("line", pa.int64()),
    # the record that could not be decoded, where `source` is `stream`
    pa.field("origin_topic", pa.string()),
    pa.field("origin_partition", pa.int32()),
    pa.field("origin_offset", pa.int64()),
    # which record of the stream this row is: of `rejects.<force>`, or the poison record itself, in its own topic
    pa.field("topic", pa.string()),
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    # UTC date of `received_at`
    pa.field("day", pa.date32()),
]
REJECTS_SCHEMA = pa.schema(_REJECTS)

TABLES: dict[str, pa.Schema] = {REPORTS: REPORTS_SCHEMA, ALERTS: ALERTS_SCHEMA, REJECTS: REJECTS_SCHEMA}
PARTITION_BY = "day"
