"""What was measured, shown at the end of the run, also when everything passes: a fixture and the hook that prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_TOLD = pytest.StashKey[list[str]]()
Tell = Callable[[str], None]


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Call it with a sentence that holds a figure."""
    told = request.config.stash.setdefault(_TOLD, [])
    return lambda text: told.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash.get(_TOLD, [])
    if told:
        terminalreporter.section("figures")
        for line in told:
            terminalreporter.line(line)
        told.clear()  # two folders of tests bring this hook; it speaks once
