"""What is a report and what is not: accepted and refused documents, and that both roads of `wire` agree."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from report_documents import BASE, NOT_JSON_VALUES, RIGHT, VALID_VALUES, WRONG, with_citizen, with_members

from harmonywatch.report.wire import Parsed, examine, parse
from harmonywatch.report.words import LIMIT_REPORT_BYTES, REFUSAL_CODES, Refusal

SUITE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "JSONTestSuite" / "test_parsing"


def read(raw: bytes) -> Parsed | Refusal:
    """The answer of both roads, which must be one."""
    answer = parse(raw)
    assert examine(raw) == answer
    return answer


def accepted(raw: bytes) -> Parsed:
    answer = read(raw)
    assert isinstance(answer, Parsed), answer
    return answer


def refused(raw: bytes) -> Refusal:
    answer = read(raw)
    assert isinstance(answer, Refusal)
    assert answer.code in REFUSAL_CODES
    assert answer.reason
    return answer


@pytest.mark.parametrize("name", RIGHT)
def test_a_report_is_accepted(name: str) -> None:
    accepted(RIGHT[name])


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_named_with_its_place(name: str) -> None:
    raw, code, pointer = WRONG[name]
    answer = refused(raw)
    assert (answer.code, answer.pointer) == (code, pointer)


@pytest.mark.parametrize("name", WRONG)
def test_an_unknown_member_hides_no_fault(name: str) -> None:
    raw, code, pointer = WRONG[name]
    if raw.startswith(b'{"watcher_id"'):
        answer = refused(raw[:-1] + b',"beside":[1e400]}')
        assert (answer.code, answer.pointer) == (code, pointer)
    else:
        assert code in ("wrong-type", "missing", "too-deep")


@pytest.mark.parametrize("name", VALID_VALUES)
def test_any_json_value_is_kept_verbatim_in_an_unknown_member(name: str) -> None:
    value = VALID_VALUES[name]
    for raw, path in (
        (with_members(b'"mood":' + value), b'{"mood":%b}'),
        (with_members(b'"location":{"lat":1,"lon":2,"mood":' + value + b"}"), b'{"location":{"mood":%b}}'),
        (with_citizen(b'{"name":"Bo","mood":' + value + b',"harmonyscore":1}'), b'{"citizens":[{},{"mood":%b}]}'),
    ):
        extra = accepted(raw).extra
        assert extra is not None
        assert extra.encode() == path.replace(b"%b", value.strip(b" \t\r\n"))


def test_64_levels_below_the_report_are_read_and_not_one_more() -> None:
    value = b"[" * 64 + b"]" * 64
    accepted(with_members(b'"mood":' + value))
    assert refused(with_members(b'"mood":[' + value + b"]")).code == "too-deep"
    assert refused(with_citizen(b'{"name":"Bo","harmonyscore":1,"mood":' + value + b"}")).code == "too-deep"


@pytest.mark.parametrize("name", NOT_JSON_VALUES)
def test_what_is_not_json_is_refused_wherever_it_stands(name: str) -> None:
    value = NOT_JSON_VALUES[name]
    for raw in (
        value,
        with_members(b'"mood":' + value),
        with_members(b'"mood":' + value, b'"after":0'),
        with_members(b'"location":{"lat":1,"lon":2,"mood":' + value + b"}"),
        with_citizen(b'{"name":"Bo","harmonyscore":1,"mood":[' + (value or b",") + b"]}"),
        with_members(b'"words":[' + (value or b",") + b"]"),
        with_members(b'"sequence":' + value),
    ):
        assert refused(raw).code == "not-json"


def test_a_member_given_twice_counts_as_given_last() -> None:
    assert accepted(with_members(b'"watcher_id":"w-2"')).report.watcher_id == "w-2"
    assert accepted(with_members(b'"mood":1', b'"mood":2')).extra == '{"mood":2}'
    located = accepted(with_members(b'"location":{"lat":3,"lon":4,"floor":1,"floor":2,"lat":5}'))
    assert located.report.location.lat == 5
    assert located.extra == '{"location":{"floor":2}}'


def test_what_was_said_arrives() -> None:
    parsed = accepted(
        with_members(
            b'"time":"2026-11-23T19:04:05.5+01:00","sequence":7,"battery":0.5',
            rb'"words":["Zo\u00eb","\"quoted\"",""]',
        )
    )
    assert parsed.report.words == ["Zoë", '"quoted"', ""]
    assert parsed.report.sequence == 7
    assert parsed.device_time is not None
    assert parsed.device_time.isoformat() == "2026-11-23T18:04:05.500000+00:00"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_only_utf_8_without_a_byte_order_mark_is_read(encoding: str) -> None:
    assert refused(BASE.decode().encode(encoding)).code == "not-json"


def test_bytes_that_are_not_utf_8_are_pointed_at_in_the_document() -> None:
    raw = with_members(b'"mood":"ab\xffcd"')
    assert str(raw.index(b"\xff")) in refused(raw).reason


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"\x00", BASE + b"\x00", BASE[:-1], BASE + b"{}", BASE + BASE, b"\n" + BASE[1:]]
)
def test_what_is_not_one_document_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "not-json"


def test_every_cut_of_a_report_is_refused() -> None:
    for end in range(len(BASE)):
        assert isinstance(read(BASE[:end]), Refusal), end


def test_a_report_of_one_mib_is_read_and_one_byte_more_is_too_large() -> None:
    room = LIMIT_REPORT_BYTES - len(with_members(b'"mood":""'))
    accepted(with_members(b'"mood":"' + b"x" * room + b'"'))
    answer = parse(with_members(b'"mood":"' + b"x" * (room + 1) + b'"'))
    assert isinstance(answer, Refusal)
    assert answer.code == "too-large"


def test_a_million_keys_are_too_large_before_anything_is_read() -> None:
    answer = parse(with_members(*(b'"k%d":0' % i for i in range(1_000_000))))
    assert isinstance(answer, Refusal)
    assert answer.code == "too-large"


LARGE = {
    "keys": with_members(*(b'"k%d":0' % i for i in range(80_000))),
    "words": with_members(b'"mood":0', b'"words":[' + b'"",' * 340_000 + b'""]'),
    "words with a fault": with_members(b'"words":[' + b'"",' * 340_000 + b"0]"),
    "citizens": with_members(
        b'"mood":0', b'"citizens":[' + b",".join([b'{"name":"a","harmonyscore":1}'] * 33_000) + b"]"
    ),
    "citizens with a fault": with_members(
        b'"citizens":[' + b'{"name":"a","harmonyscore":1},' * 33_000 + b'{"name":"","harmonyscore":1}]'
    ),
    "numbers": with_members(b'"mood":[' + b"1.5," * 250_000 + b"1e400]"),
    "long integers": with_members(b'"mood":[' + b"7" * 4300 + (b"," + b"7" * 4300) * 230 + b"]"),
    "one longest integer": with_members(b'"mood":' + b"7" * 1_000_000),
    "quotes left open": with_members(b'"n":1e400,"mood":"' + b'\\"' * 500_000),
    "brackets": b"[" * LIMIT_REPORT_BYTES,
    "objects": b'{"a":' * (LIMIT_REPORT_BYTES // 5),
    "flat arrays": with_members(b'"mood":[' + b"[]," * 340_000 + b"[]]"),
}
"""A report's greatest size, spent on one thing each."""


