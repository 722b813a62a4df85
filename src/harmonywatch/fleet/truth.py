"""Ground truth: what was sent, what should come of it, and what the gateway said, as NDJSON written while it happens.

The file holds three kinds of line, told apart by their members:
1. one header: `{"truth":1,"seed","watchers","forces","run","full"}`;
2. one line an attempt, that is a report handed to the network, copies included:
   `{"watcher_id","report_id","time","force","bad":[{"place","name","identity","score"}],"fault","attempt"}`; `time` as
   written on the wire (the watcher's clock), `bad` the scores below 25 with their place in the report and the name as
   sent; `fault` null or a name of faults.py; a copy sent twice has `"of"`, the attempt it repeats; a full truth has
   `"line"`, the report itself (a JSON object; malformed: its bytes in base64);
3. outcomes: `{"outcome":"accepted"|"unknown","attempts":[[first,last],...]}`, and for each refused one
   `{"outcome":"refused","attempts":[[n,n]],"pointer","reason"}`. An attempt without outcome is unknown.

A report counts once however often its bytes were sent: a repeat is accepted, and makes no second alert. A bad score
whose outcome is unknown may or may not be stored: it is in the `possible_` sets.
"""

from __future__ import annotations

import base64
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

BUFFER_BYTES = 1 << 18
ACCEPTED, REFUSED, UNKNOWN = 1, 2, 0
OUTCOMES = {"accepted": ACCEPTED, "refused": REFUSED, "unknown": UNKNOWN}


@dataclass(frozen=True)
class Label:
    """What is special about one attempt."""

    fault: str
    of: int | None = None


class Bad(msgspec.Struct, frozen=True, gc=False):
    """A score below 25: the citizen's place in the report, name as sent, identity, score."""

    place: int
    name: str
    identity: str
    score: float


class Attempt(msgspec.Struct, gc=False):
    """One report as sent; `line` (full truth only, else empty) is its JSON, still encoded."""

    watcher_id: str
    report_id: str
    time: str
    force: str
    bad: list[Bad]
    fault: str | None
    attempt: int
    of: int | None = None
    line: msgspec.Raw = msgspec.Raw()

    def sent(self) -> bytes:
        """The very bytes that were sent; empty unless the truth is full."""
        line = bytes(self.line)
        return base64.b64decode(msgspec.json.decode(line)) if line.startswith(b'"') else line


class Outcome(msgspec.Struct, gc=False):
    """What became of attempts; ranges are inclusive."""

    outcome: str
    attempts: list[tuple[int, int]]
    pointer: str | None = None
    reason: str | None = None


class Header(msgspec.Struct, gc=False):
    """The run: version of this format, and what the city was made from."""

    truth: int
    seed: int
    watchers: int
    forces: list[str]
    run: str
    full: bool


class TruthWriter:
    """Writes the file, buffered: complete after `close`, at most BUFFER_BYTES behind before (`flush` catches up)."""

    def __init__(self, path: Path, header: Header) -> None:
        self._file = path.open("wb", buffering=BUFFER_BYTES)
        self._full = header.full
        self._done: dict[str, list[int]] = {"accepted": [], "unknown": []}
        self._write(header)

    def sent(self, first: int, heads: list[bytes], lines: list[bytes], labels: dict[int, Label]) -> None:
        """Attempts `first`, `first` + 1, ...: their heads (see render), lines, and labels by place in the list."""
        numbers = range(first, first + len(heads))
        if self._full:
            rows = [
                b'%b,"line":%b,"fault":null,"attempt":%d}\n' % row for row in zip(heads, lines, numbers, strict=True)
            ]
        else:
            rows = [b'%b,"fault":null,"attempt":%d}\n' % row for row in zip(heads, numbers, strict=True)]
        for i, label in labels.items():
            rows[i] = self._labelled(heads[i], lines[i], label, first + i)
        self._file.write(b"".join(rows))

    def _labelled(self, head: bytes, line: bytes, label: Label, attempt: int) -> bytes:
        if label.fault == "malformed":
            head = head[: head.index(b',"bad":')] + b',"bad":[]'
            line = b'"%b"' % base64.b64encode(line)
        of = b"" if label.of is None else b',"of":%d' % label.of
        full = b',"line":' + line if self._full else b""
        return b'%b%b%b,"fault":"%b","attempt":%d}\n' % (head, full, of, label.fault.encode(), attempt)

    def outcome(self, kind: str, attempts: Iterable[int]) -> None:
        """Attempts that were accepted, or whose outcome stays unknown."""
        self._done[kind].extend(attempts)

    def refused(self, attempt: int, pointer: str, reason: str) -> None:
        self._write(Outcome("refused", [(attempt, attempt)], pointer, reason))

    def flush(self) -> None:
        """Writes the outcomes that have come in, as ranges, and hands everything to the operating system."""
        for kind, attempts in self._done.items():
            if attempts:
                self._write(Outcome(kind, ranges(attempts)))
                attempts.clear()
        self._file.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _write(self, entry: Header | Outcome) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")


def ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted inclusive ranges of the numbers: [1, 2, 3, 7] -> [(1, 3), (7, 7)]."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number <= found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def iter_truth(path: Path) -> Iterator[Header | Attempt | Outcome]:
    """Every entry of the file, in order; a last line cut short by a crash ends it. Raises ValueError on any other."""
    attempt, header, outcome = (
        msgspec.json.Decoder(Attempt),
        msgspec.json.Decoder(Header),
        msgspec.json.Decoder(Outcome),
    )
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            if line.startswith(b'{"watcher_id"'):
                yield attempt.decode(line)
            elif line.startswith(b'{"truth"'):
                yield header.decode(line)
            else:
                yield outcome.decode(line)


