"""What the door says back: responses, and problem documents (RFC 9457) for everything that is not a success. Pure.

Every error has a stable `code`; `pointer` (RFC 6901) names the member where one is at fault; `reject_id` tells under
which id the refused bytes are kept. 503 and 429 carry Retry-After.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from harmonywatch.report.problem import MEDIA_TYPE as PROBLEM
from harmonywatch.report.words import REFUSAL_CODES, Refusal

JSON = "application/json"

_STATUS_OF_REFUSAL = {"not-json": 400, "not-yours": 403, "too-large": 413}
_ENCODER = msgspec.json.Encoder()


class Response(NamedTuple):
    """One HTTP response. `headers`: beyond Content-Type, Content-Length, Date and Connection."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """Why a request did not succeed, before it is written as a document."""

    status: int
    code: str
    detail: str
    pointer: str | None = None
    reject_id: str | None = None
    retry_after_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()


class ProblemError(Exception):
    """Ends the handling of a request with this problem as its answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Verdict(NamedTuple):
    """A refused line of a request. `line`: 1-based; a single report is line 1."""

    line: int
    refusal: Refusal
    reject_id: str


class _Document(msgspec.Struct, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    code: str
    pointer: str | None = None
    reject_id: str | None = None


class _Accepted(msgspec.Struct):
    report_id: str
    status: str = "accepted"


class _Rejected(msgspec.Struct):
    line: int
    pointer: str
    reason: str
    code: str


class _Tally(msgspec.Struct):
    accepted: int
    rejected: list[_Rejected]


def problem_response(problem: Problem) -> Response:
    """The problem as a document, with the headers its status calls for."""
    document = _Document(
        type=f"urn:harmonywatch:problem:{problem.code}",
        title=REFUSAL_CODES.get(problem.code, HTTPStatus(problem.status).phrase),
        status=problem.status,
        detail=problem.detail,
        code=problem.code,
        pointer=problem.pointer,
        reject_id=problem.reject_id,
    )
    headers = problem.headers
    if problem.retry_after_s is not None:
        headers = (*headers, ("Retry-After", str(max(1, math.ceil(problem.retry_after_s)))))
    return Response(problem.status, _ENCODER.encode(document), PROBLEM, headers)


def refusal_problem(verdict: Verdict) -> Problem:
    """The problem that tells the sender of a single report why it was refused."""
    refusal = verdict.refusal
    status = _STATUS_OF_REFUSAL.get(refusal.code, 422)
    return Problem(status, refusal.code, refusal.reason, refusal.pointer, verdict.reject_id)


def accepted_response(report_id: str) -> Response:
    """A single report is durable."""
    return Response(202, _ENCODER.encode(_Accepted(report_id)))


def tally_response(accepted: int, verdicts: Sequence[Verdict]) -> Response:
    """Every line of an NDJSON request has its verdict: durable, or refused for a reason."""
    rejected = [_Rejected(v.line, v.refusal.pointer, v.refusal.reason, v.refusal.code) for v in verdicts]
    return Response(200, _ENCODER.encode(_Tally(accepted, rejected)))
