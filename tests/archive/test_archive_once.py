"""Every accepted record is in the lake exactly once: kills, zombies, repeats, and the proof itself."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_rig import DAY_S, FORCE, NOW, TOPICS, Rig, new_rig, reject, report
from deltalake import DeltaTable, write_deltalake

from harmonywatch.archive.compact import compact, keep_compact
from harmonywatch.archive.lake import KeyChanged, Lake, LakeTable, LakeUnavailable, Mark, RewriteLost, WriterFenced
from harmonywatch.archive.parquet import Shelf
from harmonywatch.archive.repeats import Batch as Hashes
from harmonywatch.archive.repeats import RepeatIndex
from harmonywatch.archive.schema import TABLES
from harmonywatch.archive.tally import _Place, below
from harmonywatch.archive.verify import Verdict
from harmonywatch.stream.contract import PositionLost, StreamReset, TopicPartition
from harmonywatch.stream.memory import MemoryStream


def test_a_kill_at_any_step_loses_nothing_and_stores_nothing_twice(tmp_path: Path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "archive_victim.py", tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lives) == 22
    assert {life["point"] for life in lives if life["killed"]} == {life["point"] for life in lives}
    assert sum(life["killed"] for life in lives) >= 20, "a kill point was not reached"


# --- two writers -------------------------------------------------------------------------------------------------------


def test_a_zombie_that_wakes_before_its_commit_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rig = new_rig(tmp_path)
    real = LakeTable._commit
    for number in range(10):
        rig.put([report(number * 2), report(number * 2 + 1)], partition=number % 2)
        zombie, heir = rig.archiver(), rig.archiver()
        rig.feed(zombie)
        awake: list[bool] = []

        def pause(self, *args, heir=heir, awake=awake):
            if not awake:
                awake.append(True)
                rig.feed(heir)
                heir.finish()
            return real(self, *args)

        monkeypatch.setattr(LakeTable, "_commit", pause)
        before = rig.position(number % 2)
        try:
            zombie.finish()
        except WriterFenced:
            raise AssertionError("same positions, same rows: the zombie's commit is the heir's") from None
        monkeypatch.setattr(LakeTable, "_commit", real)
        assert awake and rig.position(number % 2) == before + 2
    assert rig.verify().stored == len(rig.rows()) == 20 and rig.verify().clean


def test_a_zombie_that_wakes_later_is_fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rig = new_rig(tmp_path)
    rig.put([report(1)])
    zombie = rig.archiver()
    rig.feed(zombie)
    rig.put([report(2)])
    rig.archive()
    with pytest.raises(WriterFenced):
        zombie.finish()
    real = LakeTable._commit
    heir = rig.archiver()
    rig.put([report(3)])
    rig.feed(heir)
    rig.put([report(4)])

    def pause(self, *args):
        monkeypatch.setattr(LakeTable, "_commit", real)
        rig.archive()
        return real(self, *args)

    monkeypatch.setattr(LakeTable, "_commit", pause)
    with pytest.raises(WriterFenced):
        heir.finish()
    assert heir.settled()[TopicPartition(TOPICS[0], 0)] == 2
    assert [row["offset"] for row in rig.rows()].sort() is None and len(rig.rows()) == 4 and rig.verify().clean


def test_without_the_fence_a_zombie_stores_twice_and_the_proof_shows_it(tmp_path: Path, monkeypatch):
    rig = new_rig(tmp_path)
    rig.put([report(1)])
    zombie = rig.archiver()
    rig.feed(zombie)
    rig.archive()
    monkeypatch.setattr(LakeTable, "_expect", lambda table, _: table.refresh())
    zombie.finish()
    assert len(rig.rows()) == 2 and rig.verify().repeated > 0 and not rig.verify().clean


def test_a_commit_whose_answer_is_lost_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rig = new_rig(tmp_path)
    real = LakeTable._commit
    for happened in (True, False):
        rig.put([report(len(rig.rows()) if rig.lake.open(FORCE, "reports") else 0)])
        archiver = rig.archiver()
        rig.feed(archiver)

        def lost(self, *args, happened=happened):
            if happened:
                real(self, *args)
            raise OSError("the connection broke")

        monkeypatch.setattr(LakeTable, "_commit", lost)
        if happened:
            archiver.finish()
        else:
            with pytest.raises(LakeUnavailable):
                archiver.finish()
        monkeypatch.setattr(LakeTable, "_commit", real)
        rig.archive()
    assert len(rig.rows()) == 2 and rig.verify().clean


def test_another_stream_or_a_shortened_one_stops_loudly(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([report(n) for n in range(3)])
    rig.archive()
    with pytest.raises(StreamReset):
        new_rig(tmp_path, MemoryStream()).archiver()
    with pytest.raises(StreamReset):
        new_rig(tmp_path, MemoryStream()).verify()
    late = new_rig(tmp_path / "late")
    late.put([report(1), report(2)])
    late.stream.trim(TOPICS[0], 0, 1)
    with pytest.raises(PositionLost):
        late.stream.reader(TOPICS, group="archive", start=late.archiver().start).poll(0.0)


def test_a_lost_key_is_not_replaced_in_silence(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([report(1)])
    rig.archive()
    (tmp_path / "keys" / f"{FORCE}.keys").unlink()
    with pytest.raises(KeyChanged):
        rig.archiver()


def test_positions_outlive_checkpoints_and_compaction_and_never_go_back(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("harmonywatch.archive.lake.REOPEN_COMMITS", 5)
    rig = new_rig(tmp_path)
    archiver = rig.archiver()
    seen = 0
    for number in range(17):
        rig.put([report(number)])
        rig.feed(archiver)
        archiver.finish()
        assert rig.position() == number + 1 > seen
        seen = rig.position()
    compact(rig.lake, FORCE, rig.settings, everything=True, vacuum=True)
    assert rig.position() == 17 and len(rig.rows()) == 17 and rig.verify().clean
    assert list((tmp_path / "lake" / FORCE / "reports" / "_delta_log").glob("*.checkpoint.parquet"))


def test_a_torn_last_entry_is_taken_away(tmp_path: Path):
    rig = new_rig(tmp_path)
    for number in range(3):
        rig.put([report(number)])
        rig.archive()
    log = sorted((tmp_path / "lake" / FORCE / "reports" / "_delta_log").glob("*.json"))
    log[-1].write_bytes(b"")
    rig.archive()
    assert len(rig.rows()) == 3 and rig.verify().clean


@pytest.mark.parametrize("kept_lines", [0, 0.5, 1, 2])
def test_a_table_torn_at_its_birth_is_made_again_and_is_empty_until_then(tmp_path: Path, kept_lines: float):
    rig = new_rig(tmp_path)
    rig.archiver()
    birth = tmp_path / "lake" / FORCE / "reports" / "_delta_log" / f"{0:020}.json"
    lines = birth.read_bytes().splitlines(keepends=True)
    birth.write_bytes(b"".join(lines[: int(kept_lines)]) if kept_lines != 0.5 else lines[0][:20])
    assert rig.lake.open(FORCE, "reports") is None and rig.verify().clean
    rig.put([report(1)])
    rig.archive()
    assert len(rig.rows()) == 1 and rig.verify().clean and rig.verify().stored == 1


def test_whoever_reads_a_torn_entry_is_told_what_takes_it_away(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([report(1)])
    rig.archive()
    last = max((tmp_path / "lake" / FORCE / "reports" / "_delta_log").glob("*.json"))
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(LakeUnavailable, match="start the archiver"):
        rig.verify()
    rig.archive()
    assert rig.verify().clean and rig.verify().stored == 1


def test_what_failed_while_a_file_was_written_is_what_is_told(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.archiver()
    shelf = rig.lake.open(FORCE, "reports").shelf

    def groups() -> Iterator[pa.Table]:
        yield TABLES["reports"].empty_table()
        shutil.rmtree(tmp_path / "lake" / FORCE / "reports" / "day=2026-11-23")
        raise RuntimeError("the real reason")

    with pytest.raises(RuntimeError, match="the real reason"):
        shelf.write(NOW.date(), groups())


# --- when it is stored -------------------------------------------------------------------------------------------------


def test_a_flush_comes_by_age_and_by_size_and_a_backlog_is_not_cut_small(tmp_path: Path):
    rig = new_rig(tmp_path, flush_interval_s=8.0, flush_bytes=20_000)
    archiver = rig.archiver()
    at = TopicPartition(TOPICS[0], 0)

    def told(*, age_s: float, count: int = 1) -> int:
        base = rig.stream.bounds(*at).end
        rig.put([report(base + n) for n in range(count)])
        [batch] = rig.stream.read(*at, base)
        now_us = int(rig.clock.now().timestamp() * 1e6)
        archiver.handle([type(batch)(*at, base, batch.values, now_us - int(age_s * 1e6))])
        return archiver.settled()[at]

    assert told(age_s=0) == 0
    rig.clock.advance(7.9)
    archiver.handle([])
    assert archiver.settled()[at] == 0
    rig.clock.advance(0.1)
    archiver.handle([])
    assert archiver.settled()[at] == 1
    assert told(age_s=60) == 1, "a backlog is gathered"
    assert told(age_s=60) == 1
    archiver.handle([])
    assert archiver.settled()[at] == 3, "at its end it is stored at once"
    assert told(age_s=0, count=100) == 103, "by size"


# --- repeats -----------------------------------------------------------------------------------------------------------


def _marks(rig: Rig) -> list[tuple[bool, bool]]:
    return [(row["repeat"], row["conflict"]) for row in sorted(rig.rows(), key=lambda row: row["offset"])]


@pytest.mark.parametrize("restart", [False, True])
def test_repeats_and_conflicts_are_recognised_for_a_day(tmp_path: Path, restart: bool):
    rig = new_rig(tmp_path)
    archiver = rig.archiver()

    def send(*values: bytes) -> None:
        nonlocal archiver
        rig.put(list(values))
        archiver = rig.archiver() if restart else archiver
        rig.feed(archiver)
        archiver.finish()

    def again(hours: float, **changes: object) -> bytes:
        fixed = {"time": (NOW - timedelta(minutes=1)).isoformat()}
        return report(1, received_at=NOW + timedelta(hours=hours), **(fixed | changes))

    send(again(0), again(0.01), again(0.02, words=["x"]), again(0.03, words=["x"]))
    send(again(0.1), again(0.1, words=["y"]))
    send(again(23.9), again(23.9, words=["x"]))
    send(again(49), again(49.1))
    new, repeat, conflict = (False, False), (True, False), (False, True)
    assert _marks(rig) == [new, repeat, conflict, repeat, repeat, conflict, repeat, repeat, new, repeat]
    rows = sorted(rig.rows(), key=lambda row: row["offset"])
    assert rows[1]["words"] is None and rows[1]["citizens"] is None and rows[1]["report_id"] == "r-1"
    assert rows[2]["words"] == ["x"]
    verdict = rig.verify()
    assert (verdict.stored, verdict.repeats, verdict.repeated, verdict.missing) == (10, 6, 0, 0)


def test_reports_without_anything_to_recognise_are_never_repeats(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([report(1, report_id=None, time=None)] * 3)
    rig.archive()
    assert _marks(rig) == [(False, False)] * 3 and rig.verify().clean


def test_partitions_do_not_share_repeats(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([report(1)], partition=0)
    rig.put([report(1)], partition=1)
    rig.archive()
    assert [row["repeat"] for row in rig.rows()] == [False, False] and rig.verify().clean


def test_the_index_agrees_with_a_plain_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harmonywatch.archive.repeats.SPILL_ROWS", 100)
    seed = random.SystemRandom().randrange(1 << 32)
    rng = np.random.default_rng(seed)
    index, seen_key, seen_pair = RepeatIndex(DAY_S, tmp_path), set(), set()
    for _ in range(60):
        n = int(rng.integers(1, 400))
        batch = Hashes(
            rng.integers(-300, 300, n), rng.integers(0, 3, n), rng.random(n) < 0.9, rng.integers(0, 2, n),
            rng.integers(0, int(DAY_S * 1e6), n),
        )  # fmt: skip
        repeat, conflict = index.judge(batch)
        for i in range(n):
            key = (int(batch.identity[i]), int(batch.partition[i]))
            pair = (*key, int(batch.content[i]))
            known = bool(batch.known[i])
            assert bool(repeat[i]) == (known and pair in seen_pair), f"seed {seed}"
            assert bool(conflict[i]) == (known and key in seen_key and pair not in seen_pair), f"seed {seed}"
            if known:
                seen_key.add(key)
                seen_pair.add(pair)
        index.add(batch.take(~repeat))


def test_one_fast_clock_does_not_empty_the_index():
    def batch(identity: int, *received_s: float) -> Hashes:
        n = len(received_s)
        whole = np.arange(identity, identity + n)
        return Hashes(whole, whole, np.ones(n, np.bool_), np.zeros(n, np.int64), np.array(received_s).astype(np.int64))

    index = RepeatIndex(DAY_S)
    index.add(batch(1, 1e15, 1e15, 1e15))
    index.add(batch(10, 1e15 + 1e6, 4e15, 1e15 + 1e6))
    assert index.judge(batch(1, 1e15 + 2e6))[0].all() and len(index) == 6
    index.add(batch(20, *[1e15 + 2 * DAY_S * 1e6] * 3))
    assert not index.judge(batch(1, 1e15))[0].any()


# --- the proof, and that it can fail -----------------------------------------------------------------------------------


def _archived(tmp_path: Path, files: int = 3) -> Rig:
    rig = new_rig(tmp_path)
    for number in range(files):
        rig.put([report(number * 10 + n) for n in range(10)])
        rig.archive()
    return rig


def test_the_proof_is_clean_before_the_first_table_and_counts_lag(tmp_path: Path):
    rig = new_rig(tmp_path)
    verdict = rig.verify()
    assert (verdict.accepted, verdict.stored, verdict.lag, verdict.clean) == (0, 0, 0, True)
    rig.put([report(1), report(2)])
    assert rig.verify().lag == 2
    rig.archive()
    verdict = rig.verify()
    assert (verdict.accepted, verdict.stored, verdict.lag, verdict.clean) == (2, 2, 0, True)


@pytest.mark.parametrize("proven_before", [False, True])
def test_the_proof_finds_a_deleted_file(tmp_path: Path, proven_before: bool):
    rig = _archived(tmp_path)
    assert not proven_before or rig.verify().clean
    Path(rig.lake.plan(FORCE, "reports").files[0]).unlink()
    verdict = rig.verify()
    assert verdict.missing == 10 and verdict.unreadable == 1 and not verdict.clean


def _append(rig: Rig, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, TABLES["reports"])
    write_deltalake(str(rig.folder / "lake" / FORCE / "reports"), table, mode="append")


def test_the_proof_finds_a_row_stored_twice_and_an_identity_stored_twice(tmp_path: Path):
    rig = _archived(tmp_path)
    row = rig.rows()[4] | {"day": NOW.date()}
    _append(rig, [row])
    assert rig.verify().repeated == 2 and rig.verify().missing == 0
    other = _archived(tmp_path / "other")
    other.put([report(99)])
    other.archive()
    [last] = [row for row in other.rows() if row["report_id"] == "r-99"]
    DeltaTable(str(tmp_path / "other" / "lake" / FORCE / "reports")).delete("report_id = 'r-99'")
    first = other.rows()[0]
    _append(other, [last | {"identity": first["identity"], "content": first["content"], "day": NOW.date()}])
    assert (other.verify().repeated, other.verify().missing) == (1, 0)


def test_the_proof_finds_a_lost_offset_and_a_lake_set_back(tmp_path: Path):
    rig = _archived(tmp_path)
    assert rig.verify().clean
    table = DeltaTable(str(tmp_path / "lake" / FORCE / "reports"))
    table.delete("report_id = 'r-13'")
    assert (rig.verify().missing, rig.verify().repeated) == (1, 0)
    log = sorted((tmp_path / "lake" / FORCE / "reports" / "_delta_log").glob("*.json"))
    for entry in log[-2:]:
        entry.unlink()
    verdict = rig.verify()
    assert (verdict.accepted, verdict.stored, verdict.missing) == (30, 20, 10), "the watermark remembers"
    rig.archive()
    assert rig.verify().clean and rig.verify().stored == 30


def _days(rig: Rig, *days_ago: int) -> None:
    """Ten reports of each of these days, stored in one commit."""
    at = rig.stream.bounds(TOPICS[0], 0).end
    for n, ago in enumerate(days_ago):
        moment = (NOW - timedelta(days=ago)).isoformat()
        rig.put([report(at + n * 10 + i, time=moment) for i in range(10)])
    rig.archive()


def _counted_files(rig: Rig, monkeypatch: pytest.MonkeyPatch, **how: bool) -> tuple[Verdict, list[str]]:
    """The verdict, and the days of whose files offsets were read."""
    read: list[str] = []
    real = Shelf.read

    def noted(self, path, columns):
        if "topic" in columns:
            read.append(path.split("/")[0].removeprefix("day="))
        return real(self, path, columns)

    with monkeypatch.context() as patched:
        patched.setattr(Shelf, "read", noted)
        return rig.verify(**how), sorted(read)


def test_days_that_were_proven_are_not_read_again_until_something_touches_them(tmp_path: Path, monkeypatch):
    rig = new_rig(tmp_path)
    _days(rig, 0, 1, 2)
    _days(rig, 2)
    rig.put([reject(1, b"rubbish")], TOPICS[2])
    rig.put([b"poison"])
    rig.archive()
    today, yesterday, before = "2026-11-23", "2026-11-22", "2026-11-21"
    first, read = _counted_files(rig, monkeypatch)
    assert first.clean and (first.stored, len(read)) == (41, 6)
    assert _counted_files(rig, monkeypatch) == (first, [])
    _days(rig, 1)
    second, read = _counted_files(rig, monkeypatch)
    assert second.clean and (second.stored, read) == (51, [yesterday, yesterday])
    compact(rig.lake, FORCE, rig.settings, everything=True, vacuum=False)
    merged, read = _counted_files(rig, monkeypatch)
    assert merged == second and set(read) >= {yesterday, before}
    assert _counted_files(rig, monkeypatch) == (second, [])
    again, read = _counted_files(rig, monkeypatch, everything=True)
    assert again == second and set(read) >= {today, yesterday, before}  # poison lies in the day of the wall clock
    DeltaTable(str(tmp_path / "lake" / FORCE / "reports")).delete("report_id = 'r-25'")
    lost, read = _counted_files(rig, monkeypatch)
    assert (lost.missing, read) == (1, [before])
    assert _counted_files(rig, monkeypatch)[1] == [before], "what is not clean is not remembered"


def test_a_proven_day_whose_file_is_gone_or_shorter_is_found(tmp_path: Path):
    rig = new_rig(tmp_path)
    _days(rig, 0, 1)
    assert rig.verify().clean
    [file] = [path for path in rig.lake.plan(FORCE, "reports").files if "2026-11-22" in path]
    whole = Path(file).read_bytes()
    Path(file).write_bytes(whole[:-1])
    assert (rig.verify().missing, rig.verify().unreadable) == (10, 1)
    Path(file).write_bytes(whole)
    assert rig.verify().clean
    Path(file).unlink()
    assert (rig.verify().missing, rig.verify().unreadable) == (10, 1)


def test_rubbish_in_place_of_the_remembered_days_is_not_believed(tmp_path: Path):
    rig = new_rig(tmp_path)
    _days(rig, 0, 1)
    for rubbish in (b"", b"[]", b'{"reports":{"2026-11-22":{}}}'):
        assert rig.verify().clean
        (tmp_path / "watch" / f"{FORCE}.days.json").write_bytes(rubbish)
    assert rig.verify().stored == 20 and rig.verify().clean


def test_intervals_count_what_a_plain_set_counts():
    seed = random.SystemRandom().randrange(1 << 32)
    rng = np.random.default_rng(seed)
    for _ in range(50):
        place, seen, rows = _Place(), set(), 0
        for _ in range(int(rng.integers(1, 6))):
            offsets = np.sort(rng.integers(0, 60, int(rng.integers(1, 40))))
            place.add(offsets)
            seen, rows = seen | set(offsets.tolist()), rows + len(offsets)
        held, position = place.held(), int(rng.integers(0, 70))
        assert held.rows == rows and below(held.offsets, position) == sum(each < position for each in seen), seed
        assert {n for first, end in held.offsets.tolist() for n in range(first, end)} == seen, seed


# --- compaction --------------------------------------------------------------------------------------------------------


def test_compaction_beside_appends_keeps_every_row(tmp_path: Path):
    rig = new_rig(tmp_path, compact_interval_s=0.001)
    archiver, stop, failures = rig.archiver(), threading.Event(), []
    helper = threading.Thread(
        target=keep_compact, args=(rig.lake, lambda: [FORCE], rig.settings, stop, failures.append)
    )
    helper.start()
    for number in range(40):
        rig.put([report(number * 5 + n) for n in range(5)])
        rig.feed(archiver)
        archiver.finish()
    stop.set()
    helper.join()
    assert not failures
    compact(rig.lake, FORCE, rig.settings, everything=True, vacuum=False)
    rows = rig.rows()
    assert sorted(row["offset"] for row in rows) == list(range(200)) and rig.verify().clean
    assert len(rig.lake.plan(FORCE, "reports").files) == 1
    by_offset = {row["offset"]: row for row in rows}
    assert all(by_offset[n]["report_id"] == f"r-{n}" and by_offset[n]["words"] == ["hello", "word"] for n in range(200))


def test_compaction_outlives_whatever_goes_wrong_with_one_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rig = new_rig(tmp_path, compact_interval_s=0.001)
    stop, merged, failures = threading.Event(), [], []
    asked = iter([RuntimeError("nobody knows the forces"), None, None])

    def forces() -> list[str]:
        if (error := next(asked, None)) is not None:
            raise error
        return ["broken", FORCE]

    def one(_lake: Lake, force: str, *_: object, **__: object) -> list[object]:
        if force == "broken":
            raise ZeroDivisionError("a bug")
        merged.append(force)
        if len(merged) == 2:
            stop.set()
        return []

    monkeypatch.setattr("harmonywatch.archive.compact.compact", one)
    helper = threading.Thread(target=keep_compact, args=(rig.lake, forces, rig.settings, stop, failures.append))
    helper.start()
    helper.join(30)
    assert not helper.is_alive() and merged == [FORCE, FORCE]
    assert [str(error) for error in failures] == ["nobody knows the forces", "a bug", "a bug"]


def test_of_two_rewrites_at_once_one_loses_and_no_row_is_doubled(tmp_path: Path):
    rig = _archived(tmp_path)
    one, two = rig.lake.open(FORCE, "reports"), rig.lake.open(FORCE, "reports")
    old = one.files()

    def merged(table: LakeTable):
        parts = [pa.table(batch) for file in old for batch in table.shelf.read(file.path, TABLES["reports"].names)]
        return table.shelf.write(old[0].day, parts)

    one.replace(old, [merged(one)])
    with pytest.raises(RewriteLost):
        two.replace(old, [merged(two)])
    assert len(rig.rows()) == 30 and rig.verify().clean


def test_merged_files_are_left_alone_and_days_are_not_mixed(tmp_path: Path):
    rig = new_rig(tmp_path, compact_bytes=40_000)
    for number in range(24):
        moment = NOW - timedelta(days=number % 2)
        rig.put([report(number * 100 + n, time=moment.isoformat(), words=[f"{number}-{n}"]) for n in range(100)])
        rig.archive()
    compact(rig.lake, FORCE, rig.settings, everything=False, vacuum=False)
    first = set(rig.lake.plan(FORCE, "reports").files)
    assert 2 <= len(first) < 24
    done = compact(rig.lake, FORCE, rig.settings, everything=False, vacuum=False)
    assert set(rig.lake.plan(FORCE, "reports").files) == first and done[0].files_before == done[0].files_after
    assert len(rig.rows()) == 2400 and rig.verify().clean
    for file in first:
        days = {moment.date().isoformat() for moment in pq.ParquetFile(file).read(["time"])["time"].to_pylist()}
        assert len(days) == 1 and f"day={days.pop()}" in file


@pytest.mark.parametrize("attempt", range(10))
def test_a_table_of_the_lake_can_be_made_by_two_at_once(tmp_path: Path, attempt: int):
    lake, failures = Lake(str(tmp_path)), []

    def make() -> None:
        try:
            lake.create("north", "reports", Mark("s", "k"))
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and lake.open("north", "reports").version == 0, (attempt, failures)
