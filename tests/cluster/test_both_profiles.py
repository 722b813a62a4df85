"""One file of reports through both profiles gives one answer to every saved question.

A seeded fleet with faults writes the file; each of its reports has a moment at which it was received, so both profiles
take in the very same thing. What may differ does: the number of partitions (4 and 12) and the moment of judging, which no
question shows; and the ids of rejects, of which none is shown either. Keys are copied, so tokens are the same.
"""

from __future__ import annotations

import os
import random
import shutil
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from running_system import QUICK_ARCHIVE, Row, System, clean_environment, made, wait_for

import harmonywatch
from engines.cluster import engines
from harmonywatch.analysis.questions import question, questions
from harmonywatch.clock import ManualClock, to_wire
from harmonywatch.fleet.faults import parse_faults
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.send import write_fleet

FORCE, SEED = "north", 20
WATCHERS, RATE, SECONDS = 60, 1.5, 2_400
FAULTS = "twice=0.04,late=0.03,order=0.03,malformed=0.03,skew=0.1,silent=0.02"
NAMES = [each.name for each in questions()]
LOST_EVERY = 50
"""So many reports never come: the fleet's own faults leave no gap in a watcher's numbers."""
DIGITS = 9
ARCHIVED_S = 60.0


@dataclass(frozen=True)
class Received:
    """A file for `send --replay`: how many lines, and the span in which all of it was received and happened."""

    path: Path
    lines: int
    since: str
    until: str


def received(folder: Path) -> Received:
    """What the fleet wrote, each line received within some seconds of its turn."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
    plan = FleetPlan(
        watchers=WATCHERS, rate=RATE, seconds=SECONDS, seed=SEED, targets=(Target(FORCE),), faults=parse_faults(FAULTS)
    )
    write_fleet(plan, folder / "sent.ndjson", ManualClock(start))
    lines, drawn = (folder / "sent.ndjson").read_bytes().splitlines(), random.Random(SEED)
    lines = [line for place, line in enumerate(lines) if place % LOST_EVERY]
    with (folder / "received.ndjson").open("wb") as file:
        for place, line in enumerate(lines):
            moment = start + timedelta(seconds=place / RATE + drawn.random() * 5)
            file.write(b'{"received_at":"%s",%s}\n' % (to_wire(moment).encode(), wrapped(line)))
    span = (start - timedelta(days=40), start + timedelta(hours=2, days=1))
    return Received(folder / "received.ndjson", len(lines), *map(to_wire, span))


def wrapped(line: bytes) -> bytes:
    """As it stands where it is JSON, else in base64."""
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except ValueError:
        return b'"bytes":"%s"' % b64encode(line)
    return b'"report":%s' % line


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, System, Received]]:
    """Two systems that have archived the same file: embedded, and on real engines. Neither is up any more, the engines
    are: questions need no service."""
    folder = tmp_path_factory.mktemp("profiles")
    file = received(folder)
    with engines(folder, brokers=1) as environment:
        one_broker = {**environment, **QUICK_ARCHIVE, "HARMONYWATCH_STREAM__REPLICAS": "1"}
        with (
            made(folder / "embedded", environment=QUICK_ARCHIVE) as embedded,
            made(folder / "distributed", environment=one_broker) as distributed,
        ):
            taken_in(embedded, file)
            shutil.copytree(embedded.folder / "keys", distributed.folder / "keys")
            taken_in(distributed, file)
            yield embedded, distributed, file


def taken_in(system: System, file: Received) -> None:
    system.start()
    system.run("force", "add", FORCE)
    verdicts = system.run("send", str(file.path), "--replay", "--force", FORCE, codes=(1,))
    assert len(verdicts) == file.lines
    wait_for("everything judged and archived", lambda: nothing_waits(system), ARCHIVED_S, 0.5)
    proof = system.verified(FORCE)
    accepted = sum(verdict["status"] == "accepted" for verdict in verdicts)
    assert (proof["accepted"], proof["stored"], proof["missing"], proof["repeated"]) == (accepted, accepted, 0, 0)
    system.stop()


def nothing_waits(system: System) -> bool:
    """Alerting first: once it has read everything, no alert is to come that the archive does not know of."""
    for group in ("alerting", "archive"):
        lags = [row for row in system.run("status", "--seconds", "0") if row.get("group") == group]
        assert lags
        if any(row["lag"] for row in lags):
            return False
    return True


def answer(system: System, file: Received, name: str) -> list[Row]:
    """Rows in an order of their own, numbers as far as two engines agree."""
    spans = {"since": file.since, "until": file.until}
    given = {param.name: spans[param.name] for param in question(name).params if param.name in spans}
    with mock.patch.dict(os.environ, {**clean_environment(), **system.environment}, clear=True):
        table = harmonywatch.connect(FORCE, system.folder).ask(name, **given)
    rows = [{key: rounded(value) for key, value in row.items()} for row in table.to_pylist()]
    return sorted(rows, key=repr)


def rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def test_the_profiles_are_two(both: tuple[System, System, Received]) -> None:
    embedded, distributed, _ = both
    partitions = "select count(distinct partition) as n, count(*) as reports from reports"
    ((four,), (twelve,)) = embedded.query(partitions, FORCE), distributed.query(partitions, FORCE)
    assert (four["n"], twelve["n"]) == (4, 12)
    assert four["reports"] == twelve["reports"] > 3_000
    assert not (distributed.folder / "lake").exists()
    assert not (distributed.folder / "stream").exists()


def test_citizens_have_the_same_tokens(both: tuple[System, System, Received]) -> None:
    embedded, distributed, _ = both
    tokens = "select distinct citizen from sightings order by 1"
    found = embedded.query(tokens, FORCE)
    assert len(found) > 50
    assert found == distributed.query(tokens, FORCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_question_has_one_answer(both: tuple[System, System, Received], name: str) -> None:
    embedded, distributed, file = both
    rows = answer(embedded, file, name)
    assert rows, f"nothing to compare (seed {SEED})"
    assert answer(distributed, file, name) == rows


def test_a_difference_would_be_seen(both: tuple[System, System, Received]) -> None:
    embedded, distributed, file = both
    whole = answer(embedded, file, "alerts-by-hour")
    shorter = Received(file.path, file.lines, file.since, to_wire(datetime.now(UTC) - timedelta(hours=2.7)))
    assert answer(distributed, shorter, "alerts-by-hour") != whole
