"""From a watcher's bytes to a Report, or to a Refusal that says where and why. Pure.

Two roads. The fast one is a strict typed decode in C; nearly every report takes it. What it will not take goes to
`examine`, which is slower and patient: it tells the unknown members (kept, verbatim, as `extra`) from the faults, and
points at the first fault. Only `examine` can refuse, so one place decides what is wrong with a report.

A key given twice: the last one wins, on both roads. NaN, Infinity and lone surrogates are not JSON here. Numbers beyond
a double are refused in known members and kept as text in unknown ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from harmonywatch.report.words import DEPTH_MAX, LIMIT_REPORT_BYTES, Citizen, Location, Refusal, Report

NUL_ESCAPE = b"\\u0000"


class Parsed(NamedTuple):
    """A report and its unknown members. `extra`: JSON text of one object, or None; `device_time`: UTC, or None."""

    report: Report
    extra: str | None
    device_time: datetime | None


class _Beyond(str):
    """The text of a number that no double can hold."""


def _number(text: str) -> float | _Beyond:
    value = float(text)
    return value if value - value == 0 else _Beyond(text)


_REPORT = msgspec.json.Decoder(Report)
_ANYTHING = msgspec.json.Decoder(float_hook=_number)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])

_FIELDS: dict[type[msgspec.Struct], dict[str, tuple[Any, bool]]] = {
    kind: {field.name: (field.type, field.required) for field in msgspec.structs.fields(kind)}
    for kind in (Report, Location, Citizen)
}


class _Refused(Exception):
    def __init__(self, code: str, pointer: str, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(code, pointer, reason)


def parse(raw: bytes) -> Parsed | Refusal:
    """Read one report from the bytes of one JSON document. Never raises on account of the bytes."""
    if len(raw) > LIMIT_REPORT_BYTES:
        return Refusal("too-large", "", f"the report has {len(raw)} bytes; the limit is {LIMIT_REPORT_BYTES}")
    try:
        if NUL_ESCAPE not in raw:
            report = _REPORT.decode(raw)
            if not any(citizen.name.isspace() for citizen in report.citizens):
                return Parsed(report, None, _utc(report.time))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        pass  # `examine` will find what it was
    return examine(raw)


def examine(raw: bytes) -> Parsed | Refusal:
    """The patient road: keep unknown members, or find the first fault. For any bytes; never raises on their account."""
    try:
        document = _document(raw)
        _check_fields(Report, document, "")
        _check_fields(Location, document["location"], "/location")
        for place, citizen in enumerate(document["citizens"]):
            _check_fields(Citizen, citizen, f"/citizens/{place}")
        report = msgspec.convert(_known(document), Report)
        return Parsed(report, _extra(raw, document), _moment(report.time))
    except _Refused as refused:
        return refused.refusal


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = _ANYTHING.decode(raw)
    except RecursionError:
        raise _Refused("too-deep", "", f"nested deeper than {DEPTH_MAX} levels") from None
    except msgspec.ValidationError as error:  # only integers of thousands of digits come here
        raise _Refused("out-of-range", "", _sentence(error)) from None
    except UnicodeDecodeError as error:
        raise _Refused("not-json", "", f"the bytes are not UTF-8 (byte {error.start})") from None
    except msgspec.DecodeError as error:
        raise _Refused("not-json", "", _sentence(error)) from None
    if not _shallow(document):
        raise _Refused("too-deep", "", f"nested deeper than {DEPTH_MAX} levels")
    if not isinstance(document, dict):
        raise _Refused("wrong-type", "", "a report is a JSON object")
    return document


def _shallow(document: object) -> bool:
    """Level by level, so that no stack grows with the sender's brackets."""
    level: list[Any] = [document]
    for _ in range(DEPTH_MAX + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ] if level and isinstance(level[0], dict | list) else []
        if not level:
            return True
    return False


def _check_fields(kind: type[msgspec.Struct], members: Mapping[str, Any], at: str) -> None:
    """Raise _Refused for the first member, in the schema's order, that is missing or not what the schema says."""
    if not isinstance(members, dict):
        raise _Refused("wrong-type", at, "expected an object")
    for name, (wanted, required) in _FIELDS[kind].items():
        if name not in members:
            if required:
                raise _Refused("missing", f"{at}/{name}", f"the required member {name} is missing")
            continue
        _check_value(wanted, members[name], f"{at}/{name}")


def _check_value(wanted: Any, value: Any, at: str) -> None:
    if wanted is Location:
        return  # checked member by member
    if wanted == list[Citizen]:
        if not isinstance(value, list):
            raise _Refused("wrong-type", at, "expected an array of citizens")
        return
    if isinstance(value, _Beyond):
        raise _Refused("out-of-range", at, f"the number {value[:40]} is not finite in a double")
    if wanted == list[str] and isinstance(value, list):
        for place, word in enumerate(value):
            _check_value(str, word, f"{at}/{place}")
        return
    if isinstance(value, str) and ("\x00" in value or (at.endswith("/name") and not value.strip())):
        raise _Refused("not-text", at, "the text is blank or holds the character NUL")
    try:
        converted = msgspec.convert(value, wanted)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _Refused(_code(str(error)), at, _sentence(error)) from None
    if isinstance(converted, datetime):
        _moment(converted, at)


def _code(message: str) -> str:
    if "RFC3339" in message or "timezone" in message:
        return "not-a-time"
    if "length" in message:
        return "not-text"
    if " >= " in message or " <= " in message or "out of range" in message or "too large" in message:
        return "out-of-range"
    return "wrong-type"


def _sentence(error: Exception) -> str:
    text = str(error).split(" - at `")[0]
    return text[:1].lower() + text[1:]


def _utc(moment: datetime | None) -> datetime | None:
    """In UTC. Raises OverflowError where the zone carries it out of the calendar."""
    return None if moment is None else moment.astimezone(UTC)


def _moment(moment: datetime | None, at: str = "/time") -> datetime | None:
    try:
        return _utc(moment)
    except OverflowError:
        raise _Refused("not-a-time", at, "the time is outside the calendar once in UTC") from None


def _known(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what the schema does not name."""
    known = {name: value for name, value in document.items() if name in _FIELDS[Report]}
    known["location"] = {k: v for k, v in document["location"].items() if k in _FIELDS[Location]}
    known["citizens"] = [{k: v for k, v in each.items() if k in _FIELDS[Citizen]} for each in document["citizens"]]
    return known


def _extra(raw: bytes, document: dict[str, Any]) -> str | None:
    """Unknown members as JSON text, each value verbatim, under the path it had: `{"mood": 1, "location": {"floor": 2},
    "citizens": [{}, {"hat": "red"}]}`."""
    members = _MEMBERS.decode(raw)
    extra: dict[str, Any] = {name: value for name, value in members.items() if name not in _FIELDS[Report]}
    if not document["location"].keys() <= _FIELDS[Location].keys():
        extra["location"] = _unknown(Location, members["location"])
    if any(not each.keys() <= _FIELDS[Citizen].keys() for each in document["citizens"]):
        extra["citizens"] = [_unknown(Citizen, each) for each in _ELEMENTS.decode(members["citizens"])]
    return msgspec.json.encode(extra).decode() if extra else None


def _unknown(kind: type[msgspec.Struct], raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
    return {name: value for name, value in _MEMBERS.decode(raw).items() if name not in _FIELDS[kind]}
