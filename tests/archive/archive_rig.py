"""What the archive's tests are made of: honest records, a stream, a lake, and eyes that read the lake without our code."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from harmonywatch.archive.archiver import Archiver
from harmonywatch.archive.lake import Lake
from harmonywatch.archive.tables import Folders
from harmonywatch.archive.verify import Terms, Verdict, Watch, verify
from harmonywatch.clock import ManualClock, to_wire
from harmonywatch.report.record import canonical
from harmonywatch.report.topics import AlertRecord, RejectRecord, encode
from harmonywatch.report.wire import Parsed, parse
from harmonywatch.settings import ArchiveSettings
from harmonywatch.stream.contract import Batch, Stream, TopicPartition
from harmonywatch.stream.memory import MemoryStream
from harmonywatch.telemetry import Telemetry

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FORCE = "north"
TOPICS = (f"reports.{FORCE}", f"alerts.{FORCE}", f"rejects.{FORCE}")
DAY_S = 86_400.0


def report(number: int, *, received_at: datetime = NOW, **changes: Any) -> bytes:
    """A canonical record; `changes` are members of the report on the wire, None takes one out."""
    wire = {
        "watcher_id": f"w-{number % 7}",
        "report_id": f"r-{number}",
        "time": to_wire(received_at - timedelta(seconds=1)),
        "location": {"lat": 47.0 + number % 100 / 1000, "lon": 8.0},
        "citizens": [{"name": f"Citizen {number % 50}", "harmonyscore": number % 100}],
        "words": ["hello", "word"],
        **changes,
    }
    raw = json.dumps({name: value for name, value in wire.items() if value is not None}).encode()
    parsed = parse(raw)
    assert isinstance(parsed, Parsed), parsed
    return canonical(parsed, raw, FORCE, received_at, lambda: f"fresh-{number}").value


def alert(number: int, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "v": 1, "alert_id": f"a-{number}", "force": FORCE, "rule": "default", "report_id": f"r-{number}",
        "watcher_id": "w-1", "place": 0, "identity": f"name:Citizen {number}", "name": f"Citizen {number}",
        "harmonyscore": 3.5, "lat": 47.0, "lon": 8.0, "time": to_wire(NOW), "received_at": to_wire(NOW),
        "judged_at": to_wire(NOW),
    }  # fmt: skip
    return encode(AlertRecord(**(values | changes)))


def reject(number: int, payload: bytes) -> bytes:
    return encode(
        RejectRecord(
            1, f"j-{number}", FORCE, "gateway", "w-1", to_wire(NOW), "not-json", "", "no JSON",
            b64encode(payload).decode(), line=number,
        )
    )  # fmt: skip


@dataclass
class Rig:
    """One folder with a lake and keys, one stream. `settings` flush at once unless a test says otherwise."""

    folder: Path
    stream: Stream
    settings: ArchiveSettings
    clock: ManualClock

    @property
    def lake(self) -> Lake:
        return Lake(str(self.folder / "lake"))

    def archiver(self) -> Archiver:
        """A new archiver, as a process that has just been started."""
        folders = Folders(self.folder / "keys", self.folder / "index")
        archiver = Archiver(self.lake, folders, self.stream.id, self.settings, self.clock, Telemetry("archive"))
        for topic in TOPICS:
            for partition in range(self.stream.topics()[topic]):
                archiver.start(topic, partition)
        return archiver

    def put(self, values: list[bytes], topic: str = TOPICS[0], partition: int = 0) -> None:
        self.stream.append(topic, {partition: values})

    def feed(self, archiver: Archiver) -> None:
        """Hand in everything that follows the archiver's positions, without storing it."""
        found: list[Batch] = []
        for at, position in archiver.settled().items():
            found += self.stream.read(at.topic, at.partition, position, 10**9)
        archiver.handle(found)

    def archive(self) -> Archiver:
        """Start, store everything, stop."""
        archiver = self.archiver()
        self.feed(archiver)
        archiver.finish()
        return archiver

    def rows(self, table: str = "reports") -> list[dict[str, Any]]:
        where = self.folder / "lake" / FORCE / table
        files = DeltaTable(str(where)).file_uris()
        tables = [pq.ParquetFile(file).read() for file in files]
        return pa.concat_tables(tables).to_pylist() if tables else []

    def verify(self, *, everything: bool = False) -> Verdict:
        return self.verdicts(everything=everything)[0]

    def verdicts(self, *, everything: bool = False) -> list[Verdict]:
        terms = Terms(self.settings.repeat_window_s, everything)
        return verify(self.lake, self.stream, FORCE, Watch(self.folder / "watch"), terms)

    def position(self, partition: int = 0, topic: str = TOPICS[0]) -> int:
        table = self.lake.open(FORCE, topic.split(".")[0])
        return 0 if table is None else table.position(TopicPartition(topic, partition))


def new_rig(folder: Path, stream: Stream | None = None, **settings: Any) -> Rig:
    stream = stream or MemoryStream()
    for topic in TOPICS:
        stream.create_topic(topic, 2)
    return Rig(folder, stream, ArchiveSettings(**settings), ManualClock(NOW))
