"""Streams of each adapter on real folders, and what the tests of several files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from embedded_streams import stream  # noqa: F401 a fixture
from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.sqlite import SqliteStream

Open = Callable[..., SqliteStream]


@pytest.fixture
def tick_us() -> int:
    """How exactly these adapters tell the time of an append, microseconds."""
    return 1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 11, 23, 12, tzinfo=UTC))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the SQLite stream of this test's folder, as often as asked, with any of its settings."""
    streams: list[SqliteStream] = []

    def open_stream(clock: Any = None, *, futex: bool = True, **settings: Any) -> SqliteStream:
        chosen = StreamSettings(**settings)
        streams.append(SqliteStream(tmp_path / "stream", chosen, clock or SystemClock(), futex=futex))
        return streams[-1]

    yield open_stream
    for each in streams:
        each.close()
