"""The gateway's share of the vocabulary of metrics, with the labels looked up once a force: a lookup costs as much as a
count, and each report counts several times."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Histogram

from harmonywatch.gateway.admit import Admission
from harmonywatch.gateway.answers import Problem
from harmonywatch.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class _OfForce:
    received: Counter
    received_bytes: Counter
    accepted: Counter
    append_s: Histogram


class Meters:
    """Counts what became of requests."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._forces: dict[str, _OfForce] = {}

    def stored(self, force: str, admission: Admission, size_bytes: int, append_s: float) -> None:
        """A request's records and rejects are durable."""
        meters = self._forces.get(force)
        if meters is None:
            t = self._telemetry
            meters = self._forces[force] = _OfForce(
                t.received.labels(force),
                t.received_bytes.labels(force),
                t.accepted.labels(force),
                t.append_s.labels(force),
            )
        meters.received.inc(admission.accepted + len(admission.verdicts))
        meters.received_bytes.inc(size_bytes)
        meters.append_s.observe(append_s)
        if admission.accepted:
            meters.accepted.inc(admission.accepted)
        for verdict in admission.verdicts:
            self._telemetry.refused.labels(force, verdict.refusal.code).inc()

    def turned_away(self, problem: Problem) -> None:
        """A request ended before anything of it was stored: for now, or for good."""
        if problem.status in (429, 503):
            self._telemetry.shed.labels(problem.code).inc()
        elif problem.status not in (404, 405):
            self._telemetry.refused.labels("", problem.code).inc()
