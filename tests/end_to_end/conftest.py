"""Systems for these tests: one that they share where they can, one of its own where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from figures import pytest_terminal_summary, tell
from running_system import QUICK_ARCHIVE, System, made, running

__all__ = ["folder_system", "pytest_terminal_summary", "system", "tell"]


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that is up, shared by these tests; each adds forces of its own, with names of its own."""
    with running(tmp_path_factory.mktemp("up") / "data") as system:
        yield system


@pytest.fixture
def folder_system(tmp_path: Path) -> Iterator[System]:
    """A system that is not up yet."""
    with made(tmp_path / "data", environment=QUICK_ARCHIVE) as system:
        yield system
