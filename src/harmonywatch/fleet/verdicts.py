"""Reading the gateway's verdicts: problem documents (RFC 9457) and the list of refused lines of a batch.

Lenient on purpose: a client must make sense of an answer from a newer gateway, or from a proxy in between.
"""

from __future__ import annotations

from typing import Any

import msgspec


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def refusal_of_document(status: int, body: bytes) -> tuple[str, str]:
    """(pointer, reason) of a refused request, from its problem document, or just the status."""
    problem = _object(body)
    reason = problem.get("reason") or problem.get("detail") or problem.get("title") or f"refused with status {status}"
    return str(problem.get("pointer") or ""), str(reason)


def refusals_of_batch(body: bytes) -> dict[int, tuple[str, str]]:
    """Refused lines of a batch by number, from 1: (pointer, reason)."""
    rejected = _object(body).get("rejected") or []
    return {int(entry["line"]): (str(entry.get("pointer") or ""), str(entry.get("reason") or "")) for entry in rejected}
