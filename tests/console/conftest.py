"""A console on a real socket, over a real stream and a real registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from console_city import DEADLINE_S, PARTITIONS, City, build_city

from harmonywatch.clock import SystemClock
from harmonywatch.registry.store import open_registry


@pytest.fixture(params=["memory", "sqlite"])
def city(request: pytest.FixtureRequest, tmp_path: Path, made_registry: Path) -> Iterator[City]:
    yield from build_city(tmp_path, request.param, made_registry)


@pytest.fixture
def quick_city(tmp_path: Path, made_registry: Path) -> Iterator[City]:
    """On the stream in memory, for what does not depend on the stream."""
    yield from build_city(tmp_path, "memory", made_registry)


@pytest.fixture(scope="session")
def made_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with the two forces, made once: its migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("made") / "registry.db"
    registry = open_registry(f"sqlite:///{path}", SystemClock(), "os:test")
    for force in ("north", "south"):
        registry.add_force(force, PARTITIONS)
    registry.close()
    return path


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, with a deadline."""

    def wait(condition: Callable[[], bool]) -> None:
        pause, end = threading.Event(), SystemClock().monotonic() + DEADLINE_S
        while not condition():
            assert SystemClock().monotonic() < end, "the condition did not come true"
            pause.wait(0.01)

    return wait
