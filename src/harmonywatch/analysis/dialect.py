"""The analyst's SQL, which is DuckDB's dialect, as Spark's: one text for both engines. Pure.

The rule it keeps: the same answer or a refusal, never another answer in silence. Names and types are resolved first (so
that `SELECT *`, aliases and `len(words)` mean what DuckDB means), then what Spark understands otherwise is written out
(division, rounding, differences of times, days of the week, places in lists, unnesting); a function that is neither
rewritten nor known to be the same (`SAME`, `SAME_NAMES`) is refused with a way out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from sqlglot.schema import MappingSchema

from harmonywatch.analysis.contract import BadQuery

Columns = Mapping[str, Mapping[str, str]]
"""The columns of every relation that a text may name, with their types, in DuckDB's words."""

Rule = Callable[[exp.Expr], exp.Expr]

SAME: frozenset[type[exp.Expr]] = frozenset({
    exp.Abs, exp.And, exp.AnyValue, exp.ArgMax, exp.ArgMin, exp.ArrayContains, exp.ArrayFilter, exp.ArraySize,
    exp.Avg, exp.Case, exp.Ceil, exp.Coalesce, exp.Concat, exp.ConcatWs, exp.Contains, exp.Corr, exp.Count,
    exp.CountIf, exp.CumeDist, exp.CurrentDate, exp.CurrentTimestamp, exp.DenseRank, exp.EndsWith, exp.Exists,
    exp.Exp, exp.Explode, exp.FirstValue, exp.Floor, exp.Greatest, exp.If, exp.IsNan, exp.JSONExtractScalar,
    exp.Lag, exp.LastValue, exp.Lead, exp.Least, exp.LogicalAnd, exp.LogicalOr, exp.Lower, exp.Max, exp.Median,
    exp.Min, exp.Ntile, exp.Nullif, exp.Or, exp.PercentRank, exp.Pow, exp.Rank, exp.RegexpLike, exp.Replace,
    exp.RowNumber, exp.Sign, exp.StartsWith, exp.Stddev, exp.StddevPop, exp.StddevSamp, exp.StrPosition, exp.Sum,
    exp.TimestampTrunc, exp.Transform, exp.Trim, exp.Unnest, exp.Upper, exp.Variance, exp.VariancePop,
})  # fmt: skip
"""Functions whose translation by sqlglot gives the same answers; each has an example in the conformance tests."""

SAME_NAMES = frozenset({"h3_parent"})
"""The same for functions that sqlglot only knows by name."""

OTHERWISE = "ask DuckDB (--engine duckdb)"
WHOLE = exp.DataType.INTEGER_TYPES
BROKEN = {exp.DataType.Type.DOUBLE, exp.DataType.Type.FLOAT}
PARTS = {
    "HOUR": "hour", "MINUTE": "minute", "SECOND": "second", "DAY": "day", "MONTH": "month", "QUARTER": "quarter",
    "YEAR": "year", "DOY": "dayofyear", "DAYOFYEAR": "dayofyear", "DAYOFMONTH": "day", "WEEK": "weekofyear",
    "WEEKOFYEAR": "weekofyear",
}  # fmt: skip
"""Parts of a moment that both engines count alike, by Spark's function."""

PART_FUNCTIONS = (exp.Day, exp.DayOfMonth, exp.DayOfYear, exp.Hour, exp.Minute, exp.Month, exp.Quarter, exp.Second, exp.Week,
                  exp.WeekOfYear, exp.Year)  # fmt: skip
FORMAT, FORMATS = re.compile("%."), {"%Y", "%m", "%d", "%H", "%M", "%S"}
SECONDS = {"MINUTE": 60, "HOUR": 3600}
MONTHS = {"MONTH": 1, "QUARTER": 3, "YEAR": 12}


def spark_of(sql: str, columns: Columns) -> str:
    """The text in Spark's dialect; `$name` becomes `:name`. Raises BadQuery where it cannot be said for sure."""
    try:
        schema = MappingSchema({name: dict(types) for name, types in columns.items()}, dialect="duckdb")
        tree = sqlglot.parse_one(sql, read="duckdb")
        tree = qualify(tree, schema=schema, dialect="duckdb", validate_qualify_columns=False)
        annotate_types(tree, schema=schema, dialect="duckdb")
        _refuse_unsure(tree)
        for node in reversed(list(tree.dfs())):  # what stands inside first
            _rewrite(node)
        return tree.sql("spark", identify=True, unsupported_level=ErrorLevel.RAISE, comments=False)
    except SqlglotError as error:
        raise BadQuery(f"Spark cannot say this: {str(error).splitlines()[0]}; {OTHERWISE}") from None
    except RecursionError:
        raise BadQuery("nested too deeply") from None


