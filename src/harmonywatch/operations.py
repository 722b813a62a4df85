"""What an operator wants to know: how far behind each group is, how fresh the lake, and whether the machine is fit.

Read from the stream and the lake themselves, so that it tells the truth also when a service is down.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from harmonywatch import assemble
from harmonywatch.clock import Clock, micros, to_wire
from harmonywatch.report.topics import ALERTS, REJECTS, REPORTS, archived_topics, force_of, topic_of
from harmonywatch.settings import BadSettings, Settings
from harmonywatch.stream.contract import WHOLE_STREAM, Stream, StreamError

if TYPE_CHECKING:
    from harmonywatch.archive.lake import Lake

GROUPS = {REPORTS: ("alerting", "archive"), ALERTS: ("dispatch", "archive"), REJECTS: ("archive",)}
QUESTIONS, AUDIT_MAX = ("query", "ask"), 1_000_000
FREE_BYTES_LEAST = 5 << 30
FSYNC_SLOW_MS = 20.0


class Lag(msgspec.Struct, frozen=True):
    """A group on a topic. `records`: on the topic in all; `lag`: not yet committed as read; `lag_s`: age of the oldest of
    those, seconds; `per_s`: records appended a second just now; `trouble`: why none of it can be told."""

    force: str
    topic: str
    group: str
    per_s: float
    records: int
    lag: int
    lag_s: float
    trouble: str = ""


class Standing(msgspec.Struct, frozen=True):
    """A force. `freshness_s`: age of the newest report in the lake by receipt, None while it is empty."""

    force: str
    reports: int
    alerts: int
    rejects: int
    lake_bytes: int
    freshness_s: float | None


class Usage(msgspec.Struct, frozen=True):
    """What a force used in a span of UTC days that ends now. `reports`: received, as far as the lake has them (at most some
    15 s behind), those sent again too; `lake_bytes`: what they take there; `queries`: questions asked, by the audit."""

    force: str
    span: Literal["today", "month"]
    since: str
    reports: int
    lake_bytes: int
    queries: int


class Finding(msgspec.Struct, frozen=True):
    """One thing the doctor looked at."""

    what: str
    verdict: Literal["fine", "warning", "broken"]
    told: str


def forces_of(stream: Stream, force: str | None) -> list[str]:
    """The forces that have topics."""
    found = [force_of(topic) for topic in stream.topics() if topic.startswith(REPORTS)]
    return [name for name in found if force in (None, name)]


def lags(stream: Stream, clock: Clock, seconds: float, force: str | None) -> list[Lag]:
    """Every durable group on every topic; takes `seconds` to measure the rates."""
    names = forces_of(stream, force)
    topics = [topic_of(kind, name) for name in names for kind in GROUPS]
    before = {topic: _end_or_trouble(stream, topic) for topic in topics}
    time.sleep(seconds if topics else 0.0)
    found = []
    for name in names:
        for kind, groups in GROUPS.items():
            topic = topic_of(kind, name)
            end, began = _end_or_trouble(stream, topic), before[topic]
            for group in groups:
                if isinstance(end, str) or isinstance(began, str):
                    found.append(Lag(name, topic, group, 0.0, 0, 0, 0.0, str(end)))
                    continue
                lag, lag_s = _lag(stream, clock, topic, group)
                per_s = (end - began) / seconds if seconds else 0.0
                found.append(Lag(name, topic, group, per_s, end, lag, lag_s))
    return found


def _end_or_trouble(stream: Stream, topic: str) -> int | str:
    """Records of the topic so far, or why that cannot be told: one force's damage hides no other's figures."""
    try:
        return _end(stream, topic)
    except WHOLE_STREAM:
        raise
    except (StreamError, KeyError) as error:
        return str(error)


def _end(stream: Stream, topic: str) -> int:
    return sum(stream.bounds(topic, partition).end for partition in range(stream.topics()[topic]))


def _lag(stream: Stream, clock: Clock, topic: str, group: str) -> tuple[int, float]:
    committed = stream.committed(group, topic)
    records, oldest_us = 0, micros(clock.now())
    for partition in range(stream.topics()[topic]):
        bounds = stream.bounds(topic, partition)
        position = max(committed.get(partition, 0), bounds.earliest)
        if position < bounds.end:
            records += bounds.end - position
            oldest_us = min(oldest_us, stream.read(topic, partition, position, 1)[0].appended_us)
    return records, (micros(clock.now()) - oldest_us) / 1e6 if records else 0.0


def standing(stream: Stream, lake: Lake, clock: Clock, force: str | None) -> Iterator[Standing]:
    """Every force's counts and freshness."""
    for name in forces_of(stream, force):
        table = lake.open(name, "reports")
        files = table.files() if table else []
        newest = max((file.received_max_us for file in files if file.received_max_us is not None), default=None)
        ends = [_end_or_trouble(stream, topic_of(kind, name)) for kind in (REPORTS, ALERTS, REJECTS)]
        reports, alerts, rejects = (0 if isinstance(end, str) else end for end in ends)
        yield Standing(
            name,
            reports,
            alerts,
            rejects,
            sum(file.size_bytes for file in files),
            None if newest is None else (micros(clock.now()) - newest) / 1e6,
        )


