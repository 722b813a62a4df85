"""What the embedded stream costs: `.venv/bin/python bench/stream.py [FOLDER]`.

The figures in docs/adr/0002 and 0003 are its output.

Every figure is of this machine and its disk; the folder must be on the disk that the stream will use.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

from harmonywatch.clock import SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.sqlite import SqliteStream

WORDS = ["calm", "shop", "train", "shout", "rain", "coffee", "score", "north", "corner", "watch"]


def record(draw: random.Random) -> bytes:
    """About the bytes of a canonical report: 1.6 KB of JSON."""
    citizens = [
        {"name": f"citizen {draw.randrange(10**6)}", "harmonyscore": round(draw.uniform(0, 100), 2)} for _ in range(16)
    ]
    body = {"watcher_id": f"w-{draw.randrange(69_420)}", "location": {"lat": draw.random(), "lon": draw.random()}}
    return json.dumps(body | {"citizens": citizens, "words": draw.choices(WORDS, k=60)}).encode()


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    return f"p50 {ordered[len(ordered) // 2] * 1e3:.2f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.2f} ms"


def disk(folder: Path, commits: int = 500) -> None:
    """The floor: a page written and fsynced, nothing else."""
    took = []
    descriptor = os.open(folder / "floor", os.O_RDWR | os.O_CREAT)
    for number in range(commits):
        begun = time.perf_counter()
        os.pwrite(descriptor, b"x" * 4096, number * 4096)
        os.fdatasync(descriptor)
        took.append(time.perf_counter() - begun)
    os.close(descriptor)
    click.echo(f"disk alone, 4 KiB and fdatasync: {quantiles(took)}")


def appends(folder: Path, batch: int, commits: int) -> None:
    draw = random.Random(1)
    records = [record(draw) for _ in range(max(batch, 500))]
    stream = SqliteStream(folder / f"append{batch}", StreamSettings(), SystemClock())
    stream.create_topic("reports.north", 4)
    took: list[float] = []
    stream.append("reports.north", {0: records[:1]})  # what only the first commit costs
    begun, cpu = time.perf_counter(), time.process_time()
    for number in range(commits):
        at = number * batch % (len(records) - batch + 1)
        began = time.perf_counter()
        stream.append("reports.north", {number % 4: records[at : at + batch]})
        took.append(time.perf_counter() - began)
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    size = stream.size_bytes("reports.north")
    raw = sum(map(len, records)) / len(records) * batch * commits
    click.echo(
        f"append of {batch:>4}: {commits / wall_s:>6.0f} commits/s {commits * batch / wall_s:>8.0f} records/s"
        f" {raw / wall_s / 1e6:>6.1f} MB/s; {quantiles(took)}; {cpu_s / commits * 1e6:.0f} us CPU; {raw / size:.1f}:1 on disk"
    )
    begun, cpu, count = time.perf_counter(), time.process_time(), 0
    reader = stream.reader("reports.", start=None)
    while batches := reader.poll(0.0):
        count += sum(len(each.values) for each in batches)
    click.echo(f"  read back: {count / (time.perf_counter() - begun):.0f} records/s")
    assert count == batch * commits + 1
    stream.close()


def upkeep(folder: Path, every_s: float) -> None:
    """What copying the write-ahead log costs those who commit meanwhile: single reports, unpaced, for 8 s."""
    stream = SqliteStream(folder / f"upkeep{every_s}", StreamSettings(), SystemClock())
    stream.create_topic("reports.north", 4)
    value = record(random.Random(2))
    stop = threading.Event()

    def sweep() -> None:
        while not stop.wait(every_s):
            stream.sweep()

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    took, longest = [], 0
    until = time.monotonic() + 8
    log = folder / f"upkeep{every_s}" / "topics" / "reports.north" / "0000000001.db-wal"
    while (began := time.monotonic()) < until:
        stream.append("reports.north", {len(took) % 4: [value]})
        took.append(time.monotonic() - began)
        longest = max(longest, log.stat().st_size)
    stop.set()
    sweeper.join()
    stream.close()
    click.echo(
        f"upkeep every {every_s:g} s: {quantiles(took)}, max {max(took) * 1e3:.1f} ms, longest log {longest >> 20} MiB"
    )


FOLLOWER = """
import sys, time, resource
from pathlib import Path
from harmonywatch.clock import SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.sqlite import SqliteStream
stream = SqliteStream(Path(sys.argv[1]), StreamSettings(), SystemClock(), futex=sys.argv[2] == "1")
reader = stream.reader("reports.")
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
reader.poll(0.2)
print("ready", flush=True)
begun, idle = time.monotonic(), cpu()
reader.poll(5.0)
print("idle", (cpu() - idle) / (time.monotonic() - begun), flush=True)
while True:
    for batch in reader.poll(1.0):
        now = time.time()
        for value in batch.values:
            if value == b"end":
                sys.exit()
            print(now - float(value), flush=True)
"""


def lines(folder: Path, futex: bool) -> Iterator[str]:
    stream = SqliteStream(folder, StreamSettings(), SystemClock(), futex=futex)
    stream.create_topic("reports.north", 4)
    command = [sys.executable, "-c", FOLLOWER, str(folder), str(int(futex))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.stdout.readline()
        for number in range(1000):
            stream.append("reports.north", {number % 4: [str(time.time()).encode()]})
            time.sleep(0.003)
        stream.append("reports.north", {0: [b"end"]})
        yield from child.stdout
    stream.close()


def follower(folder: Path, futex: bool) -> None:
    idle, *latencies = lines(folder / f"bell{futex}", futex)
    took = [float(each) for each in latencies]
    click.echo(
        f"follower in another process, {'futex' if futex else 'looking every 1 to 5 ms'}: append begun to read:"
        f" {quantiles(took)}, mean {statistics.mean(took) * 1e3:.2f} ms; idle {float(idle.split()[1]):.2%} of a core"
    )


def main() -> None:
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        disk(folder)
        for batch, commits in ((1, 1000), (10, 500), (100, 300), (1000, 60)):
            appends(folder, batch, commits)
        for every_s in (100.0, 1.0):
            upkeep(folder, every_s)
        for futex in (True, False):
            follower(folder, futex)


if __name__ == "__main__":
    main()