def spark_type(kind: str) -> str:
    """A type in DuckDB's words in Spark's."""
    return exp.DataType.build(kind, dialect="duckdb").sql("spark")


def _refuse_unsure(tree: exp.Expr) -> None:
    for node in tree.walk():
        if isinstance(node, exp.Func) and not _is_known(node):
            raise _unsure(f"the function {_name(node)}()")
        if isinstance(node, exp.Join) and (node.method or "").upper() in ("ASOF", "POSITIONAL"):
            raise _unsure(f"{node.method} JOIN")
        if isinstance(node, exp.TableSample | exp.Comprehension | exp.Slice | exp.Columns | exp.Pivot):
            raise _unsure(type(node).__name__.upper())
        if isinstance(node, exp.SetOperation) and node.args.get("by_name"):
            raise _unsure("UNION BY NAME")


def _is_known(node: exp.Func) -> bool:
    if isinstance(node, exp.Anonymous):
        return node.name.lower() in SAME_NAMES | NAMED.keys()
    return type(node) in SAME or type(node) in RULES


def _name(node: exp.Func) -> str:
    return (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()


def _unsure(what: str) -> BadQuery:
    return BadQuery(f"{what} has no sure translation for Spark; {OTHERWISE}")


def _rewrite(node: exp.Expr) -> None:
    rule = NAMED.get(node.name.lower()) if isinstance(node, exp.Anonymous) else RULES.get(type(node))
    if rule is not None:
        new = rule(node)
        if new is not node:
            new.type = node.type
            node.replace(new)


# --- rules, each for one node whose inside is Spark's already --------------------------------------------------------------


def _call(name: str, *arguments: exp.Expr | str | int) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=[exp.convert(each) for each in arguments])


def _typed(node: exp.Expr, types: Collection[object]) -> bool:
    return node.type is not None and node.type.this in types


def _double(node: exp.Expr) -> exp.Expr:
    return node if _typed(node, {exp.DataType.Type.DOUBLE}) else exp.cast(node, "DOUBLE")


def _divided(node: exp.Expr) -> exp.Expr:
    """DuckDB divides as IEEE 754 does: by zero gives an infinity or NaN. Spark would fail."""
    above, below = _double(node.this), _double(node.expression)
    divided = exp.Div(this=above, expression=below, typed=True, safe=False)
    literal = node.expression
    if isinstance(literal, exp.Literal) and not literal.is_string and float(literal.name) != 0:
        return exp.paren(divided, copy=False)
    infinity = exp.cast(exp.Literal.string("Infinity"), "DOUBLE")
    unbounded = exp.Mul(this=exp.paren(above), expression=infinity)
    return _call("if", exp.EQ(this=exp.paren(below), expression=exp.Literal.number(0)), unbounded, divided)


def _not_by_zero(node: exp.Expr) -> exp.Expr:
    """What DuckDB leaves of a division by zero in whole numbers is null."""
    if not (_typed(node.this, WHOLE) and _typed(node.expression, WHOLE)):
        raise _unsure("// or % of other than whole numbers")
    node.set("expression", _call("nullif", node.expression, 0))
    return node


def _rounded(node: exp.Expr) -> exp.Expr:
    """DuckDB scales a double, rounds it and scales it back; Spark rounds its decimal text, which differs near a tie."""
    places = node.args.get("decimals")
    if not _typed(node.this, BROKEN) or _is_decimal(node.this):
        return node
    if places is None or (isinstance(places, exp.Literal) and places.name == "0"):
        return _call("round", node.this, 0)
    if not isinstance(places, exp.Literal):
        raise _unsure("round() to a number of places that is not a positive literal")
    scale = exp.Literal.number(f"1e{int(places.name)}")
    scaled = _call("round", exp.Mul(this=exp.paren(node.this), expression=scale), 0)
    return exp.paren(exp.Div(this=scaled, expression=scale.copy(), typed=True, safe=False))


