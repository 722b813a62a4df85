"""Which days each table of a query can need, from its filters on time. Pure, and conservative.

For every place where a view stands in a FROM, the WHERE of that very SELECT bounds its time; a bound on a subquery or
CTE is handed down to the view below when nothing between could see the missing rows (no grouping, window, limit or
sample). OR unites, AND intersects, and whatever is not surely understood bounds nothing. A comparison with time never
holds for null, which is why outer joins do not matter; ASOF, POSITIONAL, SEMI and ANTI joins do, and bound nothing.

A reference that the walk does not reach lifts every bound: a query may cost too much, never answer too little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sqlglot import exp

from harmonywatch.analysis.contract import TABLE_OF_VIEW, TIME_COLUMNS
from harmonywatch.analysis.moments import DAY, MOMENT_TYPES, Given, span_of, trunc_length
from harmonywatch.analysis.spans import FIRST, LAST, Moments, all_of, any_of

Known = Mapping[str, Moments]
"""Bounds on the columns that a relation puts out, by column; a column left out is unbounded."""

BOUNDED = ("time", "day", "received_at")
PLAIN_JOINS = {"", "INNER", "CROSS", "OUTER"}
SEEN_THROUGH = {"expressions", "from_", "where", "with_", "order", "joins"}
"""Parts a SELECT may have for a bound on its output to hold for its input."""

TICK = timedelta(microseconds=1)


@dataclass
class _Cte:
    """A CTE: how each reference bounds it. `open`: nothing may be handed down (recursive, or a name used twice)."""

    uses: list[Known] = field(default_factory=list)
    open: bool = False


Scope = Mapping[str, _Cte]


class Bounds:
    """One walk over one query. `tables` afterwards: the moments that each table is needed for."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._visited: set[int] = set()
        self._handing_down = True
        self.tables: dict[str, Moments] = {}

    def walk(self, query: exp.Expr) -> None:
        names = [cte.alias.lower() for cte in query.find_all(exp.CTE)]
        self._handing_down = len(names) == len(set(names)) and not set(names) & TABLE_OF_VIEW.keys()
        self._query(query, {}, {})
        if any(id(table) not in self._visited for table in query.find_all(exp.Table)):
            self.tables = dict.fromkeys(self.tables.keys() | set(TABLE_OF_VIEW.values()), None)

    def _query(self, query: exp.Expr, known: Known, scope: Scope) -> None:
        while isinstance(query, exp.Subquery | exp.Paren):
            if not isinstance(query, exp.Subquery) or _more_than(query, {"this", "alias"}):
                known = {}
            query = query.this
        inner = dict(scope)
        ctes = self._ctes(query, inner)
        if isinstance(query, exp.Select):
            self._select(query, known, inner)
        elif isinstance(query, exp.SetOperation):
            self._query(query.this, {}, inner)
            self._query(query.expression, {}, inner)
        else:
            self._nested(query, inner)
        for cte, entry, seen in reversed(ctes):
            self._query(cte.this, {} if entry.open else _union(entry.uses), seen)

    def _ctes(self, query: exp.Expr, scope: dict[str, _Cte]) -> list[tuple[exp.CTE, _Cte, Scope]]:
        """Puts the query's CTEs into scope, one after the other; with what each of them sees."""
        clause = query.args.get("with_")
        if clause is None:
            return []
        recursive = bool(clause.args.get("recursive"))
        found: list[tuple[exp.CTE, _Cte, Scope]] = []
        for cte in clause.expressions:
            renamed = bool(cte.args["alias"].args.get("columns"))
            entry = _Cte(open=recursive or renamed or not self._handing_down)
            before = dict(scope)
            scope[cte.alias.lower()] = entry
            found.append((cte, entry, dict(scope) if recursive else before))
        return found

    def _select(self, select: exp.Select, known: Known, scope: Scope) -> None:
        sources = _sources(select)
        pruned = _prunes(select)
        for source in sources:
            columns: dict[str, Moments] = {}
            if pruned:
                for name in BOUNDED:
                    columns[name] = all_of(
                        self._where(select, source, sources, name), _handed(select, source, sources, name, known)
                    )
            self._source(source, columns, scope)
        for key, part in select.args.items():
            if key == "with_":
                continue
            for node in part if isinstance(part, list) else [part]:
                if isinstance(node, exp.From):
                    continue
                if isinstance(node, exp.Join):
                    for inside in (node.args.get("on"),):
                        if isinstance(inside, exp.Expr):
                            self._nested(inside, scope)
                elif isinstance(node, exp.Expr):
                    self._nested(node, scope)

    def _source(self, source: exp.Expr, columns: Known, scope: Scope) -> None:
        if isinstance(source, exp.Table) and isinstance(source.this, exp.Identifier):
            self._visited.add(id(source))
            name = source.name.lower()
            plain = not _more_than(source, {"this", "alias", "db"}) and not _renamed(source)
            entry = None if source.args.get("db") else scope.get(name)
            if entry is not None:
                entry.uses.append(columns if plain else {})
                return
            table = TABLE_OF_VIEW.get(name)
            if table is not None:
                moments: Moments = None
                for column in TIME_COLUMNS[name] if plain else ():
                    moments = all_of(moments, columns.get(column))
                self.tables[table] = any_of(self.tables[table], moments) if table in self.tables else moments
        elif isinstance(source, exp.Subquery):
            plain = not _more_than(source, {"this", "alias"}) and not _renamed(source)
            self._query(source, columns if plain and self._handing_down else {}, scope)
        else:
            if isinstance(source, exp.Table):
                self._visited.add(id(source))
            self._nested(source, scope)

    def _nested(self, node: exp.Expr, scope: Scope) -> None:
        """Every query inside an expression."""
        for child in node.iter_expressions():
            if isinstance(child, exp.Query):
                if not isinstance(child, exp.Table):
                    self._query(child, {}, scope)
            else:
                self._nested(child, scope)

    def _where(self, select: exp.Select, source: exp.Expr, sources: list[exp.Expr], name: str) -> Moments:
        where = select.args.get("where")
        if where is None:
            return None
        alone = all(other is source or _surely_without(other, name) for other in sources)
        return self._moments(where.this, _Target(source.alias_or_name.lower(), name, alone))

    def _moments(self, node: exp.Expr, target: _Target) -> Moments:
        """The values of the target for which the condition may hold."""
        if isinstance(node, exp.Paren):
            return self._moments(node.this, target)
        if isinstance(node, exp.And):
            return all_of(self._moments(node.this, target), self._moments(node.expression, target))
        if isinstance(node, exp.Or):
            return any_of(self._moments(node.this, target), self._moments(node.expression, target))
        if isinstance(node, exp.Between) and not node.args.get("symmetric"):
            low = self._compared("GTE", node.this, node.args["low"], target)
            return all_of(low, self._compared("LTE", node.this, node.args["high"], target))
        if isinstance(node, exp.In) and not _more_than(node, {"this", "expressions"}):
            found: Moments = ()
            for value in node.expressions:
                found = any_of(found, self._compared("EQ", node.this, value, target))
            return found
        if isinstance(node, exp.EQ | exp.GT | exp.GTE | exp.LT | exp.LTE):
            kind = type(node).__name__
            straight = self._compared(kind, node.this, node.expression, target)
            return all_of(straight, self._compared(_TURNED[kind], node.expression, node.this, target))
        return None

    def _compared(self, kind: str, side: exp.Expr, constant: exp.Expr, target: _Target) -> Moments:
        slack = target.slack(side)
        span = None if slack is None else span_of(constant, self._given)
        if slack is None or span is None:
            return None
        try:
            open_end = slack > timedelta() or kind == "LT"
            high = span.hi + slack - (TICK if open_end else timedelta())
        except OverflowError:
            return None
        if kind in ("GT", "GTE"):
            return ((span.lo, LAST),)
        if kind in ("LT", "LTE"):
            return ((FIRST, high),)
        return ((span.lo, high),) if span.lo <= high else ()


