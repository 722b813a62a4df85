"""Fixtures of rooms that are tested on every embedded stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harmonywatch.clock import SystemClock
from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import Stream
from harmonywatch.stream.memory import MemoryStream
from harmonywatch.stream.sqlite import SqliteStream


@pytest.fixture(params=["memory", "sqlite"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stream]:
    """An empty stream of each adapter."""
    made: Any = (
        MemoryStream()
        if request.param == "memory"
        else SqliteStream(tmp_path / "stream", StreamSettings(), SystemClock())
    )
    yield made
    made.close()
