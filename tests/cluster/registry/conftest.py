"""A PostgreSQL for the whole run; each test has a database of its own on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engines.postgres import Postgres
from harmonywatch.clock import ManualClock
from harmonywatch.registry.store import Registry, open_registry

sys.path.append(str(Path(__file__).parents[2] / "registry"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def url(postgres: Postgres) -> str:
    """Of an empty database."""
    return postgres.database()


@pytest.fixture
def database() -> Path:
    """What errors would name if it were a file."""
    return Path("registry")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 11, 23, 18, tzinfo=UTC))


@pytest.fixture
def enrol_most_s() -> float:
    return 0.1


@pytest.fixture
def registry(url: str, clock: ManualClock) -> Iterator[Registry]:
    registry = open_registry(url, clock, "os:alice")
    yield registry
    registry.close()
