"""What archiving costs: `.venv/bin/python bench/archive.py --help`.

The fleet's reports, faults on, are put on a real stream in the pieces in which the gateway commits them (base stations
every 80 ms, the rest one by one), with their alerts and rejects. The archiver reads them at its own beat while a clock is
moved by hand; only its own CPU and time are counted, so nobody has to wait for the load's pace. What pacing itself costs
(waking, cold caches) is not seen here: `make demo` shows it.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec

from harmonywatch.archive.archiver import Archiver
from harmonywatch.archive.compact import compact
from harmonywatch.archive.lake import Lake
from harmonywatch.archive.tables import Folders
from harmonywatch.archive.verify import Terms as ProofTerms
from harmonywatch.archive.verify import Watch, verify
from harmonywatch.clock import ManualClock, micros
from harmonywatch.fleet.faults import parse_faults
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.traffic import Traffic
from harmonywatch.gateway.admit import Admission, Terms, admit_lines, admit_single
from harmonywatch.registry.contract import KeyInfo
from harmonywatch.report.record import VERSION, ReportRecord
from harmonywatch.report.topics import DURABLE_GROUPS, AlertRecord, encode
from harmonywatch.settings import ArchiveSettings, StreamSettings
from harmonywatch.stream.contract import TopicPartition, partition_of
from harmonywatch.stream.sqlite import SqliteStream
from harmonywatch.telemetry import Telemetry

FORCES = ("north", "south")
FAULTS = "twice=0.02,late=0.01,order=0.005,malformed=0.005,skew=0.001,silent=0.001"
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
READ = msgspec.json.Decoder(ReportRecord).decode
BEAT_S, RELAY_S, PARTITIONS = 0.2, 0.08, 4


@dataclass
class Costs:
    """`json_bytes`: as the watchers sent them; `took_s`: of each call of the archiver that stored something."""

    reports: int = 0
    json_bytes: int = 0
    user_s: float = 0.0
    system_s: float = 0.0
    took_s: list[float] = field(default_factory=list)
    beats_s: list[float] = field(default_factory=list)


class Load:
    """The gateway's and the judge's part: what stands on the stream after each beat."""

    def __init__(self, stream: SqliteStream, rate: float, costs: Costs) -> None:
        self._stream, self._costs, self._rate = stream, costs, rate
        plan = FleetPlan(targets=tuple(map(Target, FORCES)), faults=parse_faults(FAULTS), rate=rate)
        self._traffic = Traffic(plan, "bench")
        self._draw = random.Random(1)
        for force in FORCES:
            for kind in DURABLE_GROUPS["archive"]:
                stream.create_topic(kind + force, PARTITIONS)

    def send(self, now: datetime) -> None:
        """The reports of one relay interval that ends now."""
        parcel = self._traffic.take(round(self._rate * RELAY_S), micros(now), 1e6 / self._rate)
        relayed: dict[str, list[bytes]] = defaultdict(list)
        for line, target, single in zip(parcel.lines, parcel.targets, parcel.singles, strict=True):
            force = FORCES[target]
            self._costs.json_bytes += len(line)
            if single:
                self._store(force, admit_single(line, self._terms(force, now)))
            else:
                relayed[force].append(line)
        for force, lines in relayed.items():
            self._store(force, admit_lines(b"\n".join(lines), self._terms(force, now), 10_000))

    def _terms(self, force: str, now: datetime) -> Terms:
        received = now + timedelta(microseconds=self._draw.randrange(1000))
        return Terms(
            KeyInfo("bench", "relay", force, "base"), force, received, PARTITIONS, lambda: self._draw.randbytes(8).hex()
        )

    def _store(self, force: str, admission: Admission) -> None:
        self._costs.reports += admission.accepted
        for kind, records in (("reports.", admission.records), ("rejects.", admission.rejects)):
            if records:
                self._stream.append(kind + force, records)
        alerts: dict[int, list[bytes]] = defaultdict(list)
        for value in (value for values in admission.records.values() for value in values):
            for partition, alert in _alerts(value):
                alerts[partition].append(alert)
        if alerts:
            self._stream.append("alerts." + force, alerts)


def _alerts(value: bytes) -> Iterator[tuple[int, bytes]]:
    report = READ(value)
    for place, seen in enumerate(report.citizens):
        if seen.harmonyscore < 25:
            yield (
                partition_of(seen.name.encode(), PARTITIONS),
                encode(
                    AlertRecord(
                        VERSION, f"{report.report_id}-{place}", report.force, "default", report.report_id,
                        report.watcher_id, place, "name:" + seen.name, seen.name, seen.harmonyscore, report.lat,
                        report.lon, report.time, report.received_at, report.received_at, seen.citizen_id,
                    )
                ),
            )  # fmt: skip


class Bench:
    """One archiver on one stream, in one folder."""

    def __init__(self, folder: Path, rate: float, settings: ArchiveSettings) -> None:
        self.clock, self.costs, self.settings = ManualClock(START), Costs(), settings
        self.stream = SqliteStream(folder / "stream", StreamSettings(), self.clock)
        self.lake, self._load = Lake(str(folder / "lake")), Load(self.stream, rate, self.costs)
        folders = Folders(folder / "keys", folder / "index")
        self._archiver = Archiver(self.lake, folders, self.stream.id, settings, self.clock, Telemetry("archive"))
        topics = DURABLE_GROUPS["archive"]
        self._reader = self.stream.reader(topics, group="archive", start=self._archiver.start)
        self._told: dict[TopicPartition, int] = {}
        self.watch = Watch(folder / "watch")

    def run(self, seconds: float) -> None:
        sent_s = 0.0
        for beat in range(1, round(seconds / BEAT_S) + 1):
            while sent_s + RELAY_S <= beat * BEAT_S:
                sent_s += RELAY_S
                self._load.send(START + timedelta(seconds=sent_s))
            self.clock.advance(BEAT_S)
            self._beat()
        self._counted(self._archiver.finish)

    def _beat(self) -> None:
        self._counted(lambda: self._archiver.handle(self._reader.poll(0.0)))

    def _counted(self, act: object) -> None:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        act()  # type: ignore[operator]
        risen = {at: p for at, p in self._archiver.settled().items() if p > self._told.get(at, 0)}
        if risen:
            self._reader.commit(risen)
            self._told |= risen
        after = resource.getrusage(resource.RUSAGE_SELF)
        self.costs.user_s += after.ru_utime - before.ru_utime
        self.costs.system_s += after.ru_stime - before.ru_stime
        (self.costs.took_s if risen else self.costs.beats_s).append(time.perf_counter() - began)

    def lake_bytes(self) -> int:
        return sum(self.lake.plan(force, "reports").bytes for force in FORCES)

    def files(self) -> int:
        return sum(len(self.lake.plan(force, "reports").files) for force in FORCES)


def told(bench: Bench) -> None:
    costs = bench.costs
    per_million = 1e6 / costs.reports
    beats = sorted(costs.beats_s) or [0.0]
    click.echo(
        f"{costs.reports} reports, {costs.json_bytes / costs.reports:.0f} bytes of JSON each, {len(FORCES)} forces\n"
        f"CPU            {(costs.user_s + costs.system_s) * per_million:6.1f} s per million reports, "
        f"{costs.system_s * per_million:.1f} of them the system's\n"
        f"flushes        {len(costs.took_s):6} of {_ms(costs.took_s)} ms, mean {sum(costs.took_s) / len(costs.took_s):.3f} s\n"
        f"other beats    {len(beats):6}, p50 {beats[len(beats) // 2] * 1e3:.1f}, max {beats[-1] * 1e3:.1f} ms\n"
        f"as committed   1/{costs.json_bytes / bench.lake_bytes():.2f} of the JSON, {bench.files()} files"
    )


def _ms(took_s: list[float]) -> str:
    return " ".join(f"{each * 1e3:.0f}" for each in took_s[:16]) + (" .." if len(took_s) > 16 else "")


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Length of the load, in its own time.")
@click.option("--rate", default=1157.0, show_default=True, help="Reports a second, over two forces.")
@click.option("--flush", default=ArchiveSettings().flush_interval_s, show_default=True, help="Seconds between commits.")
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to measure; a folder is made in it.")
def main(seconds: float, rate: float, flush: float, folder: Path | None) -> None:
    """CPU seconds per million reports, seconds a flush takes, and bytes in and out, of the archiver."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        bench = Bench(Path(name), rate, ArchiveSettings(flush_interval_s=flush))
        bench.run(seconds)
        told(bench)
        began, cpu = time.perf_counter(), time.process_time()
        for force in FORCES:
            verdicts = verify(bench.lake, bench.stream, force, bench.watch, ProofTerms(bench.settings.repeat_window_s))
            assert all(verdict.clean and not verdict.lag for verdict in verdicts), verdicts
        click.echo(f"proof          clean, {time.perf_counter() - began:.2f} s")
        cpu = time.process_time()
        for force in FORCES:
            compact(bench.lake, force, bench.settings, everything=True, vacuum=False)
        per_million = (time.process_time() - cpu) * 1e6 / bench.costs.reports
        click.echo(
            f"all merged     1/{bench.costs.json_bytes / bench.lake_bytes():.2f}, {per_million:.1f} s per million"
        )
        click.echo(f"most memory    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
        bench.stream.close()


if __name__ == "__main__":
    main()
