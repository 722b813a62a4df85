"""The suites of `tests/dispatch` on PostgreSQL, as they stand: the state, its bounds, several dispatchers, the model, processes.

Left out is what is about SQLite itself: the plans of its planner, and the size of its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dispatch_parts
import pytest
from test_dispatch_model import *  # noqa: F403
from test_dispatch_processes import *  # noqa: F403
from test_incident_store import *  # noqa: F403
from test_office import *  # noqa: F403
from test_upkeep import *  # noqa: F403

from engines.postgres import Postgres

for _name in (
    "test_a_hundred_thousand_alerts_leave_a_bounded_file",
    "test_a_page_of_incidents_since_a_moment_reads_only_those",
    "test_every_question_that_is_asked_often_has_its_index",
):
    del globals()[_name]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def states_on_the_server(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database for each folder that a test asks about."""
    made: dict[Path, str] = {}

    def state_url(folder: Path) -> str:
        if folder not in made:
            made[folder] = postgres.database()
        return made[folder]

    monkeypatch.setattr(dispatch_parts, "state_url", state_url)
