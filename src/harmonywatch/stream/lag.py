"""How far a handler is behind, told once for every handler of `follow`."""

from __future__ import annotations

from collections.abc import Mapping

from harmonywatch.stream.contract import Stream, TopicPartition
from harmonywatch.telemetry import Telemetry


def tell_lag(stream: Stream, telemetry: Telemetry, positions: Mapping[TopicPartition, int], *, caught_up: bool) -> None:
    """Set the gauges of lag by topic: records between `positions` (next to handle) and the ends. `caught_up`: the last
    poll brought nothing, so nothing waits. Asks the stream for the end of every partition: now and then, not per poll."""
    records: dict[str, int] = {}
    for at, position in positions.items():
        end = stream.bounds(at.topic, at.partition).end
        records[at.topic] = records.get(at.topic, 0) + max(0, end - position)
    for topic, lag in records.items():
        telemetry.lag_records.labels(topic).set(lag)
        if caught_up:
            telemetry.lag_s.labels(topic).set(0)
