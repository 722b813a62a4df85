"""Webhooks to a real server that fails, then works; what is told, how often, and what is never logged."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from dispatch_parts import PARTITIONS, Room, alert, later, make_topics, put
from sqlalchemy import text

from harmonywatch.clock import SystemClock, micros
from harmonywatch.dispatch.notify import Notifier, NotifierParts, message_of, tell_by_apprise
from harmonywatch.dispatch.webhook import NotDelivered, post, sign, verify
from harmonywatch.registry.contract import Channel
from harmonywatch.registry.engine import open_engine, writing
from harmonywatch.report.topics import DeliveryRecord
from harmonywatch.stream.memory import MemoryStream

SECRET = "5ec7e7" * 8


class Receiver(http.server.ThreadingHTTPServer):
    """Answers with the statuses it was given, one a request, then with 204; remembers every request."""

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Condition()
        self.hold = threading.Event()
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?token=hush"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hold.wait(20)
        with self.server.arrived:
            status = self.server.statuses.pop(0) if self.server.statuses else 204
            self.server.requests.append((dict(self.headers.items()), body))
            self.server.arrived.notify_all()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    with Receiver(*statuses) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.hold.set()
            receiver.shutdown()
            thread.join()


class Office:
    """A room whose notifier runs, on the wall clock."""

    def __init__(self, folder: Path, stream: MemoryStream | None = None) -> None:
        self.stream = stream or MemoryStream()
        make_topics(self.stream)
        self.clock = SystemClock()
        self.room = Room(self.stream, folder, self.clock)
        self.notifier = self.fresh()

    def fresh(self) -> Notifier:
        room = self.room
        parts = NotifierParts(room.store, self.stream, room.desk, self.clock, room.telemetry, 0.05, lambda: 0.5)
        return Notifier(parts)

    def channel(self, number: int, url: str, force: str = "north", *, enabled: bool = True) -> None:
        made = Channel(f"c{number}", force, "webhook", url, SECRET, enabled, later(0))
        self.room.desk.told_channels.append(made)

    def see(self, number: int, **fields: object) -> None:
        put(self.stream, [alert(number, judged=self.clock.now(), **fields)])  # type: ignore[arg-type]
        self.room.drain()
        self.notifier.wake()

    def wait(self, done: Callable[[], bool]) -> None:
        pause, deadline = threading.Event(), self.clock.monotonic() + 15
        while not done():
            assert self.clock.monotonic() < deadline, "not in time"
            pause.wait(0.005)

    def count(self, name: str, **labels: str) -> float | None:
        return self.room.telemetry.registry.get_sample_value(f"harmonywatch_{name}", labels)

    def wait_empty(self) -> None:
        self.wait(lambda: self.room.store.next_due_us([]) is None)

    def deliveries(self, force: str = "north") -> list[DeliveryRecord]:
        topic = f"deliveries.{force}"
        values = [v for p in range(PARTITIONS) for b in self.stream.read(topic, p, 0) for v in b.values]
        return [msgspec.json.decode(value, type=DeliveryRecord) for value in values]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.notifier.stop()
    assert office.notifier.failure is None
    office.room.store.close()


def test_a_webhook_that_fails_twice_is_told_the_same_until_it_takes_it(office: Office) -> None:
    said = io.StringIO()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(said), cache_logger_on_first_use=False)
    with receiving(500, 503) as receiver:
        office.channel(1, receiver.url)
        office.notifier.start()
        office.see(1)
        office.see(2, watcher="w-2")
        office.wait_empty()
        assert len(receiver.requests) == 3
        keys = {headers["Idempotency-Key"] for headers, _ in receiver.requests}
        (incident,) = office.room.store.incidents()
        assert keys == {f"{incident.incident_id}.1"}
        now_s = office.clock.now().timestamp()
        assert all(verify(SECRET, headers, body, now_s) for headers, body in receiver.requests)
        body = msgspec.json.decode(receiver.requests[0][1])
        assert (body["kind"], body["incident"]["name"], body["alert_id"]) == ("opened", "Ada", alert(1).alert_id)
    assert [record.alert_id for record in office.deliveries()] == [alert(1).alert_id]
    structlog.reset_defaults()
    assert "status 503" in said.getvalue()
    assert not {word for word in ("hush", "127.0.0.1", SECRET, "Ada") if word in said.getvalue()}


def test_an_incident_is_told_when_it_opens_and_reopens_and_not_for_each_alert_nor_when_late(office: Office) -> None:
    from harmonywatch.dispatch.listing import change_incident, officer_act

    with receiving() as receiver:
        office.channel(1, receiver.url)
        office.notifier.start()
        office.see(1)
        office.see(2)
        (incident,) = office.room.store.incidents()
        change_incident(
            office.room.store, incident.incident_id, officer_act("resolve", "kim", office.clock, reason="handled")
        )
        office.see(3)
        office.see(4, who="Bo", seen=later(-90_000))
        office.wait_empty()
        kinds = [msgspec.json.decode(body)["kind"] for _, body in receiver.requests]
        assert kinds == ["opened", "reopened"]
        assert [i.late for i in office.room.store.incidents()] == [False, True]


def test_other_forces_and_disabled_channels_are_told_nothing(office: Office) -> None:
    with receiving() as receiver, receiving() as other:
        office.channel(1, receiver.url)
        office.channel(2, other.url, "south")
        office.channel(3, other.url, enabled=False)
        office.notifier.start()
        office.see(1)
        office.wait_empty()
        assert (len(receiver.requests), len(other.requests)) == (1, 0)


def test_a_slow_channel_delays_no_other_and_is_asked_once_at_a_time(office: Office) -> None:
    with receiving() as slow, receiving() as quick:
        slow.hold.clear()
        office.channel(1, slow.url)
        office.channel(2, quick.url)
        office.notifier.start()
        for number in range(5):
            office.see(number, who=f"c-{number}")
        office.wait(lambda: len(quick.requests) == 5)
        assert slow.requests == []
        slow.hold.set()
        office.wait_empty()
        assert len(slow.requests) == 5
    assert len(office.deliveries()) == 5, "once per alert, whichever channel was first"


def test_what_was_not_told_before_a_crash_is_told_after_it(office: Office) -> None:
    with receiving() as receiver:
        office.channel(1, receiver.url)
        office.see(1)
        office.room.reopen()
        office.notifier = office.fresh()
        office.notifier.start()
        office.wait_empty()
        assert len(receiver.requests) == 1


def rename(office: Office, old: str, new: str) -> None:
    """The state is broken, or whole again, for everybody who looks."""
    engine = open_engine(office.room.url)
    with writing(engine) as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    engine.dispose()


def test_a_state_that_fails_stops_no_notifier_and_is_seen_while_it_lasts(office: Office) -> None:
    with receiving() as receiver:
        office.channel(1, receiver.url)
        office.see(1)
        rename(office, "notifications", "elsewhere")
        office.notifier.start()
        office.wait(lambda: office.notifier.failure is not None)
        assert "no channel is told" in str(office.notifier.failure)
        office.wait(lambda: (office.count("failed_total", kind="notifier") or 0) >= 2)
        rename(office, "elsewhere", "notifications")
        office.wait(lambda: office.notifier.failure is None)
        office.wait_empty()
        assert len(receiver.requests) == 1


def test_a_delivery_that_cannot_be_recorded_leaves_no_channel_busy_for_ever(tmp_path: Path) -> None:
    class Damaged(MemoryStream):
        def append(self, topic, records):  # type: ignore[no-untyped-def]
            if topic.startswith("deliveries."):
                raise OSError("bad sector")
            return super().append(topic, records)

    office = Office(tmp_path, Damaged())
    with receiving() as receiver:
        office.channel(1, receiver.url)
        office.notifier.start()
        office.see(1)
        office.wait_empty()
        office.see(2, who="Bo")
        office.wait_empty()
        assert len(receiver.requests) == 2, "once each: a delivery that was not recorded is a delivery"
    office.notifier.stop()
    office.room.store.close()


def test_a_claimed_notification_is_nobody_elses_until_the_claim_ends(office: Office) -> None:
    office.channel(1, "http://127.0.0.1:9/")
    office.see(1)
    now_us = micros(office.clock.now())
    assert len(office.room.store.claim(now_us, 1_000_000, [])) == 1
    assert office.room.store.claim(now_us, 1_000_000, []) == []
    assert office.room.store.claim(now_us + 1_000_001, 1_000_000, ["c1"]) == []
    assert len(office.room.store.claim(now_us + 1_000_001, 1_000_000, [])) == 1


def test_waits_double_up_to_the_most_with_jitter(office: Office) -> None:
    from harmonywatch.dispatch.notify import RETRY_FIRST_S

    parts = office.notifier._parts
    for randomness, share in ((0.0, 0.5), (0.999999, 1.0)):
        wide = NotifierParts(
            parts.store, parts.stream, parts.desk, parts.clock, parts.telemetry, 300, lambda r=randomness: r
        )
        waits = [Notifier(wide)._wait_again_s(tries) for tries in range(60)]
        assert waits[:4] == pytest.approx([RETRY_FIRST_S * share * 2**n for n in range(4)], rel=1e-3)
        assert waits[-1] == pytest.approx(300 * share, rel=1e-3)


def test_a_redirect_is_not_followed(office: Office) -> None:
    with receiving(302) as receiver:
        channel = Channel("c1", "north", "webhook", receiver.url, SECRET, True, later(0))
        with pytest.raises(NotDelivered, match="302"):
            post(channel, b"{}", "i1.1", office.clock.now().timestamp())
        assert len(receiver.requests) == 1


def test_a_receiver_is_not_there(office: Office) -> None:
    channel = Channel("c1", "north", "webhook", "http://127.0.0.1:1/hush", SECRET, True, later(0))
    with pytest.raises(NotDelivered) as caught:
        post(channel, b"{}", "i1.1", office.clock.now().timestamp())
    assert "127" not in str(caught.value) and "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "accepted"),
    [("nothing", True), ("body", False), ("secret", False), ("timestamp", False), ("old", False), ("missing", False)],
)
def test_only_the_signed_bytes_at_their_time_verify(change: str, accepted: bool) -> None:
    headers = {"Harmonywatch-Timestamp": "1000", "Harmonywatch-Signature": sign(SECRET, 1000, b"body")}
    if change == "timestamp":
        headers["Harmonywatch-Timestamp"] = "1001"
    if change == "missing":
        del headers["Harmonywatch-Timestamp"]
    body = b"b0dy" if change == "body" else b"body"
    secret = "other" if change == "secret" else SECRET
    assert verify(secret, headers, body, 1301.0 if change == "old" else 1300.0) is accepted


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise's own import
def test_apprise_tells_a_person_who_where_and_why(office: Office) -> None:
    with receiving() as receiver:
        office.channel(1, receiver.url)
        office.see(1)
        (row,) = office.room.store.claim(micros(office.clock.now()), 1, [])
        title, message = message_of(row.body)
        assert title == "north: Ada, harmonyscore-below-25 (opened)"
        assert "52.50000, 13.40000" in message and "12.5" in message
        url = receiver.url.replace("http://", "json://").split("?")[0]
        tell_by_apprise(Channel("c2", "north", "apprise", url, None, True, later(0)), row.body)
        assert title in receiver.requests[0][1].decode()
        with pytest.raises(NotDelivered):
            tell_by_apprise(Channel("c2", "north", "apprise", "nothing://such", None, True, later(0)), row.body)
