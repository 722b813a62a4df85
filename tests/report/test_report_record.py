"""The canonical record: one form, the same content for the same words, ids and clocks as designed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import count

import msgspec
import pytest
from report_documents import BASE, RIGHT, VALID_VALUES, with_citizen, with_members

from harmonywatch.clock import from_wire, to_wire
from harmonywatch.report.record import (
    FUTURE_MAX,
    PAST_MAX,
    VERSION,
    ReportRecord,
    ReportTail,
    Sealed,
    canonical,
    identity_hash,
)
from harmonywatch.report.wire import Parsed, parse

NOW = datetime(2026, 11, 23, 18, 4, 5, 123, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def fresh_ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"f-{next(numbers)}"


def seal(raw: bytes, received_at: datetime = NOW, fresh_id: Callable[[], str] | None = None) -> Sealed:
    parsed = parse(raw)
    assert isinstance(parsed, Parsed), parsed
    return canonical(parsed, raw, "north", received_at, fresh_id or fresh_ids())


def read_record(value: bytes) -> ReportRecord:
    return msgspec.json.decode(value, type=ReportRecord)


def record_of(raw: bytes, received_at: datetime = NOW) -> ReportRecord:
    return read_record(seal(raw, received_at).value)


def timed(moment: datetime) -> bytes:
    return with_members(b'"time":"' + moment.isoformat().encode() + b'"')


def test_the_record_says_what_the_report_said() -> None:
    record = record_of(
        with_members(
            b'"report_id":"r-1","sequence":7,"heading_deg":327,"speed_mps":10.5,"battery":0.39,"signal_dbm":-81',
            b'"firmware":"1.8","model":"Heron-1","schema_version":1,"time":"2026-11-23T18:04:00Z"',
            b'"location":{"lat":1.5,"lon":2,"accuracy_m":2.5,"altitude_m":76}',
        )
    )
    assert record.v == VERSION
    assert (record.force, record.watcher_id, record.report_id, record.sequence) == ("north", "w-1", "r-1", 7)
    assert (record.lat, record.lon, record.accuracy_m, record.altitude_m) == (1.5, 2.0, 2.5, 76.0)
    assert (record.heading_deg, record.speed_mps, record.battery, record.signal_dbm) == (327.0, 10.5, 0.39, -81.0)
    assert (record.firmware, record.model, record.schema_version) == ("1.8", "Heron-1", "1")
    assert [(c.name, c.harmonyscore) for c in record.citizens] == [("Ada", 10.0)]
    assert record.words == ["hm"]
    assert (record.device_time, record.time) == ("2026-11-23T18:04:00.000000Z", "2026-11-23T18:04:00.000000Z")
    assert record.received_at == "2026-11-23T18:04:05.000123Z"
    assert record.extra is None


@pytest.mark.parametrize("name", RIGHT)
def test_every_report_has_a_record_in_which_each_member_stands_once(name: str) -> None:
    sealed = seal(RIGHT[name])
    record = read_record(sealed.value)
    members = msgspec.json.decode(sealed.value, type=dict[str, msgspec.Raw])
    assert sum(sealed.value.count(b'"%b":' % member.encode()) >= 1 for member in members) == len(members)
    assert msgspec.json.decode(sealed.value) == msgspec.json.decode(msgspec.json.encode(record))
    assert (sealed.watcher_id, sealed.report_id) == (record.watcher_id, record.report_id)
    assert b"null" not in sealed.value


def test_the_same_report_received_later_has_the_same_content_and_identity() -> None:
    raw = with_members(b'"report_id":"r-1","time":"2026-11-23T18:04:00Z","mood":1.50')
    first, again = record_of(raw), record_of(raw, NOW + timedelta(hours=3))
    assert first.received_at != again.received_at
    assert (first.content, first.identity, first.report_id) == (again.content, again.identity, again.report_id)


def test_other_words_have_other_content_under_the_same_identity() -> None:
    one = record_of(with_members(b'"report_id":"r-1"'))
    other = record_of(with_members(b'"report_id":"r-1"', b'"words":["ha"]'))
    assert one.identity == other.identity == identity_hash("w-1", "r-1")
    assert one.content != other.content


def test_spelling_that_means_the_same_is_the_same_content() -> None:
    one = record_of(with_members(b'"report_id":"r-1","time":"2026-11-23T18:04:00Z","battery":1'))
    other = record_of(
        rb' { "battery": 1.0, "\u0074ime":"2026-11-23T19:04:00.000+01:00",' + BASE[1:-1] + b',"report_id":"r-1"}'
    )
    assert one.content == other.content


def test_without_an_id_it_is_derived_from_the_bytes_where_time_or_sequence_tells_reports_apart() -> None:
    for member in (b'"sequence":5', b'"time":"2026-11-23T18:04:00Z"'):
        raw = with_members(member)
        first, again, padded = (
            record_of(raw),
            record_of(raw, NOW + timedelta(hours=1)),
            record_of(b"\n" + raw + b"\r\n"),
        )
        assert first.report_id.startswith("d-")
        assert first.report_id == again.report_id == padded.report_id
        assert first.identity == again.identity == identity_hash("w-1", first.report_id)
    assert record_of(with_members(b'"sequence":5')).report_id != record_of(with_members(b'"sequence":6')).report_id


def test_what_nothing_tells_apart_gets_a_fresh_id_and_no_identity() -> None:
    fresh_id = fresh_ids()
    ids = [read_record(seal(BASE, fresh_id=fresh_id).value) for _ in range(2)]
    assert [record.report_id for record in ids] == ["f-1", "f-2"]
    assert [record.identity for record in ids] == [None, None]
    assert ids[0].content != ids[1].content


def test_an_identity_is_null_only_where_the_id_was_given_here() -> None:
    for raw in RIGHT.values():
        record = record_of(raw)
        assert (record.identity is None) == record.report_id.startswith("f-")


@pytest.mark.parametrize(
    ("moment", "suspect"),
    [
        (NOW, False),
        (NOW - PAST_MAX, False),
        (NOW - PAST_MAX - TICK, True),
        (NOW + FUTURE_MAX, False),
        (NOW + FUTURE_MAX + TICK, True),
        (datetime(1, 1, 1, tzinfo=UTC), True),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), True),
        ((NOW + FUTURE_MAX).astimezone(timezone(timedelta(hours=14))), False),
        ((NOW - PAST_MAX - TICK).astimezone(timezone(timedelta(hours=-11, minutes=-30))), True),
    ],
)
def test_a_device_time_is_believed_within_its_bounds(moment: datetime, suspect: bool) -> None:
    record = record_of(timed(moment))
    assert record.clock_suspect is suspect
    assert record.device_time == to_wire(moment)
    assert record.time == (record.received_at if suspect else record.device_time)


def test_without_a_device_time_the_receipt_is_the_time_and_no_clock_is_suspect() -> None:
    record = record_of(BASE)
    assert record.device_time is None
    assert record.time == record.received_at
    assert record.clock_suspect is False


@pytest.mark.parametrize("name", VALID_VALUES)
def test_unknown_members_are_kept_in_their_spelling(name: str) -> None:
    value = VALID_VALUES[name].strip(b" \t\r\n")
    record = record_of(with_members(b'"mood":' + VALID_VALUES[name]))
    assert record.extra is not None
    assert record.extra.encode() == b'{"mood":' + value + b"}"
    seen = record_of(with_citizen(b'{"name":"Bo","harmonyscore":1,"mood":' + value + b"}"))
    assert seen.extra is not None
    assert seen.extra.encode() == b'{"citizens":[{},{"mood":' + value + b"}]}"


def test_an_unknown_member_changes_the_content() -> None:
    contents = {record_of(with_members(b'"report_id":"r","mood":' + value)).content for value in (b"1", b"1.0", b"2")}
    assert len(contents) == 3


def test_of_a_key_given_twice_the_record_holds_the_last() -> None:
    record = record_of(with_members(b'"watcher_id":"w-2","mood":1,"mood":2'))
    assert (record.watcher_id, record.extra) == ("w-2", '{"mood":2}')


def test_the_tail_can_be_read_alone() -> None:
    sealed = seal(with_members(b'"report_id":"r-1"'))
    tail, record = msgspec.json.decode(sealed.value, type=ReportTail), read_record(sealed.value)
    assert (tail.content, tail.identity, tail.time) == (record.content, record.identity, record.time)
    assert -(2**63) <= tail.content < 2**63


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"NaN", b'{"v":1}', b"\xff"])
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        read_record(value)


def test_a_member_of_a_later_version_does_not_stop_a_reader() -> None:
    value = seal(BASE).value
    assert read_record(value[:-1] + b',"later":[1]}') == read_record(value)


@pytest.mark.parametrize(
    "moment",
    [
        NOW,
        NOW.replace(microsecond=0),
        NOW.replace(microsecond=100_000),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        NOW.astimezone(timezone(timedelta(hours=5, minutes=45))),
    ],
)
def test_times_on_the_wire_have_one_length_and_come_back(moment: datetime) -> None:
    text = to_wire(moment)
    assert len(text) == len("2026-11-23T18:04:05.000123Z")
    assert text == moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    assert from_wire(text) == moment
