"""Acknowledged means durable; and what is said when nothing can be made durable."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from gateway_rig import WAIT_S, Gateway, HeldStream, Members, eventually, headers_of, report, request

from harmonywatch.settings import GatewaySettings
from harmonywatch.stream.contract import OutcomeUnknown, StreamBroken, StreamFull, TopicDamaged
from harmonywatch.stream.memory import MemoryStream


def test_nothing_is_acknowledged_before_it_is_durable(held: HeldStream, held_door: Gateway) -> None:
    held.release.clear()
    with held_door.connect() as wire:
        wire.write(request("POST", "/v1/reports", headers_of(), report()))
        eventually(lambda: held.appends)
        wire.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.socket.recv(1)
        assert held_door.reports() == [] and held_door.metric("accepted_total", force="north") == 0
        held.release.set()
        wire.socket.settimeout(WAIT_S)
        assert wire.answer().status == 202
    assert len(held_door.reports()) == 1


def test_a_request_waits_for_its_rejects_too(held: HeldStream, held_door: Gateway) -> None:
    held.release.clear()
    with held_door.connect() as wire:
        wire.write(request("POST", "/v1/reports", headers_of(media="application/x-ndjson"), report() + b"\nbad\n"))
        eventually(lambda: {topic for topic, _ in held.appends} == {"reports.north", "rejects.north"})
        wire.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            wire.socket.recv(1)
        held.release.set()
        wire.socket.settimeout(WAIT_S)
        assert wire.answer().json["accepted"] == 1
    assert len(held_door.rejects()) == 1


def test_a_thousand_concurrent_singles_share_commits(held: HeldStream, held_door: Gateway) -> None:
    async def one(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", held_door.port)
        writer.write(request("POST", "/v1/reports", headers_of() | {"Connection": "close"}, report(f"W-{number}")))
        status = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return status

    async def all_of_them() -> list[bytes]:
        senders = [asyncio.create_task(one(number)) for number in range(500)]
        await asyncio.to_thread(eventually, lambda: held.appends)
        held.release.set()
        senders += [asyncio.create_task(one(number)) for number in range(500, 1000)]
        return await asyncio.gather(*senders)

    held.release.clear()
    statuses = asyncio.run(all_of_them())
    assert set(statuses) == {b"HTTP/1.1 202 Accepted\r\n"}
    assert sorted(r.watcher_id for r in held_door.reports()) == sorted(f"W-{n}" for n in range(1000))
    assert sum(count for _, count in held.appends) == 1000
    assert len(held.appends) < 300, "requests were not grouped"


def test_a_full_stream_is_503_and_recovers_by_itself(held: HeldStream, held_door: Gateway) -> None:
    held.fails = StreamFull("the disk is full", 7)
    answer = held_door.send(report())
    assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "stream-full", "7")
    ready = held_door.ask("GET", "/readyz")
    assert ready.status == 503 and "the disk is full" in ready.json["reasons"][0]
    assert held_door.reports() == [] and held_door.metric("shed_total", reason="stream-full") == 1
    held.fails = None
    assert held_door.send(report()).status == 202
    assert held_door.ask("GET", "/readyz").status == 200


def test_an_unknown_outcome_is_503_and_the_sender_may_repeat(held: HeldStream, held_door: Gateway) -> None:
    held.fails = OutcomeUnknown("the broker's answer was lost")
    answer = held_door.send(report())
    assert answer.status == 503 and "retry-after" in answer.headers
    held.fails = None
    assert held_door.send(report()).status == 202


@pytest.mark.parametrize("error", [TopicDamaged("reports.north", "flipped"), RuntimeError("nobody expected this")])
def test_one_forces_trouble_is_503_for_it_and_stops_nothing(
    held: HeldStream, held_door: Gateway, error: Exception
) -> None:
    assert {held_door.send(report(), key).status for key in ("relay", "south-relay")} == {202}
    held.fails_in["reports.north"] = error
    answer = held_door.send(report())
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1 and "flipped" not in answer.json["detail"]
    assert held_door.send(report(), "south-relay").status == 202
    ready = held_door.ask("GET", "/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded") and "reports.north" in ready.json["reasons"][0]
    held.fails_in.clear()
    eventually(lambda: held_door.send(report()).status == 202)  # a damaged topic is tried once a second
    assert held_door.ask("GET", "/readyz").json["status"] == "ready"
    assert len(held_door.reports()) == 2


def test_a_damaged_topic_is_not_opened_anew_for_every_request(held: HeldStream, held_door: Gateway) -> None:
    held.fails_in["reports.north"] = TopicDamaged("reports.north", "flipped")
    assert {held_door.send(report()).json["code"] for _ in range(20)} == {"topic-damaged"}
    assert len(held.appends) < 10


def test_trouble_of_every_force_is_not_ready(held: HeldStream, held_door: Gateway) -> None:
    assert {held_door.send(report(), key).status for key in ("relay", "south-relay")} == {202}
    held.fails = StreamFull("the disk is full")
    assert {held_door.send(report(), key).status for key in ("relay", "south-relay")} == {503}
    ready = held_door.ask("GET", "/readyz")
    assert ready.status == 503 and len(ready.json["reasons"]) == 2


@pytest.mark.parametrize("error", [StreamFull("rejects.north is at its limit"), TopicDamaged("rejects.north", "x")])
def test_rejects_that_cannot_be_kept_do_not_hinder_reports(
    held: HeldStream, held_door: Gateway, error: Exception
) -> None:
    held.fails_in["rejects.north"] = error
    answer = held_door.send(report() + b"\nbad\n" + report("W-2"), media="application/x-ndjson")
    assert (answer.status, answer.json["accepted"]) == (200, 2)
    assert [refused["line"] for refused in answer.json["rejected"]] == [2]
    assert len(held_door.reports()) == 2
    alone = held_door.send(b"bad")
    assert (alone.status, alone.json["code"]) == (400, "not-json") and "reject_id" not in alone.json
    assert held_door.metric("failed_total", kind="reject-lost") == 2
    ready = held_door.ask("GET", "/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    held.fails_in.clear()
    eventually(lambda: "reject_id" in held_door.send(b"bad").json)


def test_reports_that_cannot_be_kept_are_503_though_their_rejects_are(held: HeldStream, held_door: Gateway) -> None:
    held.fails_in["reports.north"] = StreamFull("full")
    answer = held_door.send(report() + b"\nbad\n", media="application/x-ndjson")
    assert (answer.status, answer.json["code"]) == (503, "stream-full")


@pytest.mark.parametrize("topic", ["reports.north", "rejects.north"])
def test_a_broken_stream_answers_all_who_wait_and_stops_the_service(members: Members, topic: str) -> None:
    error = StreamBroken("fsync failed")
    held = HeldStream(MemoryStream())
    held.release.clear()
    with Gateway(held, members) as door:  # type: ignore[arg-type]
        wires = [door.connect() for _ in range(5)]
        for wire in wires:
            wire.write(request("POST", "/v1/reports", headers_of(), b"bad" if topic == "rejects.north" else report()))
        eventually(lambda: held.appends)
        held.fails_in[topic] = error
        held.release.set()
        assert {wire.answer().status for wire in wires} == {503}
        door.join()
        assert isinstance(door.error, StreamBroken)
        assert door.reports() == []
        for wire in wires:
            wire.socket.close()


def test_too_much_waiting_for_the_disk_is_shed(held: HeldStream, members: Members) -> None:
    settings = GatewaySettings(port=0, pending_bytes_max=100_000)
    with Gateway(held, members, settings) as door:  # type: ignore[arg-type]
        held.release.clear()
        body = report(model="m" * 1000, mood="x" * 60_000)
        with door.connect() as first:
            first.write(request("POST", "/v1/reports", headers_of(), body))
            eventually(lambda: held.appends)
            answer = door.send(body)
            assert (answer.status, answer.json["code"]) == (503, "pending-full") and "retry-after" in answer.headers
            assert door.metric("shed_total", reason="pending-full") == 1
            held.release.set()
            assert first.answer().status == 202
        assert door.send(body).status == 202


def test_stopping_answers_what_is_under_way_and_closes_what_is_idle(held: HeldStream, held_door: Gateway) -> None:
    held.release.clear()
    with held_door.connect() as idle, held_door.connect() as busy:
        assert idle.ask("GET", "/healthz", {}).status == 200
        busy.write(request("POST", "/v1/reports", headers_of(), report()))
        eventually(lambda: held.appends)
        held_door.ask_to_stop()
        assert idle.closed()
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", held_door.port), timeout=WAIT_S).close()
        held.release.set()
        answer = busy.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close") and busy.closed()
    held_door.join()
    assert held_door.error is None and len(held_door.reports()) == 1


def test_stopping_does_not_wait_for_ever(members: Members) -> None:
    settings = GatewaySettings(port=0, drain_s=0.3, body_timeout_s=30)
    with Gateway(MemoryStream(), members, settings) as door, door.connect() as wire:
        wire.write(b"POST /v1/reports HTTP/1.1\r\nHost: x\r\n")
        eventually(lambda: door.ask("GET", "/healthz").status == 200)
        door.ask_to_stop()
        door.join()
        assert wire.closed()


def test_watchers_seen_at_the_end_are_enrolled_before_the_process_goes(members: Members) -> None:
    with Gateway(MemoryStream(), members) as door:
        door.send(report("W-last"))
    assert "W-last" in members.watchers["north"]


def test_partitions_are_asked_once_and_a_force_added_while_running_works(members: Members) -> None:
    asked: list[str] = []
    missing = threading.Event()

    def partitions(force: str) -> int:
        asked.append(force)
        if missing.is_set():
            raise KeyError(force)
        return 4

    with Gateway(MemoryStream(), members, partitions=partitions) as door:
        members.add("east-relay", "relay", "east", "base-1")
        missing.set()
        assert door.send(report(), "east-relay").status == 503
        missing.clear()
        assert [door.send(report(), "east-relay").status for _ in range(3)] == [202] * 3
        assert len(door.reports("east")) == 3
    assert asked == ["east", "east"]