_TURNED = {"EQ": "EQ", "GT": "LT", "GTE": "LTE", "LT": "GT", "LTE": "GTE"}


@dataclass(frozen=True)
class _Target:
    """The column looked for. `alone`: without a qualifier it can be no other source's."""

    alias: str
    name: str
    alone: bool

    def slack(self, node: exp.Expr) -> timedelta | None:
        """f(column) <= column < f(column) + slack (0: equal), if `node` is such an f of the column; else None."""
        if isinstance(node, exp.Paren):
            return self.slack(node.this)
        if isinstance(node, exp.Column):
            if node.name.lower() != self.name or node.args.get("db") or not isinstance(node.this, exp.Identifier):
                return None
            mine = node.table.lower() == self.alias if node.table else self.alone
            return (DAY if self.name == "day" else timedelta()) if mine else None
        added: timedelta | None = None
        if isinstance(node, exp.Cast) and not _more_than(node, {"this", "to", "safe"}):
            if node.to.this == exp.DataType.Type.DATE:
                added = DAY
            elif node.to.this in MOMENT_TYPES:
                added = timedelta()
        elif isinstance(node, exp.TimestampTrunc | exp.DateTrunc):
            added = trunc_length(node)
        inner = None if added is None else self.slack(node.this)
        return None if inner is None or added is None else inner + added


