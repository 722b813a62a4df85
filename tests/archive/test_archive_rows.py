"""What a record becomes in the lake."""

from __future__ import annotations

import gc
import json
import random
import unicodedata
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import h3
import msgspec
import pyarrow.parquet as pq
import pytest
from archive_rig import FORCE, NOW, TOPICS, alert, new_rig, reject, report

from harmonywatch.archive.columns import Forms
from harmonywatch.archive.decoding import Decoder, NewerRecord
from harmonywatch.archive.schema import TABLES
from harmonywatch.archive.sealing import NotSealedHere, open_sealer
from harmonywatch.archive.tokens import Tokens
from harmonywatch.clock import from_wire
from harmonywatch.report.record import ReportRecord
from harmonywatch.report.topics import AlertRecord, RejectRecord

CANARY = "Zyxwvut Qanarybird"


def _forms(folder: Path) -> tuple[Forms, Tokens]:
    sealer = open_sealer(folder / "keys", FORCE)
    tokens = Tokens(sealer)
    return Forms(sealer, tokens), tokens


@pytest.mark.parametrize(("name", "kind"), [("report", ReportRecord), ("alert", AlertRecord), ("reject", RejectRecord)])
def test_what_is_read_has_exactly_the_members_of_the_record(tmp_path: Path, name: str, kind: type):
    def members(struct: type) -> dict[str, bool]:
        return {field.name: field.required for field in msgspec.structs.fields(struct)}

    assert members(getattr(_forms(tmp_path)[0], name).kind) == members(kind)


def test_a_report_with_everything_keeps_everything(tmp_path: Path):
    rig = new_rig(tmp_path)
    full = report(
        1, sequence=17, heading_deg=20, speed_mps=3.5, battery=0.5, signal_dbm=-70, firmware="2.1", model="Wren",
        schema_version=1, mood={"deep": [1, None]},
        location={"lat": 47.5, "lon": 8.5, "accuracy_m": 3, "altitude_m": 420.5, "floor": 3},
        citizens=[{"name": " Jane  ", "harmonyscore": 12, "confidence": 0.5}, {"name": "J", "harmonyscore": 1.5,
                  "citizen_id": "c-1"}, {"name": "Plain", "harmonyscore": 99}],
    )  # fmt: skip
    rig.put([full])
    rig.archive()
    [row] = rig.rows()
    assert set(row) == set(TABLES["reports"].names) - {"day"}
    for name, value in {
        "report_id": "r-1", "watcher_id": "w-1", "lat": 47.5, "lon": 8.5, "accuracy_m": 3.0, "altitude_m": 420.5,
        "heading_deg": 20.0, "speed_mps": 3.5, "battery": 0.5, "signal_dbm": -70.0, "sequence": 17, "firmware": "2.1",
        "model": "Wren", "schema_version": "1", "words": ["hello", "word"], "repeat": False, "conflict": False,
        "partition": 0, "offset": 0, "received_at": NOW, "time": NOW - timedelta(seconds=1), "clock_suspect": False,
    }.items():  # fmt: skip
        assert row[name] == value, name
    assert row["h3"] == h3.latlng_to_cell(47.5, 8.5, 9)
    assert json.loads(row["extra"]) == {"mood": {"deep": [1, None]}, "location": {"floor": 3}}
    record = msgspec.json.decode(full, type=ReportRecord)
    assert (row["identity"], row["content"]) == (record.identity, record.content)
    sealer = open_sealer(tmp_path / "keys", FORCE)
    seen = [(sealer.reveal(c["citizen"]), sealer.name_of(c["citizen"], c["citizen_sealed"])) for c in row["citizens"]]
    assert seen == [("name:Jane", " Jane  "), ("id:c-1", "J"), ("name:Plain", "Plain")]
    assert [c["citizen_sealed"] is None for c in row["citizens"]] == [False, False, True]
    assert [c["harmonyscore"] for c in row["citizens"]] == [12.0, 1.5, 99.0]


