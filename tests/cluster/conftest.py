"""One broker, S3 server and PostgreSQL for the whole run; each test has a namespace, a prefix and a database of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engines.kafka import Cluster
from engines.postgres import Postgres
from engines.s3 import S3
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream

sys.path += [str(Path(__file__).parent.parent / room) for room in ("gateway", "end_to_end", "fault")]

from cluster_rig import SESSION_S, Aside, Connect, Engines, aside
from figures import pytest_terminal_summary, tell
from running_system import System, made
from storm import FORCE

__all__ = ["pytest_terminal_summary", "tell"]


FAST_RETENTION = {"log.retention.check.interval.ms": "200", "log.segment.delete.delay.ms": "200"}
SHORT_SESSIONS = {"group.min.session.timeout.ms": str(SESSION_S * 1000)}

_names = count(1)

DIFFERENCES = {
    "test_a_commit_is_never_lowered": "two readers of a group share the partitions: the one that does not own it commits "
    "nothing, be it more or less (test_who_lost_a_partition_commits_nothing)",
}
"""What of the contracts' suites Kafka does otherwise."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_kafka_conformance.py" and item.name in DIFFERENCES:
            item.add_marker(pytest.mark.xfail(strict=True, reason=DIFFERENCES[item.name]))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("kafka"), properties=FAST_RETENTION | SHORT_SESSIONS) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def engines(broker: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """What a whole system stands on."""
    with Postgres() as postgres, S3(tmp_path_factory.mktemp("s3")) as s3:
        yield Engines(broker, postgres, s3)


@pytest.fixture
def cluster(engines: Engines, tmp_path: Path) -> Iterator[System]:
    """A system on the engines, not up yet."""
    with made(tmp_path / "data", environment=engines.environment(f"test{next(_names)}")) as system:
        yield system


@pytest.fixture
def seen(engines: Engines, cluster: System) -> Iterator[Aside]:
    """Its one force, from aside."""
    with aside(engines, cluster, FORCE) as force:
        yield force


@pytest.fixture
def url(broker: Cluster) -> str:
    """An empty namespace on the broker."""
    return f"{broker.url}/test{next(_names)}"


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    """Opens the test's own stream, as often as asked, with any of its settings."""
    streams: list[KafkaStream] = []

    def opened(**settings: Any) -> KafkaStream:
        chosen = StreamSettings(**{"replicas": 1, **settings})
        streams.append(KafkaStream(parse(url, "", {}), chosen))
        return streams[-1]

    yield opened
    for each in streams:
        each.close()


@pytest.fixture
def stream(connect: Connect) -> KafkaStream:
    return connect()


@pytest.fixture
def tick_us() -> int:
    """The brokers tell milliseconds."""
    return 1000