def _sources(select: exp.Select) -> list[exp.Expr]:
    clause = select.args.get("from_")
    sources = [] if clause is None else [clause.this]
    for join in select.args.get("joins") or []:
        sources.append(join.this)
    for part in list(sources):
        sources += _inner_joins(part)
    return sources


def _inner_joins(source: exp.Expr) -> Iterator[exp.Expr]:
    for join in source.args.get("joins") or []:
        yield join.this
        yield from _inner_joins(join.this)


def _prunes(select: exp.Select) -> bool:
    """Whether a row that fails the WHERE leaves no trace in the answer."""
    if select.args.get("sample") or select.args.get("pivots") or select.args.get("laterals"):
        return False
    sources = _sources(select)
    if any(source.args.get("joins") or source.args.get("pivots") or source.args.get("sample") for source in sources):
        return False
    if len({source.alias_or_name.lower() for source in sources}) != len(sources):
        return False
    if any(source.alias_or_name.lower() in BOUNDED for source in sources):
        return False
    for join in select.args.get("joins") or []:
        if (join.args.get("kind") or "").upper() not in PLAIN_JOINS:
            return False
        if (join.args.get("method") or "").upper() not in ("", "NATURAL"):
            return False
        if isinstance(join.this, exp.Lateral):
            return False
    return True


def _handed(select: exp.Select, source: exp.Expr, sources: list[exp.Expr], name: str, known: Known) -> Moments:
    """What the bounds on the SELECT's output say of a column of this source."""
    if not known or len(sources) != 1 or _more_than(select, SEEN_THROUGH):
        return None
    if any(isinstance(node, exp.Window | exp.AggFunc) for part in select.expressions for node in part.walk()):
        return None
    moments: Moments = None
    for output, bound in known.items():
        if bound is not None and _input_of(select, source, output) == name:
            moments = all_of(moments, bound)
    return moments


def _input_of(select: exp.Select, source: exp.Expr, output: str) -> str | None:
    """The source's column that comes out, as it is, under the name `output`; None if another value may."""
    found: list[str | None] = []
    for part in select.expressions:
        if isinstance(part, exp.Star):
            found.append(None if _more_than(part, set()) else output)
        elif isinstance(part, exp.Column) and not isinstance(part.this, exp.Identifier):
            found.append(None)
        elif isinstance(part, exp.Column | exp.Alias):
            if part.alias_or_name.lower() == output:
                inner = part.this if isinstance(part, exp.Alias) else part
                mine = isinstance(inner, exp.Column) and inner.table.lower() in ("", source.alias_or_name.lower())
                found.append(inner.name.lower() if mine else None)
        else:
            found.append(None)
    return found[0] if len(found) == 1 else None


def _surely_without(source: exp.Expr, name: str) -> bool:
    """Whether the source has no column of this name, on its face."""
    alias = source.args.get("alias")
    columns = alias.args.get("columns") if isinstance(alias, exp.TableAlias) else None
    if isinstance(source, exp.Unnest | exp.Values) and columns:
        return all(column.name.lower() != name for column in columns) and len(source.expressions) <= len(columns)
    return False


def _renamed(source: exp.Expr) -> bool:
    alias = source.args.get("alias")
    return isinstance(alias, exp.TableAlias) and bool(alias.args.get("columns"))


def _more_than(node: exp.Expr, parts: set[str]) -> bool:
    return any(value for key, value in node.args.items() if key not in parts)


def _union(uses: list[Known]) -> Known:
    """Bounds that hold for every reference of a CTE."""
    if not uses:
        return {}
    united: dict[str, Moments] = {}
    for name in BOUNDED:
        moments: Moments = ()
        for use in uses:
            moments = any_of(moments, use.get(name))
        united[name] = moments
    return united
