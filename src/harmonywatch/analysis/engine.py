"""DuckDB, locked down: the only file that imports it. Runs in the sandbox's process, on an in-memory database.

In this order: (1) limits, (2) the typed tables, the views over the planned files, (3) the planned files become the only
paths that may be opened, (4) external access off, (5) configuration locked, (6) the text is parsed by the engine and
judged (`vetting.py`), (7) it runs. Nothing of the analyst's is seen by the engine before (6).
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from harmonywatch.analysis.contract import BadQuery, Deadline, EngineFailed, OutOfMemory, Plan, QueryError, Room
from harmonywatch.analysis.moments import Value
from harmonywatch.analysis.vetting import place_of, vet_tree
from harmonywatch.analysis.views import lake_over, macros, views_over

BATCH_ROWS = 8_192
S3 = "s3://"
SPILL_BYTES_MAX = "8GB"
"""What a query may put beside its memory; beyond, it is out of memory."""

COLUMNS = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY table_oid, column_index"

CARET = re.compile(r"\n\s*LINE (\d+): (.*)\n(\s*)\^", re.DOTALL)


class Engine:
    """One locked database over the plans of one query. Not for two threads, `interrupt` apart."""

    def __init__(self, plans: Mapping[str, Plan], room: Room) -> None:
        self._room = room
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_persistent_secrets": "false",
                "python_enable_replacements": "false",
                "memory_limit": room.memory,
                "threads": str(room.threads),
                "temp_directory": room.spill_folder,
                "max_temp_directory_size": SPILL_BYTES_MAX,
                "arrow_large_buffer_size": "false",
            },
        )
        try:
            self._connection.execute("SET TimeZone = 'UTC'")
            if any(file.startswith(S3) for plan in plans.values() for file in plan.files):
                self._reach(room.store)
            self._open(plans)
            self._lock(plans)
        except duckdb.Error as error:  # nothing of the analyst's has run yet: a file is gone, or not what it was
            raise EngineFailed(str(error).splitlines()[0]) from None

    def _reach(self, store: Mapping[str, str]) -> None:
        """Files in an S3 store can be read. The extension comes with a package: nothing is fetched."""
        self._connection.execute(f"LOAD {_quoted(_extension('httpfs'))}")
        endpoint = store.get("AWS_ENDPOINT_URL", "")
        options = {
            "KEY_ID": store.get("AWS_ACCESS_KEY_ID"),
            "SECRET": store.get("AWS_SECRET_ACCESS_KEY"),
            "SESSION_TOKEN": store.get("AWS_SESSION_TOKEN"),
            "REGION": store.get("AWS_REGION"),
            "ENDPOINT": urlsplit(endpoint).netloc or None,
            "URL_STYLE": "path" if endpoint else None,
            "USE_SSL": "false" if endpoint.startswith("http://") else None,
        }
        told = "".join(f", {name} {_quoted(value)}" for name, value in options.items() if value)
        self._connection.execute(f"CREATE SECRET (TYPE s3{told})")

    def _open(self, plans: Mapping[str, Plan]) -> None:
        for table, plan in plans.items():
            self._connection.register("empty", plan.schema.empty_table())
            self._connection.execute(f"CREATE TABLE typed_{table} AS SELECT * FROM empty")  # noqa: S608
            self._connection.unregister("empty")
            self._connection.execute(lake_over(table, plan.schema.names, plan.files))
            for statement in views_over(table):
                self._connection.execute(statement)
        for statement in macros():
            self._connection.execute(statement)

    def _lock(self, plans: Mapping[str, Plan]) -> None:
        files = [file for plan in plans.values() for file in plan.files]
        listed = ", ".join(map(_quoted, files))
        self._connection.execute(f"SET allowed_paths = [{listed}]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def vet(self, sql: str) -> None:
        """Raises BadQuery unless the text, as the engine itself parses it, is one SELECT over the views."""
        if "\x00" in sql:
            raise BadQuery("the query holds the character NUL")
        row = self._connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        if row is None:
            raise EngineFailed("the engine did not parse the query")
        vet_tree(json.loads(row[0]), sql)

    def run(self, sql: str, parameters: Mapping[str, Value]) -> pa.RecordBatchReader:
        """The answer, as it is made. Raises QueryError, here or while it is read."""
        try:
            self.vet(sql)
            used = {name: value for name, value in parameters.items() if re.search(rf"\${name}\b", sql)}
            return self._connection.execute(sql, used or None).to_arrow_reader(BATCH_ROWS)
        except duckdb.Error as error:
            raise self.translated(error, sql) from None

    def batches(self, reader: pa.RecordBatchReader, sql: str) -> Iterator[pa.RecordBatch]:
        """The batches of an answer, with the engine's errors translated."""
        try:
            yield from reader
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self.translated(error, sql) from None

    def columns(self) -> dict[str, dict[str, str]]:
        """The columns of every relation, with their types in DuckDB's words."""
        found: dict[str, dict[str, str]] = {}
        for relation, column, kind in self._connection.execute(COLUMNS).fetchall():
            found.setdefault(relation, {})[column] = kind
        return found

    def interrupt(self) -> None:
        """Stops what runs, from another thread."""
        self._connection.interrupt()

    def translated(self, error: Exception, sql: str) -> QueryError:
        """The engine's error as ours."""
        text = str(error)
        if isinstance(error, duckdb.InterruptException) or "INTERRUPT Error" in text or "Interrupted!" in text:
            return Deadline(self._room.deadline_s)
        if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory" in text or "max_temp_directory" in text:
            return OutOfMemory(self._room.memory)
        if isinstance(error, duckdb.IOException | duckdb.FatalException | duckdb.InternalException):
            return EngineFailed(text.splitlines()[0])
        return _bad(text, sql)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _extension(name: str) -> str:
    """Where the package `duckdb-extension-NAME` put its file. Raises EngineFailed without the package."""
    package = f"duckdb_extension_{name}"
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations or [] if spec is not None else []
    for place in places:
        file = Path(place) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if file.is_file():
            return str(file)
    raise EngineFailed(
        f"the lake is in an S3 store, and DuckDB's {name} is not here: pip install 'harmonywatch[distributed]'"
    )


def _bad(text: str, sql: str) -> BadQuery:
    """`Binder Error: reason ... LINE 1: text / ^` -> a BadQuery with its place."""
    match = CARET.search(text)
    reason = text[: match.start()] if match else text
    reason = " ".join(re.sub(r"^[\w ]+ Error: ", "", reason).split())
    if match is None:
        return BadQuery(reason)
    line, shown, spaces = int(match[1]), match[2].split("\n")[-1], len(match[3])
    column = spaces - len(f"LINE {line}: ")
    lines = sql.split("\n")
    if not 0 < line <= len(lines) or not 0 <= column <= len(shown):
        return BadQuery(reason)
    clipped = shown.removeprefix("...").removesuffix("...")
    start = lines[line - 1].find(clipped) - (3 if shown.startswith("...") else 0)
    offset = sum(len(each) + 1 for each in lines[: line - 1]) + max(0, start + column)
    return BadQuery(reason, *place_of(sql, len(sql[:offset].encode())))