def _is_decimal(node: exp.Expr) -> bool:
    """Whether it is an exact decimal: `2.5`, or such with whole numbers. Both engines round those away from zero."""
    if isinstance(node, exp.Paren | exp.Neg):
        return _is_decimal(node.this)
    if isinstance(node, exp.Add | exp.Sub | exp.Mul):
        sides = (node.this, node.expression)
        return any(map(_is_decimal, sides)) and all(_is_decimal(each) or _typed(each, WHOLE) for each in sides)
    return isinstance(node, exp.Literal) and not node.is_string and "." in node.name and "e" not in node.name.lower()


def _infinite(node: exp.Expr) -> exp.Expr:
    return exp.paren(
        exp.EQ(this=_call("abs", node.this), expression=exp.cast(exp.Literal.string("Infinity"), "DOUBLE"))
    )


def _written(node: exp.Expr) -> exp.Expr:
    """strftime, of the parts that both engines write alike."""
    text = node.args["format"]
    if (
        not isinstance(text, exp.Literal)
        or set(FORMAT.findall(text.name)) - FORMATS
        or FORMAT.sub("", text.name).strip(" :./-")
    ):
        raise _unsure("strftime() of other than %Y %m %d %H %M %S")
    return node


def _cast(node: exp.Expr) -> exp.Expr:
    """DuckDB rounds to whole numbers, to the even one from the middle; Spark cuts. Text of numbers and times differs."""
    kind = node.args["to"].this
    if kind in WHOLE and _typed(node.this, BROKEN):
        node.set("this", _call("round", node.this, 0) if _is_decimal(node.this) else _call("rint", node.this))
    if kind in exp.DataType.TEXT_TYPES and not _typed(
        node.this, {*WHOLE, *exp.DataType.TEXT_TYPES, exp.DataType.Type.DATE}
    ):
        raise _unsure("a cast of other than whole numbers and dates to text")
    return node


def _difference(node: exp.Expr) -> exp.Expr:
    """DuckDB counts the boundaries between two moments, Spark the whole units."""
    unit, since, until = node.args["unit"].name.upper(), node.expression, node.this

    def count(moment: exp.Expr) -> exp.Expr:
        if unit in ("SECOND", "MILLISECOND", "MICROSECOND"):
            return _call(
                {"SECOND": "unix_seconds", "MILLISECOND": "unix_millis"}.get(unit, "unix_micros"), _time(moment)
            )
        if unit in SECONDS:
            return _call(
                "floor", exp.Div(this=_call("unix_seconds", _time(moment)), expression=exp.convert(SECONDS[unit]))
            )
        if unit == "DAY":
            return _call("unix_date", exp.cast(moment, "DATE"))
        months = exp.paren(exp.Add(this=exp.Mul(this=_call("year", moment), expression=exp.convert(12)),
                                   expression=exp.Sub(this=_call("month", moment), expression=exp.convert(1))))  # fmt: skip
        return _call("floor", exp.Div(this=months, expression=exp.convert(MONTHS[unit])))

    if unit not in {"SECOND", "MILLISECOND", "MICROSECOND", "DAY", *SECONDS, *MONTHS}:
        raise _unsure(f"date_diff('{unit.lower()}')")
    return exp.paren(exp.Sub(this=count(until), expression=count(since)))


def _time(moment: exp.Expr) -> exp.Expr:
    return exp.cast(moment, "TIMESTAMPTZ")


def _part(unit: str, moment: exp.Expr) -> exp.Expr:
    """One part of a moment. Weekdays: DuckDB's 0 is Sunday."""
    unit = unit.upper()
    if unit in PARTS:
        return _call(PARTS[unit], moment)
    if unit in ("DOW", "DAYOFWEEK", "WEEKDAY"):
        return exp.paren(exp.Sub(this=_call("dayofweek", moment), expression=exp.convert(1)))
    if unit == "ISODOW":
        return exp.paren(exp.Add(this=_call("weekday", moment), expression=exp.convert(1)))
    if unit == "EPOCH":
        micros = _call("unix_micros", _time(moment))
        return exp.paren(exp.Div(this=micros, expression=exp.Literal.number("1e6"), typed=True, safe=False))
    raise _unsure(f"the part {unit.lower()} of a time")


def _named_part(node: exp.Expr) -> exp.Expr:
    unit = node.expressions[0]
    if not isinstance(unit, exp.Literal):
        raise _unsure("date_part() of a part that is not a literal")
    return _part(unit.name, node.expressions[1])


