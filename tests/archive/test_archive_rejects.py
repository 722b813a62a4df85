"""What `rejects list` shows: the lake's, then what waits on the stream, whatever lies between."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from archive_rig import FORCE, NOW, TOPICS, Rig, new_rig, reject

from harmonywatch.archive.rejected import Reject, rejects
from harmonywatch.archive.sealing import open_sealer

POISON = [
    b"\x00\xff",
    b"{}",
    b'{"v":1}',
    b"[" * 100_000,
    reject(3, b"three").replace(b'"bytes":"', b'"bytes":"!'),
    reject(4, b"four").replace(b'"line":4', b'"line":"four"'),
]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = new_rig(tmp_path)
    for number, poison in enumerate(POISON):
        rig.put([reject(10 + number, b"good"), poison], TOPICS[2])
    return rig


def listed(rig: Rig) -> list[Reject]:
    return list(rejects(rig.lake, rig.stream, FORCE, open_sealer(rig.folder / "keys", FORCE)))


def test_what_is_no_reject_is_one_of_its_own_and_the_rest_is_listed(rig: Rig) -> None:
    found = listed(rig)
    assert [each.reject_id for each in found[::2]] == [f"j-{10 + n}" for n in range(len(POISON))]
    assert [each.bytes for each in found[1::2]] == POISON
    assert {each.facts["code"] for each in found[1::2]} == {"poison"}


def test_the_archive_gives_it_the_same_name_and_the_same_facts(rig: Rig) -> None:
    waiting = {each.reject_id: each for each in listed(rig)}
    rig.archive()
    archived = {each.reject_id: each for each in listed(rig)}
    assert archived == waiting


def test_since_holds_for_it_too(rig: Rig) -> None:
    sealer = open_sealer(rig.folder / "keys", FORCE)
    assert list(rejects(rig.lake, rig.stream, FORCE, sealer, NOW + timedelta(days=100_000))) == []
