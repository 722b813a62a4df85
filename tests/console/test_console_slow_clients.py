"""Clients that read nothing, send half a request or a request without an end: none keeps memory or its connection."""

from __future__ import annotations

import select
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from console_city import City, build_city
from console_client import Watch, alert, append_alerts, get

from harmonywatch.console.guard import Patience
from harmonywatch.console.hub import LiveTerms
from harmonywatch.report.topics import ALERTS, encode, topic_of

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def disk_city(tmp_path: Path, made_registry: Path) -> Iterator[City]:
    """On the stream on disk, so that what is on the stream is not in memory."""
    yield from build_city(tmp_path, "sqlite", made_registry)


def stalled(port: int, path: str, key: str) -> socket.socket:
    """A client that asks and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: console\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    return client


def is_cut(client: socket.socket) -> bool:
    """The server reset the connection; nothing is read to find out."""
    poll = select.poll()
    poll.register(client, select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))


def flood(city: City, count: int) -> None:
    records = [encode(alert(n)) for n in range(500)]
    for _ in range(0, count, 500):
        city.stream.append(topic_of(ALERTS, "north"), {0: records})


def test_a_live_stream_that_nobody_reads_is_cut(quick_city: City, until: Until) -> None:
    console = quick_city.console(live=LiveTerms(queue_bytes_max=1 << 30), patience=Patience(untaken_s=0.3))
    with stalled(console.port, "/api/live", quick_city.officer("ada", "north")) as client:
        until(lambda: b"harmonywatch_live_streams 1.0" in get(console.port, "/metrics")[2])
        for first in range(0, 30_000, 500):  # far more than the kernel takes for a client that reads nothing
            records = [encode(alert(n)) for n in range(first, first + 500)]
            quick_city.stream.append(topic_of(ALERTS, "north"), {0: records})
        until(lambda: is_cut(client))
    until(lambda: b"harmonywatch_live_streams 0.0" in get(console.port, "/metrics")[2])


def test_an_answer_that_nobody_reads_is_cut(quick_city: City, until: Until) -> None:
    def long_list(*_: object) -> list[object]:
        return [{"text": "x" * 1000}] * 10_000

    console = quick_city.console(alerts=long_list, patience=Patience(untaken_s=0.3))
    with stalled(console.port, "/api/alerts?limit=10000", quick_city.officer("ada", "north")) as client:
        until(lambda: is_cut(client))
    assert get(console.port, "/healthz")[0] == 200


def test_clients_that_never_read_hold_no_more_than_their_queues(disk_city: City, until: Until) -> None:
    console = disk_city.console(
        live=LiveTerms(queue_bytes_max=100_000, farewell_s=0.1), patience=Patience(untaken_s=60)
    )
    key = disk_city.officer("ada", "north")
    with Watch(console.port, key).ready() as watch:
        append_alerts(disk_city.stream, alert(1_000_000))
        watch.take(1)
    clients = [stalled(console.port, "/api/live", key) for _ in range(20)]
    until(lambda: b"harmonywatch_live_streams 20.0" in get(console.port, "/metrics")[2])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(40):
            records = [encode(alert(n)) for n in range(number * 500, number * 500 + 500)]
            disk_city.stream.append(topic_of(ALERTS, "north"), {0: records})
        until(lambda: b"harmonywatch_live_streams 0.0" in get(console.port, "/metrics")[2])
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    for client in clients:
        client.close()
    assert held < 20 * 100_000 + (4 << 20), f"{held} bytes are held for clients that read nothing"


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /api/al", b"GET /healthz HTTP/1.1\r\nHost: c\r\n", b"GET /healthz HTTP/1.1\r\n\r\nGET /heal"],
    ids=["nothing", "half-a-line", "no-end", "half-of-the-second"],
)
def test_half_a_request_is_cut_in_time(quick_city: City, until: Until, sent: bytes) -> None:
    console = quick_city.console(patience=Patience(head_s=0.3))
    with socket.create_connection(("127.0.0.1", console.port), timeout=10) as client:
        if sent:
            client.sendall(sent)
        until(lambda: is_cut(client))


def test_a_head_without_an_end_is_cut_by_its_size(quick_city: City) -> None:
    console = quick_city.console()
    sent, line = 0, b"X-A: " + b"a" * 1000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", console.port), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        with pytest.raises(OSError):
            while sent < 64 << 20:
                client.sendall(line * 16)
                sent += len(line) * 16
    assert sent < 16 << 20, "the kernel's buffers, but no more"


def test_a_connection_that_is_used_well_is_left_alone(quick_city: City) -> None:
    console = quick_city.console(patience=Patience(head_s=0.3, untaken_s=0.3), live=LiveTerms(heartbeat_s=0.1))
    with Watch(console.port, quick_city.officer("ada", "north")).ready() as watch:
        beats = watch.everything()
        assert [next(beats).name for _ in range(12)] == ["heartbeat"] * 12
    with socket.create_connection(("127.0.0.1", console.port), timeout=10) as client:
        for _ in range(3):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: c\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
