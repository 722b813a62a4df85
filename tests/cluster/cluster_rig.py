"""A whole system on real engines, as the tests of the distributed profile see it: `System` at the doors, the stream and the
lake's log from aside, and workers started and ended one by one.

Rules it keeps: each system has a namespace, a prefix of the bucket and a database of its own; what is read from aside (ends
of topics, entries of a table's log) is read by the product's own adapters or as plain files, and never written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import msgspec
from confluent_kafka.admin import AdminClient
from running_system import HARMONYWATCH, NotInTime, System, clean_environment, wait_for

from engines.kafka import Cluster
from engines.postgres import Postgres
from engines.s3 import S3
from harmonywatch.fleet.truth import AlertKey
from harmonywatch.report.topics import AlertRecord
from harmonywatch.service import places
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import TopicPartition
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream

Connect = Callable[..., KafkaStream]
"""Opens a stream of the test's own on its broker."""

BUCKET = "harmonywatch"
SESSION_S = 2
PARTITIONS = 12
JOINED_S = 30.0


@dataclass(frozen=True)
class Engines:
    """What a system stands on."""

    kafka: Cluster
    postgres: Postgres
    s3: S3

    def environment(self, name: str) -> dict[str, str]:
        """Of a system that shares the engines with others and nothing else."""
        self.s3.bucket(BUCKET)
        return {
            **self.s3.environment,
            "HARMONYWATCH_STREAM__URL": f"{self.kafka.url}/{name}",
            "HARMONYWATCH_STREAM__REPLICAS": str(len(self.kafka.brokers)),
            "HARMONYWATCH_STREAM__SESSION_S": str(SESSION_S),
            "HARMONYWATCH_LAKE": f"s3://{BUCKET}/{name}",
            "HARMONYWATCH_STATE": self.postgres.database(),
            "HARMONYWATCH_ARCHIVE__FLUSH_INTERVAL_S": "1",
        }

    def table(self, name: str, force: str, table: str) -> Path:
        """Where the S3 server keeps a table of a system."""
        return self.s3.folder / "buckets" / BUCKET / name / force / table


@dataclass
class Aside:
    """One force of a system, looked at from aside."""

    engines: Engines
    name: str
    force: str
    stream: KafkaStream

    @property
    def reports(self) -> str:
        return f"reports.{self.force}"

    def ends(self, topic: str) -> dict[TopicPartition, int]:
        places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        return {at: bounds.end for at, bounds in self.stream.bounds_of(places).items()}

    def commits(self, table: str = "reports") -> list[dict[str, int]]:
        """The positions that each version of a table moved, by partition's name, in the order of the versions."""
        log = self.engines.table(self.name, self.force, table) / "_delta_log"
        return [_moved(path) for path in sorted(log.glob("[0-9]*.json"))]

    def stored(self) -> dict[TopicPartition, int]:
        """The lake's positions in `reports`."""
        found: dict[str, int] = {}
        for commit in self.commits():
            found |= commit
        return {TopicPartition(self.reports, int(name.rpartition("/")[2])): to for name, to in found.items()}

    def is_stored(self, ends: Mapping[TopicPartition, int]) -> bool:
        stored = self.stored()
        return all(stored.get(at, 0) >= end for at, end in ends.items())

    def alerts(self) -> dict[AlertKey, AlertRecord]:
        """What is judged, each once, whatever the topic repeats."""
        found: dict[AlertKey, AlertRecord] = {}
        for at, end in self.ends(f"alerts.{self.force}").items():
            position = 0
            while position < end:
                for batch in self.stream.read(*at, position):
                    position = batch.position
                    for alert in map(_ALERT.decode, batch.values):
                        found.setdefault((alert.watcher_id, alert.report_id, alert.place), alert)
        return found

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.engines.kafka.url.removeprefix("kafka://")})

    def members(self, group: str) -> list[int]:
        """How many partitions of the reports each worker of a group has; they sum to PARTITIONS when nothing moves."""
        outer = f"{self.name}.{group}"
        described = self._admin.describe_consumer_groups([outer], request_timeout=10)[outer].result()
        topic = f"{self.name}.{self.reports}"
        return [
            sum(place.topic == topic for place in member.assignment.topic_partitions) for member in described.members
        ]

    def shared(self, group: str, workers: int) -> bool:
        """Whether so many workers have all the partitions between them, evenly. A worker of the archive is one member of
        the group for each kind of topic."""
        members = [count for count in self.members(group) if count]
        return len(members) == workers and sum(members) == PARTITIONS and max(members) - min(members) <= 1

    def wait_shared(self, group: str, workers: int) -> None:
        try:
            wait_for(f"{workers} workers of {group}", lambda: self.shared(group, workers), JOINED_S, 0.1)
        except NotInTime as error:
            raise NotInTime(f"{error}; members have {self.members(group)} of {self.reports}") from None


_ALERT = msgspec.json.Decoder(AlertRecord)


@cache
def _moved(entry: Path) -> dict[str, int]:
    actions = [json.loads(line) for line in entry.read_text("utf-8").splitlines()]
    marks = [action["txn"] for action in actions if "txn" in action]
    return {mark["appId"].split("/", 2)[2]: mark["version"] for mark in marks if mark["appId"].count("/") >= 3}


def went_back(commits: list[dict[str, int]]) -> list[str]:
    """Where a position was lowered, or stored once more by a later commit."""
    stood: dict[str, int] = {}
    faults: list[str] = []
    for version, commit in enumerate(commits):
        faults += [
            f"version {version}: {at} {stood[at]} -> {to}" for at, to in commit.items() if to <= stood.get(at, -1)
        ]
        stood |= commit
    return faults


@contextmanager
def aside(engines: Engines, system: System, force: str) -> Iterator[Aside]:
    """The system's stream, opened here too."""
    url = system.environment["HARMONYWATCH_STREAM__URL"]
    with closing(KafkaStream(parse(url, "", {}), StreamSettings(replicas=len(engines.kafka.brokers)))) as stream:
        yield Aside(engines, url.rpartition("/")[2], force, stream)


@dataclass
class Workers:
    """`run SERVICE:N` beside `up`, which has the service's first worker."""

    system: System
    service: str
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, number: int) -> None:
        command = [str(HARMONYWATCH), "run", f"{self.service}:{number}", "--data", str(self.system.folder)]
        environment = {**clean_environment(), **self.system.environment}
        with self.system.log.open("ab") as log:
            self.processes[number] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def end(self, number: int, how: signal.Signals) -> None:
        """SIGTERM or SIGKILL. Raises AssertionError for one that ended otherwise."""
        process = self.processes.pop(number)
        os.kill(process.pid, how)
        code = process.wait(30)
        assert code == (0 if how == signal.SIGTERM else -how), f"{self.service}:{number} ended with {code}"

    def become(self, count: int, how: signal.Signals) -> None:
        """So many workers, the first among them."""
        for number in [number for number in self.processes if number > count]:
            self.end(number, how)
        for number in range(2, count + 1):
            if number not in self.processes:
                self.start(number)


def figure(system: System, worker: str, metric: str) -> float:
    """The sum of a metric of a worker over its labels."""
    page = system.get(places(system.folder)[worker]["ops_port"], "/metrics").body.decode()
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith(metric) and line[len(metric)] in "{ "]
    return sum(float(value) for _, value in lines)
