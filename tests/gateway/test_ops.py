"""The operator's pages from a thread of their own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from harmonywatch.ops import OpsServer
from harmonywatch.telemetry import Telemetry


def test_a_service_without_a_door_shows_health_readiness_and_metrics() -> None:
    telemetry, reasons = Telemetry("archive"), ["the stream is full"]
    telemetry.accepted.labels("north").inc(3)
    server = OpsServer(telemetry, lambda: reasons)
    port = server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert json.load(answer) == {"status": "alive", "service": "archive"}
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")
        with failed.value as answer:
            assert (answer.code, json.load(answer)["reasons"]) == (503, ["the stream is full"])
        reasons.clear()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz?verbose=1") as answer:
            assert json.load(answer)["status"] == "ready"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b'harmonywatch_accepted_total{force="north"} 3.0' in answer.read()
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/else")
        with failed.value as answer:
            assert answer.code == 404
    finally:
        server.close()
        server.close()