def test_a_report_with_only_the_four_members_is_stored(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([report(1, report_id=None, time=None, citizens=[], words=[])])
    rig.archive()
    [row] = rig.rows()
    assert row["identity"] is None and row["citizens"] == [] and row["words"] == [] and row["time"] == NOW


def test_rows_lie_in_the_utc_day_of_their_time(tmp_path: Path):
    rig = new_rig(tmp_path)
    moments = [datetime(2026, 11, d, h, 59, 59, 999999, UTC) for d in (20, 21) for h in (0, 23)]
    rig.put([report(n, time=moment.isoformat()) for n, moment in enumerate(moments)])
    rig.archive()
    days = {file.day: file.rows for file in rig.lake.open(FORCE, "reports").files()}
    assert days == {date(2026, 11, 20): 2, date(2026, 11, 21): 2}
    one = rig.lake.plan(FORCE, "reports", date(2026, 11, 21), date(2026, 11, 22))
    assert len(one.files) == 1 and "day=2026-11-21" in one.files[0] and one.bytes > 0
    assert rig.lake.plan("nobody", "reports").files == []


def test_a_stray_of_another_day_does_not_carry_the_tokens_of_the_others(tmp_path: Path):
    rig = new_rig(tmp_path)
    crowd = [
        report(n, citizens=[{"name": f"Citizen {n} {k}", "harmonyscore": 50} for k in range(8)]) for n in range(300)
    ]
    yesterday = (NOW - timedelta(days=1)).isoformat()
    rig.put([*crowd, report(1000, time=yesterday)])
    rig.archive()
    sizes = {file.rows: file.size_bytes for file in rig.lake.open(FORCE, "reports").files()}
    assert set(sizes) == {300, 1}
    assert sizes[1] < sizes[300] / 4, "the file of one row holds what 300 others have seen"
    assert len(rig.rows()) == 301


def test_identities_are_those_of_the_words_for_any_spelling(tmp_path: Path):
    seed = 7
    rng = random.Random(seed)
    rig = new_rig(tmp_path)
    signs = ["A", "é", "e\u0301", "\u1100\u1161", " ", "\u00a0", "\u2003", "ﬁ", "Å", "\u212b", "\x1f", "x"]
    names = ["".join(rng.choices(signs, k=rng.randint(1, 5))) for _ in range(300)]
    names = [name for name in names if name.strip()]
    rig.put([report(n, citizens=[{"name": name, "harmonyscore": 1}]) for n, name in enumerate(names)])
    rig.archive()
    sealer = open_sealer(tmp_path / "keys", FORCE)
    for row in rig.rows():
        [citizen], name = row["citizens"], names[row["offset"]]
        assert sealer.reveal(citizen["citizen"]) == "name:" + unicodedata.normalize("NFC", name).strip(), seed
        assert sealer.name_of(citizen["citizen"], citizen["citizen_sealed"]) == name


def test_no_name_stands_in_clear_in_any_file_of_the_lake(tmp_path: Path):
    rig = new_rig(tmp_path)
    poison = b'{"v":1,"citizens":[{"name":"' + CANARY.encode() + b'"}]}'
    citizens = [{"name": CANARY, "harmonyscore": 1}, {"name": CANARY + "e\u0301", "harmonyscore": 1}]
    rig.put([report(1, citizens=[*citizens, {"name": CANARY, "harmonyscore": 2, "citizen_id": "c"}]), poison])
    rig.put([alert(1, name=CANARY, identity="name:" + CANARY), b'["' + CANARY.encode() + b'"]'], TOPICS[1])
    rig.put([reject(1, b'{"name": "' + CANARY.encode()), CANARY.encode()], TOPICS[2])
    rig.archive()
    rig.archiver()._topics[TOPICS[0]].intake.table.checkpoint()
    files = [path for path in (tmp_path / "lake").rglob("*") if path.is_file()]
    assert len(files) > 6
    shown = [str(row).encode() for table in TABLES for row in rig.rows(table)]
    for content in [*(path.read_bytes() for path in files), *shown]:
        for secret in (CANARY.encode(), CANARY.split()[0].encode(), b"Qanary"):
            assert secret not in content
    sealer = open_sealer(tmp_path / "keys", FORCE)
    opened = {sealer.open_bytes(row["bytes"], row["reject_id"]) for row in rig.rows("rejects")}
    assert poison in opened and len(opened) == 4 and all(CANARY.encode() in each for each in opened)


def test_tokens_do_not_cross_forces_and_keys_are_private(tmp_path: Path):
    north, south = open_sealer(tmp_path / "k", "north"), open_sealer(tmp_path / "k", "south")
    token, _ = north.token("Jane", None)
    assert token == open_sealer(tmp_path / "k", "north").token("Jane", None)[0] != south.token("Jane", None)[0]
    for wrong in (token[:-2] + "AA", "v9." + token[3:], "rubbish", ""):
        with pytest.raises(NotSealedHere):
            north.reveal(wrong)
    with pytest.raises(NotSealedHere):
        south.reveal(token)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "k" / "north.keys").stat().st_mode & 0o777 == 0o600


