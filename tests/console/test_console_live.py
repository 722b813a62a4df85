"""Live streams: what is told, to whom, once, and without a gap over broken connections and restarts."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import msgspec
import pytest
from console_city import City, make_force
from console_client import PARTITIONS, Watch, alert, append_alerts, append_event, get

from harmonywatch.clock import SystemClock, from_wire, to_wire
from harmonywatch.console.hub import LiveTerms
from harmonywatch.report.topics import ALERTS, DELIVERIES, EVENTS, DeliveryRecord, WatcherRecord, encode, topic_of
from harmonywatch.stream.contract import ClosedStream
from harmonywatch.stream.memory import MemoryStream

Until = Callable[[Callable[[], bool]], None]


def deliveries(city: City, force: str = "north") -> list[DeliveryRecord]:
    found = []
    for partition in range(PARTITIONS):
        for batch in city.stream.read(topic_of(DELIVERIES, force), partition, 0):
            found += [msgspec.json.decode(value, type=DeliveryRecord) for value in batch.values]
    return found


def test_an_alert_reaches_an_officer_with_the_time_of_its_delivery(city: City) -> None:
    console = city.console()
    with Watch(console.port, city.officer("ada", "north")).ready() as watch:
        sent = alert(1)
        append_alerts(city.stream, sent)
        [told] = watch.take(1)
    assert told.name == "alert"
    delivered_at = told.data.pop("delivered_at")
    assert told.data == msgspec.json.decode(encode(sent))
    assert sent.received_at <= delivered_at <= to_wire(SystemClock().now())


def test_an_incident_is_told_with_what_happened_to_it(quick_city: City) -> None:
    console = quick_city.console()
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        append_event(
            quick_city.stream, "north", "opened", b'{"incident_id":"i-1","name":"Ada",\n"state":"open"}', "north-1"
        )
        [told] = watch.take(1)
    assert told.name == "incident"
    assert from_wire(told.data.pop("at"))
    assert told.data == {"kind": "opened", "incident_id": "i-1", "name": "Ada", "state": "open"}


def test_a_watcher_that_goes_is_told(quick_city: City) -> None:
    console = quick_city.console()
    gone = WatcherRecord(1, "watcher-offline", "north", "W-1", to_wire(SystemClock().now()))
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        quick_city.stream.append(topic_of(EVENTS, "north"), {0: [encode(gone), encode(gone)]})
        append_event(quick_city.stream, "north", "opened", b'{"incident_id":"i-1"}', "north-1")
        first, second = watch.take(2)
    assert (first.name, first.data) == ("watcher", msgspec.json.decode(encode(gone)))
    assert second.name == "incident"


def test_forces_do_not_see_each_other_and_an_officer_of_all_sees_both(city: City) -> None:
    console = city.console()
    north, south, both = (city.officer(name, force) for name, force in (("n", "north"), ("s", "south"), ("b", None)))
    watches = [Watch(console.port, key).ready() for key in (north, south, both)]
    narrowed = Watch(console.port, both, "?force=south").ready()
    append_alerts(city.stream, alert(1, "north"), alert(2, "south"), alert(3, "north"), alert(4, "south"))
    seen = [{told.data["alert_id"] for told in watch.take(2)} for watch in (*watches[:2], narrowed)]
    assert seen == [
        {"north-000001", "north-000003"},
        {"south-000002", "south-000004"},
        {"south-000002", "south-000004"},
    ]
    assert {told.data["force"] for told in watches[2].take(4)} == {"north", "south"}
    assert "south" not in watches[0].last_id
    assert "north" not in watches[1].last_id + narrowed.last_id
    for watch in (*watches, narrowed):
        watch.close()


def test_a_repeated_alert_is_told_once(quick_city: City) -> None:
    append_alerts(quick_city.stream, alert(1))
    console = quick_city.console()
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        append_alerts(quick_city.stream, alert(1), alert(2), alert(2), alert(3), alert(2))
        append_event(quick_city.stream, "north", "opened", b'{"incident_id":"i-1"}')
        told = watch.take(3)
        assert sorted(each.data.get("alert_id", "") for each in told) == ["", "north-000002", "north-000003"]


def test_the_first_delivery_of_an_alert_is_recorded_once_and_measured(city: City, until: Until) -> None:
    append_alerts(city.stream, alert(0))  # before the console is there: nobody is handed this one
    console = city.console()
    key = city.officer("ada", None)
    with Watch(console.port, key).ready() as one, Watch(console.port, key, "?force=north").ready() as two:
        append_alerts(city.stream, alert(1), alert(2), alert(3, "south"))
        told = {each.data["alert_id"]: each.data["delivered_at"] for each in one.take(3)}
        assert len(two.take(2)) == 2
        until(lambda: len(deliveries(city)) == 2 and len(deliveries(city, "south")) == 1)
    recorded = {record.alert_id: record.delivered_at for record in deliveries(city) + deliveries(city, "south")}
    assert recorded == told
    assert {record.by for record in deliveries(city)} == {"live"}
    assert b'harmonywatch_deliver_seconds_count{force="north"} 2.0' in get(console.port, "/metrics")[2]


def test_an_alert_is_delivered_when_it_is_handed_over_not_when_it_was_read(quick_city: City, until: Until) -> None:
    console = quick_city.console()
    entered, release = threading.Event(), threading.Event()
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        console.on_loop(lambda: (entered.set(), release.wait(10)))  # everything that hands over waits
        assert entered.wait(10)
        quick_city.stream.append(topic_of(ALERTS, "north"), {0: [b"not json", encode(alert(1))]})
        unreadable = console.parts.telemetry.failed.labels("unreadable")
        until(lambda: unreadable.collect()[0].samples[0].value == 1)  # so the alert beside it was read
        released_at = to_wire(SystemClock().now())
        release.set()
        [told] = watch.take(1)
    assert told.data["delivered_at"] >= released_at


def test_what_nobody_watches_is_not_delivered(quick_city: City, until: Until) -> None:
    console = quick_city.console()
    append_alerts(quick_city.stream, alert(1))
    with Watch(console.port, quick_city.officer("sue", "south")).ready() as watch:
        append_alerts(quick_city.stream, alert(2), alert(3, "south"))
        watch.take(1)
        until(lambda: len(deliveries(quick_city, "south")) == 1)
    assert deliveries(quick_city) == []


def test_a_client_that_comes_back_misses_nothing_and_is_told_nothing_twice(city: City) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)  # noqa: T201 (shown when the test fails)
    chance = random.Random(seed)
    console = city.console()
    key, total = city.officer("ada", None), 300
    writer = threading.Thread(
        target=lambda: [append_alerts(city.stream, alert(n, chance.choice(["north", "south"]))) for n in range(total)]
    )
    watch = Watch(console.port, key).ready()
    seen: list[str] = []
    writer.start()
    while len(seen) < total:
        seen += [told.data["alert_id"] for told in watch.take(min(chance.randint(1, 40), total - len(seen)))]
        watch.close()
        watch = Watch(console.port, key, last_id=watch.last_id)
    writer.join()
    watch.close()
    assert len(set(seen)) == len(seen)
    assert sorted(int(each.split("-")[1]) for each in seen) == list(range(total))


def test_a_client_resumes_over_a_restart_of_the_console(city: City) -> None:
    key = city.officer("ada", "north")
    console = city.console()
    with Watch(console.port, key).ready() as watch:
        append_alerts(city.stream, alert(1), alert(2))
        append_event(city.stream, "north", "opened", b'{"incident_id":"i-1"}')
        first = watch.take(3)
        console.stop()
        assert [told.name for told in watch.events()] == ["closed"]
    append_alerts(city.stream, alert(2), alert(3))
    append_event(city.stream, "north", "joined", b'{"incident_id":"i-1"}')
    console = city.console()
    with Watch(console.port, key, last_id=watch.last_id).ready() as again:
        append_alerts(city.stream, alert(3), alert(4), alert(1))
        append_event(city.stream, "north", "resolved", b'{"incident_id":"i-1"}')
        then = again.take(4)
    ids = [told.data.get("alert_id", told.data.get("kind")) for told in first + then]
    assert sorted(ids) == [
        "joined",
        "north-000001",
        "north-000002",
        "north-000003",
        "north-000004",
        "opened",
        "resolved",
    ]


def test_a_client_cut_off_before_its_first_event_can_resume(quick_city: City) -> None:
    console = quick_city.console()
    key = quick_city.officer("ada", "north")
    with Watch(console.port, key).ready() as watch:
        pass
    append_alerts(quick_city.stream, alert(1))
    with Watch(console.port, key, last_id=watch.last_id) as again:
        assert again.take(1)[0].data["alert_id"] == "north-000001"


def test_a_heartbeat_breaks_silence_and_moves_the_id_on(quick_city: City) -> None:
    console = quick_city.console(live=LiveTerms(heartbeat_s=0.05))
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        append_alerts(quick_city.stream, alert(1))
        stream = watch.everything()
        told = next(each for each in stream if each.name == "alert")
        beat = next(each for each in stream if each.name == "heartbeat")
    assert beat.id == told.id
    assert from_wire(beat.data["at"])


def test_a_force_made_later_is_heard_from_its_first_alert(city: City) -> None:
    console = city.console()
    with Watch(console.port, city.officer("all", None)).ready() as watch:
        make_force(city.registry, city.stream, "east")
        append_alerts(city.stream, alert(1, "east"))
        assert watch.take(1)[0].data["alert_id"] == "east-000001"
    append_alerts(city.stream, alert(2, "east"))
    with Watch(console.port, city.officer("east", None), last_id=watch.last_id) as again:
        assert again.take(1)[0].data["alert_id"] == "east-000002"


def test_since_begins_with_what_was_recorded_from_then_on(city: City) -> None:
    console = city.console()
    key = city.officer("ada", "north")
    append_alerts(city.stream, *(alert(n) for n in range(20)))
    moment = to_wire(SystemClock().now())
    append_alerts(city.stream, *(alert(n) for n in range(20, 30)))
    with Watch(console.port, key, f"?since={moment}").open() as watch:
        told = watch.take(10)
    assert [each.data["alert_id"] for each in told] == [f"north-{n:06d}" for n in range(20, 30)]
    with Watch(console.port, key, "?since=1999-01-01T00:00:00Z") as watch:
        assert len(watch.take(30)) == 30


def test_what_is_no_longer_kept_is_told_as_a_gap(quick_city: City) -> None:
    console = quick_city.console()
    key = quick_city.officer("ada", "north")
    with Watch(console.port, key).ready() as watch:
        append_alerts(quick_city.stream, alert(1))
        watch.take(1)
    with Watch(console.port, key).ready() as other:
        append_alerts(quick_city.stream, alert(1_001), alert(2))
        other.take(2)
    assert isinstance(quick_city.stream, MemoryStream)
    for partition in range(PARTITIONS):
        topic = topic_of(ALERTS, "north")
        quick_city.stream.trim(topic, partition, quick_city.stream.bounds(topic, partition).end)
    append_alerts(quick_city.stream, alert(3))
    with Watch(console.port, key, last_id=watch.last_id) as again:
        gap, told = again.take(2)
    assert gap.name == "gap"
    assert gap.data["reason"].startswith("2 records")
    assert told.data["alert_id"] == "north-000003"


def test_the_id_of_another_stream_is_told_as_a_gap(quick_city: City) -> None:
    console = quick_city.console()
    foreign = "0" * 8 + ";north;a.north:7-7-7-7"
    append_alerts(quick_city.stream, alert(1))
    with Watch(console.port, quick_city.officer("ada", "north"), last_id=foreign) as watch:
        [gap] = watch.take(1)
        assert "replaced" in gap.data["reason"]
        append_alerts(quick_city.stream, alert(2))
        assert watch.take(1)[0].data["alert_id"] == "north-000002"


def test_the_id_of_another_force_shows_nothing_of_it(quick_city: City) -> None:
    console = quick_city.console()
    append_alerts(quick_city.stream, alert(1, "south"), alert(2, "north"))
    begin = quick_city.stream.id[:8] + ";south;a.south:0-0-0-0;a.north:0-0-0-0"
    with Watch(console.port, quick_city.officer("ada", "north"), last_id=begin).ready() as watch:
        append_alerts(quick_city.stream, alert(3, "south"), alert(4, "north"))
        assert watch.take(1)[0].data["alert_id"] == "north-000004"


@pytest.mark.parametrize(
    "text", ["7", "x;y;z", "0" * 8 + ";north;a.north:-1", "0" * 8 + ";NORTH", "0" * 8 + ";north;q.north:1"]
)
def test_an_id_that_was_never_given_is_refused(quick_city: City, text: str) -> None:
    console = quick_city.console()
    key = quick_city.officer("ada", "north")
    status, headers, body = get(console.port, "/api/live", key, {"Last-Event-ID": text})
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert msgspec.json.decode(body)["code"] == "not-an-id"


def test_a_client_too_slow_is_told_so_and_resumes_where_it_was(quick_city: City) -> None:
    console = quick_city.console(live=LiveTerms(queue_bytes_max=600_000, farewell_s=30))
    key, total = quick_city.officer("ada", "north"), 30_000
    with Watch(console.port, key, receive_bytes=4096).ready() as slow, Watch(console.port, key).ready() as quick:
        ahead = [alert(n) for n in range(total)]
        for first in range(0, total, 500):
            quick_city.stream.append(
                topic_of(ALERTS, "north"), {0: [encode(each) for each in ahead[first : first + 500]]}
            )
            assert len(quick.take(500)) == 500
        *told, last = slow.events()
        assert (last.name, last.data["reason"]) == ("closed", "too-slow")
        assert 0 < len(told) < total
    with Watch(console.port, key, last_id=slow.last_id) as again:
        told += again.take(total - len(told))
    assert [each.data["alert_id"] for each in told] == [f"north-{n:06d}" for n in range(total)]


def test_a_client_that_takes_nothing_is_left_behind(quick_city: City, until: Until) -> None:
    console = quick_city.console(live=LiveTerms(queue_bytes_max=50_000, farewell_s=0.1))
    streams = console.parts.telemetry.streams_open
    with Watch(console.port, quick_city.officer("ada", "north"), receive_bytes=4096).ready():
        records = [encode(alert(n)) for n in range(30_000)]
        for first in range(0, len(records), 50):
            quick_city.stream.append(topic_of(ALERTS, "north"), {0: records[first : first + 50]})
        until(lambda: streams.collect()[0].samples[0].value == 0)


def test_a_revoked_key_loses_its_streams_within_a_second(city: City) -> None:
    console = city.console()
    key, other = city.officer("ada", "north"), city.officer("bo", "north")
    with Watch(console.port, key).ready() as watch, Watch(console.port, other).ready() as kept:
        began = SystemClock().monotonic()
        city.registry.revoke("officer", "ada", None)
        assert [(told.name, told.data["reason"]) for told in watch.events()] == [("closed", "revoked")]
        assert SystemClock().monotonic() - began < 1.0
        append_alerts(city.stream, alert(1))
        assert kept.take(1)[0].name == "alert"
    status, _, body = get(console.port, "/api/live", key)
    assert (status, msgspec.json.decode(body)["code"]) == (401, "unknown-key")


def test_two_hundred_streams_get_every_alert(city: City, until: Until) -> None:
    console = city.console()
    key = city.officer("ada", None)
    watches = [Watch(console.port, key) for _ in range(200)]
    for watch in watches:
        watch.ready()
    assert b"harmonywatch_live_streams 200.0" in get(console.port, "/metrics")[2]
    append_alerts(city.stream, *(alert(n) for n in range(20)))
    for watch in watches:
        assert len({told.data["alert_id"] for told in watch.take(20)}) == 20
        watch.close()
    until(lambda: b"harmonywatch_live_streams 0.0" in get(console.port, "/metrics")[2])
    until(lambda: len(deliveries(city)) == 20)


def test_a_stop_ends_open_streams_soon_and_says_so(quick_city: City) -> None:
    console = quick_city.console()
    key = quick_city.officer("ada", "north")
    watches = [Watch(console.port, key).ready() for _ in range(20)]
    began = SystemClock().monotonic()
    console.stop()
    assert SystemClock().monotonic() - began < 5
    assert console.error is None
    for watch in watches:
        assert [told.data["reason"] for told in watch.events()] == ["stopping"]
        watch.close()


def test_a_delivery_just_before_the_stop_is_recorded(quick_city: City) -> None:
    console = quick_city.console(live=LiveTerms(flush_interval_s=60))
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        append_alerts(quick_city.stream, alert(1))
        watch.take(1)
        console.stop()
    assert [record.alert_id for record in deliveries(quick_city)] == ["north-000001"]


def test_a_record_that_cannot_be_read_is_counted_and_stepped_over(quick_city: City) -> None:
    console = quick_city.console()
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        quick_city.stream.append(topic_of(ALERTS, "north"), {0: [b"not json", encode(alert(1))]})
        assert watch.take(1)[0].data["alert_id"] == "north-000001"
    assert b'harmonywatch_failed_total{kind="unreadable"} 1.0' in get(console.port, "/metrics")[2]


def test_a_record_of_a_later_version_stops_the_console(quick_city: City) -> None:
    console = quick_city.console()
    quick_city.stream.append(topic_of(ALERTS, "north"), {0: [encode(msgspec.structs.replace(alert(1), v=2))]})
    assert "version 2" in str(console.wait_ended())


def test_a_stream_that_fails_stops_the_console(quick_city: City) -> None:
    console = quick_city.console()
    quick_city.stream.close()
    assert isinstance(console.wait_ended(), ClosedStream)
