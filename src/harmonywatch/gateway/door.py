"""The way of a request, from its headers to its answer.

For `POST /v1/reports`, in this order, each step ending the request if it fails:

1. the key: 401 unknown, 403 an officer's                      nothing of the body is asked for before
2. the types: 415
3. the body, whole: 408, 413; unpacked: 400, 413
4. room among what waits for the disk: 503
5. admission (`admit.py`): records, refusals, rejects
6. records durable (`commit.py`): 503 if not; rejects too,     nothing is answered before
   if their topic takes them: else they are lost, counted
7. the answer; a relay's watchers are handed to the roll

What takes long (a large body) runs in two threads beside the event loop, so that it delays others little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import structs

from harmonywatch.clock import Clock
from harmonywatch.gateway.admit import Admission, Terms, TooManyLinesError, admit_lines, admit_single
from harmonywatch.gateway.answers import (
    Problem,
    ProblemError,
    Response,
    accepted_response,
    problem_response,
    refusal_problem,
    tally_response,
)
from harmonywatch.gateway.bodies import (
    ACCEPT_ENCODING,
    CODINGS,
    BodyDamagedError,
    BodyTooLargeError,
    unpack,
)
from harmonywatch.gateway.budget import Budget
from harmonywatch.gateway.commit import Commits
from harmonywatch.gateway.connection import Request
from harmonywatch.gateway.enrolment import Roll
from harmonywatch.gateway.meters import Meters
from harmonywatch.gateway.newcomers import Keys, Newcomers
from harmonywatch.gateway.openapi import PAGE
from harmonywatch.ops import OPS_PATHS, Readiness, answer_ops
from harmonywatch.registry.contract import Enrolment, KeyInfo, RegistryError
from harmonywatch.report.topics import REJECTS, REPORTS, topic_of
from harmonywatch.settings import GatewaySettings
from harmonywatch.stream.contract import Stream, StreamBroken, StreamError, StreamFull, TopicDamaged
from harmonywatch.telemetry import Telemetry

T = TypeVar("T")

JSON_TYPE, NDJSON_TYPE = "application/json", "application/x-ndjson"
INLINE_BYTES_MAX = 128 << 10
"""A larger body is unpacked and admitted in a thread. Below it the way there and back costs more than the work, some 70
reports or 2 ms at most, delays the others."""

HEAVY_THREADS = 2
RETRY_AFTER_S = 1.0
DAMAGED_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What the gateway is made of. `partitions`: of a force's topics (asked in a
    thread, once a force; LookupError: not made yet); `readiness`:
    reasons from outside this room, asked in a thread (archive lag, age of the keyring), `degraded`: those of some forces
    only; `fresh_id`: draws ids for reports and rejects; `report_schema`: JSON Schema of a report."""

    settings: GatewaySettings
    stream: Stream
    keys: Keys
    enrolment: Enrolment
    partitions: Callable[[str], int]
    telemetry: Telemetry
    clock: Clock
    fresh_id: Callable[[], str]
    report_schema: Mapping[str, Any]
    readiness: Readiness
    degraded: Readiness = list


