"""A file that someone else wrote goes in by `send`: every line is answered for, now and in the archive."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from foreign_file import COMPOSED, ForeignFile, foreign_file
from running_system import HARMONYWATCH, Row, System, clean_environment, wait_for

QUERYABLE_S = 15.0
FORCE = "stranger"


@pytest.fixture(scope="module")
def file() -> ForeignFile:
    return foreign_file()


@pytest.fixture(scope="module")
def sent(system: System, file: ForeignFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], float]:
    """The verdicts of the file, and when they were complete."""
    path: Path = tmp_path_factory.mktemp("file") / "stranger.ndjson"
    path.write_bytes(file.data())
    key = system.add_force(FORCE)
    return system.run("send", str(path), "--key", key, codes=(1,)), time.monotonic()


@pytest.fixture(scope="module")
def archived(system: System, file: ForeignFile, sent: tuple[list[Row], float]) -> list[Row]:
    """The rows of `reports`, once all are there."""
    wanted = sum(file.stored().values())

    def rows() -> list[Row]:
        found = system.query("select * from reports", FORCE)
        return found if len(found) >= wanted else []

    left_s = QUERYABLE_S - (time.monotonic() - sent[1])
    return wait_for(f"{wanted} rows, {QUERYABLE_S} s after acceptance", rows, left_s, 0.5)


def test_every_line_of_a_strangers_file_has_a_verdict(file: ForeignFile, sent: tuple[list[Row], float]) -> None:
    verdicts = sent[0]
    assert [row["line"] for row in verdicts] == sorted(file.numbers(True) + file.numbers(False))
    assert [row["line"] for row in verdicts if row["status"] == "accepted"] == file.numbers(True)
    refused = [row for row in verdicts if row["status"] == "refused"]
    assert [row["line"] for row in refused] == file.numbers(False)
    assert all(row["reason"] for row in refused), "a refusal without a reason"


def test_each_accepted_report_is_queryable_once_within_15_s(file: ForeignFile, archived: list[Row]) -> None:
    assert Counter(row["watcher_id"] for row in archived) == file.stored()
    ids = [(row["watcher_id"], row["report_id"]) for row in archived]
    again = {identity for identity, count in Counter(ids).items() if count > 1}
    assert again == {("repeats-by-id", "r-1")}, "only the id that was used for two contents stands twice"


def test_unknown_members_are_kept_in_extra(file: ForeignFile, archived: list[Row]) -> None:
    kept = {row["watcher_id"]: row["extra"] for row in archived}
    for line in file.lines:
        if line.accepted:
            extra = kept[line.watcher_id]
            assert (json.loads(extra) if extra else None) == line.extra, line.watcher_id
    assert "1.50e1" in kept["nothing-seen"], "a number was not kept as it was written"


def test_a_key_given_twice_means_its_last_value(archived: list[Row]) -> None:
    (row,) = [row for row in archived if row["watcher_id"] == "given-twice"]
    assert (row["lat"], row["words"], row["citizens"][0]["harmonyscore"]) == (2.0, ["yes"], 99.0)


def test_no_name_stands_in_clear_in_the_archive(archived: list[Row]) -> None:
    names = {"Ada Quiet", COMPOSED}
    assert not any(name in json.dumps(row["citizens"], ensure_ascii=False) for row in archived for name in names)


def test_both_spellings_of_a_name_are_one_citizen(system: System, archived: list[Row]) -> None:
    assert archived
    sightings = system.query(
        "select distinct citizen from sightings where watcher_id in ('spelling', 'escaped')", FORCE
    )
    assert len(sightings) == 1
    (incident,) = system.run("incidents", "--force", FORCE)
    assert incident["occurrences"] == 2
    assert unicodedata.normalize("NFC", incident["name"]) == COMPOSED, "shown as some watcher spelled it"


def test_refused_lines_are_rejects_with_their_exact_bytes(
    system: System, file: ForeignFile, sent: tuple[list[Row], float]
) -> None:
    def listed() -> list[Row]:
        rows = system.run("rejects", "list", "--force", FORCE)
        return rows if len(rows) >= len(file.refused()) else []

    rows = wait_for("every reject listed", listed, QUERYABLE_S, 0.2)
    assert sorted(row["line"] for row in rows) == sorted(file.refused())
    assert all(row["code"] and row["reason"] for row in rows)
    for row in rows:
        kept = file.refused()[row["line"]]
        if any(trait in kept for trait in (b"words of a stranger", b"\xff", b"another system", b"space", b"NaN")):
            assert rejected_bytes(system, row["reject_id"]) == kept
    assert sent


def rejected_bytes(system: System, reject_id: str) -> bytes:
    (row,) = system.run("rejects", "show", reject_id, "--force", FORCE)
    return base64.b64decode(row["bytes"], validate=True)


def test_a_rejects_bytes_go_to_standard_output_as_they_came(system: System, sent: tuple[list[Row], float]) -> None:
    assert sent
    row = next(row for row in system.run("rejects", "list", "--force", FORCE) if row["code"] == "not-json")
    command = [HARMONYWATCH, "rejects", "show", row["reject_id"], "--force", FORCE, "--data", str(system.folder)]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=30, env=clean_environment()).stdout
    assert shown == rejected_bytes(system, row["reject_id"])


def test_lake_verify_is_clean_after_a_strangers_file(system: System, file: ForeignFile, archived: list[Row]) -> None:
    assert archived
    row = system.wait_archived(FORCE, len(file.numbers(True)), 15)
    assert row["accepted"] == row["stored"] == len(file.numbers(True))
    assert row["repeats"] == 2
