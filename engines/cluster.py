"""`make cluster`: the distributed profile whole, on one machine: three Kafka brokers, an S3 server, PostgreSQL, Mosquitto, and
every service with two gateways, alerters and archivers; then the demo's fleet and its table of truth against result.

The engines are real and their data is thrown away at the end. DEMO_SECONDS, DEMO_RATE and DEMO_WATCHERS mean what they mean
to `make demo`, and so does the exit status.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engines.kafka import Cluster
from engines.mosquitto import Mosquitto
from engines.postgres import Postgres
from engines.s3 import S3

COPIES = "gateway=2,alerting=2,archive=2"
BUCKET = "harmonywatch"


@contextlib.contextmanager
def engines(folder: Path, brokers: int = 3) -> Iterator[Mapping[str, str]]:
    """Every engine, started; the environment that makes harmonywatch use them."""
    with (
        Cluster(folder / "kafka", brokers) as kafka,
        Postgres() as postgres,
        S3(folder / "s3") as s3,
        Mosquitto(folder / "mosquitto", {}) as mosquitto,
    ):
        s3.bucket(BUCKET)
        yield {
            **s3.environment,
            "HARMONYWATCH_STREAM__URL": kafka.url,
            "HARMONYWATCH_LAKE": f"s3://{BUCKET}/lake",
            "HARMONYWATCH_STATE": postgres.database(),
            "HARMONYWATCH_MQTT__URL": mosquitto.url,
            "HARMONYWATCH_MQTT__PASSWORD_FILE": str(mosquitto.password_file()),
        }


def play(arguments: Sequence[str]) -> int:
    """Engines, then the demo on them; its exit status."""
    with tempfile.TemporaryDirectory(prefix="harmonywatch-cluster-") as folder:
        print("starting three Kafka brokers, PostgreSQL, an S3 server and Mosquitto ...", flush=True)  # noqa: T201
        with engines(Path(folder)) as environment:
            command = [sys.executable, "-m", "harmonywatch", "demo", "--copies", COPIES, *arguments]
            return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
