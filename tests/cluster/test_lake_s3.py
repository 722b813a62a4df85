"""The lake on an S3-compatible store: the same tables, the same guarantees, and what only a network can do to them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engines.s3 import S3
from harmonywatch.archive.archiver import Archiver
from harmonywatch.archive.compact import compact, keep_compact
from harmonywatch.archive.lake import KeyChanged, Lake, LakeUnavailable, Mark, WriterFenced
from harmonywatch.archive.rejected import rejects
from harmonywatch.archive.sealing import open_sealer
from harmonywatch.archive.tables import Folders
from harmonywatch.stream.contract import StreamReset, TopicPartition
from harmonywatch.telemetry import Telemetry

sys.path.append(str(Path(__file__).parent.parent / "archive"))

import archive_rig
from archive_rig import FORCE, TOPICS, alert, new_rig, reject, report


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as started:
        yield started


@dataclass
class RemoteRig(archive_rig.Rig):
    """The archive's rig with its lake elsewhere."""

    url: str = ""

    @property
    def lake(self) -> Lake:
        return Lake(self.url)


@pytest.fixture
def rig(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteRig:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    local = new_rig(tmp_path)
    bucket = "".join(sign for sign in tmp_path.name.lower() if sign.isalnum())
    return RemoteRig(local.folder, local.stream, local.settings, local.clock, f"{server.bucket(bucket)}/lake")


def test_every_kind_of_record_is_stored_proven_merged_and_read_back(rig: RemoteRig):
    for number in range(4):
        rig.put([report(number * 10 + n) for n in range(10)], partition=number % 2)
        rig.put([alert(number)], TOPICS[1])
        rig.put([reject(number, b"rubbish"), b"poison"], TOPICS[2])
        rig.archive()
    first = rig.verdicts()
    assert all(verdict.clean for verdict in first) and [verdict.stored for verdict in first] == [40, 4, 8]
    done = compact(rig.lake, FORCE, rig.settings, everything=True, vacuum=True)
    assert [each.files_before for each in done][:2] == [4, 4] and [each.files_after for each in done][:2] == [1, 1]
    assert rig.verdicts() == first == rig.verdicts(everything=True)
    [file] = rig.lake.plan(FORCE, "reports").files
    assert file.startswith(rig.url)
    sealer = open_sealer(rig.folder / "keys", FORCE)
    assert (
        sorted(each.bytes for each in rejects(rig.lake, rig.stream, FORCE, sealer))
        == [b"poison"] * 4 + [b"rubbish"] * 4
    )


def test_a_writer_that_lost_its_partitions_is_fenced(rig: RemoteRig):
    rig.put([report(1)])
    zombie = rig.archiver()
    rig.feed(zombie)
    rig.put([report(2)])
    rig.archive()
    with pytest.raises(WriterFenced):
        zombie.finish()
    assert rig.verify().clean and rig.verify().stored == 2


def test_a_table_is_made_once_and_belongs_to_its_stream_and_key(rig: RemoteRig):
    failures: list[Exception] = []

    def make() -> None:
        try:
            rig.lake.create(FORCE, "reports", Mark("s", "k"))
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    makers = [threading.Thread(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert not failures and rig.lake.open(FORCE, "reports").version == 0
    with pytest.raises(StreamReset):
        rig.lake.create(FORCE, "reports", Mark("other", "k"))
    with pytest.raises(KeyChanged):
        rig.lake.create(FORCE, "reports", Mark("s", "other"))


def test_archivers_with_partitions_of_their_own_and_a_merger_do_not_hold_up_one_another(rig: RemoteRig):
    rounds, failures, stop = 12, [], threading.Event()

    def work(partition: int) -> None:
        try:
            folders = Folders(rig.folder / "keys", rig.folder / f"index{partition}")
            archiver = Archiver(rig.lake, folders, rig.stream.id, rig.settings, rig.clock, Telemetry("archive"))
            archiver.start(TOPICS[0], partition)
            for number in range(rounds):
                rig.put([report(partition * 1000 + number * 10 + n) for n in range(10)], partition=partition)
                rig.feed(archiver)
                archiver.finish()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    merger = threading.Thread(
        target=keep_compact,
        args=(rig.lake, lambda: [FORCE], replace(rig.settings, compact_interval_s=0.01), stop, failures.append),
    )
    writers = [threading.Thread(target=work, args=(partition,)) for partition in (0, 1)]
    rig.archiver()
    for thread in (*writers, merger):
        thread.start()
    for writer in writers:
        writer.join()
    stop.set()
    merger.join()
    assert not failures, failures
    verdict = rig.verify()
    assert verdict.clean and verdict.stored == 2 * rounds * 10
    assert len(rig.lake.plan(FORCE, "reports").files) < 2 * rounds, "nothing was merged meanwhile"


def test_a_store_that_dies_stops_the_archiver_and_loses_nothing(rig: RemoteRig, server: S3):
    rig.put([report(1)])
    archiver = rig.archive()
    rig.put([report(2)])
    rig.feed(archiver)
    server.kill()
    try:
        with pytest.raises(LakeUnavailable):
            archiver.finish()
    finally:
        server.start()
    assert archiver.settled()[TopicPartition(TOPICS[0], 0)] == 1
    rig.archive()
    assert rig.verify().clean and rig.verify().stored == 2


def test_without_the_store_nothing_is_taken_for_an_empty_lake(rig: RemoteRig, monkeypatch: pytest.MonkeyPatch):
    rig.put([report(1)])
    rig.archive()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(LakeUnavailable):
        rig.lake.open(FORCE, "reports")
