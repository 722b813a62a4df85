"""The fast road and the patient one are one road: random reports, with faults and without, get the same answer."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_documents import NOT_JSON_VALUES, VALID_VALUES

from harmonywatch.report.record import canonical
from harmonywatch.report.wire import Parsed, examine, parse

NOW = datetime(2026, 11, 23, 18, 4, 5, 123, tzinfo=UTC)

GOOD: dict[str, list[bytes]] = {
    "watcher_id": [b'"w-1"', rb'"\u0077-2"'],
    "location": [b'{"lat":1,"lon":2}', b'{"lon":-0.0,"lat":89.9999999999999999,"accuracy_m":null,"altitude_m":-4}'],
    "citizens": [b"[]", b'[{"name":"Ada","harmonyscore":24.9}]', b'[{"name":" Bo","harmonyscore":1,"citizen_id":"c"}]'],
    "words": [b"[]", b'["", "hm"]', rb'["\\u0000","\ud83d\ude42"]'],
    "report_id": [b"null", b'"r-1"'],
    "time": [b"null", b'"2026-11-23T18:04:05Z"', b'"2026-11-23T19:04:05.000001+01:00"', b'"1999-01-01t00:00:00z"'],
    "sequence": [b"null", b"0", b"9223372036854775807"],
    "heading_deg": [b"null", b"0", b"359.9", b"-0"],
    "speed_mps": [b"null", b"1e1", b"4e-320"],
    "battery": [b"null", b"0.39", b"1"],
    "signal_dbm": [b"null", b"-81", b"1.7976931348623157e308", b"9007199254740993", b"98765432109876543210"],
    "firmware": [b"null", b'"1.8"'],
    "model": [b"null", b'"Heron"'],
    "schema_version": [b"null", b"1", b'"1"', b"340282366920938463463374607431768211456"],
}
BAD = [
    b"true", b"[]", b"{}", b'""', b'" "', rb'"\u0000"', b"-1", b"1.0", b"1e5", b"1e400", b"9" * 400, b"9" * 4301, b"5e-1",
    b'{"lat":91,"lon":1}', b'{"lat":1}', b'{"lat":1,"lon":2,"floor":[1e400]}', b"[1]", b"[null]", b'[{"name":"Bo"}]',
    rb'[{"name":"a\u0000","harmonyscore":1}]', b'[{"name":"\\t","harmonyscore":1}]', b'[{"name":"a","harmonyscore":NaN}]',
    b'[{"name":"a","harmonyscore":1,"hat":"red"}]', b'[{"name":"a","harmonyscore":1},{"name":"","harmonyscore":1}]',
    b'"2026-11-23T18:00:00"', b'"2026-11-23 18:00:00Z"', b'"2016-12-31T23:59:60Z"', b'"0001-01-01T00:00:00+23:59"',
]  # fmt: skip

names = st.one_of(st.sampled_from(list(GOOD)), st.sampled_from(["mood", "Words", "", "lat", "name"]))
fragments = st.one_of(
    st.sampled_from(BAD),
    st.sampled_from([*VALID_VALUES.values()]),
    st.sampled_from([*NOT_JSON_VALUES.values()]),
    st.sampled_from([value for values in GOOD.values() for value in values]),
    st.text(max_size=8).map(lambda text: b'"' + text.encode("utf-8", "surrogatepass") + b'"'),
    st.floats().map(lambda number: repr(number).encode()),
    st.integers().map(lambda number: str(number).encode()),
)
good_members = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in GOOD.items()})


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A report whose members are good but for a few, in any order, some of them given twice or left out."""
    members = [(name, value) for name, value in draw(good_members).items() if draw(st.integers(0, 19))]
    members += draw(st.lists(st.tuples(names, fragments), max_size=2))
    members = draw(st.permutations(members))
    text = b",".join(b'"' + name.encode() + b'":' + value for name, value in members)
    return b"{" + text + b"}"


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(documents())
def test_both_roads_give_the_same_answer_and_the_same_record(raw: bytes) -> None:
    fast, patient = parse(raw), examine(raw)
    assert fast == patient
    if isinstance(fast, Parsed) and isinstance(patient, Parsed):
        records = [canonical(parsed, raw, "north", NOW, lambda: "fresh") for parsed in (fast, patient)]
        assert records[0] == records[1]


@settings(max_examples=500, deadline=None, print_blob=True)
@given(
    st.one_of(
        st.binary(max_size=60), documents().flatmap(lambda raw: st.integers(0, len(raw)).map(lambda end: raw[:end]))
    )
)
def test_no_bytes_make_either_road_fail(raw: bytes) -> None:
    assert parse(raw) == examine(raw)
