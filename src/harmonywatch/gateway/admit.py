"""Bytes and a key in; records for the stream, refusals for the sender and rejects for the archive out. Pure.

One report (`admit_single`) or one a line (`admit_lines`); nothing here decides about a whole request but the number of
its lines. The force comes from the key, never from the bytes. Every refused line is kept as a reject with its bytes; of
one too large for the stream itself the first `REJECT_BYTES_MAX` are, and its reason says so.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from harmonywatch.clock import to_wire
from harmonywatch.gateway.answers import Verdict
from harmonywatch.registry.contract import KeyInfo
from harmonywatch.report.record import canonical
from harmonywatch.report.topics import VERSION, RejectRecord, encode
from harmonywatch.report.wire import Parsed, parse
from harmonywatch.report.words import Refusal
from harmonywatch.stream.contract import RECORD_BYTES_MAX, partition_of

REJECT_BYTES_MAX = (3 << 20) - (16 << 10)
"""4 MiB in base64 is the stream's limit for a record; this leaves 21 KiB for the other members."""

_BLANK = b" \t\r"


class TooManyLinesError(Exception):
    """The request as a whole is refused; nothing of it is accepted or kept."""

    def __init__(self, lines: int) -> None:
        super().__init__(f"{lines} lines")
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Terms:
    """What admission needs to know besides the bytes. `force`: the key's; `received_at`: aware UTC, request headers
    read; `partitions`: of the force's topics; `fresh_id`: draws an id for a report or reject."""

    key: KeyInfo
    force: str
    received_at: datetime
    partitions: int
    fresh_id: Callable[[], str]


@dataclass(slots=True)
class Admission:
    """What became of a request's bytes. `records`, `rejects`: by partition, in the sender's order; `report_id`: of the
    last record; `watchers`: whose records a relay sent (empty for a watcher's own key)."""

    records: dict[int, list[bytes]] = field(default_factory=dict)
    rejects: dict[int, list[bytes]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    watchers: set[str] = field(default_factory=set)
    accepted: int = 0
    size_bytes: int = 0
    report_id: str = ""


def admit_single(raw: bytes, terms: Terms) -> Admission:
    """Admit or refuse the one report that `raw` should be."""
    admission = Admission()
    admit_onto(admission, raw, None, terms)
    return admission


def admit_lines(raw: bytes, terms: Terms, lines_max: int) -> Admission:
    """Admit or refuse each line of NDJSON. Lines end in LF or CRLF; blank ones are counted and passed over.

    Raises TooManyLinesError beyond `lines_max`.
    """
    lines = raw.count(b"\n") + (not raw.endswith(b"\n") and bool(raw))
    if lines > lines_max:
        raise TooManyLinesError(lines)
    admission = Admission()
    for number, line in _lines(raw):
        if line.strip(_BLANK):
            admit_onto(admission, line, number, terms)
    return admission


def _lines(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """One at a time: a list of all lines would hold the request twice."""
    start, number = 0, 0
    while start < len(raw):
        end = raw.find(b"\n", start)
        end = len(raw) if end < 0 else end
        number += 1
        yield number, raw[start:end].removesuffix(b"\r")
        start = end + 1


def admit_onto(admission: Admission, raw: bytes, line: int | None, terms: Terms) -> None:
    """Admit or refuse what should be one report, in addition to what is admitted already."""
    outcome = parse(raw)
    refusal = _accept(admission, outcome, raw, terms) if isinstance(outcome, Parsed) else outcome
    if refusal is not None:
        _refuse(admission, refusal, raw, line, terms)


def _accept(admission: Admission, parsed: Parsed, raw: bytes, terms: Terms) -> Refusal | None:
    watcher_id, key = parsed.report.watcher_id, terms.key
    if key.kind == "watcher" and watcher_id != key.subject:
        return Refusal("not-yours", "/watcher_id", "the key is another watcher's; a relay key sends for any watcher")
    sealed = canonical(parsed, raw, terms.force, terms.received_at, terms.fresh_id)
    value = sealed.value
    if len(value) > RECORD_BYTES_MAX:
        return Refusal("too-large", "", f"the canonical form has {len(value)} bytes; the limit is {RECORD_BYTES_MAX}")
    partition = partition_of(watcher_id.encode(), terms.partitions)
    admission.records.setdefault(partition, []).append(value)
    admission.accepted += 1
    admission.size_bytes += len(value)
    admission.report_id = sealed.report_id
    if key.kind == "relay":
        admission.watchers.add(watcher_id)
    return None


def _refuse(admission: Admission, refusal: Refusal, raw: bytes, line: int | None, terms: Terms) -> None:
    reason, sender = refusal.reason, terms.key.subject
    if len(raw) > REJECT_BYTES_MAX:
        reason += f" (of its {len(raw)} bytes the first {REJECT_BYTES_MAX} are kept)"
    reject_id = terms.fresh_id()
    record = encode(
        RejectRecord(
            v=VERSION,
            reject_id=reject_id,
            force=terms.force,
            source="gateway",
            sender=sender,
            received_at=to_wire(terms.received_at),
            code=refusal.code,
            pointer=refusal.pointer,
            reason=reason,
            bytes=b64encode(raw[:REJECT_BYTES_MAX]).decode(),
            line=line,
        )
    )
    admission.rejects.setdefault(partition_of(sender.encode(), terms.partitions), []).append(record)
    admission.size_bytes += len(record)
    admission.verdicts.append(Verdict(line or 1, refusal, reject_id))