AlertKey = tuple[str, str, int]
"""(watcher_id, report_id, place of the citizen in the report)"""


@dataclass
class ForceTruth:
    """What one force should see. `stored`: different reports accepted, that is accepted less `repeats`.

    `incidents`: identities of citizens with an alert; one that lapses or is re-opened may make more in a long run.
    """

    attempted: int = 0
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    repeats: int = 0
    bad_scores: int = 0
    alerts: set[AlertKey] = field(default_factory=set)
    possible_alerts: set[AlertKey] = field(default_factory=set)
    incidents: set[str] = field(default_factory=set)
    possible_incidents: set[str] = field(default_factory=set)

    @property
    def stored(self) -> int:
        return self.accepted - self.repeats


@dataclass
class TruthSummary:
    """The whole file: totals by force, faults by name (attempts), and the header."""

    header: Header | None
    forces: dict[str, ForceTruth]
    faults: dict[str, int]

    def total(self, figure: str) -> int:
        """A figure of ForceTruth (`attempted`, `accepted`, `stored`, `alerts`, ...) summed over the forces."""
        values: list[Any] = [getattr(force, figure) for force in self.forces.values()]
        return sum(value if isinstance(value, int) else len(value) for value in values)

    @property
    def attempted(self) -> int:
        return self.total("attempted")

    def alerts(self) -> set[AlertKey]:
        """The alerts that must exist, over all forces."""
        return set().union(*(force.alerts for force in self.forces.values()))

    def incidents(self) -> set[tuple[str, str]]:
        """The incidents that must exist: (force, citizen identity)."""
        return {(name, identity) for name, force in self.forces.items() for identity in force.incidents}


class _Reader:
    """Two bytes of memory an attempt: which force it was of, and what became of it."""

    def __init__(self, assume_accepted: bool) -> None:
        self._assume_accepted = assume_accepted
        self.header: Header | None = None
        self.forces: dict[str, ForceTruth] = {}
        self.faults: Counter[str] = Counter()
        self._force_of = bytearray()
        self._outcome = bytearray()
        self._bad: list[tuple[int, AlertKey, str]] = []
        self._repeats = array("q")

    def take(self, entry: Header | Attempt | Outcome) -> None:
        if isinstance(entry, Attempt):
            self._attempt(entry)
        elif isinstance(entry, Outcome):
            for first, last in entry.attempts:
                self._grow(last)
                self._outcome[first : last + 1] = bytes([OUTCOMES[entry.outcome]]) * (last + 1 - first)
        else:
            self.header = entry
            self.forces = {name: ForceTruth() for name in entry.forces}

    def _grow(self, attempt: int) -> None:
        missing = attempt + 1 - len(self._outcome)
        if missing > 0:
            self._outcome.extend(bytes(missing))
            self._force_of.extend(b"\xff" * missing)

    def _attempt(self, entry: Attempt) -> None:
        self._grow(entry.attempt)
        self.forces.setdefault(entry.force, ForceTruth())
        self._force_of[entry.attempt] = list(self.forces).index(entry.force)
        if self._assume_accepted:
            self._outcome[entry.attempt] = REFUSED if entry.fault == "malformed" else ACCEPTED
        if entry.fault is not None:
            self.faults[entry.fault] += 1
        if entry.of is not None:
            self._repeats.extend((entry.attempt, entry.of))
        for bad in entry.bad:
            key = (entry.watcher_id, entry.report_id, bad.place)
            self._bad.append((entry.attempt, key, bad.identity))

    def summary(self) -> TruthSummary:
        forces = list(self.forces.values())
        for (force, outcome), count in Counter(zip(self._force_of, self._outcome, strict=True)).items():
            if force < len(forces):
                truth = forces[force]
                truth.attempted += count
                name = ("unknown", "accepted", "refused")[outcome]
                setattr(truth, name, getattr(truth, name) + count)
        for i in range(0, len(self._repeats), 2):
            copy, original = self._repeats[i], self._repeats[i + 1]
            if self._outcome[copy] == ACCEPTED and self._outcome[original] == ACCEPTED:
                forces[self._force_of[copy]].repeats += 1
        for attempt, key, identity in self._bad:
            self._expect(forces[self._force_of[attempt]], self._outcome[attempt], key, identity)
        for truth in forces:
            truth.bad_scores = len(truth.alerts)
            truth.possible_alerts -= truth.alerts
            truth.possible_incidents -= truth.incidents
        return TruthSummary(self.header, self.forces, dict(self.faults))

    @staticmethod
    def _expect(truth: ForceTruth, outcome: int, key: AlertKey, identity: str) -> None:
        if outcome == ACCEPTED:
            truth.alerts.add(key)
            truth.incidents.add(identity)
        elif outcome == UNKNOWN:
            truth.possible_alerts.add(key)
            truth.possible_incidents.add(identity)


def read_truth(path: Path, assume_accepted: bool = False) -> TruthSummary:
    """What the file says should have come of the run. Raises ValueError on a line that is none of the three kinds.

    `assume_accepted` is for traffic that was written to a file and sent by another program: an attempt without an
    outcome counts as accepted, a malformed one as refused.
    """
    reader = _Reader(assume_accepted)
    for entry in iter_truth(path):
        reader.take(entry)
    return reader.summary()