class Door:
    """Answers requests. Used from the event loop."""

    def __init__(self, parts: GatewayParts, commits: Commits, roll: Roll, openapi: bytes) -> None:
        self._parts = parts
        self._commits = commits
        self._roll = roll
        self._openapi = openapi
        self._newcomers = Newcomers(parts.keys)
        self._meters = Meters(parts.telemetry)
        self._pending = Budget(parts.settings.pending_bytes_max)
        self._partitions: dict[str, int] = {}
        self._heavy = ThreadPoolExecutor(HEAVY_THREADS, "heavy")
        self._light = ThreadPoolExecutor(HEAVY_THREADS, "light")

    def close(self) -> None:
        self._heavy.shutdown()
        self._light.shutdown()
        self._newcomers.close()

    async def answer(self, request: Request) -> Response:
        """The response to any request; a problem document for whatever is not a success."""
        try:
            return await self._route(request)
        except ProblemError as ended:
            problem = ended.problem
            self._meters.turned_away(problem)
            return problem_response(problem)

    async def _route(self, request: Request) -> Response:
        path, method = request.path, request.method
        if path == "/v1/reports":
            _allow(method, "POST")
            return await self._reports(request)
        if path not in (*OPS_PATHS, "/openapi.json", "/"):
            raise ProblemError(Problem(404, "not-found", "there is nothing at this path; reports go to /v1/reports"))
        _allow(method, "GET", "HEAD")
        if path == "/openapi.json":
            return Response(200, self._openapi)
        if path == "/":
            return Response(200, PAGE, "text/html; charset=utf-8")
        self.flush()
        telemetry = self._parts.telemetry
        answer = await self._beside(self._light, lambda: answer_ops(path, telemetry, self.reasons, self.degraded))
        assert answer is not None
        return Response(answer.status, answer.body, answer.content_type)

    def flush(self) -> None:
        """Make what was counted visible in the metrics and the log. Called some times a second."""
        self._meters.flush()

    def reasons(self) -> list[str]:
        """Why reports cannot be taken now; in a thread."""
        return self._commits.reasons() + self._parts.readiness()

    def degraded(self) -> list[str]:
        """Why reports of some forces, or rejects, cannot be taken now; in a thread."""
        return self._commits.degraded() + self._parts.degraded()

    # --- POST /v1/reports, step by step

    async def _reports(self, request: Request) -> Response:
        key = await self._key(request)
        force = key.force
        if key.kind == "officer" or force is None:
            raise ProblemError(Problem(403, "not-a-sender", "an officer's key sends no reports"))
        media, coding = _types(request)
        packed = await request.body()
        try:
            raw = packed if coding in ("", "identity") else await self._unpacked(packed, coding)
            del packed
            if not self._pending.take(len(raw)):
                detail = "too many reports wait for the disk"
                raise ProblemError(Problem(503, "pending-full", detail, retry_after_s=RETRY_AFTER_S))
        except BodyTooLargeError:
            detail = f"more than {self._parts.settings.request_bytes_max} bytes after decompression"
            raise ProblemError(Problem(413, "too-large", detail)) from None
        except BodyDamagedError as damaged:
            raise ProblemError(Problem(400, "damaged", str(damaged))) from None
        try:
            partitions = self._partitions.get(force) or await self._partitions_of(force)
            terms = Terms(key, force, request.received_at, partitions, self._parts.fresh_id)
            admission = await self._admit(raw, media, terms)
            are_kept = await self._store(admission, terms)
        finally:
            self._pending.give(len(raw))
        self._meters.stored(force, admission, len(raw), self._parts.clock.monotonic() - request.received_s)
        if admission.watchers:
            self._roll.seen(force, key.subject, admission.watchers)
        if media == NDJSON_TYPE:
            return tally_response(admission.accepted, admission.verdicts)
        if admission.verdicts:
            problem = refusal_problem(admission.verdicts[0])
            return problem_response(problem if are_kept else structs.replace(problem, reject_id=None))
        return accepted_response(admission.report_id)

    async def _key(self, request: Request) -> KeyInfo:
        scheme, _, token = request.headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ProblemError(_unauthorized("send `Authorization: Bearer KEY`", "Bearer"))
        token = token.strip()
        info = self._parts.keys.peek(token)
        if info is None:
            try:
                info = await self._newcomers.find(token)
            except RegistryError as error:
                raise ProblemError(_registry_problem(error)) from error
        if info is None:
            raise ProblemError(_unauthorized("nobody has this key", 'Bearer error="invalid_token"'))
        return info

    async def _unpacked(self, packed: bytes, coding: str) -> bytes:
        most = self._parts.settings.request_bytes_max
        if len(packed) <= INLINE_BYTES_MAX:
            try:
                return unpack(packed, coding, min(most, 4 * INLINE_BYTES_MAX))
            except BodyTooLargeError:
                pass  # larger than is good for the event loop
        return await self._beside(self._heavy, lambda: unpack(packed, coding, most))

    async def _partitions_of(self, force: str) -> int:
        try:
            count = await self._beside(self._light, lambda: self._parts.partitions(force))
        except RegistryError as error:
            raise ProblemError(_registry_problem(error)) from error
        except StreamError as error:
            raise ProblemError(_stream_problem(error)) from error
        except LookupError:
            detail = "the force's topics are not made yet"
            raise ProblemError(Problem(503, "registry", detail, retry_after_s=RETRY_AFTER_S)) from None
        self._partitions[force] = count
        return count

    async def _admit(self, raw: bytes, media: str, terms: Terms) -> Admission:
        lines_max = self._parts.settings.request_lines_max

        def admit() -> Admission:
            return admit_lines(raw, terms, lines_max) if media == NDJSON_TYPE else admit_single(raw, terms)

        try:
            return admit() if len(raw) <= INLINE_BYTES_MAX else await self._beside(self._heavy, admit)
        except TooManyLinesError as error:
            detail = f"{error.lines} lines; the limit is {lines_max}"
            raise ProblemError(Problem(413, "too-large", detail)) from None

    async def _store(self, admission: Admission, terms: Terms) -> bool:
        """Return when the reports are durable; whether the rejects are. The two are topics of their own, appended at the
        same time: what a report's sender is told hangs on the reports alone, or a full topic of rejects, which anybody
        with a key can fill, would stop the intake."""

        def append(kind: str, records: dict[int, list[bytes]]) -> Coroutine[None, None, None]:
            return self._commits.append(topic_of(kind, terms.force), terms.partitions, records, admission.size_bytes)

        rejecting = asyncio.create_task(append(REJECTS, admission.rejects)) if admission.rejects else None
        try:
            if admission.records:
                await append(REPORTS, admission.records)
        except StreamError as error:
            raise ProblemError(_stream_problem(error)) from error
        finally:
            if rejecting is not None:
                await asyncio.wait([rejecting])
        lost = rejecting.exception() if rejecting is not None else None
        if lost is None:
            return True
        if isinstance(lost, StreamBroken) or not isinstance(lost, StreamError):
            raise ProblemError(_stream_problem(StreamBroken(str(lost)))) from lost
        self._meters.lost(terms.force, len(admission.verdicts), str(lost))
        return False

    async def _beside(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        headers = (("Allow", ", ".join(allowed)),)
        raise ProblemError(Problem(405, "not-allowed", f"only {' and '.join(allowed)} here", headers=headers))


def _types(request: Request) -> tuple[str, str]:
    """Content-Type without parameters, Content-Encoding. Raises ProblemError(415), (417)."""
    media = request.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if media not in (JSON_TYPE, NDJSON_TYPE):
        headers = (("Accept-Post", f"{JSON_TYPE}, {NDJSON_TYPE}"),)
        detail = f"send {JSON_TYPE} for one report, {NDJSON_TYPE} for many"
        raise ProblemError(Problem(415, "media-type", detail, headers=headers))
    coding = request.headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if coding not in ("", *CODINGS):
        headers = (("Accept-Encoding", ACCEPT_ENCODING),)
        raise ProblemError(Problem(415, "content-encoding", f"only one of {ACCEPT_ENCODING}", headers=headers))
    if request.headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise ProblemError(Problem(417, "expectation", "the only expectation met here is 100-continue"))
    return media, coding


def _unauthorized(detail: str, challenge: str) -> Problem:
    return Problem(401, "unknown-key", detail, headers=(("WWW-Authenticate", challenge),))


def _registry_problem(error: RegistryError) -> Problem:
    return Problem(503, "registry", f"the registry cannot be read now ({error})", retry_after_s=RETRY_AFTER_S)


def _stream_problem(error: StreamError) -> Problem:
    if isinstance(error, StreamFull):
        return Problem(503, "stream-full", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, TopicDamaged):
        detail = "this force's records cannot be stored until its operator has acted; nothing of the request was"
        return Problem(503, "topic-damaged", detail, retry_after_s=DAMAGED_RETRY_S)
    detail = f"the outcome is unknown; send again, a repeat is recognised ({error})"
    return Problem(503, "stream", detail, retry_after_s=RETRY_AFTER_S)
