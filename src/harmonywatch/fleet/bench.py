"""How fast the fleet makes reports, on one core: `python -m harmonywatch.fleet.bench [REPORTS]`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from harmonywatch.fleet.faults import parse_faults
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.traffic import Traffic, header_of
from harmonywatch.fleet.truth import TruthWriter

FORCES = (Target("north"), Target("south"))
FAULTS = "twice=0.02,late=0.01,order=0.005,malformed=0.005,skew=0.001,silent=0.001"
START_US = 1_790_000_000_000_000


def measure(reports: int, truth: str, faults: str, folder: Path) -> dict[str, float]:
    """Makes `reports` reports of the first wave; `truth` is none, compact or full."""
    plan = FleetPlan(targets=FORCES, faults=parse_faults(faults), truth_full=truth == "full")
    began = time.perf_counter()
    writer = None if truth == "none" else TruthWriter(folder / "truth.ndjson", header_of(plan, "bench"))
    traffic = Traffic(plan, "bench", writer)
    built = time.perf_counter()
    made = size = 0
    cpu_s = time.process_time()
    while made < reports:
        parcel = traffic.take(512, START_US + made * 864, 864)
        made += len(parcel.lines)
        size += sum(map(len, parcel.lines))
    cpu_s = time.process_time() - cpu_s
    if writer is not None:
        writer.close()
    return {"start_s": built - began, "cpu_s": cpu_s, "reports_per_s": made / cpu_s, "report_bytes": size / made}


def main() -> None:
    reports = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    with tempfile.TemporaryDirectory() as folder:
        for truth in ("none", "compact", "full"):
            for faults in ("", FAULTS):
                figures = measure(reports, truth, faults, Path(folder))
                shown = "  ".join(f"{name} {value:,.2f}" for name, value in figures.items())
                click.echo(f"truth {truth:8} faults {'on ' if faults else 'off'}  {shown}")


if __name__ == "__main__":
    main()
