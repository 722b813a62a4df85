"""The room's door: `query` an analyst's SQL, `ask` a saved question, tell their `cost`. Every one is in the audit first.

One force a query, always: a query's engine knows the files of that force alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime

from harmonywatch.analysis.answer import Answer, Sandbox, Terms, answer
from harmonywatch.analysis.contract import TABLES, Catalog, Cost, Days, Limits
from harmonywatch.analysis.moments import Given, Value
from harmonywatch.analysis.planning import Needs, absolute, cost_of, needs_of, plans_of
from harmonywatch.analysis.questions import Question, bound, question, questions
from harmonywatch.clock import Clock, to_wire
from harmonywatch.registry.contract import AuditLog


class Analyst:
    """Questions to the lake of any force, on behalf of one actor (whose name is the audit's business)."""

    def __init__(self, catalog: Catalog, audit: AuditLog, clock: Clock, limits: Limits) -> None:
        self._catalog, self._audit, self._clock, self._limits = catalog, audit, clock, limits

    def query(
        self,
        sql: str,
        force: str,
        parameters: Mapping[str, Value] | None = None,
        limits: Limits | None = None,
        reason: str = "",
    ) -> Answer:
        """Runs one SELECT over the views. `parameters`: values for `$name`. Raises QueryError."""
        values, within = dict(parameters or {}), limits or self._limits
        detail = {"sql": sql, "parameters": _shown(values)}
        self._audit.record_audit("query", force, "lake", detail | _engine(within), reason)
        return self._run(sql, force, values, within)

    def ask(
        self,
        name: str,
        force: str,
        arguments: Mapping[str, str | Value] | None = None,
        limits: Limits | None = None,
        reason: str = "",
    ) -> Answer:
        """Runs a saved question; what `arguments` leaves out has its default. Raises QuestionError, QueryError."""
        asked = question(name)
        values, within = bound(asked, arguments or {}, self._clock.now()), limits or self._limits
        self._audit.record_audit("ask", force, asked.name, {"parameters": _shown(values)} | _engine(within), reason)
        return self._run(asked.sql, force, values, within)

    def cost(self, sql: str, force: str, parameters: Mapping[str, Value] | None = None) -> Cost:
        """What `query` would read. Raises BadQuery."""
        needs = needs_of(sql, Given(self._clock.now(), parameters or {}))
        return cost_of(needs, plans_of(needs, self._catalog, force))

    def cost_of_question(self, name: str, force: str, arguments: Mapping[str, str | Value] | None = None) -> Cost:
        """What `ask` would read."""
        asked = question(name)
        return self.cost(asked.sql, force, bound(asked, arguments or {}, self._clock.now()))

    def spark_views(self, force: str, reason: str = "") -> list[str]:
        """Statements that make the views in somebody's own Spark. What it then reads is not seen here: the audit has that it
        was asked for."""
        from harmonywatch.analysis.spark_views import statements

        self._audit.record_audit("spark-views", force, "lake", {}, reason)
        plans = plans_of(Needs(dict.fromkeys(TABLES, (Days(),))), self._catalog, force)
        return statements(plans, {table: absolute(self._catalog.where(force, table)) for table in TABLES})

    def questions(self) -> list[Question]:
        """Every saved question, by name."""
        return questions()

    def _run(self, sql: str, force: str, values: Mapping[str, Value], limits: Limits) -> Answer:
        sandbox = Sandbox(limits.engine)
        try:
            needs = needs_of(sql, Given(self._clock.now(), values))
            plans = plans_of(needs, self._catalog, force)
            return answer(sandbox, sql, values, plans, Terms(limits, cost_of(needs, plans)))
        except BaseException:
            sandbox.close()
            raise


def _engine(limits: Limits) -> dict[str, object]:
    """The engine in the audit, where it is not the usual one."""
    return {} if limits.engine == "duckdb" else {"engine": limits.engine}


def _shown(values: Mapping[str, Value]) -> dict[str, object]:
    """Values as the audit keeps them: JSON."""
    return {name: _plain(value) for name, value in sorted(values.items())}


def _plain(value: Value) -> object:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return to_wire(value)
    return value.isoformat() if isinstance(value, date) else value
