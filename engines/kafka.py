"""Apache Kafka in KRaft format: one broker, or three that are controllers too, of which each can be killed and restarted.

`Cluster(folder, brokers)` formats and starts them on free ports. Every topic setting that matters to durability is the
product's own to choose; here stand only the broker's: no topics made by accident, internal topics small and replicated
as far as there are brokers, and a dead broker noticed after `SESSION_MS` instead of 9 s.
"""

from __future__ import annotations

import base64
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from engines.install import DOWNLOADS, Part, jars
from engines.process import Server, accepts, free_ports

JARS = DOWNLOADS / "kafka"
PART = Part(present=JARS.is_dir, fetch=lambda: jars("kafka.pom.xml", JARS))

SESSION_MS, HEARTBEAT_MS = 3000, 500
STARTED = b"Kafka Server started"
HEAP = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC")
BRIEF = ("-XX:TieredStopAtLevel=1",)
"""A test's broker lives for a minute on a share of two cores: compiling well costs more than it brings."""

LOGGING = """
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""


class Broker:
    """One node: its ports, its folder, its process."""

    def __init__(self, node: int, folder: Path, ports: tuple[int, int], jvm: Sequence[str]) -> None:
        port, controller_port = ports
        self.node, self.folder, self.port, self.controller_port = node, folder, port, controller_port
        self._log_from = 0
        command = [
            "java",
            *HEAP,
            *jvm,
            f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
            "-cp",
            f"{JARS}/*",
        ]
        self.server = Server(
            [*command, "kafka.Kafka", folder / "server.properties"], log=folder / "broker.log", ready=self._answers
        )

    def launch(self) -> None:
        self._log_from = self.server.log.stat().st_size if self.server.log.exists() else 0
        self.server.launch()

    def restart(self) -> None:
        """Start again on the same data, and wait until it answers."""
        self.launch()
        self.server.wait_ready()

    def _answers(self) -> bool:
        with self.server.log.open("rb") as log:
            log.seek(self._log_from)
            return STARTED in log.read() and accepts(self.port)


class Cluster:
    """`brokers`: how many. `properties`: further settings of every broker. `jvm`: () for one that is to be measured. Data
    stays in `folder`."""

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        properties: Mapping[str, str] | None = None,
        jvm: Sequence[str] = BRIEF,
    ) -> None:
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        ports = free_ports(2 * brokers)
        self.brokers = [
            Broker(node, folder / f"broker{node}", (ports[2 * node - 2], ports[2 * node - 1]), jvm)
            for node in range(1, brokers + 1)
        ]
        self._properties = dict(properties or {})

    @property
    def url(self) -> str:
        """As `stream.url` takes it."""
        return "kafka://" + ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    def start(self) -> None:
        """Format what is new, start all, wait for all. Raises NotReady."""
        for broker in self.brokers:
            if not broker.folder.exists():
                self._format(broker)
            broker.launch()
        for broker in self.brokers:
            broker.server.wait_ready()

    def stop(self) -> None:
        """All at once: a last broker of three alone could not shut down in order."""
        for broker in self.brokers[1:]:
            broker.server.kill()
        self.brokers[0].server.kill()

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _format(self, broker: Broker) -> None:
        broker.folder.mkdir(parents=True)
        settings = {**self._settings(broker), **self._properties}
        (broker.folder / "server.properties").write_text("".join(f"{key}={settings[key]}\n" for key in settings))
        (broker.folder / "log4j2.properties").write_text(LOGGING)
        command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*", "kafka.tools.StorageTool", "format"]
        subprocess.run(
            [*command, f"--cluster-id={self._cluster_id}", "-c", str(broker.folder / "server.properties")],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _settings(self, broker: Broker) -> dict[str, str]:
        copies = str(len(self.brokers))
        in_sync = str(max(1, len(self.brokers) - 1))
        return {
            "process.roles": "broker,controller",
            "node.id": str(broker.node),
            "controller.quorum.voters": ",".join(
                f"{each.node}@127.0.0.1:{each.controller_port}" for each in self.brokers
            ),
            "listeners": f"PLAIN://127.0.0.1:{broker.port},CONTROLLER://127.0.0.1:{broker.controller_port}",
            "advertised.listeners": f"PLAIN://127.0.0.1:{broker.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(broker.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            "broker.session.timeout.ms": str(SESSION_MS),
            "broker.heartbeat.interval.ms": str(HEARTBEAT_MS),
        }
