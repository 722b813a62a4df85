"""What a sender is told, and what is on the stream when it is told so."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
import zstandard
from gateway_rig import Answer, Gateway, Members, eventually, headers_of, report, request

from harmonywatch.clock import SystemClock
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.registry.store import open_registry
from harmonywatch.stream.memory import MemoryStream

NDJSON = "application/x-ndjson"


def _problem(answer: Answer, status: int, code: str) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, object] = answer.json
    assert (answer.status, document["status"], document["code"]) == (status, status, code)
    assert document["type"] and document["title"] and document["detail"]
    return document


def test_one_report_is_accepted_and_on_the_stream(door: Gateway) -> None:
    answer = door.send(report(report_id="r-1", mood="odd"))
    assert (answer.status, answer.json) == (202, {"report_id": "r-1", "status": "accepted"})
    [record] = door.reports()
    assert (record.report_id, record.watcher_id, record.force, record.extra) == (
        "r-1",
        "W-1",
        "north",
        '{"mood":"odd"}',
    )
    assert door.metric("accepted_total", force="north") == 1
    assert door.metric("append_seconds_count", force="north") == 1


def test_a_repeat_is_answered_accepted(door: Gateway) -> None:
    answers = [door.send(report(report_id="r-1")) for _ in range(2)]
    assert [a.json for a in answers] == [{"report_id": "r-1", "status": "accepted"}] * 2


def test_a_report_without_any_id_gets_a_fresh_one(door: Gateway) -> None:
    ids = {door.send(report()).json["report_id"] for _ in range(2)}
    assert len(ids) == 2 and ids == {record.report_id for record in door.reports()}


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        (b"", 400, "not-json", ""),
        (b"{", 400, "not-json", ""),
        (b"\xff\xfe", 400, "not-json", ""),
        (report().replace(b"61.5", b"NaN"), 400, "not-json", ""),
        (b"[" * 100_000, 422, "too-deep", ""),
        (b"[]", 422, "wrong-type", ""),
        (b'{"watcher_id": "W-1"}', 422, "missing", "/location"),
        (report().replace(b"52.5", b"95"), 422, "out-of-range", "/location/lat"),
        (report(words=["\0"]), 422, "not-text", "/words/0"),
        (report(time="yesterday"), 422, "not-a-time", "/time"),
        (report(model="m" * (1 << 20)), 413, "too-large", ""),
    ],
)
def test_a_refused_report_is_kept_with_its_bytes(
    door: Gateway, body: bytes, status: int, code: str, pointer: str
) -> None:
    document = _problem(door.send(body), status, code)
    assert document["pointer"] == pointer
    [reject] = door.rejects()
    assert reject.reject_id == document["reject_id"]
    assert (reject.code, reject.pointer, reject.sender, reject.force) == (code, pointer, "base-1", "north")
    assert base64.b64decode(reject.bytes) == body
    assert door.reports() == []
    assert door.metric("refused_total", force="north", code=code) == 1


def test_of_a_report_too_large_for_the_stream_the_beginning_is_kept(door: Gateway) -> None:
    body = report(model="m" * (9 << 20))
    assert _problem(door.send(body), 413, "too-large")["reject_id"]
    [reject] = door.rejects()
    kept = base64.b64decode(reject.bytes)
    assert 2 << 20 < len(kept) < len(body) and body.startswith(kept) and str(len(kept)) in reject.reason


def test_a_watchers_key_sends_for_that_watcher_only(door: Gateway) -> None:
    assert door.send(report("W-1"), "watcher").status == 202
    assert _problem(door.send(report("W-2"), "watcher"), 403, "not-yours")["pointer"] == "/watcher_id"
    lines = b"\n".join([report("W-1"), report("W-2")])
    assert door.send(lines, "watcher", NDJSON).json["rejected"][0]["code"] == "not-yours"
    assert {record.watcher_id for record in door.reports()} == {"W-1"}


def test_every_refused_line_has_its_number_and_reason(door: Gateway) -> None:
    lines = [report("W-1") + b"\r", b"", b"  \r", b"nonsense", report("W-2"), b'{"watcher_id":1}\r', report("W-3")]
    answer = door.send(b"\n".join(lines), media=NDJSON)
    assert answer.status == 200 and answer.json["accepted"] == 3
    rejected = [(each["line"], each["pointer"], each["code"]) for each in answer.json["rejected"]]
    assert rejected == [(4, "", "not-json"), (6, "/watcher_id", "wrong-type")]
    assert {base64.b64decode(each.bytes): each.line for each in door.rejects()} == {b"nonsense": 4, lines[5][:-1]: 6}
    assert {record.watcher_id for record in door.reports()} == {"W-1", "W-2", "W-3"}


def test_one_line_over_the_limit_does_not_touch_its_neighbours(door: Gateway) -> None:
    lines = [report("W-1"), report("W-2", model="m" * (1 << 20)), report("W-3")]
    answer = door.send(b"\n".join(lines) + b"\n", media=NDJSON)
    assert answer.json["accepted"] == 2 and [r["code"] for r in answer.json["rejected"]] == ["too-large"]
    assert base64.b64decode(door.rejects()[0].bytes) == lines[1]


def test_more_than_ten_thousand_lines_are_refused_whole(door: Gateway) -> None:
    line = report() + b"\n"
    assert door.send(line * 10_000, media=NDJSON).json["accepted"] == 10_000
    _problem(door.send(line * 10_001, media=NDJSON), 413, "too-large")
    assert len(door.reports()) == 10_000 and door.rejects() == []


def test_no_lines_at_all_are_no_error(door: Gateway) -> None:
    assert door.send(b"", media=NDJSON).json == {"accepted": 0, "rejected": []}


@pytest.mark.parametrize("coding", ["gzip", "zstd", "identity"])
def test_packed_bodies_are_unpacked(door: Gateway, coding: str) -> None:
    pack = {"gzip": gzip.compress, "zstd": zstandard.compress, "identity": bytes}[coding]
    assert door.send(pack(report("W-7")), coding=coding).status == 202
    many = b"\n".join(report(f"W-{n}") for n in range(2000))
    assert door.send(pack(many), media=NDJSON, coding=coding).json == {"accepted": 2000, "rejected": []}


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_bombs_and_damaged_bodies_are_the_senders_fault(door: Gateway, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zstandard.compress
    bomb = pack(b" " * (64 << 20))
    _problem(door.send(bomb, coding=coding), 413, "too-large")
    _problem(door.send(pack(report())[:-3], coding=coding), 400, "damaged")
    _problem(door.send(report(), coding=coding), 400, "damaged")
    _problem(door.send(pack(pack(report())), coding=coding), 400, "not-json")
    assert door.reports() == []


def test_what_is_not_taken_here_is_415(door: Gateway) -> None:
    assert _problem(door.send(report(), media="text/plain"), 415, "media-type")
    answer = door.send(report(), coding="br")
    assert _problem(answer, 415, "content-encoding") and answer.headers["accept-encoding"] == "gzip, zstd, identity"
    assert _problem(door.send(report(), coding="gzip, gzip"), 415, "content-encoding")
    assert door.send(report(), media="Application/JSON; charset=utf-8").status == 202


def test_keys_are_asked_for_and_officers_are_no_senders(door: Gateway) -> None:
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Basic cmVsYXk="}, headers_of("nobodys")):
        answer = door.ask("POST", "/v1/reports", headers, report())
        assert _problem(answer, 401, "unknown-key") and answer.headers["www-authenticate"].startswith("Bearer")
    _problem(door.send(report(), "officer"), 403, "not-a-sender")
    assert door.reports() == []


def test_a_new_key_works_at_once_and_a_revoked_one_no_longer(door: Gateway) -> None:
    assert door.send(report(), "new").status == 401
    door.members.add("new", "relay", "north", "base-2")
    assert door.send(report(), "new").status == 202
    del door.members.keys["new"]
    with door.connect() as wire:
        assert wire.ask("POST", "/v1/reports", headers_of("new"), report()).status == 401


def test_a_registry_that_cannot_be_read_is_no_fault_of_the_sender(door: Gateway) -> None:
    door.members.busy = True
    answer = door.send(report(), "too-new-for-memory")
    assert _problem(answer, 503, "registry") and int(answer.headers["retry-after"]) >= 1


def test_two_forces_never_mix(door: Gateway) -> None:
    for number in range(20):
        assert door.send(report(f"N-{number}")).status == 202
        assert door.send(report(f"S-{number}"), "south-relay").status == 202
        assert door.send(b"n", "relay").status == door.send(b"s", "south-relay").status == 400
    for force in ("north", "south"):
        assert {r.force for r in door.reports(force)} == {r.force for r in door.rejects(force)} == {force}
        assert {r.watcher_id[0] for r in door.reports(force)} == {force[0].upper()}
        assert {base64.b64decode(r.bytes) for r in door.rejects(force)} == {force[0].encode()}
        assert len(door.reports(force)) == len(door.rejects(force)) == 20


def test_a_relays_unknown_watchers_are_enrolled_once(door: Gateway) -> None:
    door.members.watchers["north"] = {"W-1"}
    door.send(b"\n".join(report(f"W-{n}") for n in range(1, 4)), media=NDJSON)
    eventually(lambda: door.members.watchers["north"] == {"W-1", "W-2", "W-3"})
    door.send(report("W-2"))
    door.send(report("W-4"))
    eventually(lambda: "W-4" in door.members.watchers["north"])
    assert door.members.calls == [("north", {"W-2", "W-3"}, "base-1"), ("north", {"W-4"}, "base-1")]


def test_an_enrolment_that_fails_is_tried_again_and_delays_nobody(door: Gateway) -> None:
    door.members.busy = True
    assert door.send(report("W-9")).status == 202
    eventually(lambda: door.metric("failed_total", kind="enrol") >= 1)
    door.members.busy = False
    eventually(lambda: "W-9" in door.members.watchers["north"])


def test_the_pages_of_the_operator(door: Gateway) -> None:
    assert door.ask("GET", "/healthz").json["status"] == "alive"
    assert door.ask("GET", "/readyz").status == 200
    door.reasons.append("the archive is far behind")
    answer = door.ask("GET", "/readyz")
    assert (answer.status, answer.json["reasons"]) == (503, ["the archive is far behind"])
    door.send(report())
    assert b'harmonywatch_accepted_total{force="north"} 1.0' in door.ask("GET", "/metrics").body
    assert b"<h1>" in door.ask("GET", "/").body
    assert door.ask("HEAD", "/").status == 200


def test_the_door_describes_itself(door: Gateway) -> None:
    document = json.loads(door.ask("GET", "/openapi.json").body)
    schemas = document["components"]["schemas"]
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]]
    assert references and all(r.startswith("#/components/schemas/") for r in references)
    assert {r.rsplit("/", 1)[1] for r in references} <= set(schemas)
    statuses = set(document["paths"]["/v1/reports"]["post"]["responses"])
    assert {"200", "202", "400", "401", "403", "413", "415", "422", "503"} <= statuses


def test_other_paths_and_methods_are_problems_too(door: Gateway) -> None:
    _problem(door.ask("GET", "/v1/nothing"), 404, "not-found")
    answer = door.ask("GET", "/v1/reports")
    assert _problem(answer, 405, "not-allowed") and answer.headers["allow"] == "POST"
    _problem(door.ask("DELETE", "/healthz"), 405, "not-allowed")


def test_a_connection_serves_many_requests_and_answers_pipelined_ones_in_order(door: Gateway) -> None:
    with door.connect() as wire:
        for number in range(3):
            answer = wire.ask("POST", "/v1/reports", headers_of(), report(report_id=f"r-{number}"))
            assert answer.json["report_id"] == f"r-{number}"
        wire.write(b"".join(request("POST", "/v1/reports", headers_of(), report(report_id=f"p-{n}")) for n in range(9)))
        assert [wire.answer().json["report_id"] for _ in range(9)] == [f"p-{n}" for n in range(9)]


def test_a_key_of_the_real_registry_works_at_once_and_its_revocation_bites_within_a_second(
    members: Members, tmp_path: Path
) -> None:
    clock = SystemClock()
    registry = open_registry(f"sqlite:///{tmp_path}/registry.db", clock, "os:alice")
    registry.add_force("north")
    with KeyringCache(registry, clock) as keys, Gateway(MemoryStream(), members, keys=keys) as door:
        issued = registry.add_watcher("W-1", "north")
        assert door.send(report("W-1"), issued.key).status == 202
        assert door.send(report("W-2"), issued.key).status == 403
        registry.revoke("watcher", "W-1", "north")
        eventually(lambda: door.send(report("W-1"), issued.key).status == 401, within_s=1.0)
    registry.close()
