"""The nouns: Report, Citizen, Location, Refusal. Everything imports them; they import nothing of ours but the clock.

`Report` is what a watcher says (the wire form, the brief's fields plus those the brief forgot). What travels on the
stream is the canonical record made from it (`record.py`). Pure values: no clock is read, no randomness drawn here.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

LIMIT_REPORT_BYTES = 1 << 20
"""A report of more than 1 MiB is refused (design, doors)."""

DEPTH_MAX = 64
"""Deepest nesting accepted in unknown fields. The known form is four deep; a parser's stack must never be the limit."""


ID_LENGTH_MAX = 128
"""Of a watcher, a citizen or a report, in characters; the registry enrols no longer one either."""

Text = Annotated[str, Meta(min_length=1, max_length=1024)]
Id = Annotated[str, Meta(min_length=1, max_length=ID_LENGTH_MAX)]
Share = Annotated[float, Meta(ge=0, le=1)]
Length = Annotated[float, Meta(ge=0)]
Moment = Annotated[datetime, Meta(tz=True)]


class Location(msgspec.Struct, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """Where the watcher was: WGS84 degrees; accuracy and altitude in metres."""

    lat: Annotated[float, Meta(ge=-90, le=90)]
    lon: Annotated[float, Meta(ge=-180, le=180)]
    accuracy_m: Length | None = None
    altitude_m: float | None = None


class Citizen(msgspec.Struct, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """One citizen seen. `harmonyscore`: finite, by convention 0 (agitated) to 100; `confidence`: 0 to 1."""

    name: Text
    harmonyscore: float
    citizen_id: Id | None = None
    confidence: Share | None = None


class Report(msgspec.Struct, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """What a watcher sends each minute. The first four fields are the brief's; the others may be missing or null."""

    watcher_id: Id
    location: Location
    citizens: list[Citizen]
    words: list[str]
    report_id: Id | None = None
    time: Moment | None = None
    sequence: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    heading_deg: Annotated[float, Meta(ge=0, le=360)] | None = None
    speed_mps: Length | None = None
    battery: Share | None = None
    signal_dbm: float | None = None
    firmware: Text | None = None
    model: Text | None = None
    schema_version: str | int | None = None


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a report was not accepted.

    `code` is stable and machine-readable (see `REFUSAL_CODES`), `pointer` is an RFC 6901 JSON Pointer to the offending
    member ("" = the whole document), `reason` is one sentence for the sender.
    """

    code: str
    pointer: str
    reason: str


REFUSAL_CODES = {
    "not-json": "the bytes are not one JSON document in UTF-8",
    "too-deep": f"nested deeper than {DEPTH_MAX} levels",
    "too-large": "over a limit of size",
    "missing": "a required member is absent",
    "wrong-type": "the member has another type than the schema's",
    "out-of-range": "the number is outside its range, or not finite",
    "not-text": "a known text is empty, too long, or holds NUL or a lone surrogate",
    "not-a-time": "the time is not RFC 3339 with a zone",
    "not-yours": "the key may not send for this watcher",
    "poison": "the record on the stream could not be decoded",
}
"""Every code a Refusal may carry, with its meaning. Codes are only ever added."""


def identity_of(name: str, citizen_id: str | None) -> str:
    """The identity of a citizen: `id:` + citizen_id, else `name:` + the name in NFC, trimmed (design, decisions).

    Never merged automatically: two identities may be one person, and nothing here guesses so.
    """
    if citizen_id is not None:
        return "id:" + citizen_id
    return "name:" + (name if name.isascii() else unicodedata.normalize("NFC", name)).strip()
