"""The vocabulary of metrics and the set-up of logs. Every metric of the product is declared here, once, with its help.

The same minimum for every room: received, accepted, refused, lag, failed. Rooms take a `Telemetry` and use its fields;
nothing is registered at import, so two in one process (tests) do not meet. Logs are JSON lines on stderr.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Fine around 1-20 ms, where the alert path lives; the rest only has to show that something is wrong."""


class Telemetry:
    """Metrics of one service process. Label `force` is the tenant; labels never hold a citizen's name or a key."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"harmonywatch_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"harmonywatch_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"harmonywatch_{name}", text, labels, registry=self.registry, buckets=LATENCY_BUCKETS_S)

        self.received = counter("received", "Reports or records taken in by this service", "force")
        self.received_bytes = counter("received_bytes", "Bytes of reports taken in, after decompression", "force")
        self.accepted = counter("accepted", "Reports or records whose effect is durable", "force")
        self.refused = counter("refused", "Reports refused, by stable code", "force", "code")
        self.shed = counter("shed", "Requests turned away for now (429, 503), by reason", "reason")
        self.failed = counter("failed", "Failures that were retried or passed on, by kind", "kind")
        self.aside = gauge(
            "force_aside", "1 while the service has put the force aside after an error, or watches it", "force"
        )
        self.repeated = counter("repeated", "Records recognised as seen before", "force")
        self.alerts = counter("alerts", "Alerts judged", "force", "rule")
        self.incidents = counter("incidents", "Incident events, by kind", "force", "kind")
        self.lag_records = gauge("lag_records", "Records appended but not yet handled", "topic")
        self.lag_s = gauge("lag_seconds", "Age of the oldest record not yet handled", "topic")
        self.append_s = histogram("append_seconds", "From request headers read to records durable", "force")
        self.judge_s = histogram("judge_seconds", "From receipt of the report to its alert judged", "force")
        self.deliver_s = histogram("deliver_seconds", "From receipt of the report to its alert delivered", "force")
        self.commit_s = histogram("commit_seconds", "One durable commit, fsync included", "what")
        self.streams_open = gauge("live_streams", "Live streams open")

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Forgiving:
    """The log's file. A full disk or a reader that is gone costs lines of the log, never the service that writes them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def configure_logging(service: str, level: str = "info") -> None:
    """JSON lines on stderr with service, time and level; called once, by the process's entry point."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Forgiving(sys.stderr))),
        cache_logger_on_first_use=False,  # a line is rare, and a cached logger outlives what it was told
    )
    structlog.contextvars.bind_contextvars(service=service)
