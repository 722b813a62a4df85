"""A lake small enough to compute every answer by hand: plain dicts, written as hive-partitioned Parquet, and the Catalog
over them. The rows are what the archive would write (its schema is used), repeats and suspect clocks included."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import h3
import pyarrow as pa
import pyarrow.parquet as pq

from harmonywatch.analysis.contract import Plan
from harmonywatch.archive.schema import TABLES

Row = dict[str, Any]

START = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL = datetime(2026, 11, 4, tzinfo=UTC)
WORDS = ("bread", "rain", "late", "enough", "shout", "calm", "Ñandú", "bus")


class FolderCatalog:
    """LAKE/<force>/<table>/day=YYYY-MM-DD/*.parquet, read from the folder each time."""

    def __init__(self, lake: Path) -> None:
        self.lake = lake
        self.asked: list[tuple[str, date | None, date | None]] = []

    def plan(self, force: str, table: str, first_day: date | None, last_day: date | None) -> Plan:
        self.asked.append((table, first_day, last_day))
        files = []
        for folder in sorted((self.lake / force / table).glob("day=*")):
            day = date.fromisoformat(folder.name[4:])
            if (first_day is None or day >= first_day) and (last_day is None or day <= last_day):
                files += sorted(folder.glob("*.parquet"))
        return Plan([str(file) for file in files], sum(file.stat().st_size for file in files), TABLES[table])


def write_table(lake: Path, force: str, table: str, rows: list[Row]) -> None:
    """One file a day."""
    by_day: dict[date, list[Row]] = defaultdict(list)
    for row in rows:
        by_day[row["day"]].append(row)
    schema = pa.schema([field for field in TABLES[table] if field.name != "day"])
    for day, part in by_day.items():
        folder = lake / force / table / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"part-{len(list(folder.iterdir()))}.parquet"
        pq.write_table(pa.Table.from_pylist([_kept(row, schema) for row in part], schema), folder / name)


def _kept(row: Row, schema: pa.Schema) -> Row:
    return {name: row.get(name) for name in schema.names}


def report(number: int, watcher: int, time: datetime, **given: Any) -> Row:
    """A row of `reports` with everything in it that is not given."""
    lat, lon = given.pop("lat", 41.9), given.pop("lon", 12.5)
    row: Row = {
        "report_id": f"r-{number}", "watcher_id": f"w-{watcher:03d}", "time": time, "device_time": time,
        "received_at": time + timedelta(seconds=1), "clock_suspect": False, "lat": lat, "lon": lon,
        "h3": h3.latlng_to_cell(lat, lon, 9), "battery": 0.5, "sequence": number, "firmware": "1.0", "model": "M1",
        "words": [], "citizens": [], "repeat": False, "conflict": False, "partition": 0, "offset": number,
    }  # fmt: skip
    row.update(given)
    row["day"] = row["time"].date()
    return row


def seen(citizen: str | None, score: float, confidence: float | None = 0.9) -> Row:
    return {"citizen": citizen, "citizen_sealed": None, "harmonyscore": score, "confidence": confidence}


def city(seed: int, reports: int = 2000) -> dict[str, list[Row]]:
    """About `reports` rows over three days with ties, nulls, midnights, repeats, suspect clocks, gaps and rejects."""
    draw = random.Random(seed)
    places = [(41.9 + draw.uniform(-0.04, 0.04), 12.5 + draw.uniform(-0.04, 0.04)) for _ in range(40)]
    rows: list[Row] = []
    sequences: dict[int, int] = defaultdict(int)
    for number in range(reports):
        watcher = draw.randrange(25)
        sequences[watcher] += draw.choices((1, 2, 5), (20, 1, 1))[0]
        rows.append(_drawn(draw, number, watcher, sequences[watcher], places))
    rows += [_again(draw, row, reports + n) for n, row in enumerate(draw.sample(rows, 60))]
    alerts = [alert for row in rows if not row["repeat"] for alert in _alerts(row)]
    alerts += [{**alert, "repeat": True} for alert in alerts[:7]]
    rejects = [_reject(draw, n) for n in range(80)]
    return {"reports": rows, "alerts": alerts, "rejects": rejects}


def _drawn(draw: random.Random, number: int, watcher: int, sequence: int, places: list[tuple[float, float]]) -> Row:
    moment = START + timedelta(microseconds=draw.randrange(3 * 86_400_000_000))
    if number % 97 == 0:  # midnights, to the microsecond, on both sides
        moment = START + timedelta(days=1 + number // 97 % 2, microseconds=-(number // 97 // 2 % 2))
    delay = draw.choice((0.2, 0.999999, 1.0, 5, 60, 700, 90_000))
    lat, lon = draw.choice(places)
    row = report(
        number, watcher, moment, lat=lat, lon=lon, received_at=moment + timedelta(seconds=delay),
        battery=draw.choice((None, 0.0, 0.05, 0.1, 0.3, 0.7, 0.99, 1.0)),
        sequence=None if draw.random() < 0.05 else sequence,
        firmware=draw.choice(("1.0", "1.1", None)), model=f"M{watcher % 3}",
        words=draw.choices(WORDS, k=draw.randrange(5)),
        citizens=[
            seen(f"v1.c{min(draw.randrange(60), draw.randrange(60)):02d}", draw.choice((3.5, 24.9, 25.0, 50.0, 81.25)))
            for _ in range(draw.randrange(5))
        ],
    )  # fmt: skip
    if draw.random() < 0.03:
        row["device_time"] = None
    elif draw.random() < 0.03:
        row["device_time"], row["clock_suspect"] = draw.choice((datetime(1970, 1, 1, tzinfo=UTC), UNTIL)), True
    return row


def _again(draw: random.Random, row: Row, offset: int) -> Row:
    gone = dict.fromkeys(("words", "citizens", "battery", "firmware", "model", "sequence", "lat", "lon", "h3"))
    return {**row, **gone, "received_at": row["received_at"] + timedelta(seconds=draw.randrange(9000)),
            "repeat": True, "offset": offset}  # fmt: skip


def _alerts(row: Row) -> list[Row]:
    return [
        {
            "alert_id": f"{row['report_id']}/{place}", "rule": "harmonyscore-below-25", "place": place, "repeat": False,
            "citizen": each["citizen"], "harmonyscore": each["harmonyscore"], "confidence": each["confidence"],
            "judged_at": row["received_at"], "partition": 0, "offset": place,
            **{name: row[name] for name in ("report_id", "watcher_id", "lat", "lon", "h3", "time", "received_at",
                                            "clock_suspect", "day")},
        }
        for place, each in enumerate(row["citizens"])
        if each["harmonyscore"] < 25
    ]  # fmt: skip


def _reject(draw: random.Random, number: int) -> Row:
    received = START + timedelta(seconds=draw.randrange(3 * 86_400))
    return {
        "reject_id": f"x-{number}", "source": draw.choice(("gateway", "stream")), "sender": f"w-{number % 7}",
        "received_at": received, "code": draw.choice(("not-json", "missing", "wrong-type")),
        "pointer": draw.choice(("", "/location/lat")), "reason": "because", "bytes": b"sealed", "line": None,
        "topic": "rejects.north", "partition": 0, "offset": number, "day": received.date(),
    }  # fmt: skip


def write_city(lake: Path, force: str, rows: dict[str, list[Row]]) -> None:
    for table, part in rows.items():
        write_table(lake, force, table, part)
