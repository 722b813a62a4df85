"""The views as statements for somebody's own Spark, which reads the tables of the lake through Delta.

Every statement replaces what was there, so they may run again. A table that holds nothing yet has all its columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

from harmonywatch.analysis.contract import TABLE_OF_VIEW, Limits, Plan, Room
from harmonywatch.analysis.dialect import spark_of, spark_type
from harmonywatch.analysis.engine import Engine
from harmonywatch.analysis.views import spark_functions, sql_of


def statements(plans: Mapping[str, Plan], places: Mapping[str, str]) -> list[str]:
    """In the order in which they have to run. `places`: folder or URL of each table of `plans`."""
    within = Limits()
    room = Room(within.memory, 1, tempfile.gettempdir(), within.deadline_s)
    columns = Engine({table: Plan([], 0, plan.schema) for table, plan in plans.items()}, room).columns()
    tables = [
        _table(table, columns[f"lake_{table}"], places[table] if plan.files else None) for table, plan in plans.items()
    ]
    views = [
        f"CREATE OR REPLACE TEMPORARY VIEW {view} AS {spark_of(sql_of(view), columns)}"
        for view, read in TABLE_OF_VIEW.items()
        if read in plans
    ]
    return [*spark_functions(), *tables, *views]


def _table(table: str, columns: Mapping[str, str], place: str | None) -> str:
    if place is None:
        selected = ", ".join(f"CAST(NULL AS {spark_type(kind)}) AS `{name}`" for name, kind in columns.items())
        source = f"SELECT {selected} WHERE false"
    else:
        named = ", ".join(f"`{name}`" for name in columns)
        url = place.replace("s3://", "s3a://", 1).replace("`", "``")
        source = f"SELECT {named} FROM delta.`{url}`"  # noqa: S608
    return f"CREATE OR REPLACE TEMPORARY VIEW lake_{table} AS {source}"
