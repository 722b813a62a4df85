"""The gateway's share of the vocabulary of metrics. A metric's own count takes a lock and a lookup, and each report counts
four times: so plain numbers are kept here and handed over together."""

from __future__ import annotations

import structlog

from harmonywatch.gateway.admit import Admission
from harmonywatch.gateway.answers import Problem
from harmonywatch.telemetry import Telemetry


class _OfForce:
    """What is not yet counted, and where it will be."""

    def __init__(self, telemetry: Telemetry, force: str) -> None:
        self._received = telemetry.received.labels(force)
        self._received_bytes = telemetry.received_bytes.labels(force)
        self._accepted = telemetry.accepted.labels(force)
        self._append_s = telemetry.append_s.labels(force)
        self.received = self.received_bytes = self.accepted = 0
        self.append_s: list[float] = []

    def flush(self) -> None:
        self._received.inc(self.received)
        self._received_bytes.inc(self.received_bytes)
        self._accepted.inc(self.accepted)
        self.received = self.received_bytes = self.accepted = 0
        waited, self.append_s = self.append_s, []
        for append_s in waited:
            self._append_s.observe(append_s)


class Meters:
    """Counts what became of requests. Used from the event loop."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._forces: dict[str, _OfForce] = {}
        self._lost: dict[str, tuple[int, str]] = {}

    def stored(self, force: str, admission: Admission, size_bytes: int, append_s: float) -> None:
        """A request's records and rejects are durable."""
        meters = self._forces.get(force)
        if meters is None:
            meters = self._forces[force] = _OfForce(self._telemetry, force)
        meters.received += admission.accepted + len(admission.verdicts)
        meters.received_bytes += size_bytes
        meters.accepted += admission.accepted
        meters.append_s.append(append_s)
        for verdict in admission.verdicts:
            self._telemetry.refused.labels(force, verdict.refusal.code).inc()

    def lost(self, force: str, rejects: int, reason: str) -> None:
        """Refused reports whose bytes could not be kept; their senders know the verdict."""
        self._telemetry.failed.labels("reject-lost").inc(rejects)
        self._lost[force] = (self._lost.get(force, (0, ""))[0] + rejects, reason)

    def flush(self) -> None:
        """Make what was counted visible; called some times a second and before the metrics are shown."""
        for meters in self._forces.values():
            if meters.append_s:
                meters.flush()
        lost, self._lost = self._lost, {}
        for force, (rejects, reason) in lost.items():
            structlog.get_logger().warning("rejects lost", force=force, count=rejects, reason=reason)

    def turned_away(self, problem: Problem) -> None:
        """A request ended before anything of it was stored: for now, or for good."""
        if problem.status in (429, 503):
            self._telemetry.shed.labels(problem.code).inc()
        elif problem.status not in (404, 405):
            self._telemetry.refused.labels("", problem.code).inc()
