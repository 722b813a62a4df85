"""What the stream costs: `.venv/bin/python bench/stream.py [FOLDER]`, or `... --url kafka://HOST:PORT [--replicas 3]`.

The figures in docs/adr/0002, 0003 and 0013 are its output. For Kafka, `.venv/bin/python -m engines kafka FOLDER` in another
terminal is a cluster to measure; everything is made in a namespace of its own there.

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
from pathlib import Path

import click

from harmonywatch.clock import SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import Stream
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream
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


def opened(place: str, *, futex: bool = True, replicas: int = 1) -> Stream:
    """A folder, or the URL of a cluster."""
    if place.startswith("kafka:"):
        return KafkaStream(parse(place, "", {}), StreamSettings(replicas=replicas))
    return SqliteStream(Path(place), StreamSettings(), SystemClock(), futex=futex)


def appends(stream: Stream, batch: int, commits: int) -> None:
    draw = random.Random(1)
    records = [record(draw) for _ in range(max(batch, 500))]
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
    while count <= batch * commits and (batches := reader.poll(1.0)):
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
sys.path.insert(0, sys.argv[1])
from stream import opened
stream = opened(sys.argv[2], futex=sys.argv[3] == "1")
reader = stream.reader("reports.", group="bench")
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
while any(batch.values[-1] != b"ready?" for batch in reader.poll(0.2)):
    pass
print("ready", flush=True)
begun, idle = time.monotonic(), cpu()
reader.poll(5.0)
print("idle", (cpu() - idle) / (time.monotonic() - begun), flush=True)
busy = cpu()
ages = []
while True:
    for batch in reader.poll(1.0):
        now = time.time()
        for value in batch.values:
            if value == b"end":
                print("cpu", cpu() - busy)
                print("ages", *ages, flush=True)
                sys.exit()
            ages.append(now - float(value[:20]))
"""
BODY = b"." * 1600


def stamped() -> bytes:
    """A record that tells when its append began, of a report's size."""
    return f"{time.time():020.6f}".encode() + random.randbytes(200) + BODY


def follower(place: str, *, futex: bool = True, replicas: int = 1, each: int = 1, pause_s: float = 0.003) -> None:
    """Another process reads what is appended here at a pace: `each` records every `pause_s`."""
    stream = opened(place, futex=futex, replicas=replicas)
    stream.create_topic("reports.north", 4)
    command = [sys.executable, "-c", FOLLOWER, str(Path(__file__).parent), place, str(int(futex))]
    took: list[float] = []
    rounds = 1000
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        idle = float(child.stdout.readline().split()[1])
        cpu, due = time.process_time(), time.monotonic()
        for number in range(rounds):
            began = time.perf_counter()
            stream.append("reports.north", {number % 4: [stamped() for _ in range(each)]})
            took.append(time.perf_counter() - began)
            due += pause_s
            time.sleep(max(0.0, due - time.monotonic()))
        cpu = time.process_time() - cpu
        stream.append("reports.north", {partition: [b"end"] for partition in range(4)})
        reading = float(child.stdout.readline().split()[1])
        ages = [float(age) for age in child.stdout.readline().split()[1:]]
    stream.close()
    how = place.partition(":")[0] if place.startswith("kafka") else "futex" if futex else "looking every 1 to 5 ms"
    count = rounds * each
    click.echo(
        f"follower in another process, {how}, {each / pause_s:.0f} records/s: append {quantiles(took)};"
        f" append begun to read {quantiles(ages)}, mean {statistics.mean(ages) * 1e3:.2f} ms; CPU s per million records"
        f" {cpu / count * 1e6:.0f} appending, {reading / count * 1e6:.0f} reading; idle {idle:.2%} of a core"
    )


def transactions(url: str, replicas: int) -> None:
    """What all-or-nothing over partitions would cost: the same pace with a transaction an append."""
    from confluent_kafka import Producer  # the product's own client has no transactions to measure

    stream = opened(url, replicas=replicas)
    stream.create_topic("reports.both", 4)
    servers, _, namespace = url.removeprefix("kafka://").partition("/")
    settings = {
        "bootstrap.servers": servers,
        "transactional.id": namespace,
        "linger.ms": 0,
        "compression.type": "zstd",
    }
    producer = Producer(settings)
    producer.init_transactions(30)
    took = []
    cpu, due = time.process_time(), time.monotonic()
    for _ in range(500):
        began = time.perf_counter()
        producer.begin_transaction()
        for number in range(12):
            producer.produce(f"{namespace}.reports.both", stamped(), partition=number % 4)
        producer.commit_transaction(30)
        took.append(time.perf_counter() - began)
        due += 0.0104
        time.sleep(max(0.0, due - time.monotonic()))
    cpu = time.process_time() - cpu
    ends = sum(stream.bounds("reports.both", partition).end for partition in range(4))
    begun, plain = time.process_time(), []
    for _ in range(500):
        began = time.perf_counter()
        stream.append("reports.both", {partition: [stamped() for _ in range(3)] for partition in range(4)})
        plain.append(time.perf_counter() - began)
        time.sleep(max(0.0, began + 0.0104 - time.perf_counter()))
    click.echo(
        f"12 records over 4 partitions every 10.4 ms, in a transaction: {quantiles(took)}; CPU s per million"
        f" {cpu / 6000 * 1e6:.0f}; offsets used up {ends / 6000:.2f} a record"
    )
    click.echo(
        f"  the same as plain appends: {quantiles(plain)}; CPU s per million {(time.process_time() - begun) / 6000 * 1e6:.0f}"
    )
    stream.close()


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--url", help="a Kafka cluster, as stream.url takes it, instead of the embedded stream")
@click.option("--replicas", default=1, show_default=True, help="copies of the topics that are made there")
def main(folder: Path | None, url: str | None, replicas: int) -> None:
    """What the stream costs on this machine, embedded (in FOLDER) or on Kafka."""
    if url is not None:
        kafka(f"{url.rstrip('/')}/bench{os.getpid()}", replicas)
        return
    with tempfile.TemporaryDirectory(dir=folder) as name:
        embedded(Path(name))


SIZES = ((1, 1000), (10, 500), (100, 300), (1000, 60))


def embedded(folder: Path) -> None:
    disk(folder)
    for batch, commits in SIZES:
        appends(opened(str(folder / f"append{batch}")), batch, commits)
    for every_s in (100.0, 1.0):
        upkeep(folder, every_s)
    for futex in (True, False):
        follower(str(folder / f"bell{futex}"), futex=futex)


def kafka(url: str, replicas: int) -> None:
    for batch, commits in SIZES:
        appends(opened(f"{url}-{batch}", replicas=replicas), batch, commits)
    follower(f"{url}-single", replicas=replicas)
    follower(f"{url}-paced", replicas=replicas, each=12, pause_s=12 / 1157)
    transactions(f"{url}-whole", replicas)


if __name__ == "__main__":
    main()
