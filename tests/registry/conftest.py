"""A registry in a file of its own, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harmonywatch.clock import ManualClock
from harmonywatch.registry.store import Registry, open_registry


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "registry.db"


@pytest.fixture
def url(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 11, 23, 18, tzinfo=UTC))


@pytest.fixture
def enrol_most_s() -> float:
    """CPU time that 1,200 watchers may take to be enrolled, half of the time."""
    return 0.05


@pytest.fixture
def registry(url: str, clock: ManualClock) -> Iterator[Registry]:
    registry = open_registry(url, clock, "os:alice")
    yield registry
    registry.close()
