"""A file written by someone else: every line has a verdict, whatever the file looks like."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from door import DoorDouble

from harmonywatch.fleet.sendfile import GatewayAwayError, KeyRefusedError, Verdict, send_file
from harmonywatch.fleet.units import UNIT_BYTES_MAX, read_units

REPORT = {
    "watcher_id": "w-1",
    "location": {"lat": 1.5, "lon": 2.5},
    "citizens": [{"name": 'Zoë "Zed" [x], {y}', "harmonyscore": 20.5}],
    "words": ["a\\", "b\n"],
}


class Running:
    """The door on a thread with a loop of its own: send_file is not asynchronous."""

    def __init__(self) -> None:
        self.door = DoorDouble({"k"})
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.call(self.door.start())

    def call(self, coming: object) -> None:
        asyncio.run_coroutine_threadsafe(coming, self.loop).result(10)  # type: ignore[arg-type]

    def end(self) -> None:
        self.call(self.door.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def running() -> Iterator[Running]:
    started = Running()
    yield started
    started.end()


def line_of(**changes: object) -> bytes:
    return json.dumps({**REPORT, **changes}, ensure_ascii=False).encode()


def statuses(verdicts: Iterator[Verdict]) -> list[tuple[int, str]]:
    return [(verdict.line, verdict.status) for verdict in verdicts]


def test_every_line_has_a_verdict_broken_ones_too(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "theirs.ndjson"
    lines = [line_of(), b"this is not JSON", b"", line_of(), line_of(words="many"), b"\xff\xfe", b"[1, 2", line_of()]
    path.write_bytes(b"\n".join(lines))
    verdicts = list(send_file(path, running.door.url, "k", lines_max=3))
    assert [(v.line, v.status) for v in verdicts] == [
        (1, "accepted"),
        (2, "refused"),
        (4, "accepted"),
        (5, "refused"),
        (6, "refused"),
        (7, "refused"),
        (8, "accepted"),
    ]
    assert running.door.lines["k"] == [lines[0], lines[3], lines[7]]
    assert running.door.rejects == [lines[1], lines[4], lines[5], lines[6]]
    assert all(v.reason and v.pointer is not None for v in verdicts if v.status == "refused")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_document_and_an_array_are_understood(running: Running, tmp_path: Path, indent: int, zipped: bool) -> None:
    pack = gzip.compress if zipped else bytes
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    one.write_bytes(pack(json.dumps(REPORT, indent=indent).encode() + b"\n"))
    many.write_bytes(pack(json.dumps([REPORT, {"watcher_id": 3}, REPORT], indent=indent).encode()))
    assert statuses(send_file(one, running.door.url, "k")) == [(1, "accepted")]
    assert statuses(send_file(many, running.door.url, "k")) == [(1, "accepted"), (2, "refused"), (3, "accepted")]
    assert [json.loads(line) for line in running.door.lines["k"]] == [REPORT] * 3


def test_a_broken_first_line_does_not_hide_the_others(running: Running, tmp_path: Path) -> None:
    for first in (b"[1", b'{"a":', b"{", b"[[[", b"nonsense", b"[]", b"\xef\xbb\xbf{}"):
        path = tmp_path / "theirs.ndjson"
        path.write_bytes(first + b"\n" + line_of() + b"\n" + line_of() + b"\n")
        found = statuses(send_file(path, running.door.url, "k"))
        if first in (b"[[[",):
            continue  # an array that is never closed: what it holds is one broken unit
        assert [status for _, status in found] == ["refused", "accepted", "accepted"], first


def test_array_elements_are_cut_verbatim_however_the_bytes_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = [line_of(note=f'\\" ]}}, [{{ {i}') for i in range(50)] + [b"NaN", b'"te,xt"', b"[1,[2]]"]
    path = tmp_path / "array.json"
    path.write_bytes(b"[\n" + b",\n ".join(elements) + b"\n]\n")
    for size in (1, 7, 64, 1 << 20):
        monkeypatch.setattr("harmonywatch.fleet.units.CHUNK_BYTES", size)
        assert [unit.data for unit in read_units(path)] == elements


def test_requests_respect_the_limits_and_a_long_line_goes_alone(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "long.ndjson"
    long, middle = line_of(note="x" * (2 << 20)), line_of(note="x" * 900_000)
    path.write_bytes(b"\n".join([line_of(), long, line_of(), *[middle] * 12, b"x" * (UNIT_BYTES_MAX + 1), line_of()]))
    found = list(send_file(path, running.door.url, "k"))
    assert [v.line for v in found] == list(range(1, 18))
    assert [v.line for v in found if v.status == "refused"] == [16]
    sizes = [size for _, size in running.door.requests]
    assert len(long) + 1 in sizes and max(sizes[2:]) <= 4 << 20 and len(sizes) >= 6


def test_a_busy_gateway_is_asked_again(running: Running, tmp_path: Path) -> None:
    calls = 0

    async def busy(request: web.Request) -> web.StreamResponse | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            return web.json_response({"title": "busy"}, status=503, headers={"Retry-After": "0"})
        if calls == 2:
            assert request.transport is not None
            request.transport.close()
        return None

    running.door.fault = busy
    path = tmp_path / "theirs.ndjson"
    path.write_bytes(line_of() + b"\n" + line_of() + b"\n")
    assert statuses(send_file(path, running.door.url, "k")) == [(1, "accepted"), (2, "accepted")]
    assert calls == 3


def test_a_wrong_key_and_an_absent_gateway_are_said(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "theirs.ndjson"
    path.write_bytes(line_of())
    with pytest.raises(KeyRefusedError, match="unknown key"):
        list(send_file(path, running.door.url, "wrong"))
    with pytest.raises(GatewayAwayError) as away:
        list(send_file(path, "http://127.0.0.1:9", "k", give_up_s=0.2))
    assert away.value.line == 1
    with pytest.raises(ValueError):
        list(send_file(path, "ftp://x", "k"))
    with pytest.raises(OSError):
        list(send_file(tmp_path / "absent", running.door.url, "k"))


def test_standard_input_is_read(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(line_of() + b"\n" + b"oops\n")
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)))  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert statuses(send_file("-", running.door.url, "k")) == [(1, "accepted"), (2, "refused")]


def test_an_empty_file_has_no_verdict(running: Running, tmp_path: Path) -> None:
    for content in (b"", b"\n\n \n", b"[]", b"[ \n ]"):
        path = tmp_path / "empty"
        path.write_bytes(content)
        assert list(send_file(path, running.door.url, "k")) == []


def test_files_larger_than_memory_are_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "large.ndjson"
    with path.open("wb") as file:
        for _ in range(200):
            file.write((line_of() + b"\n") * 1_000)
    import tracemalloc

    tracemalloc.start()
    assert sum(1 for _ in read_units(path)) == 200_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 20 << 20 and peak < 8 << 20
