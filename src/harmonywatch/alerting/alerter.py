"""The handler of the group `alerting`: reports in, alerts out.

The protocol for one poll, and what a crash between two steps leaves:

1. The rules are read again if their version changed.
2. Every report of the poll is judged.                                   crash: nothing happened
3. Each force's alerts are appended to `alerts.<force>`, durably, in one  crash: judged again; the alerts have the
   append; a citizen's alerts all go to one partition.                    same ids, and readers drop by id
4. The poll's positions are settled; `follow` commits them now and then.

It keeps no position of its own: an alert carries its identity, so reading again does no harm. A record that does not
decode makes no alert and is counted; the archiver isolates it. A record of a greater version stops the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from harmonywatch.alerting.judge import RuleSet, Undecodable, judge, read, rule_set
from harmonywatch.clock import Clock, from_wire, micros
from harmonywatch.registry.contract import DEFAULT_RULE_ID, DEFAULT_THRESHOLD, RegistryBusy, Rule, RuleBook
from harmonywatch.report.topics import ALERTS, AlertRecord, encode, force_of, topic_of
from harmonywatch.settings import AlertingSettings
from harmonywatch.stream.contract import Batch, Stream, TopicPartition, UnknownTopic, partition_of
from harmonywatch.stream.lag import tell_lag
from harmonywatch.telemetry import Telemetry

GROUP = "alerting"

LAG_INTERVAL_S = 1.0
"""How often the lag in records is measured; each measurement asks the stream for the end of every partition."""

ByPartition = dict[int, list[bytes]]


class Alerter:
    """A `Handler` (see `stream.follow`). Called by one thread."""

    def __init__(
        self, stream: Stream, book: RuleBook, settings: AlertingSettings, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._stream = stream
        self._book = book
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._rules: dict[str, RuleSet] = {}
        self._rules_version: int | None = None
        self._rules_due = clock.monotonic()
        self._lag_due = clock.monotonic()
        self._partitions: dict[str, int] = {}
        self._begun: dict[TopicPartition, int] = {}
        self._settled: dict[TopicPartition, int] = {}

    def start(self, topic: str, partition: int) -> int | None:
        """None: the group's committed position is good enough, what is judged again is dropped by its id."""
        committed = self._stream.committed(GROUP, topic).get(partition)
        earliest = self._stream.bounds(topic, partition).earliest
        self._begun[TopicPartition(topic, partition)] = earliest if committed is None else committed
        return None

    def handle(self, batches: list[Batch]) -> None:
        """Judge the batches and append their alerts. Raises RecordTooNew, and what the stream and the book raise."""
        self._refresh_rules()
        alerts: dict[str, ByPartition] = {}
        judged: list[AlertRecord] = []
        for batch in batches:
            self._judge_batch(batch, alerts, judged)
        for force, records in alerts.items():
            self._stream.append(topic_of(ALERTS, force), records)
        for batch in batches:
            self._settled[TopicPartition(batch.topic, batch.partition)] = batch.position
        self._tell(batches, judged)

    def settled(self) -> Mapping[TopicPartition, int]:
        return self._settled

    def finish(self) -> None:
        """Nothing is gathered between polls."""

    def _judge_batch(self, batch: Batch, alerts: dict[str, ByPartition], judged: list[AlertRecord]) -> None:
        force = force_of(batch.topic)
        rules = self._rules_of(force)
        for value in batch.values:
            try:
                report = read(value, rules)
                if report is None:
                    continue
                made = judge(report, rules, force, self._clock.now())
            except Undecodable:
                self._telemetry.failed.labels("undecodable").inc()
                continue
            for alert in made:
                partition = partition_of(alert.identity.encode(), self._partitions_of(force))
                alerts.setdefault(force, {}).setdefault(partition, []).append(encode(alert))
            judged += made

    def _partitions_of(self, force: str) -> int:
        topic = topic_of(ALERTS, force)
        if topic not in self._partitions:
            self._partitions = self._stream.topics()
            if topic not in self._partitions:
                raise UnknownTopic(topic)
        return self._partitions[topic]

    def _rules_of(self, force: str) -> RuleSet:
        """A force that the book does not know (yet, or any more, as after a restore) is judged by the rule that every
        force begins with: an alert too many is seen, silence is not."""
        if force not in self._rules:
            self._read_rules()
        if force not in self._rules:
            self._telemetry.failed.labels("unknown-force").inc()
            self._rules[force] = rule_set([Rule(rule_id=DEFAULT_RULE_ID, force=force, threshold=DEFAULT_THRESHOLD)])
        return self._rules[force]

    def _refresh_rules(self) -> None:
        """A busy registry is no reason to stop: the rules of a moment ago are better than none."""
        if self._clock.monotonic() < self._rules_due:
            return
        try:
            if self._book.version() != self._rules_version:
                self._read_rules()
        except RegistryBusy:
            if self._rules_version is None:
                raise
            self._telemetry.failed.labels("rules").inc()
        self._rules_due = self._clock.monotonic() + self._settings.rules_interval_s

    def _read_rules(self) -> None:
        """The version first: a change in between is then read twice, never missed."""
        self._rules_version = self._book.version()
        self._rules = {force: rule_set(rules) for force, rules in self._book.all_rules().items()}

    def _tell(self, batches: list[Batch], judged: list[AlertRecord]) -> None:
        now = self._clock.now()
        for topic, lag in lags_s(batches, now).items():
            self._telemetry.lag_s.labels(topic).set(lag)
        for batch in batches:
            self._telemetry.received.labels(force_of(batch.topic)).inc(len(batch.values))
        for alert in judged:
            self._telemetry.alerts.labels(alert.force, alert.rule).inc()
            waited = from_wire(alert.judged_at) - from_wire(alert.received_at)
            self._telemetry.judge_s.labels(alert.force).observe(max(0.0, waited.total_seconds()))
        if self._clock.monotonic() >= self._lag_due:
            tell_lag(self._stream, self._telemetry, self._begun | self._settled, caught_up=not batches)
            self._lag_due = self._clock.monotonic() + LAG_INTERVAL_S


def lags_s(batches: list[Batch], now: datetime) -> dict[str, float]:
    """By topic: how long ago the oldest record of these batches was appended, seconds. What a poll brought is handled
    now, so just before it was the oldest record not yet handled."""
    now_us = micros(now)
    oldest: dict[str, int] = {}
    for batch in batches:
        oldest[batch.topic] = min(batch.appended_us, oldest.get(batch.topic, batch.appended_us))
    return {topic: max(0.0, (now_us - us) / 1e6) for topic, us in oldest.items()}
