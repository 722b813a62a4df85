"""From a watcher's bytes to a Report, or to a Refusal that says where and why. Pure.

Two roads. The fast one is a strict typed decode in C; nearly every report takes it. What it will not take goes to
`examine`, which is slower and patient: it tells the unknown members (kept, verbatim, as `extra`) from the faults, and
points at the first fault. Only `examine` can refuse, so one place decides what is wrong with a report.

A key given twice: the last one wins, on both roads. NaN, Infinity and lone surrogates are not JSON here. Numbers beyond
a double are refused in known members and kept as text in unknown ones.
"""

from __future__ import annotations

import re
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


class _Beyond:
    """A number that no double can hold. No type of the schema takes it."""

    def __init__(self, text: str) -> None:
        self.text = text


def _number(text: str) -> float | _Beyond:
    value = float(text)
    return value if value - value == 0 else _Beyond(text)


_REPORT = msgspec.json.Decoder(Report)
_ANYTHING = msgspec.json.Decoder()
_ANY_NUMBER = msgspec.json.Decoder(float_hook=_number)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])

_LONG_INTEGER = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|(-?[0-9]{4300,})(?![0-9.eE])', re.DOTALL)
"""A text (passed over whole, so that its digits stay), or an integer of more digits than Python reads by default."""

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
            if not _names_nobody(report):
                return Parsed(report, None, _utc(report.time))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        pass  # `examine` will find what it was
    return examine(raw)


def examine(raw: bytes) -> Parsed | Refusal:
    """The patient road: keep unknown members, or find the first fault. For any bytes; never raises on their account."""
    try:
        document = _document(raw)
        report = _convert(document)
        if report is None or NUL_ESCAPE in raw:
            _find_fault(document)
        assert report is not None, "the schema refused what its fields, one by one, did not"
        return Parsed(report, _extra(raw, document), _utc(report.time))
    except _Refused as refused:
        return refused.refusal


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = _any_document(raw)
    except RecursionError:
        raise _Refused("too-deep", "", f"nested deeper than {DEPTH_MAX} levels") from None
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise _Refused("not-json", "", _not_json(raw, error)) from None
    if not _shallow(document):
        raise _Refused("too-deep", "", f"nested deeper than {DEPTH_MAX} levels")
    if not isinstance(document, dict):
        raise _Refused("wrong-type", "", "a report is a JSON object")
    return document


def _any_document(raw: bytes) -> Any:
    """The document as plain values. A number that no double holds becomes a _Beyond; so does an integer of thousands of
    digits, which is written as a float first, because reading it as an integer takes quadratic time."""
    try:
        return _ANYTHING.decode(raw)
    except msgspec.ValidationError:  # nothing but numbers can be invalid where everything is allowed
        return _ANY_NUMBER.decode(_LONG_INTEGER.sub(lambda found: found[0] + b"e0" if found[1] else found[0], raw))


def _not_json(raw: bytes, error: Exception) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as not_utf8:
        return f"the bytes are not UTF-8 (byte {not_utf8.start})"
    return _sentence(error)


def _shallow(document: object) -> bool:
    """Level by level, so that no stack grows with the sender's brackets."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(DEPTH_MAX + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False


def _convert(document: dict[str, Any]) -> Report | None:
    """The report in a document, whatever else is in it; None if it has a fault other than NUL."""
    try:
        report = msgspec.convert(_known(document), Report)
        _utc(report.time)
    except (msgspec.ValidationError, OverflowError):
        return None
    return None if _names_nobody(report) else report


def _names_nobody(report: Report) -> bool:
    for citizen in report.citizens:  # noqa: SIM110 (any() takes twice as long, and this is done for every report)
        if citizen.name.isspace():
            return True
    return False


def _find_fault(document: dict[str, Any]) -> None:
    """Raise _Refused for the first fault, in the schema's order."""
    _check_fields(Report, document, "")
    _check_fields(Location, document["location"], "/location")
    for place, citizen in enumerate(document["citizens"]):
        _check_citizen(citizen, f"/citizens/{place}")


def _check_citizen(members: Any, at: str) -> None:
    if isinstance(members, dict):
        try:
            citizen = msgspec.convert(_only(Citizen, members), Citizen)
        except (msgspec.ValidationError, OverflowError):
            pass  # which member it was is found below
        else:
            if not citizen.name.isspace() and "\x00" not in citizen.name + (citizen.citizen_id or ""):
                return
    _check_fields(Citizen, members, at)


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
        raise _Refused("out-of-range", at, f"the number {value.text[:40]} is not finite in a double")
    if wanted == list[str] and isinstance(value, list):
        for place, word in enumerate(value):
            if type(word) is not str or "\x00" in word:
                _check_value(str, word, f"{at}/{place}")
        return
    if isinstance(value, str) and ("\x00" in value or (at.endswith("/name") and not value.strip())):
        raise _Refused("not-text", at, "the text is blank or holds the character NUL")
    try:
        converted = msgspec.convert(value, wanted)
        _utc(converted if isinstance(converted, datetime) else None)
    except msgspec.ValidationError as error:
        raise _Refused(_code(str(error)), at, _sentence(error)) from None
    except OverflowError:
        raise _Refused("not-a-time", at, "the time is outside the calendar once in UTC") from None


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
    return text if text.startswith("JSON") else text[:1].lower() + text[1:]


def _utc(moment: datetime | None) -> datetime | None:
    """In UTC. Raises OverflowError where the zone carries it out of the calendar."""
    return None if moment is None else moment.astimezone(UTC)


def _known(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what the schema does not name."""
    known = dict(_only(Report, document))
    if isinstance(location := document.get("location"), dict):
        known["location"] = _only(Location, location)
    if isinstance(citizens := document.get("citizens"), list):
        known["citizens"] = [_only(Citizen, each) if isinstance(each, dict) else each for each in citizens]
    return known


def _only(kind: type[msgspec.Struct], members: dict[str, Any]) -> dict[str, Any]:
    fields = _FIELDS[kind]
    if members.keys() <= fields.keys():
        return members
    return {name: value for name, value in members.items() if name in fields}


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
