"""The way in from a notebook: `harmonywatch.connect("north").sql("SELECT ...")` is an Arrow table.

The same road as the command line's `query` and `ask`: one SELECT, pruned, in the sandbox, in the audit.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from harmonywatch.analysis.analyst import Analyst
from harmonywatch.analysis.answer import Answer
from harmonywatch.analysis.contract import Cost
from harmonywatch.analysis.moments import Value
from harmonywatch.analysis.plot import draw
from harmonywatch.analysis.questions import Question, bound, question, questions
from harmonywatch.clock import Clock


class Connection:
    """One force's lake. Holds nothing open: every call is a query of its own."""

    def __init__(self, analyst: Analyst, force: str, clock: Clock, reason: str = "") -> None:
        self._analyst, self.force, self._clock, self._reason = analyst, force, clock, reason

    def sql(self, sql: str, **parameters: Value) -> pa.Table:
        """The whole answer as an Arrow table (`.to_pandas()`, `polars.from_arrow(...)`). `$name` in the text is bound to
        the keyword of that name. Raises QueryError."""
        return self.stream(sql, **parameters).table()

    def stream(self, sql: str, **parameters: Value) -> Answer:
        """The answer as it comes: iterate over its Arrow batches. Raises QueryError."""
        return self._analyst.query(sql, self.force, parameters, reason=self._reason)

    def ask(self, name: str, **arguments: str | Value) -> pa.Table:
        """The answer of a saved question. Raises QuestionError, QueryError."""
        return self._analyst.ask(name, self.force, arguments, reason=self._reason).table()

    def plot(self, name: str, target: str | Path, **arguments: str | Value) -> pa.Table:
        """Asks, and draws the answer into a .png, .svg or .html file. Raises QuestionError, PlotError, QueryError."""
        asked = question(name)
        values = bound(asked, arguments, self._clock.now())
        answer = self._analyst.ask(name, self.force, values, reason=self._reason).table()
        draw(asked, answer, values, Path(target))
        return answer

    def cost(self, sql: str, **parameters: Value) -> Cost:
        """The days, files and bytes that `sql` would read. Raises BadQuery."""
        return self._analyst.cost(sql, self.force, parameters)

    def spark_views(self) -> list[str]:
        """Statements for your own Spark session with Delta: `for each in north.spark_views(): spark.sql(each)` makes the
        views and `h3_parent` in it. They may run again, and must once a table has its first row."""
        return self._analyst.spark_views(self.force, self._reason)

    def questions(self) -> list[Question]:
        """Every saved question."""
        return questions()