def _length(node: exp.Expr) -> exp.Expr:
    of_list = isinstance(node.this, exp.Array | exp.Transform | exp.ArrayFilter) or _typed(
        node.this, exp.DataType.ARRAY_TYPES
    )
    if not of_list and not _typed(node.this, exp.DataType.TEXT_TYPES):
        raise _unsure("len() of what is not surely a text or a list")
    return _call("size" if of_list else "char_length", node.this)


def _place(node: exp.Expr) -> exp.Expr:
    """`words[1]` is the first; a place that is not there is null. (The parser has counted from 0 already.)"""
    (index,) = node.expressions
    if not _typed(node.this, exp.DataType.ARRAY_TYPES):
        raise _unsure("[ ] on what is not surely a list")
    place = exp.Add(this=exp.paren(index), expression=exp.convert(1))
    return _call("try_element_at", node.this, _call("nullif", exp.cast(place, "INT"), 0))


def _cut(node: exp.Expr) -> exp.Expr:
    """Of a text: the engines agree where places and lengths are literals above zero."""
    for key in ("start", "length", "expression"):
        number = node.args.get(key)
        if number is not None and not (isinstance(number, exp.Literal) and number.name != "0"):
            raise _unsure(f"{type(node).__name__.lower()}() with other than literals above zero")
    return node


def _quantile(node: exp.Expr) -> exp.Expr:
    return _call("percentile", node.this, node.expression)


def _quantile_of_rows(node: exp.Expr) -> exp.Expr:
    order = exp.Order(expressions=[exp.Ordered(this=node.this)])
    return exp.WithinGroup(
        this=_call("percentile_disc", node.args.get("quantile") or node.expression), expression=order
    )


def _unnested(node: exp.Expr) -> exp.Expr:
    """`unnest(x)` and `generate_subscripts(x, 1)` among the columns: rows of their own, by a LATERAL VIEW."""
    columns = [each for column in node.expressions for each in column.find_all(exp.Explode, exp.Anonymous)
               if isinstance(each, exp.Explode) or each.name.lower() == "generate_subscripts"]  # fmt: skip
    if not columns:
        return node
    lists = {(each.this if isinstance(each, exp.Explode) else each.expressions[0]).sql() for each in columns}
    if len(lists) > 1:
        raise _unsure("unnest() of several lists in one SELECT")
    first = columns[0]
    of = (first.this if isinstance(first, exp.Explode) else first.expressions[0]).copy()
    for each in columns:
        name = "item" if isinstance(each, exp.Explode) else "place"
        new: exp.Expr = exp.column(name, table="unnested")
        each.replace(new if name == "item" else exp.paren(exp.Add(this=new, expression=exp.convert(1))))
    alias = exp.TableAlias(
        this=exp.to_identifier("unnested"), columns=[exp.to_identifier(n) for n in ("place", "item")]
    )
    node.append("laterals", exp.Lateral(this=_call("posexplode", of), view=True, alias=alias))
    return node


RULES: dict[type[exp.Expr], Rule] = {
    exp.Bracket: _place,
    exp.Cast: _cast,
    exp.DateDiff: _difference,
    exp.DayOfWeek: lambda node: _part("DOW", node.this),
    exp.DayOfWeekIso: lambda node: _part("ISODOW", node.this),
    exp.Div: _divided,
    exp.Extract: lambda node: _part(node.this.name, node.expression),
    exp.IntDiv: _not_by_zero,
    exp.IsInf: _infinite,
    exp.Left: _cut,
    exp.Length: _length,
    exp.Mod: _not_by_zero,
    exp.PercentileCont: _quantile,
    exp.PercentileDisc: _quantile_of_rows,
    exp.Quantile: _quantile_of_rows,
    exp.Right: _cut,
    exp.Round: _rounded,
    exp.Select: _unnested,
    exp.Substring: _cut,
    exp.TimeToStr: _written,
    exp.TimeToUnix: lambda node: _part("EPOCH", node.this),
    exp.TryCast: _cast,
    **dict.fromkeys(PART_FUNCTIONS, lambda node: _part(type(node).__name__, node.this)),
}  # fmt: skip

NAMED: dict[str, Rule] = {
    "date_part": _named_part,
    "datepart": _named_part,
    "epoch_us": lambda node: _call("unix_micros", _time(node.expressions[0])),
    "generate_subscripts": lambda node: node,
    "get_current_timestamp": lambda _: exp.CurrentTimestamp(),
    "now": lambda _: exp.CurrentTimestamp(),
    "weekday": lambda node: _part("DOW", node.expressions[0]),
}
