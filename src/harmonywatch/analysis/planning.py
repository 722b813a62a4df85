"""From the analyst's text to what must be read: one SELECT, over known views, and the days each table is needed for. Pure.

This is the polite wall: it refuses early, with a sentence and a place. The strict wall is `vetting.py`, which judges
what the engine itself understood; neither trusts the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, SqlglotError, TokenError

from harmonywatch.analysis.bounds import Bounds
from harmonywatch.analysis.contract import TABLE_OF_VIEW, BadQuery, Catalog, Cost, Days, Plan
from harmonywatch.analysis.moments import Given
from harmonywatch.analysis.spans import days_of
from harmonywatch.analysis.vetting import TABLE_FUNCTIONS, refused_function

NO_DAYS = Days(date.max, date.min)
"""Asks a catalog for the schema alone."""

QUERY_CHARS_MAX = 100_000
"""A text beyond this was written by a program that should pass values as parameters; the parser's time grows with it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The days for which each table is needed; a table that is not needed is left out, () = no day at all."""

    days: dict[str, tuple[Days, ...]]


def needs_of(sql: str, given: Given) -> Needs:
    """What a query needs. Raises BadQuery for anything but a single SELECT over the views."""
    query = _parsed(sql)
    try:
        _vet(query)
        bounds = Bounds(given)
        bounds.walk(query)
    except RecursionError:
        raise BadQuery("nested too deeply") from None
    return Needs({table: days_of(moments) for table, moments in sorted(bounds.tables.items())})


def plans_of(needs: Needs, catalog: Catalog, force: str) -> dict[str, Plan]:
    """One plan per needed table. The spans are disjoint, and so are their files."""
    plans = {}
    for table, spans in needs.days.items():
        found = [catalog.plan(force, table, span.first, span.last) for span in spans or (NO_DAYS,)]
        files = [absolute(file) for plan in found for file in plan.files]
        plans[table] = Plan(files, sum(plan.bytes for plan in found), found[0].schema)
    return plans


def absolute(place: str) -> str:
    """A path that means the same in another folder, where the sandbox works; a URL is left alone."""
    return place if "://" in place else str(Path(place).absolute())


def cost_of(needs: Needs, plans: dict[str, Plan]) -> Cost:
    """What the plans will read."""
    days = tuple((table, span) for table, spans in needs.days.items() for span in spans)
    return Cost(days, sum(len(plan.files) for plan in plans.values()), sum(plan.bytes for plan in plans.values()))


def _parsed(sql: str) -> exp.Expr:
    if len(sql) > QUERY_CHARS_MAX:
        raise BadQuery(
            f"the query has {len(sql)} characters; the limit is {QUERY_CHARS_MAX}: pass values as parameters"
        )
    if "\x00" in sql:
        raise BadQuery("the query holds the character NUL")
    try:
        statements = [each for each in sqlglot.parse(sql, read="duckdb") if each is not None]
    except ParseError as error:
        raise _misparsed(error) from None
    except RecursionError:
        raise BadQuery("nested too deeply") from None
    except (TokenError, SqlglotError, ValueError) as error:
        raise BadQuery(f"not SQL: {str(error).splitlines()[0]}") from None
    if not statements:
        raise BadQuery("there is no query")
    if len(statements) > 1:
        raise BadQuery("one SELECT at a time: this is more than one statement")
    query = statements[0]
    if isinstance(query, exp.Select) and not query.expressions:
        raise BadQuery("there is nothing to SELECT")
    if not isinstance(query, exp.Select | exp.SetOperation | exp.Values | exp.Subquery):
        raise BadQuery(f"only SELECT is allowed here, not {_verb(sql)}", 1, 1, _verb(sql))
    return query


def _verb(sql: str) -> str:
    words = sql.split(maxsplit=1)
    return words[0].upper()[:40] if words else ""


def _misparsed(error: ParseError) -> BadQuery:
    first = error.errors[0] if error.errors else {}
    reason = str(first.get("description") or "not SQL").split("<class")[0].strip(" .:")
    return BadQuery(reason, first.get("line"), first.get("col"), str(first.get("highlight") or ""))


def _vet(query: exp.Expr) -> None:
    names = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    for node in query.walk():
        if isinstance(node, exp.Table):
            _vet_table(node, names)
        elif isinstance(node, exp.Into | exp.Command | exp.DDL | exp.DML | exp.Describe | exp.Summarize | exp.Show):
            if not isinstance(node, exp.Query):
                raise BadQuery(f"{type(node).__name__.upper()} is not allowed: only SELECT is")
        elif isinstance(node, exp.Func):
            _vet_function(node)


def _vet_table(table: exp.Table, ctes: set[str]) -> None:
    source = table.this
    if isinstance(source, exp.Func):
        name = source.name if isinstance(source, exp.Anonymous) else source.sql_name()
        if name.lower() not in TABLE_FUNCTIONS | {"generate_series"}:
            raise BadQuery(
                f"the function {name}() cannot stand in a FROM: only {', '.join(sorted(TABLE_FUNCTIONS))} can",
                *_place(source),
            )
        return
    name = table.name
    known = name.lower() in TABLE_OF_VIEW or name.lower() in ctes
    if table.catalog or table.db.lower() not in ("", "main") or not isinstance(source, exp.Identifier) or not known:
        raise BadQuery(f"there is no view {table.sql('duckdb')}: there are {', '.join(TABLE_OF_VIEW)}", *_place(source))


def _vet_function(node: exp.Func) -> None:
    name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
    if refused_function(name):
        raise BadQuery(f"the function {name}() is not allowed in a query", *_place(node))


def _place(node: exp.Expr) -> tuple[int | None, int | None, str]:
    meta = node.meta
    line, end = meta.get("line"), meta.get("col")
    if line is None or end is None:
        return None, None, ""
    return line, max(1, end - len(node.name) + 1), node.name
