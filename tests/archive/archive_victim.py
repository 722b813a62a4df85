"""A process that archives and is killed on the way: `archive_victim.py FOLDER`, started by test_archive_kills.py.

It forks one child per kill point and hit number: the child arms the point, archives, and kills itself there with
SIGKILL. Prints one JSON line per child: {"point", "hit", "killed"}. The points are wrapped around our own steps from
out here, so the archive itself knows nothing of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from archive_rig import TOPICS, alert, new_rig, reject, report

from harmonywatch.archive import tables
from harmonywatch.archive.lake import Lake, LakeTable
from harmonywatch.archive.parquet import Shelf
from harmonywatch.clock import SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import Batch, TopicPartition
from harmonywatch.stream.sqlite import SqliteStream

POINTS: list[tuple[type, str, str]] = [
    (Lake, "_make", "before"),
    (Lake, "_make", "after"),
    (tables.Intake, "addition", "before"),
    (Shelf, "write", "before"),
    (Shelf, "write", "after"),
    (Shelf, "keep", "after"),
    (LakeTable, "_commit", "before"),
    (LakeTable, "_commit", "after"),
    (LakeTable, "sync_log", "after"),
    (tables.Intake, "_store_poison", "after"),
    (tables.Intake, "remember", "before"),
]
HITS = (1, 3)
REPEATS, CONFLICTS = 4, 3


def arm(owner: type, name: str, when: str, hit: int) -> None:
    real: Callable[..., Any] = getattr(owner, name)
    left = [hit]

    def die() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die()
        answer = real(*arguments, **named)
        if when == "after":
            die()
        return answer

    setattr(owner, name, wrapped)


def fill(stream: SqliteStream) -> None:
    """Repeats near and far, conflicts, poison, two partitions, three topics."""
    for part in range(3):
        reports = [report(part * 10 + n) for n in range(10)] + [report(part * 10), b"poison %d" % part]
        reports.append(report(part * 10, words=["other", str(part)]))
        if part == 2:
            reports.append(report(0))
        stream.append(TOPICS[0], {part % 2: reports})
        stream.append(TOPICS[1], {0: [alert(part), alert(part // 2), b"{}"]})
        stream.append(TOPICS[2], {1: [reject(part, b"rubbish %d" % part), b"null"]})


def archive(folder: Path, stream: SqliteStream) -> None:
    """Store and tell the stream, a few records at a time, as the loop does."""
    rig = new_rig(folder, stream)
    archiver = rig.archiver()
    reader = stream.reader(TOPICS, group="archive", start=archiver.start)
    while batches := reader.poll(0):
        for batch in (piece for whole in batches for piece in _pieces(whole)):
            archiver.handle([batch])
            archiver.finish()
            reader.commit(archiver.settled())


def _pieces(batch: Batch) -> list[Batch]:
    return [
        Batch(batch.topic, batch.partition, batch.base_offset + at, batch.values[at : at + 13], batch.appended_us)
        for at in range(0, len(batch.values), 13)
    ]


def in_child(act: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def one_life(folder: Path, point: tuple[type, str, str] | None, hit: int) -> Callable[[], None]:
    """Archive what is there, armed to be killed; without a point archive the rest, and see that all is well."""

    def act() -> None:
        stream = _stream(folder)
        if point is not None:
            arm(*point, hit)
        archive(folder, stream)
        if point is None:
            check(folder, stream)

    return act


def check(folder: Path, stream: SqliteStream) -> None:
    """Every record of the stream is one row; raises AssertionError where not."""
    rig = new_rig(folder, stream)
    rows = [("reports." + "north", row) for row in rig.rows("reports")]
    rows += [("alerts." + "north", row) for row in rig.rows("alerts")]
    rows += [(row["topic"], row) for row in rig.rows("rejects")]
    places = [(topic, row["partition"], row["offset"]) for topic, row in rows]
    wanted = {(t, p, o) for t in TOPICS for p in range(2) for o in range(stream.bounds(t, p).end)}
    assert len(places) == len(set(places)), "a record is stored twice"
    assert set(places) == wanted, wanted ^ set(places)
    for verdict in rig.verdicts():
        assert verdict.clean and verdict.lag == 0, verdict
    for topic in TOPICS:
        for partition, told in stream.committed("archive", topic).items():
            assert told <= rig.position(partition, topic) == stream.bounds(topic, partition).end, TopicPartition
    kinds = [(row["repeat"], row["conflict"]) for _, row in rows if "conflict" in row]
    assert (kinds.count((True, False)), kinds.count((False, True))) == (REPEATS, CONFLICTS), kinds


def main(root: Path) -> None:
    np.unique(np.zeros(1))  # imports what it needs once, not in every child
    full = root / "full"

    def fill_once() -> None:
        stream = _stream(full)
        new_rig(full, stream)
        fill(stream)
        stream.close()

    assert in_child(fill_once) == 0
    for number, (owner, name, when) in enumerate(POINTS):
        for hit in HITS:
            folder = root / f"{number}-{hit}"
            shutil.copytree(full, folder)
            killed = in_child(one_life(folder, (owner, name, when), hit)) == -signal.SIGKILL
            assert in_child(one_life(folder, None, 0)) == 0, (name, when, hit)
            sys.stdout.write(json.dumps({"point": f"{name} {when}", "hit": hit, "killed": killed}) + "\n")


def _stream(folder: Path) -> SqliteStream:
    return SqliteStream(folder / "stream", StreamSettings(), SystemClock())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
