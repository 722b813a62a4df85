"""The wall before Spark: judges the tree that Spark's own parser made of a translated text. Pure, and closed for what
reads: a step of a plan that is not named here is refused, so is a relation that is no view and no CTE, and so is a
function that reaches outside of the rows.

The analyst's own text was judged by then, twice (`planning.py`, `vetting.py`); this wall stands against a translation
that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from harmonywatch.analysis.contract import TABLE_OF_VIEW, BadQuery

STEPS = {
    "Aggregate", "CTERelationDef", "CTERelationRef", "Distinct", "Except", "Filter", "Generate", "GlobalLimit", "Intersect",
    "Join", "LateralJoin", "LocalLimit", "LocalRelation", "OneRowRelation", "OneRowRelation$", "Offset", "Project", "Range",
    "Sort", "SubqueryAlias", "Union", "UnresolvedHaving", "UnresolvedInlineTable", "UnresolvedRelation",
    "UnresolvedSubqueryColumnAliases", "UnresolvedTableValuedFunction", "UnresolvedTVFAliases", "UnresolvedWith",
    "UsingJoin", "WithWindowDefinition",
}  # fmt: skip
"""The steps of which a plan may be made."""

PLANS = "org.apache.spark.sql.catalyst.plans.logical."
UNRESOLVED = "org.apache.spark.sql.catalyst.analysis."
UNRESOLVED_VALUES = {
    "UnresolvedAlias", "UnresolvedAttribute", "UnresolvedExtractValue", "UnresolvedFunction", "UnresolvedGenerator",
    "UnresolvedOrdinal", "UnresolvedStar", "UnresolvedSubqueryColumnAliases", "NamedParameter", "MultiAlias",
    "UnresolvedStarExcept", "ResolvedStar",
}  # fmt: skip

REFUSED = {
    "reflect", "java_method", "try_reflect", "input_file_name", "input_file_block_start", "input_file_block_length",
    "current_user", "user", "session_user", "current_catalog", "current_database", "current_schema", "version",
    "spark_partition_id", "raise_error", "assert_true",
}  # fmt: skip
TABLE_FUNCTIONS = {"explode", "posexplode", "range"}


def vet_plan(plan: str) -> None:
    """Judges a plan as Spark's `toJSON` tells it. Raises BadQuery."""
    nodes = list(_nodes(json.loads(plan)))
    known = TABLE_OF_VIEW.keys() | {name.lower() for node in nodes for name in _ctes(node)}
    for node in nodes:
        _vet(node, known)


def _nodes(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, list):
        for each in part:
            yield from _nodes(each)
    elif isinstance(part, dict):
        yield part
        for each in part.values():
            yield from _nodes(each)


def _ctes(node: dict[str, Any]) -> Iterator[str]:
    if str(node.get("class", "")).endswith(".UnresolvedWith"):
        for relation in node["cteRelations"]:
            yield str(relation["_1"])


def _vet(node: dict[str, Any], known: set[str]) -> None:
    kind = str(node.get("class", ""))
    name = kind.rsplit(".", 1)[-1]
    if kind.startswith("org.apache.spark.sql") and not _is_value(kind) and name not in STEPS:
        raise BadQuery(f"only SELECT over the views is allowed, not {name}")
    if name == "UnresolvedRelation":
        _known(node["multipartIdentifier"], known, "there is no view")
    elif name == "UnresolvedTableValuedFunction":
        _known(node["name"], TABLE_FUNCTIONS, "not allowed in a FROM:")
    elif name == "UnresolvedFunction":
        _vet_function(str(node["nameParts"]).strip("[]"))
    elif name == "UnresolvedGenerator":
        _vet_function(str(node["name"]["funcName"]))


def _is_value(kind: str) -> bool:
    if kind.startswith(UNRESOLVED):
        return kind.removeprefix(UNRESOLVED) in UNRESOLVED_VALUES
    return kind.startswith("org.apache.spark.sql.catalyst.expressions.")


def _known(parts: str, known: set[str], complaint: str) -> None:
    name = parts.strip("[]").lower()
    if name not in known:
        raise BadQuery(f"{complaint} {name}")


def _vet_function(name: str) -> None:
    if name.lower() in REFUSED or "," in name:
        raise BadQuery(f"the function {name}() is not allowed in a query")
