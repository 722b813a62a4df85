"""Reports that were received before, taken in again with the moment at which they were received. For the owner of the
data folder only: no key may say when something was received.

A line is `{"received_at": "2026-11-23T18:00:00Z", "report": {...}}`, the report exactly as a watcher sent it; or, for
what was no JSON, `{"received_at": ..., "bytes": "<base64>"}`. Admission is that of the door (`admit.py`), with that moment:
what it refuses becomes a reject. A line that is no such line, or that was received in the future, is refused and not kept:
its owner has it. Lines have their verdict when they are durable, in groups of at most LINES_MAX and BYTES_MAX.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import msgspec

from harmonywatch.clock import from_wire
from harmonywatch.gateway.admit import Admission, Terms, admit_onto
from harmonywatch.registry.contract import KeyInfo
from harmonywatch.report.topics import REJECTS, REPORTS, topic_of
from harmonywatch.stream.contract import Stream, StreamError, UnknownTopic, partitions_in

LINES_MAX = 1_000
BYTES_MAX = 4 << 20
VIA = "replay"
"""Whose watchers and rejects they are: a relay's with this name."""


class Judged(NamedTuple):
    """What became of one line: `status` accepted or refused; if refused, pointer ("" = whole line) and reason."""

    line: int
    status: str
    pointer: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """Where it goes: the force, its stream, and what else the door has. `enrol`: of watchers just seen; `now`: aware UTC."""

    force: str
    stream: Stream
    enrol: Callable[[set[str]], object]
    now: Callable[[], datetime]
    fresh_id: Callable[[], str]


class ReplayStopped(Exception):
    """The stream takes no more. Send the lines from `line` on, and no earlier ones: repeats are recognised within a day of
    received time, and a replay's times may be older than what the archive has in hand (docs/gaps.md)."""

    def __init__(self, line: int, problem: StreamError) -> None:
        super().__init__(f"no verdict from line {line} on: {problem}")
        self.line = line


class NoLineOfAReplay(ValueError):
    """The line does not say what was received, and when."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    received_at: str
    report: msgspec.Raw = msgspec.Raw()
    bytes: str | None = None


def replay(lines: Iterable[tuple[int, bytes | None]], ground: Ground) -> Iterator[Judged]:
    """Take in numbered lines (None: too large to be read); their verdicts, in order. Raises ReplayStopped."""
    group: list[tuple[int, bytes | None]] = []
    size_bytes = 0
    for number, line in lines:
        group.append((number, line))
        size_bytes += len(line or b"")
        if len(group) >= LINES_MAX or size_bytes >= BYTES_MAX:
            yield from _take(group, ground)
            group, size_bytes = [], 0
    if group:
        yield from _take(group, ground)


def _take(group: list[tuple[int, bytes | None]], ground: Ground) -> list[Judged]:
    admission, judged = Admission(), []
    owner, topic = KeyInfo(VIA, "relay", ground.force, VIA), topic_of(REPORTS, ground.force)
    try:
        partitions = partitions_in(ground.stream, topic)
        if not partitions:
            raise UnknownTopic(topic)
        for number, line in group:
            try:
                received_at, raw = read_line(line, ground.now())
            except NoLineOfAReplay as error:
                judged.append(Judged(number, "refused", "", str(error)))
                continue
            terms = Terms(owner, ground.force, received_at, partitions, ground.fresh_id)
            judged.append(_judge(admission, raw, number, terms))
        for into, records in ((topic, admission.records), (topic_of(REJECTS, ground.force), admission.rejects)):
            if records:
                ground.stream.append(into, records)
    except StreamError as error:
        raise ReplayStopped(group[0][0], error) from error
    ground.enrol(admission.watchers)
    return judged


def _judge(admission: Admission, raw: bytes, number: int, terms: Terms) -> Judged:
    before = admission.accepted
    admit_onto(admission, raw, number, terms)
    if admission.accepted > before:
        return Judged(number, "accepted")
    refusal = admission.verdicts[-1].refusal
    return Judged(number, "refused", refusal.pointer, refusal.reason)


def read_line(line: bytes | None, now: datetime) -> tuple[datetime, bytes]:
    """When something was received, and its bytes as they came. Raises NoLineOfAReplay."""
    if line is None:
        raise NoLineOfAReplay("over 16 MiB: not read, and not kept")
    try:
        said = msgspec.json.decode(line, type=_Line)
        raw = bytes(said.report)
        if bool(raw) == (said.bytes is not None):
            raise ValueError("it needs one of `report` and `bytes`")
        received_at = from_wire(said.received_at)
        raw = raw or b64decode(said.bytes or "", validate=True)
    except (ValueError, RecursionError, binascii.Error) as error:
        raise NoLineOfAReplay(f"no line of a replay, not kept: {error}") from None
    if received_at > now:
        raise NoLineOfAReplay(f"received at {said.received_at}, which is to come: not kept")
    return received_at, raw
