"""What a service says of itself, and where it is asked: the archive's lag, the age of the keys, forces that are aside."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harmonywatch.assemble import address, gateway_url, health_of_services
from harmonywatch.clock import ManualClock
from harmonywatch.ops import Health, OpsServer
from harmonywatch.processes import ArchiveLag, keep, stale
from harmonywatch.service import Stop, note_place
from harmonywatch.settings import OpsSettings, load
from harmonywatch.stream.contract import StreamFull, TopicDamaged, TopicPartition
from harmonywatch.stream.memory import MemoryStream
from harmonywatch.telemetry import Telemetry

NORTH, SOUTH = "reports.north", "reports.south"
LIMIT_S = 3600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


class Reading(MemoryStream):
    """A stream of which some topics cannot be read now."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, Exception] = {}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        if topic in self.fails:
            raise self.fails[topic]
        return super().committed(group, topic)

    def topics(self) -> dict[str, int]:
        if "" in self.fails:
            raise self.fails[""]
        return super().topics()


@pytest.fixture
def stream() -> Reading:
    made = Reading()
    for topic in (NORTH, SOUTH):
        made.create_topic(topic, 2)
        made.append(topic, {1: [b"a"]})
    return made


def looked(lag: ArchiveLag, clock: ManualClock) -> tuple[int, list[str]]:
    """Reasons, and what is told as degraded, at the next look."""
    clock.advance(ArchiveLag.ASK_S)
    return len(lag.reasons()), lag.degraded()


def archived(stream: Reading, topic: str) -> None:
    stream.reader([topic], group="archive").commit({TopicPartition(topic, 1): 1})


def test_an_archive_that_never_committed_is_behind_from_the_first_record_on(
    stream: Reading, clock: ManualClock
) -> None:
    lag = ArchiveLag(stream, clock, LIMIT_S)
    assert looked(lag, clock) == (0, [])
    clock.advance(LIMIT_S)
    reasons, degraded = looked(lag, clock)
    assert reasons == 2 and "3610 s behind on reports.north" in degraded[0]


def test_one_forces_lag_degrades_and_every_forces_lag_is_not_ready(stream: Reading, clock: ManualClock) -> None:
    lag = ArchiveLag(stream, clock, LIMIT_S)
    clock.advance(LIMIT_S)
    archived(stream, SOUTH)
    reasons, degraded = looked(lag, clock)
    assert reasons == 0 and len(degraded) == 1 and NORTH in degraded[0]
    archived(stream, NORTH)
    assert looked(lag, clock) == (0, [])


def test_a_lag_that_cannot_be_told_is_a_reason_not_a_failure(stream: Reading, clock: ManualClock) -> None:
    lag = ArchiveLag(stream, clock, LIMIT_S)
    stream.fails[NORTH] = TopicDamaged(NORTH, "flipped")
    reasons, degraded = looked(lag, clock)
    assert reasons == 0 and "cannot be told" in degraded[0]
    stream.fails[SOUTH] = stream.fails[NORTH]
    assert looked(lag, clock)[0] == 2
    stream.fails = {"": StreamFull("held")}
    assert looked(lag, clock)[0] == 1
    stream.fails.clear()
    assert looked(lag, clock) == (0, [])


def test_an_error_nobody_expected_is_not_followed_by_a_stale_answer(stream: Reading, clock: ManualClock) -> None:
    lag = ArchiveLag(stream, clock, LIMIT_S)
    clock.advance(LIMIT_S)
    stream.fails[""] = RuntimeError("a bug")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            lag.reasons()
    stream.fails.clear()
    assert len(lag.reasons()) == 2


def test_keys_too_old_to_be_relied_on_are_a_reason() -> None:
    assert stale(0.3) == [] and "7 s ago" in stale(7.2)[0] and stale(float("inf"))


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1:8470"),
        ("10.0.0.7", "10.0.0.7:8470"),
        ("0.0.0.0", "127.0.0.1:8470"),
        ("::", "[::1]:8470"),
        ("::1", "[::1]:8470"),
        ("gate.example", "gate.example:8470"),
    ],
)
def test_a_door_is_asked_where_it_listens(host: str, asked: str) -> None:
    assert address(host, 8470) == asked


class Asked:
    """A service of a folder, as others see it. `host`: where it listens."""

    def __init__(self, folder: Path, host: str) -> None:
        self.reasons: list[str] = []
        self.partly: list[str] = []
        self.settings = load({"data": str(folder)})[0]
        place = OpsSettings(host=host)
        self._server = OpsServer(Telemetry("gateway"), lambda: self.reasons, lambda: self.partly, place)
        self.port = self._server.start()
        note_place(folder, "gateway", host=host, port=self.port, ops_port=self.port, tls=False)

    def health(self) -> Health:
        return health_of_services(self.settings)["gateway"]

    def ready(self) -> tuple[int, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz") as answer:
            return answer.status, json.load(answer)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    made = Asked(tmp_path, "127.0.0.1")
    yield made
    made.close()


def test_a_service_that_works_for_some_forces_is_degraded_and_stays_in_service(asked: Asked) -> None:
    assert asked.health() == Health("ready", []) and asked.health().works
    asked.partly = ["force north: no"]
    assert asked.ready() == (200, {"status": "degraded", "service": "gateway", "reasons": ["force north: no"]})
    assert asked.health() == Health("degraded", ["force north: no"]) and asked.health().works
    asked.reasons = ["every force is aside"]
    assert asked.health() == Health("not ready", ["every force is aside", "force north: no"])
    assert not asked.health().works


def test_a_service_on_another_address_of_this_machine_is_found(tmp_path: Path) -> None:
    made = Asked(tmp_path, "127.0.0.2")
    try:
        assert made.health() == Health("ready", [])
        assert gateway_url(made.settings) == f"http://127.0.0.2:{made.port}"
    finally:
        made.close()


def test_background_work_goes_on_whatever_it_raises_and_says_so() -> None:
    telemetry, stop, rounds = Telemetry("archive"), Stop(), []

    def work() -> None:
        rounds.append(None)
        if len(rounds) == 3:
            stop.set()
        raise RuntimeError("a bug")

    thread = threading.Thread(target=keep, args=(work, stop, telemetry, 0.0), name="upkeep")
    thread.start()
    thread.join(10)
    assert len(rounds) == 3
    assert telemetry.registry.get_sample_value("harmonywatch_failed_total", {"kind": "upkeep"}) == 3
