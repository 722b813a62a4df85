from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from kept_audit import KeptAudit
from small_lake import UNTIL, FolderCatalog, Row, city, write_city

from harmonywatch.analysis.analyst import Analyst
from harmonywatch.analysis.contract import Limits
from harmonywatch.clock import ManualClock

SEED = 20261123


@pytest.fixture(scope="session")
def rows() -> dict[str, list[Row]]:
    return city(SEED)


@pytest.fixture(scope="session")
def lake(rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a=b") / "lake"
    write_city(folder, "north", rows)
    return folder


@pytest.fixture
def catalog(lake: Path) -> FolderCatalog:
    return FolderCatalog(lake)


@pytest.fixture
def audit() -> KeptAudit:
    return KeptAudit()


@pytest.fixture
def now() -> datetime:
    return UNTIL


@pytest.fixture
def analyst(catalog: FolderCatalog, audit: KeptAudit, now: datetime) -> Analyst:
    return Analyst(catalog, audit, ManualClock(now), Limits(deadline_s=30, memory="500MB", threads=2, nice=0))
