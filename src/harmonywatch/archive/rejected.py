"""The rejects of a force with their bytes: from the lake, and from the stream what the lake does not hold yet.

Only who holds the force's key can read the bytes. Rows come oldest first within each source.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa

from harmonywatch.archive.lake import Lake, LakeTable
from harmonywatch.archive.schema import REJECTS
from harmonywatch.archive.sealing import Sealer
from harmonywatch.clock import EPOCH, to_wire
from harmonywatch.report import topics
from harmonywatch.report.topics import RejectRecord, topic_of
from harmonywatch.stream.contract import Stream, TopicPartition, partitions_in

COLUMNS = [
    "reject_id", "source", "sender", "received_at", "code", "pointer", "reason", "line", "origin_topic",
    "origin_partition", "origin_offset", "bytes",
]  # fmt: skip
_RECORD = msgspec.json.Decoder(RejectRecord)


@dataclass(frozen=True, slots=True)
class Reject:
    """A refused report. `facts`: what is known of it, JSON members; `bytes`: what came, exactly."""

    facts: dict[str, Any]
    bytes: bytes

    @property
    def reject_id(self) -> str:
        return str(self.facts["reject_id"])


def rejects(lake: Lake, stream: Stream, force: str, sealer: Sealer, since: datetime | None = None) -> Iterator[Reject]:
    """Every reject of the force received since. Raises LakeUnavailable, NotSealedHere."""
    table = lake.open(force, REJECTS)
    if table is not None:
        yield from _archived(table, sealer, since)
    topic = topic_of(topics.REJECTS, force)
    for partition in range(partitions_in(stream, topic)):
        at = TopicPartition(topic, partition)
        position = max(table.position(at) if table else 0, stream.bounds(*at).earliest)
        yield from _waiting(stream, at, position, since)


def _archived(table: LakeTable, sealer: Sealer, since: datetime | None) -> Iterator[Reject]:
    for file in sorted(table.files(since.date() if since else None, None), key=lambda file: file.received_max_us or 0):
        for rows in table.shelf.read(file.path, COLUMNS):
            for facts in pa.table(rows).to_pylist():
                if since is not None and facts["received_at"] < since:
                    continue
                sealed = facts.pop("bytes")
                facts["received_at"] = to_wire(facts["received_at"])
                yield Reject(facts, sealer.open_bytes(sealed, facts["reject_id"]))


def _waiting(stream: Stream, at: TopicPartition, position: int, since: datetime | None) -> Iterator[Reject]:
    while batches := stream.read(at.topic, at.partition, position):
        for batch in batches:
            position = batch.position
            for offset, value in enumerate(batch.values, batch.base_offset):
                reject = _read(value) or _poison(at, offset, value, batch.appended_us)
                if since is None or reject.facts["received_at"] >= to_wire(since):
                    yield reject


def _read(value: bytes) -> Reject | None:
    """None for what is no reject of ours."""
    try:
        record = _RECORD.decode(value)
        return Reject(_facts(record), b64decode(record.bytes, validate=True))
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, and so are base64's
        return None


def _poison(at: TopicPartition, offset: int, value: bytes, appended_us: int) -> Reject:
    """A record that is none is a reject of its own, as the archive will store it: by the same id."""
    facts = {
        "reject_id": f"poison-{at.topic}-{at.partition}-{offset}",
        "source": "stream",
        "sender": "archive",
        "received_at": to_wire(EPOCH + timedelta(seconds=appended_us // 1_000_000)),
        "code": "poison",
        "pointer": "",
        "reason": "the record on the stream is not in its canonical form",
        "line": None,
        "origin_topic": at.topic,
        "origin_partition": at.partition,
        "origin_offset": offset,
    }
    return Reject(facts, value)


def _facts(record: RejectRecord) -> dict[str, Any]:
    return {
        "reject_id": record.reject_id,
        "source": record.source,
        "sender": record.sender,
        "received_at": record.received_at,
        "code": record.code,
        "pointer": record.pointer,
        "reason": record.reason,
        "line": record.line,
        "origin_topic": record.topic,
        "origin_partition": record.partition,
        "origin_offset": record.offset,
    }
