"""The MQTT service with a real Mosquitto: durable before acknowledged, each as its own watcher, nothing lost on the way."""

from __future__ import annotations

from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mqtt_rig import (
    V3,
    V5,
    FullFor,
    Members,
    Service,
    Watcher,
    eventually,
    make_topics,
    rejects,
    report,
    reports,
    states,
    wait_reports,
)

from engines.mosquitto import (
    AUTOSAVE_S,
    BASE_ACL,
    BROKER,
    FORCE_ACL,
    LISTENER,
    PACKET_BYTES_MAX,
    SERVICE_ACL,
    Mosquitto,
)
from harmonywatch.clock import SystemClock
from harmonywatch.report.topics import REPORTS, topic_of
from harmonywatch.settings import MqttSettings, StreamSettings
from harmonywatch.stream.contract import StreamFull
from harmonywatch.stream.sqlite import SqliteStream

BOTH = pytest.mark.parametrize("version", [V3, V5], ids=["3.1.1", "5"])
NDJSON = "application/x-ndjson"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    names = ["W-1", "W-2", "W-3"]
    with Mosquitto(tmp_path / "broker", {"north": names, "south": names}, {"north": ["base"]}) as broker:
        yield broker


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[SqliteStream]:
    stream = SqliteStream(tmp_path / "stream", StreamSettings(), SystemClock())
    make_topics(stream)
    yield stream
    stream.close()


@pytest.fixture
def service(broker: Mosquitto, stream: SqliteStream) -> Iterator[Service]:
    with Service(broker, stream) as service:
        yield service


@BOTH
def test_every_message_is_stored_once_in_its_watchers_order(
    service: Service, broker: Mosquitto, stream: SqliteStream, version: Any
) -> None:
    watchers = [Watcher(broker, "north", name, version) for name in ("W-1", "W-2", "W-3")]
    numbers = [(w, w.publish(report(w.user, sequence=i))) for i in range(60) for w in watchers]
    assert {watcher.told(number) for watcher, number in numbers} == {""}
    found = wait_reports(stream, 180)
    for watcher in watchers:
        assert [r.sequence for r in found if r.watcher_id == watcher.user] == list(range(60))
        watcher.close()
    assert len(found) == 180
    assert reports(stream, "south") == []
    eventually(lambda: service.members.watchers["north"] == {"W-1", "W-2", "W-3"})
    assert {via for _, _, via in service.members.calls} == {"mqtt"}
    eventually(lambda: service.metric("accepted_total", force="north") == 180)


@BOTH
@pytest.mark.usefixtures("service")
def test_a_watcher_cannot_publish_for_another_nor_for_another_force(
    broker: Mosquitto, stream: SqliteStream, version: Any
) -> None:
    with Watcher(broker, "north", "W-1", version) as thief:
        refusals = [
            thief.send(report("W-2"), thief.topic(watcher="W-2")),
            thief.send(report("W-1"), thief.topic(force="south")),
            thief.send(b"offline", thief.topic("state", watcher="W-2")),
            thief.send(report("W-1"), "$share/harmonywatch/" + thief.topic()) if version is V5 else None,
        ]
        if version is V5:  # 3.1.1 has no way to say no
            assert all(refusals), refusals
        assert thief.send(report("W-1", report_id="mine")) == ""
    assert [r.report_id for r in wait_reports(stream, 1)] == ["mine"]
    assert reports(stream, "south") == [] and rejects(stream) == [] and states(stream) == []


def test_nobody_gets_in_at_the_door_of_another_force(broker: Mosquitto) -> None:
    Watcher(broker, "north", "base").close()
    with pytest.raises(PermissionError):
        Watcher(broker, "south", "base")


@pytest.mark.usefixtures("service")
def test_bytes_that_say_another_watcher_are_refused_and_kept(broker: Mosquitto, stream: SqliteStream) -> None:
    with Watcher(broker, "north", "W-1") as watcher:
        watcher.send(report("W-2"))
    eventually(lambda: rejects(stream))
    [reject] = rejects(stream)
    assert (reject.code, reject.pointer, reject.sender) == ("not-yours", "/watcher_id", "W-1")
    assert b64decode(reject.bytes) == report("W-2")
    assert reports(stream) == []


