"""Sends a file written by someone else, and gives a verdict for every line (or element) of it.

Rules it keeps:
- Lines that are not JSON are sent too: the gateway refuses them and keeps their bytes. Only what no request can hold
  (over 16 MiB) is refused here, unsent. Blank lines are no reports and have no verdict.
- A request holds at most LINES_MAX lines and BYTES_MAX bytes; a line over 1 MiB goes alone.
- 408, 429, 5xx and lost connections: the very same bytes again, with backoff, until `give_up_s` after the first try.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from harmonywatch.fleet.units import Unit, read_units
from harmonywatch.fleet.verdicts import refusal_of_document, refusals_of_batch
from harmonywatch.fleet.wire import Door
from harmonywatch.report.words import LIMIT_REPORT_BYTES

LINES_MAX = 1_000
BYTES_MAX = 4 << 20
TIMEOUT_S = 30.0
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
TOO_LARGE = "over 16 MiB: no request can hold it, so it was not sent"


class Verdict(msgspec.Struct, frozen=True):
    """What became of one line: `status` accepted or refused; if refused, pointer ("" = whole line) and reason."""

    line: int
    status: str
    pointer: str | None = None
    reason: str | None = None


class KeyRefusedError(Exception):
    """The gateway does not take this key: nobody's lines would get through."""


class GatewayAwayError(Exception):
    """No answer in time; lines from `line` on have no verdict and may be sent again: repeats are recognised."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"no verdict from line {line} on: {problem}")
        self.line = line
        self.problem = problem


def send_file(
    path: str | Path, url: str, key: str, *, ca: str | None = None, give_up_s: float = 60.0, lines_max: int = LINES_MAX
) -> Iterator[Verdict]:
    """Verdicts of the file's lines, in order, as they come. `-` is standard input; gzip is recognised.

    Raises KeyRefusedError, GatewayAwayError, ValueError (the URL), OSError or EOFError (the file).
    """
    door = _Door(Door.at(url, ca), key, give_up_s)
    try:
        for units in _requests(read_units(path), lines_max):
            yield from _verdicts(door, units)
    finally:
        door.close()


def _requests(units: Iterable[Unit], lines_max: int) -> Iterator[list[Unit]]:
    """Groups units into requests, within the limits, without changing their order."""
    group: list[Unit] = []
    size = 0
    for unit in units:
        length = len(unit.data or b"") + 1
        alone = unit.data is None or length > LIMIT_REPORT_BYTES
        if group and (alone or len(group) >= lines_max or size + length > BYTES_MAX):
            yield group
            group, size = [], 0
        group.append(unit)
        size += length
        if alone:
            yield group
            group, size = [], 0
    if group:
        yield group


def _verdicts(door: _Door, units: list[Unit]) -> Iterator[Verdict]:
    if units[0].data is None:
        yield Verdict(units[0].number, "refused", "", TOO_LARGE)
        return
    status, body = door.post(b"".join((unit.data or b"") + b"\n" for unit in units), units[0].number)
    if 200 <= status < 300:
        refused = refusals_of_batch(body)
    else:
        refused = dict.fromkeys(range(1, len(units) + 1), refusal_of_document(status, body))
    for place, unit in enumerate(units, 1):
        if place in refused:
            yield Verdict(unit.number, "refused", *refused[place])
        else:
            yield Verdict(unit.number, "accepted")


class _Door:
    """One kept connection to the gateway, opened again as often as needed."""

    def __init__(self, door: Door, key: str, give_up_s: float) -> None:
        self._door, self._give_up_s = door, give_up_s
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def post(self, body: bytes, line: int) -> tuple[int, bytes]:
        """Status and body of the gateway's final answer. `line`: of the first unit, for the error."""
        began, backoff_s = time.monotonic(), RETRY_MIN_S
        while True:
            wait_s = backoff_s
            try:
                status, retry_after, answer = self._once(body)
                if status in (401, 403):
                    raise KeyRefusedError(refusal_of_document(status, answer)[1])
                if status not in (408, 429) and status < 500:
                    return status, answer
                problem = f"the gateway answered {status}: {refusal_of_document(status, answer)[1]}"
                wait_s = float(retry_after) if retry_after and retry_after.isdigit() else backoff_s
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = f"no answer from {self._door.host}:{self._door.port} ({error or type(error).__name__})"
            if time.monotonic() - began + wait_s > self._give_up_s:
                raise GatewayAwayError(line, problem)
            time.sleep(wait_s)
            backoff_s = min(2 * backoff_s, RETRY_MAX_S)

    def _once(self, body: bytes) -> tuple[int, str | None, bytes]:
        if self._connection is None:
            self._connection = self._open()
        self._connection.request("POST", self._door.path, body, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.will_close:
            self.close()
        return response.status, response.headers.get("Retry-After"), answer

    def _open(self) -> http.client.HTTPConnection:
        door = self._door
        if door.tls is not None:
            return http.client.HTTPSConnection(door.host, door.port, timeout=TIMEOUT_S, context=door.tls)
        return http.client.HTTPConnection(door.host, door.port, timeout=TIMEOUT_S)
