"""Saved questions: `questions/*.sql`, each with its title, a sentence, typed parameters and a chart in its header.

    -- title: Alerts by hour of the day
    -- sentence: At which hours of the day do alerts come?
    -- param since timestamp = now() - interval '7 days' : first moment counted
    -- chart: {"mark": "bar", "x": {...}, "y": {...}}

A chart line may be continued by further `-- chart:` lines; it is a Vega-Lite mark with encodings, or `"mark": "cells"`:
H3 cells on a map (`cell` and `colour` name columns). In the SQL a parameter is `$name`; it is bound as a value, never
pasted. A question's answer is a function of the lake and its parameters alone: every ORDER BY is total.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from typing import Any, Literal

import sqlglot
from sqlglot.errors import SqlglotError

from harmonywatch.analysis.contract import QueryError
from harmonywatch.analysis.moments import Given, Value, span_of

Kind = Literal["timestamp", "date", "integer", "number", "text"]
KINDS: tuple[Kind, ...] = ("timestamp", "date", "integer", "number", "text")

PARAM = re.compile(r"(?P<name>[a-z][a-z0-9_]*) (?P<kind>[a-z]+) = (?P<default>.+?) : (?P<meaning>.+)")


class QuestionError(QueryError):
    """No such question or parameter, or a value that its type does not take; the message says what would do."""


@dataclass(frozen=True, slots=True)
class Param:
    """`default` as it stands in the file: a literal, or a moment in SQL (`now() - interval '7 days'`)."""

    name: str
    kind: Kind
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Question:
    """`sql` without its header; `chart` as in the header."""

    name: str
    title: str
    sentence: str
    params: tuple[Param, ...]
    chart: Mapping[str, Any]
    sql: str


@cache
def _all() -> Mapping[str, Question]:
    folder = resources.files("harmonywatch.analysis").joinpath("questions")
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".sql")), key=lambda each: each.name)
    return {each.name[:-4]: read(each.name[:-4], each.read_text("utf-8")) for each in files}


def questions() -> list[Question]:
    """Every saved question, by name."""
    return list(_all().values())


def question(name: str) -> Question:
    """One of them; `_` for `-` does. Raises QuestionError with near names."""
    found = _all().get(name.replace("_", "-"))
    if found is None:
        near = difflib.get_close_matches(name.replace("_", "-"), _all(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(_all())}"
        raise QuestionError(f"no question is called {name!r}; {hint}")
    return found


def read(name: str, text: str) -> Question:
    """The question that a file's text holds. Raises ValueError where the header is not one."""
    fields: dict[str, list[str]] = {"title": [], "sentence": [], "param": [], "chart": []}
    lines = text.splitlines()
    for place, line in enumerate(lines):
        match = re.fullmatch(r"-- (title|sentence|param|chart):? (.+)", line)
        if match is None:
            sql = "\n".join(lines[place:]).strip()
            break
        fields[match[1]].append(match[2])
    else:
        raise ValueError(f"{name}: there is no SQL below the header")
    if len(fields["title"]) != 1 or not fields["sentence"] or not fields["chart"]:
        raise ValueError(f"{name}: the header needs a title, a sentence and a chart")
    params = tuple(_param(name, line) for line in fields["param"])
    chart = json.loads(" ".join(fields["chart"]))
    return Question(name, fields["title"][0], " ".join(fields["sentence"]), params, chart, sql)


def _param(name: str, line: str) -> Param:
    match = PARAM.fullmatch(line)
    if match is None or match["kind"] not in KINDS:
        raise ValueError(f"{name}: not a parameter: {line}")
    kind = next(each for each in KINDS if each == match["kind"])
    return Param(match["name"], kind, match["default"], match["meaning"])


def bound(asked: Question, arguments: Mapping[str, str | Value], now: datetime) -> dict[str, Value]:
    """A typed value for every parameter: as given (text is converted), or the default at `now`. Raises QuestionError."""
    names = {param.name for param in asked.params}
    for name in arguments:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(names)) or 'none'}"
            raise QuestionError(f"{asked.name} has no parameter {name!r}; {hint}")
    values: dict[str, Value] = {}
    for param in asked.params:
        given = arguments.get(param.name)
        values[param.name] = _value(asked, param, param.default if given is None else given, now)
    return values


def _value(asked: Question, param: Param, given: str | Value, now: datetime) -> Value:
    try:
        if isinstance(given, str):
            return _from_text(param.kind, given, now)
        return _from_value(param.kind, given)
    except (ValueError, OverflowError) as error:
        raise QuestionError(f"{asked.name}: {param.name} is a {param.kind}, not {given!r}: {error}") from None


def _from_text(kind: Kind, text: str, now: datetime) -> Value:
    if kind == "text":
        return text
    if kind == "integer":
        return int(text)
    if kind == "number":
        return _finite(float(text))
    try:
        span = span_of(sqlglot.parse_one(text, read="duckdb"), Given(now, exact=True)) or span_of(
            sqlglot.exp.Literal.string(text), Given(now, exact=True)
        )
    except SqlglotError:
        span = span_of(sqlglot.exp.Literal.string(text), Given(now, exact=True))
    if span is None or span.lo != span.hi:
        raise ValueError("a moment is 2026-11-23, 2026-11-23T18:04:05Z, or now() - interval '7 days'")
    return span.lo.date() if kind == "date" else span.lo.replace(tzinfo=UTC)


def _from_value(kind: Kind, value: Value) -> Value:
    if kind == "timestamp" and isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if kind == "timestamp" and isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if kind == "date" and isinstance(value, date) and not isinstance(value, datetime):
        return value
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(float(value))
    raise ValueError("another type")


def _finite(number: float) -> float:
    if number - number != 0:
        raise ValueError("a number is finite")
    return number