def test_what_is_no_report_is_kept_with_its_bytes_and_comes_once(broker: Mosquitto, stream: SqliteStream) -> None:
    bad = [b"{", b"", b"\xff\xfe", b"[]", report("W-1", location={"lat": 91, "lon": 0}), b'{"a":' * 5000]
    with Service(broker, stream) as service, Watcher(broker, "north", "W-1") as watcher:
        assert {watcher.send(payload) for payload in bad} == {""}
        eventually(lambda: len(rejects(stream)) == len(bad))
        eventually(lambda: service.metric("refused_total", force="north", code="not-json") > 0)
    with Service(broker, stream), Watcher(broker, "north", "W-1") as watcher:
        watcher.send(report("W-1"))
        wait_reports(stream, 1)
    kept = [(reject.code, b64decode(reject.bytes)) for reject in rejects(stream)]
    assert [payload for _, payload in kept] == bad, "acknowledged, so they did not come again"
    assert {code for code, _ in kept} == {"not-json", "wrong-type", "out-of-range", "too-deep"}


@pytest.mark.usefixtures("service")
def test_lines_come_with_their_content_type(broker: Mosquitto, stream: SqliteStream) -> None:
    lines = b"\n".join([report("W-1", sequence=1), b"nonsense", report("W-1", sequence=2), report("W-3")])
    with Watcher(broker, "north", "W-1") as watcher:
        watcher.send(lines, content_type=NDJSON)
        watcher.send(b"\n".join([report("W-1")] * 1001), content_type=NDJSON)
    eventually(lambda: len(rejects(stream)) == 3)
    assert [r.sequence for r in reports(stream)] == [1, 2]
    assert [(r.code, r.line) for r in rejects(stream)] == [("not-json", 2), ("not-yours", 4), ("not-json", None)]


@pytest.mark.usefixtures("service")
def test_a_large_report_is_stored_and_a_larger_one_is_kept_as_reject(broker: Mosquitto, stream: SqliteStream) -> None:
    large = report("W-1", sequence=1, words=["word" * 250] * 900)
    too_large = report("W-1", sequence=2, words=["word" * 250] * 1060)
    with Watcher(broker, "north", "W-1") as watcher:
        watcher.send(large)
        watcher.send(report("W-1", sequence=3))
        watcher.send(too_large)
    assert [r.sequence for r in wait_reports(stream, 2)] == [1, 3]
    eventually(lambda: [r.code for r in rejects(stream)] == ["too-large"])


@BOTH
@pytest.mark.usefixtures("service")
def test_a_packet_over_the_brokers_limit_is_never_acknowledged(
    broker: Mosquitto, stream: SqliteStream, version: Any
) -> None:
    """`max_packet_size` in the recipe: with `message_size_limit` a 3.1.1 watcher would be told that all is well."""
    with Watcher(broker, "north", "W-1", version) as watcher:
        assert watcher.told(watcher.publish(b"x" * PACKET_BYTES_MAX), 2.0) != ""
    with Watcher(broker, "north", "W-1", version) as watcher:
        watcher.send(report("W-1"))
    wait_reports(stream, 1)
    assert rejects(stream) == []


