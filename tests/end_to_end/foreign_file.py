"""A file of reports as a stranger might write it: right, odd, repeated and broken lines, and what must become of each."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from running_system import FOUR_FIELDS, report

COMPOSED = unicodedata.normalize("NFC", "Zoë Ångström")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@dataclass
class Line:
    """`data` as in the file, without its line feed. `accepted` None: a blank line, which has no verdict.

    `stored`: rows that this line alone adds to `reports`; `extra`: the unknown members that must be kept.
    """

    data: bytes
    accepted: bool | None = True
    stored: int = 1
    extra: Any = None
    watcher_id: str = ""


@dataclass
class ForeignFile:
    lines: list[Line] = field(default_factory=list)

    def data(self) -> bytes:
        return b"".join(line.data + b"\n" for line in self.lines)

    def refused(self) -> dict[int, bytes]:
        """What is kept of each refused line, by its number among those that are not blank: blank ones are not sent. A
        carriage return before the line feed belongs to the line's ending."""
        sent = [line for line in self.lines if line.accepted is not None]
        return {number: line.data.removesuffix(b"\r") for number, line in enumerate(sent, 1) if line.accepted is False}

    def numbers(self, accepted: bool) -> list[int]:
        """Line numbers, from 1."""
        return [number for number, line in enumerate(self.lines, 1) if line.accepted is accepted]

    def stored(self) -> dict[str, int]:
        """Rows in `reports` by watcher."""
        found: dict[str, int] = {}
        for line in self.lines:
            if line.accepted:
                found[line.watcher_id] = found.get(line.watcher_id, 0) + line.stored
        return found


def foreign_file(plain: int = 40) -> ForeignFile:
    """`plain`: how many ordinary lines stand around the odd ones."""
    ordinary = [_line(report(f"plain-{number % 7}", sequence=number)) for number in range(plain)]
    odd = [*_unknown_members(), *_repeats(), *_spellings(), *_broken(), *_blank()]
    mixed: list[Line] = []
    for number in range(max(len(ordinary), len(odd))):
        mixed += ordinary[number : number + 1] + odd[number : number + 1]
    return ForeignFile(mixed)


def _line(document: dict[str, Any], **how: Any) -> Line:
    return Line(json.dumps(document, ensure_ascii=False).encode(), watcher_id=document["watcher_id"], **how)


def _unknown_members() -> Iterator[Line]:
    yield _line(report("only-the-four"))
    top = {"mood": {"deep": [1, {"a": None}]}, "Zeit": "heute", "mission": 7}
    yield _line(report("unknown-at-top", **top), extra=top)
    inside = report("unknown-in-location")
    inside["location"] = {**FOUR_FIELDS["location"], "floor": 3, "indoor": True}
    yield _line(inside, extra={"location": {"floor": 3, "indoor": True}})
    citizens = report("unknown-in-citizens")
    citizens["citizens"] = [{"name": "One", "harmonyscore": 50}, {"name": "Two", "harmonyscore": 60.5, "hat": "red"}]
    yield _line(citizens, extra={"citizens": [{}, {"hat": "red"}]})
    yield Line(
        b'{"citizens": [], "words": [], "location": {"lon": 0, "lat": -90}, "watcher_id": "nothing-seen", "n": 1.50e1}',
        extra={"n": 15.0},
        watcher_id="nothing-seen",
    )


def _repeats() -> Iterator[Line]:
    named = _line(report("repeats-by-id", report_id="r-1", sequence=1))
    timed = _line(report("repeats-by-bytes", sequence=9))
    quiet = _line(report("quiet-and-honest"))
    yield from (named, timed, quiet)
    yield Line(named.data, stored=0, watcher_id=named.watcher_id)
    yield Line(timed.data, stored=0, watcher_id=timed.watcher_id)
    yield Line(quiet.data, watcher_id=quiet.watcher_id)
    yield _line(report("repeats-by-id", 33.0, report_id="r-1", sequence=1))  # same id, other content: a second report


def _spellings() -> Iterator[Line]:
    yield _line(report("spelling", 3.0, COMPOSED))
    yield _line(report("spelling", 4.0, DECOMPOSED))
    yield Line(json.dumps(report("escaped", name=COMPOSED)).encode(), watcher_id="escaped")
    yield Line(json.dumps(report("with-crlf")).encode() + b"\r", watcher_id="with-crlf")
    yield Line(b"  \t" + json.dumps(report("indented")).encode() + b"  ", watcher_id="indented")
    yield Line(
        b'{"watcher_id": "the-first", "watcher_id": "given-twice", "words": ["no"], "words": ["yes"],'
        b' "location": {"lat": 1, "lat": 2, "lon": 3}, "citizens": [{"name": "A", "harmonyscore": 1, "harmonyscore": 99}]}',
        watcher_id="given-twice",
    )


def _broken() -> Iterator[Line]:
    whole = json.dumps(report("broken")).encode()
    yield Line(b"these are the last words of a stranger", accepted=False)
    yield Line(whole[:-1], accepted=False)
    yield Line(whole + b"}", accepted=False)
    yield Line(b"[" + whole + b"]", accepted=False)
    yield Line(b"42", accepted=False)
    yield Line(b"null", accepted=False)
    yield Line(b"\xff\xfe\x00broken bytes \x80", accepted=False)
    yield Line(whole.replace(b"80.0", b"NaN"), accepted=False)
    yield Line(whole.replace(b"80.0", b"1e400"), accepted=False)
    yield Line(whole.replace(b"80.0", b'"80"'), accepted=False)
    yield Line(whole.replace(b"48.8566", b"90.5"), accepted=False)
    yield Line(whole.replace(b"watcher_id", b"watcher"), accepted=False)
    yield Line(whole.replace(b"Ada Quiet", b"\\ud800"), accepted=False)
    yield Line(b"a line that ends as on another system\r", accepted=False)
    yield Line(b" \t a line with space around it  ", accepted=False)


def _blank() -> Iterator[Line]:
    for blank in (b"", b"   ", b"\r"):
        yield Line(blank, accepted=None)