def _mutations(rng: random.Random) -> list[bytes]:
    good = report(1)
    out = [
        b"", b" ", b"null", b"{}", b"[]", b"1", b'"x"', b"\xff", good + good, good + b"null" + good, b"null" + good,
        good[:-1], good.replace(b"{", b"{\n", 1), good + b"\n" + good, good.replace(b'"v":1', b'"v":0'),
        good.replace(b'"v":1,', b""), good.replace(b"north", b"south"), good.replace(b'"lat":47', b'"lat":147'),
        good.replace(b'"lat":47.001', b'"lat":NaN'), good.replace(b'"lat":47.001', b'"lat":1e400'),
        good.replace(b'"harmonyscore":1.0', b'"harmonyscore":null'), good.replace(b'"name":"Citizen 1",', b""),
        good.replace(b'"citizens":[', b'"citizens":[null,'), good.replace(b'"words":[', b'"words":[null,'),
        good.replace(b'"words":[', b'"words":[1,'), good.replace(b'"words"', b'"wordz"'),
        good.replace(b"hello", b"\\ud800"), good.replace(b"hello", b"\xff\xfe"), good[:-1] + b',"v":1}',
        good.replace(b"T11:59", b"T25:59"), b'{"v":' + b"[" * 100_000, good.replace(b"hello", b"he\nllo"),
        good.replace(b'"content":', b'"content":1.5,"x":'), good.replace(b'"content":-', b'"content":--'),
    ]  # fmt: skip
    out = [value for value in out if value != good]
    while len(out) < 1500:
        value = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(value))
            choice = rng.randrange(4)
            if choice == 0:
                value[at] = rng.randrange(256)
            elif choice == 1:
                del value[at : at + rng.randint(1, 20)]
            elif choice == 2:
                value[at:at] = rng.choice([b"null", b"}{", b"}\n{", b'"', b"\\", b"[", b"1e999", b"{}null{}"])
            else:
                value[at:at] = value[at : at + rng.randint(1, 40)]
        out.append(bytes(value))
    return out


def test_poison_is_set_apart_and_its_neighbours_are_stored(tmp_path: Path):
    seed = 20261123
    rng = random.Random(seed)
    bad = _mutations(rng)
    values = [v for n, each in enumerate(bad) for v in (each, report(n + 10))]
    rig = new_rig(tmp_path)
    rig.put(values)
    try:
        rig.archive()
    except NewerRecord:
        raise AssertionError(f"a mutation made a greater version, choose another seed than {seed}") from None
    kept = {row["offset"] for row in rig.rows()}
    apart = {row["offset"]: row for row in rig.rows("rejects")}
    assert kept | apart.keys() == set(range(len(values))) and not kept & apart.keys(), seed
    assert {n for n in range(len(values)) if n % 2} <= kept
    assert len(apart) > 900
    row = apart[0]
    assert (row["source"], row["code"], row["topic"], row["partition"]) == ("stream", "poison", TOPICS[0], 0)
    assert (row["origin_topic"], row["origin_offset"]) == (TOPICS[0], 0)
    sealer = open_sealer(tmp_path / "keys", FORCE)
    assert all(sealer.open_bytes(r["bytes"], r["reject_id"]) == values[r["offset"]] for r in apart.values())
    by_offset = {row["offset"]: row for row in rig.rows()}
    assert all(by_offset[n]["report_id"] == f"r-{n // 2 + 10}" for n in range(1, len(values), 2))
    assert all(v.clean for v in rig.verdicts()) and rig.verify().stored == len(values)


@pytest.mark.parametrize("more", [b"", b',"new_member":[1]'])
def test_a_greater_version_stops_the_archiver_and_stores_nothing(tmp_path: Path, more: bytes):
    rig = new_rig(tmp_path)
    rig.put([report(1), report(2)[:-1].replace(b'"v":1', b'"v":2') + more + b"}", b"rubbish"])
    with pytest.raises(NewerRecord):
        rig.archive()
    assert rig.rows() == [] and rig.position() == 0


SPELLINGS = [
    [], ["a"], ["", "é", "😀"], ["a,b", "c"], ["[", "]"], ['"'], ["\\"], ["\n", "\t"], ["ends,", ",begins"], ["null"], ["x"] * 40
]  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_records_are_read_as_the_exact_decoder_reads_them(tmp_path: Path, together: bool):
    values = [
        report(n, time=None if n % 3 else "2026-11-01T00:00:00.5Z", sequence=n or None, words=SPELLINGS[n % 11])
        for n in range(55)
    ]
    forms, _ = _forms(tmp_path)
    decoder = Decoder(FORCE, forms.report)
    decoded = [decoder.decode(values)] if together else [decoder.decode([value]) for value in values]
    rows = [row for each in decoded for row in each.table.to_pylist()]
    assert [number for each in decoded for number in each.index.tolist()] == (list(range(55)) if together else [0] * 55)
    for row, value in zip(rows, values, strict=True):
        record = msgspec.to_builtins(msgspec.json.decode(value, type=ReportRecord))
        for name in row.keys() - {"h3", "citizens"}:
            expected = record.get(name, False if name == "clock_suspect" else None)
            timed = name in ("time", "received_at", "device_time") and expected is not None
            assert row[name] == (from_wire(expected) if timed else expected), name
        assert [seen["harmonyscore"] for seen in row["citizens"]] == [
            seen["harmonyscore"] for seen in record["citizens"]
        ]