@pytest.mark.parametrize("name", LARGE)
def test_the_cost_of_a_document_is_bounded_by_its_size(name: str) -> None:
    """In terms of the machine's own reading of a large plain document, so that a slow machine changes nothing; the
    quadratic ways these documents tempt to would take minutes."""
    assert len(LARGE[name]) <= LIMIT_REPORT_BYTES
    plain = json.dumps([["word", 1.5, None]] * 60_000).encode()
    plain_s, document_s = _cpu_s(lambda: json.loads(plain)), _cpu_s(lambda: parse(LARGE[name]))
    assert document_s < 20 * plain_s + 0.05


def _cpu_s(work: Callable[[], object]) -> float:
    """What this process holds already is kept from the collector: it is the document that is measured."""
    took = []
    gc.collect()
    gc.freeze()
    try:
        for _ in range(3):
            began = time.process_time()
            work()
            took.append(time.process_time() - began)
    finally:
        gc.unfreeze()
    return min(took)


def suite(*prefixes: str) -> list[Path]:
    return [path for path in sorted(SUITE.glob("*.json")) if path.name.startswith(prefixes)]


needs_suite = pytest.mark.skipif(
    not SUITE.is_dir(), reason=f"the public JSON parsing suite is not beside the project ({SUITE.name})"
)


@needs_suite
def test_every_valid_document_of_the_public_suite_is_kept_in_an_unknown_member() -> None:
    assert len(suite("y_")) == 95
    for path in suite("y_"):
        value = path.read_bytes()
        extra = accepted(with_members(b'"mood":' + value)).extra
        assert extra is not None, path.name
        assert extra.encode() == b'{"mood":' + value.strip(b" \t\r\n") + b"}", path.name
        assert refused(value).code in ("wrong-type", "missing"), path.name


@needs_suite
def test_every_invalid_document_of_the_public_suite_is_refused() -> None:
    assert len(suite("n_")) == 188
    for path in suite("n_"):
        value = path.read_bytes()
        assert refused(with_members(b'"mood":' + value)).code in ("not-json", "too-deep"), path.name
        assert refused(value).code in ("not-json", "too-deep"), path.name


@needs_suite
def test_the_undecided_documents_of_the_public_suite_get_one_answer() -> None:
    assert len(suite("i_")) == 35
    kept, left = [], []
    for path in suite("i_"):
        read(path.read_bytes())
        answer = read(with_members(b'"mood":' + path.read_bytes()))
        (kept if isinstance(answer, Parsed) else left).append(path.name)
    assert all("number" in name for name in kept), kept
    assert all("number" not in name for name in left), left


def test_a_parsed_report_says_its_extra_as_json() -> None:
    extra = accepted(with_members(b'"a b":[1.50]', b'"mood":{"deep":[1e400]}')).extra
    assert extra == '{"a b":[1.50],"mood":{"deep":[1e400]}}'
    assert msgspec.json.decode(extra, type=dict[str, msgspec.Raw])