def test_nothing_is_acknowledged_while_the_stream_is_full_and_all_comes_later(
    broker: Mosquitto, stream: SqliteStream
) -> None:
    """And the other force goes on: its session is another."""
    full = FullFor(stream)
    full.refused[topic_of(REPORTS, "north")] = StreamFull(topic_of(REPORTS, "north"), 0.2)
    with Service(broker, full) as service:
        north, south = Watcher(broker, "north", "W-1"), Watcher(broker, "south", "W-1")
        for i in range(400):  # more than the session may have unacknowledged
            north.publish(report("W-1", sequence=i))
        eventually(lambda: any("north" in reason for reason in service.service.degraded()))
        for i in range(300):
            south.publish(report("W-1", sequence=i))
        wait_reports(stream, 300, "south")
        assert reports(stream) == []
        assert any("north" in reason for reason in service.service.degraded())
        full.refused.clear()
        assert sorted({r.sequence for r in wait_reports(stream, 400)}) == list(range(400))
        service.ready()
        north.close(), south.close()
    assert len({(r.watcher_id, r.sequence, r.content) for r in reports(stream)}) == 400
    assert len(reports(stream)) < 400 + 256, "only what was not acknowledged came again"


def test_what_is_durable_but_not_acknowledged_comes_again_and_is_recognisable(
    broker: Mosquitto, stream: SqliteStream
) -> None:
    """The service stops hearing its own success: the append is made, and then reported as of unknown outcome."""

    class Deaf(FullFor):
        def append(self, topic: str, records: Any) -> dict[int, int]:
            super().append(topic, records)
            self.appends.append(("deaf", 0))
            raise StreamFull(topic, 0.1)

    watcher = Watcher(broker, "north", "W-1")
    with Service(broker, Deaf(stream)):
        for i in range(20):
            watcher.publish(report("W-1", sequence=i))
        wait_reports(stream, 20)
    once = len(reports(stream))
    with Service(broker, stream):
        found = wait_reports(stream, once + 20)
    watcher.close()
    assert sorted({r.sequence for r in found}) == list(range(20))
    assert len({(r.identity, r.content) for r in found}) == 20, "the archive tells repeats by identity and content"
    with Service(broker, stream), Watcher(broker, "north", "W-2") as other:
        other.send(report("W-2"))
        assert len(wait_reports(stream, len(found) + 1)) == len(found) + 1, "now it was acknowledged"


@pytest.mark.parametrize("in_flight_max", [8, 200])
def test_the_broker_hands_over_no_more_than_may_be_unacknowledged(
    broker: Mosquitto, stream: SqliteStream, in_flight_max: int
) -> None:
    held = FullFor(stream)
    settings = MqttSettings(session_s=600, in_flight_max=in_flight_max)
    with Service(broker, held, settings=settings), Watcher(broker, "north", "W-1") as watcher:
        held.release.clear()
        numbers = [watcher.publish(report("W-1", sequence=i)) for i in range(150)]
        assert {watcher.told(number) for number in numbers} == {""}, "the broker has them all"
        eventually(lambda: held.appends)
        held.release.set()
        wait_reports(stream, 150)
    largest = max(count for _, count in held.appends)
    assert (largest <= 8) == (in_flight_max == 8), f"{largest} records in one append"


def test_what_is_sent_while_the_service_is_away_waits_at_the_broker(broker: Mosquitto, stream: SqliteStream) -> None:
    with Service(broker, stream):
        pass
    with Watcher(broker, "north", "W-1") as watcher:
        assert {watcher.send(report("W-1", sequence=i)) for i in range(30)} == {""}
    with Service(broker, stream):
        found = wait_reports(stream, 30)
    assert [r.sequence for r in found] == list(range(30))


def test_the_service_waits_for_a_broker_and_finds_it_again(broker: Mosquitto, stream: SqliteStream) -> None:
    broker.stop()
    with Service(broker, stream, wait=False) as service:
        eventually(lambda: any("no connection" in reason for reason in service.troubles()))
        broker.start()
        service.ready()
        for _ in range(2):
            broker.kill()
            eventually(service.troubles)
            broker.start()
            service.ready()
        with Watcher(broker, "north", "W-1") as watcher:
            watcher.send(report("W-1"))
        wait_reports(stream, 1)