@pytest.mark.parametrize(
    "wrong",
    [
        b"[1]",
        b'["a" ]',
        b'["a",]',
        b'[["a"]]',
        b'["a",null]',
        b"null",
        b'{"a":"b"}',
        b'["\xff"]',
        b'["\n"]',
        b'["a",1]',
    ],
)
def test_words_that_are_not_an_array_of_texts_are_poison(tmp_path: Path, wrong: bytes):
    good = report(1)
    bad = good.replace(b'["hello","word"]', wrong)
    decoded = Decoder(FORCE, _forms(tmp_path)[0].report).decode([good, bad, good])
    honest = wrong == b'["a" ]'  # a space is JSON too
    assert decoded.poison == ([] if honest else [1]) and bad != good
    assert decoded.table["words"].to_pylist() == [["hello", "word"]] + [["a"]] * honest + [["hello", "word"]]


def test_a_citizen_spelled_in_two_ways_has_one_token_and_its_column_keeps_its_dictionary(tmp_path: Path):
    rig = new_rig(tmp_path)
    spellings = [("Jane", "c-1"), ("Jane D.", "c-1"), (" Jane", None), ("Jane", None)] * 3
    rig.put([report(1, citizens=[{"name": n, "citizen_id": i, "harmonyscore": 50} for n, i in spellings])])
    rig.archive()
    [row] = rig.rows()
    sealer = open_sealer(tmp_path / "keys", FORCE)
    assert [sealer.name_of(c["citizen"], c["citizen_sealed"]) for c in row["citizens"]] == [
        name for name, _ in spellings
    ]
    assert len({c["citizen"] for c in row["citizens"]}) == 2
    [file] = rig.lake.plan(FORCE, "reports").files
    group = pq.ParquetFile(file).metadata.row_group(0)
    encodings = {group.column(n).path_in_schema: group.column(n).encodings for n in range(group.num_columns)}
    assert "RLE_DICTIONARY" in encodings["citizens.list.element.citizen"]


def test_numbers_of_citizens_are_forgotten_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harmonywatch.archive.tokens.REMEMBERED_MAX", 3)
    _, tokens = _forms(tmp_path)
    for _ in range(3):
        numbers = tokens.number(["A", ("B", "b"), "C", "D", "A"])
        assert numbers.tolist() == [0, 1, 2, 3, 0]
        citizen, sealed = tokens.columns(numbers)
        assert len(set(citizen.to_pylist())) == 4 and [text is None for text in sealed.to_pylist()] == [1, 0, 1, 1, 1]
        tokens.forget()


def test_alerts_and_rejects_are_rows_too(tmp_path: Path):
    rig = new_rig(tmp_path)
    rig.put([alert(1), alert(2, confidence=0.5, citizen_id="c-2"), alert(1)], TOPICS[1])
    rig.put([reject(1, b"\x00\xffbytes")], TOPICS[2])
    rig.archive()
    rig.put([alert(2), alert(3)], TOPICS[1])
    rig.archive()
    rows = sorted(rig.rows("alerts"), key=lambda row: row["offset"])
    assert [(row["alert_id"], row["repeat"]) for row in rows] == [
        ("a-1", False), ("a-2", False), ("a-1", True), ("a-2", True), ("a-3", False),
    ]  # fmt: skip
    sealer = open_sealer(tmp_path / "keys", FORCE)
    assert [sealer.reveal(row["citizen"]) for row in rows[:2]] == ["name:Citizen 1", "id:c-2"]
    assert rows[0]["h3"] == h3.latlng_to_cell(47.0, 8.0, 9) and rows[0]["place"] == 0
    [row] = rig.rows("rejects")
    assert (
        sealer.open_bytes(row["bytes"], "j-1") == b"\x00\xffbytes" and row["line"] == 1 and row["source"] == "gateway"
    )
    assert [v.stored for v in rig.verdicts()] == [0, 5, 1] and all(v.clean for v in rig.verdicts())


def test_the_collector_is_left_as_it_was_whatever_the_records_are(tmp_path: Path):
    decoder = Decoder(FORCE, _forms(tmp_path)[0].report)
    decoder.decode([report(1), b"rubbish"])
    assert gc.isenabled()
    with pytest.raises(NewerRecord):
        decoder.decode([report(1).replace(b'"v":1', b'"v":2')])
    assert gc.isenabled()
    gc.disable()
    try:
        decoder.decode([report(1)])
        assert not gc.isenabled()
    finally:
        gc.enable()
