"""JSON Schema (2020-12) of the wire form and of what travels on the topics, made from the types themselves.

The types are the truth: what stands here is what they cannot say (meanings, units, an example, and that unknown members
are welcome). Every report that `wire.parse` accepts is valid by the schema. The reverse does not hold in three points
that JSON Schema cannot express: bytes that are not UTF-8 or lone surrogates, nesting and size, and a `time` outside the
calendar once in UTC.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from harmonywatch.report.record import ReportRecord
from harmonywatch.report.topics import (
    ALERTS,
    DELIVERIES,
    EVENTS,
    REJECTS,
    REPORTS,
    AlertRecord,
    DeliveryRecord,
    EventRecord,
    RejectRecord,
)
from harmonywatch.report.words import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"

EXAMPLE: dict[str, Any] = {
    "watcher_id": "north-00017",
    "report_id": "north-00017-000431",
    "time": "2026-11-23T18:04:05.000123Z",
    "sequence": 431,
    "location": {"lat": 47.142175, "lon": 7.610535, "accuracy_m": 2.5, "altitude_m": 76},
    "heading_deg": 327,
    "speed_mps": 10.0,
    "battery": 0.39,
    "signal_dbm": -81,
    "firmware": "1.8.2",
    "model": "Heron-1",
    "schema_version": 1,
    "citizens": [
        {"name": "Ada Quill", "harmonyscore": 71.5, "citizen_id": "c-00a1f3", "confidence": 0.97},
        {"name": "Bo Lindqvist", "harmonyscore": 12.0},
    ],
    "words": ["lovely", "morning", "is", "it", "not"],
}
LEAST: dict[str, Any] = {
    "watcher_id": "north-00017",
    "location": {"lat": 47.1, "lon": 7.6},
    "citizens": [],
    "words": [],
}

_MEANINGS: dict[str, dict[str, str]] = {
    "Report": {
        "watcher_id": "which watcher reports",
        "location": "where it was",
        "citizens": "every citizen it saw; may be empty",
        "words": "what it heard, in order; may be empty",
        "report_id": "identifies the report among those of its watcher, so that it can safely be sent again",
        "time": "when, RFC 3339 with a zone; believed within 30 days before and 5 minutes after its receipt",
        "sequence": "counts the watcher's reports",
        "heading_deg": "degrees clockwise from north",
        "speed_mps": "metres a second",
        "battery": "charge, 0 empty to 1 full",
        "signal_dbm": "radio signal, dBm",
        "firmware": "version of the watcher's software",
        "model": "make of the watcher",
        "schema_version": "of the sender's own schema; kept as text",
    },
    "Location": {
        "lat": "degrees north, WGS84",
        "lon": "degrees east, WGS84",
        "accuracy_m": "radius of uncertainty, metres",
        "altitude_m": "metres",
    },
    "Citizen": {
        "name": "as the watcher spells it; not blank",
        "harmonyscore": "any finite number, by convention 0 (agitated) to 100",
        "citizen_id": "tells namesakes apart",
        "confidence": "of the recognition, 0 to 1",
    },
}
_NO_NUL, _NOT_BLANK = r"^[^\u0000]*$", r"^[^\u0000]*[^\s\u0000][^\u0000]*$"

_RECORDS: dict[str, tuple[type[msgspec.Struct], str]] = {
    REPORTS: (ReportRecord, "canonical report"),
    ALERTS: (AlertRecord, "alert"),
    REJECTS: (RejectRecord, "reject"),
    EVENTS: (EventRecord, "event of an incident"),
    DELIVERIES: (DeliveryRecord, "first delivery of an alert"),
}


def json_schema() -> dict[str, Any]:
    """JSON Schema of a report as a watcher sends it. A new dict each time; plain JSON values."""
    made = msgspec.json.schema(Report)
    definitions = made["$defs"]
    for kind, meanings in _MEANINGS.items():
        _open(definitions[kind])
        for name, meaning in meanings.items():
            member = _textual(definitions[kind]["properties"][name], kind == "Citizen" and name == "name")
            definitions[kind]["properties"][name] = {"description": meaning, **member}
    report = definitions.pop("Report")
    report["title"] = "Report of a watcher"
    report["description"] += " Members that are not named here are kept with the report."
    return {"$schema": DIALECT, **report, "examples": copy.deepcopy([EXAMPLE, LEAST]), "$defs": definitions}


def record_schema() -> dict[str, dict[str, Any]]:
    """JSON Schemas of the records on the stream, by the topics' prefix without the dot: `reports`, `alerts`, ..."""
    return {prefix.removesuffix("."): _record(kind, what) for prefix, (kind, what) in _RECORDS.items()}


def _record(kind: type[msgspec.Struct], what: str) -> dict[str, Any]:
    made = msgspec.json.schema(kind)
    definitions = made["$defs"]
    for definition in definitions.values():
        _open(definition)
    record = definitions.pop(kind.__name__)
    record["title"] = f"Record: {what}"
    return {"$schema": DIALECT, **record, **({"$defs": definitions} if definitions else {})}


def _open(definition: dict[str, Any]) -> None:
    """Members may be added by whoever sends, and by a later version of ours."""
    definition["additionalProperties"] = True


def _textual(member: dict[str, Any], not_blank: bool) -> dict[str, Any]:
    """The same member with NUL refused wherever it may be text (not in a time: its format says more)."""
    if "anyOf" in member:
        return {**member, "anyOf": [_textual(one, not_blank) for one in member["anyOf"]]}
    if member.get("type") == "array" and "type" in member["items"]:
        return {**member, "items": _textual(member["items"], not_blank)}
    if member.get("type") == "string" and "format" not in member:
        return {**member, "pattern": _NOT_BLANK if not_blank else _NO_NUL}
    return member