def usage(settings: Settings, actor: str, clock: Clock, force: str) -> list[Usage]:
    """Today's and this month's, of one force."""
    from harmonywatch.archive.usage import Received, received

    now = clock.now()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month, table = today.replace(day=1), assemble.open_lake(settings).open(force, "reports")
    with assemble.opened_registry(settings, actor) as registry:
        asked = [entry.at for entry in registry.audit(force, month, AUDIT_MAX) if entry.action in QUESTIONS]
    found = []
    spans: tuple[tuple[Literal["today", "month"], datetime], ...] = (("today", today), ("month", month))
    for span, since in spans:
        sent = received(table, since, today + timedelta(days=1)) if table else Received(0, 0, 0)
        queries = sum(at >= since for at in asked)
        found.append(Usage(force, span, to_wire(since), sent.reports, sent.lake_bytes, queries))
    return found


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything the doctor looks at, in the order in which a start would meet it."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", "fine" if sys.version_info >= (3, 11) else "broken", version)
    yield _folder(settings.folder)
    if not settings.folder.is_dir():
        return
    yield _disk(settings.folder)
    yield _fsync(settings.folder)
    yield _doors(settings)
    yield from _stream_and_lake(settings)
    yield from _keys(settings.keys_folder)
    verdicts: dict[str, Literal["fine", "warning"]] = {"ready": "fine", "degraded": "warning", "not running": "warning"}
    for service, health in assemble.health_of_services(settings).items():
        yield Finding(service, verdicts.get(health.status, "broken"), str(health))


def _folder(folder: Path) -> Finding:
    if not folder.exists():
        return Finding("data folder", "warning", f"{folder} is not there yet; `up` and `force add` make it")
    fit = folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    return Finding("data folder", "fine" if fit else "broken", str(folder) if fit else f"{folder} cannot be written")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    days = free / 40e9  # stream and lake together take about a fifth of the 200 GB a day that come in
    return Finding(
        "free space",
        "fine" if free >= FREE_BYTES_LEAST else "warning",
        f"{free / 1e9:.0f} GB, some {days:.1f} days at the first wave's rate",
    )


def _fsync(folder: Path) -> Finding:
    path = folder / f".doctor.{os.getpid()}"
    samples = []
    with path.open("wb") as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            samples.append((time.perf_counter() - began) * 1e3)
    path.unlink()
    samples.sort()
    told = f"p50 {samples[25]:.2f} ms, slowest of 50 {samples[-1]:.2f} ms; every acknowledgement waits for one"
    return Finding("fsync", "fine" if samples[25] < FSYNC_SLOW_MS else "warning", told)


def _doors(settings: Settings) -> Finding:
    try:
        assemble.check_doors(settings)
    except BadSettings as error:
        return Finding("doors", "broken", str(error))
    doors = [
        f"{name} {door.host}:{door.port}"
        for name, door in (("gateway", settings.gateway), ("console", settings.console))
    ]
    return Finding("doors", "fine", ", ".join(doors))


def _stream_and_lake(settings: Settings) -> Iterator[Finding]:
    try:
        stream = assemble.open_stream(settings)
    except (StreamError, BadSettings, OSError) as error:
        yield Finding("stream", "broken", str(error))
        return
    try:
        yield Finding("stream", "fine", f"{settings.stream_url}, id {stream.id}, {len(stream.topics())} topics")
        lake = assemble.open_lake(settings)
        for name in forces_of(stream, None):
            table = lake.open(name, "reports")
            if table is None:
                yield Finding(f"lake of {name}", "fine", "empty")
            elif table.mark().stream_id == stream.id_of(archived_topics(name)):
                yield Finding(f"lake of {name}", "fine", f"version {table.version}, {len(table.files())} files")
            else:
                yield Finding(
                    f"lake of {name}", "broken", f"was written from stream {table.mark().stream_id}, not this one"
                )
    finally:
        stream.close()


def _keys(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.keys")) if folder.is_dir() else []:
        mode = stat.S_IMODE(path.stat().st_mode)
        fit = not mode & 0o077
        yield Finding(
            f"key {path.name}",
            "fine" if fit else "broken",
            "readable by its owner alone; is it in your backup?" if fit else f"mode {mode:o}: chmod 600 {path}",
        )
