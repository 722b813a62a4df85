"""The strict wall: judges the tree that the engine's own parser made of a text, so that no difference between two
parsers lets anything by. Pure, and closed: what is not named here is refused.

Allowed are SELECTs over the views and their own CTEs, the table functions below, and the functions of `functions.txt`:
every function of the pinned engine but those that read or change the session, files, sequences or logs, sleep, or take
the engine's inner states. A test holds the list against the engine, so an upgrade cannot widen it in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from harmonywatch.analysis.contract import TABLE_OF_VIEW, BadQuery

TABLE_FUNCTIONS = {"unnest", "range", "generate_series"}
RELATIONS = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT"}
OWN_MACROS = {"h3_parent"}

REFUSED_PREFIXES = (
    "__internal", "icu_", "inet_", "pg_", "has_", "json_execute", "json_serialize", "json_deserialize", "read_", "duckdb_",
    "pragma_", "parquet_", "st_", "variant_", "current_transaction", "current_connection", "current_query",
)  # fmt: skip
REFUSED = {
    "alias", "cast_to_type", "checkpoint", "col_description", "combine", "constant_or_null", "create_sort_key", "currval",
    "current_catalog", "current_database", "current_role", "current_schema", "current_schemas", "current_setting",
    "current_user", "finalize", "force_checkpoint", "format_pg_type", "format_type", "get_block_size", "getenv",
    "getvariable", "glob", "in_search_path", "map_to_pg_oid", "nextval", "obj_description",
    "parse_duckdb_log_message", "query", "query_table", "remap_struct", "session_user", "set_config", "setseed",
    "shobj_description", "sleep_ms", "sniff_csv", "stats", "summary", "timetz_byte_comparable", "txid_current", "user",
    "vector_type", "version", "current_version", "write_log", "can_cast_implicitly", "replace_type", "unpivot_list",
}  # fmt: skip


@cache
def allowed_functions() -> frozenset[str]:
    """The scalar, aggregate and window functions and operators that a query may use."""
    text = resources.files("harmonywatch.analysis").joinpath("functions.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if line) | OWN_MACROS


def refused_function(name: str) -> bool:
    """Whether a function of the engine is kept from queries (in any letters)."""
    name = name.lower()
    return name in REFUSED or name.startswith(REFUSED_PREFIXES)


def vet_tree(tree: Mapping[str, Any], sql: str) -> None:
    """Judges what the engine's `json_serialize_sql` said of `sql`. Raises BadQuery."""
    if tree.get("error"):
        at = tree.get("position")
        raise BadQuery(str(tree.get("error_message", "not SQL")), *place_of(sql, int(at) if at is not None else None))
    statements = tree.get("statements") or []
    if len(statements) != 1:
        raise BadQuery("one SELECT at a time" if statements else "there is no query")
    try:
        _vet(statements[0], frozenset(), sql)
    except RecursionError:
        raise BadQuery("nested too deeply") from None


def place_of(sql: str, offset: int | None) -> tuple[int | None, int | None, str]:
    """Line, column and word at an offset, which the engine counts in bytes."""
    text = sql.encode()
    if offset is None or not 0 <= offset <= len(text):
        return None, None, ""
    before = text[:offset].decode(errors="ignore")
    words = sql[len(before) :].split(maxsplit=1)
    return before.count("\n") + 1, len(before) - before.rfind("\n"), words[0][:40] if words else ""


def _vet(node: Any, ctes: frozenset[str], sql: str) -> None:
    if isinstance(node, list):
        for each in node:
            _vet(each, ctes, sql)
        return
    if not isinstance(node, dict):
        return
    entries = (node.get("cte_map") or {}).get("map") or []
    ctes |= {str(entry["key"]).lower() for entry in entries}
    if "from_table" in node:
        _vet_relation_kind(node["from_table"], sql)
    kind = node.get("type")
    if kind == "BASE_TABLE":
        _vet_table(node, ctes, sql)
    elif kind == "TABLE_FUNCTION":
        _vet_function(node["function"], TABLE_FUNCTIONS, sql)
        node = {key: value for key, value in node.items() if key != "function"} | {
            "arguments": node["function"].get("children")
        }
    elif kind in ("SHOW_REF", "COLUMN_DATA", "DELIM_GET", "BOUND_TABLE_REF"):
        raise BadQuery("only SELECT over the views is allowed")
    elif "function_name" in node:
        _vet_function(node, allowed_functions() | {"unnest"}, sql)
    if kind == "RECURSIVE_CTE_NODE":
        ctes |= {str(node.get("cte_name", "")).lower()}
    for value in node.values():
        _vet(value, ctes, sql)


def _vet_relation_kind(relation: Mapping[str, Any], sql: str) -> None:
    if relation.get("type") not in RELATIONS:
        raise BadQuery("only SELECT over the views is allowed", *place_of(sql, relation.get("query_location")))


def _vet_table(node: Mapping[str, Any], ctes: frozenset[str], sql: str) -> None:
    name, schema = str(node["table_name"]).lower(), str(node.get("schema_name") or "").lower()
    if node.get("catalog_name") or schema not in ("", "main") or name not in TABLE_OF_VIEW.keys() | ctes:
        raise BadQuery(
            f"there is no view {node['table_name']}: there are {', '.join(TABLE_OF_VIEW)}",
            *place_of(sql, node.get("query_location")),
        )


def _vet_function(node: Mapping[str, Any], allowed: frozenset[str] | set[str], sql: str) -> None:
    name = str(node.get("function_name", "")).lower()
    if name not in allowed or node.get("catalog") or str(node.get("schema") or "main").lower() != "main":
        raise BadQuery(f"the function {name}() is not allowed in a query", *place_of(sql, node.get("query_location")))