def test_the_last_will_tells_of_a_watcher_that_fell_silent(
    service: Service, broker: Mosquitto, stream: SqliteStream
) -> None:
    watcher = Watcher(broker, "north", "W-1", V3, will=b"offline")
    watcher.send(b"online", watcher.topic("state"))
    eventually(lambda: [s.kind for s in states(stream)] == ["watcher-online"])
    watcher.vanish()
    eventually(lambda: len(states(stream)) == 2)
    [_, gone] = states(stream)
    assert (gone.kind, gone.force, gone.watcher_id) == ("watcher-offline", "north", "W-1")
    with Watcher(broker, "north", "W-2") as other:
        other.send(b"perhaps", other.topic("state"))
        eventually(lambda: service.metric("refused_total", force="north", code="bad-state") == 1)
    assert len(states(stream)) == 2


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """For `localhost`, signed by itself; and its key."""
    names = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    key, now = ec.generate_private_key(ec.SECP256R1()), SystemClock().now()
    made = (
        x509.CertificateBuilder(names, names, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "ca.pem", tmp_path / "key.pem"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.mark.parametrize("in_flight_max", [16, 256])
def test_over_tls_everything_comes_in_order(
    tmp_path: Path, stream: SqliteStream, certificate: tuple[Path, Path], in_flight_max: int
) -> None:
    settings = MqttSettings(session_s=600, in_flight_max=in_flight_max)
    users = {"north": ["W-1"], "south": ["W-1"]}
    with (
        Mosquitto(tmp_path / "broker", users, tls=certificate) as broker,
        Service(broker, stream, settings=settings, ca=str(certificate[0])),
        Watcher(broker, "north", "W-1") as watcher,
    ):
        for i in range(300):
            watcher.publish(report("W-1", sequence=i))
        found = wait_reports(stream, 300)
    assert [r.sequence for r in found] == list(range(300))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves its socket to be collected
def test_a_broker_whose_certificate_is_not_trusted_is_not_talked_to(
    tmp_path: Path, stream: SqliteStream, certificate: tuple[Path, Path]
) -> None:
    with (
        Mosquitto(tmp_path / "broker", {"north": ["W-1"], "south": ["W-1"]}, tls=certificate) as broker,
        Service(broker, stream, wait=False) as service,
    ):
        eventually(lambda: any("certificate" in reason.lower() for reason in service.troubles()))


def test_watchers_are_enrolled_once_the_registry_can_be_written(broker: Mosquitto, stream: SqliteStream) -> None:
    members = Members()
    members.busy = True
    with Service(broker, stream, members) as service, Watcher(broker, "north", "W-1") as watcher:
        watcher.send(report("W-1"))
        wait_reports(stream, 1)
        eventually(lambda: service.metric("failed_total", kind="enrol") > 0)
        members.busy = False
        eventually(lambda: members.watchers["north"] == {"W-1"})


@pytest.mark.usefixtures("service")
def test_records_are_those_of_the_gateway(broker: Mosquitto, stream: SqliteStream) -> None:
    with Watcher(broker, "north", "W-1") as watcher:
        watcher.send(report("W-1", report_id="r-1", time="2026-11-23T18:00:00Z", mood="sour"))
    [record] = wait_reports(stream, 1)
    assert (record.force, record.report_id, record.v) == ("north", "r-1", 1)
    assert msgspec.json.decode(record.extra or "") == {"mood": "sour"}
    assert record.identity is not None


def test_the_recipe_says_what_these_tests_run_on() -> None:
    """Every line of the broker's set-up here stands in the how-to, but for places, ports and who runs it."""
    recipe = (Path(__file__).parents[2] / "docs" / "how-to" / "mqtt.md").read_text("utf-8").splitlines()
    ours = (BROKER + LISTENER + SERVICE_ACL + FORCE_ACL + BASE_ACL).splitlines()
    settings = [
        line.format_map(defaultdict(str, force="north", autosave_s=AUTOSAVE_S, packet_bytes_max=PACKET_BYTES_MAX))
        for line in ours
        if "{folder}" not in line and "{user}" not in line and "{port}" not in line
    ]
    assert len(settings) > 10
    assert [line for line in settings if line not in recipe] == []
