"""The views as SQL: `views/*.sql`, each over the typed table of the lake that it reads."""

from __future__ import annotations

from functools import cache
from importlib import resources

from harmonywatch.analysis.contract import TABLE_OF_VIEW


@cache
def sql_of(name: str) -> str:
    """The text of `views/<name>.sql`."""
    return resources.files("harmonywatch.analysis").joinpath("views", f"{name}.sql").read_text("utf-8")


def views_over(table: str) -> list[str]:
    """Statements that make every view that reads `table`."""
    return [f"CREATE VIEW {view} AS\n{sql_of(view)}" for view, read in TABLE_OF_VIEW.items() if read == table]


def macros() -> list[str]:
    """Statements that make the functions that the views' readers may call."""
    return [f"CREATE MACRO h3_parent\n{sql_of('h3_parent')}"]


def spark_functions() -> list[str]:
    """The same for Spark, whose bits are signed; an index of H3 never has the first one set."""
    return [f"CREATE OR REPLACE TEMPORARY FUNCTION h3_parent\n{sql_of('h3_parent.spark')}"]


def lake_over(table: str, columns: list[str], files: list[str]) -> str:
    """The statement that makes `lake_<table>`: its files, or nothing, in either case with every column and its type
    (from `typed_<table>`). Columns are named, because a folder above the lake may look like a partition."""
    named = ", ".join(f'"{column}"' for column in columns)
    source = f"SELECT * FROM typed_{table}"  # noqa: S608
    if files:
        listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        source += (
            f" UNION ALL BY NAME SELECT * FROM read_parquet([{listed}], union_by_name = true,"  # noqa: S608
            " hive_partitioning = true, hive_types = {'day': DATE})"
        )
    return f"CREATE VIEW lake_{table} AS SELECT {named} FROM ({source})"  # noqa: S608
