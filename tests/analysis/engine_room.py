"""An engine in the test's own process, for what would be slow with a process a query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harmonywatch.analysis.contract import Plan
from harmonywatch.analysis.engine import Engine, Room

ROOM = Room("500MB", 2, "/nonexistent", 30.0)


def engine_over(plans: Mapping[str, Plan], spill: Path | None = None) -> Engine:
    return Engine(plans, ROOM if spill is None else Room("500MB", 2, str(spill), 30.0))


def rows_of(engine: Engine, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    reader = engine.run(sql, values or {})
    return pa.Table.from_batches(list(engine.batches(reader, sql)), reader.schema).to_pylist()
