"""Questions to the archive: SQL, and saved questions with pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harmonywatch import assemble
from harmonywatch.cli.frame import Shell, common, force_option, reading

if TYPE_CHECKING:
    from pyarrow import RecordBatchReader

    from harmonywatch.analysis.answer import Answer
    from harmonywatch.analysis.contract import Cost

FORMATS = ("table", "json", "csv", "parquet")
ENGINES = ("duckdb", "spark")


def _output(command: Any) -> Any:
    """How an answer is written."""
    command = click.option("--out", default=None, metavar="FILE", help="Write there instead of standard output.")(
        command
    )
    command = click.option("--format", "form", type=click.Choice(FORMATS), default=None, help="Default: table.")(
        command
    )
    command = click.option("--deadline", type=float, default=None, help="Seconds until it is stopped (default 60).")(
        command
    )
    command = click.option(
        "--engine", type=click.Choice(ENGINES), default="duckdb", help="Who computes (default duckdb)."
    )(command)
    command = click.option("--reason", default="", help="Why you ask; it stands in the audit.")(command)
    return click.option("--dry-run", is_flag=True, help="Only tell the days, files and bytes it would read.")(command)


@click.command()
@click.argument("sql")
@force_option()
@_output
@reading
def query(shell: Shell, sql: str, force: str | None, dry_run: bool, **how: Any) -> None:
    """Ask the archive in SQL: one SELECT over the views reports, sightings, heard, alerts, rejects of one force.

    A filter on `time` reads only the days it names. Citizens are tokens. Every query is in the audit.

    \b
    harmonywatch query "select count(*) from reports" --force north
    harmonywatch query "select citizen, min(harmonyscore) from sightings
                        where time > now() - interval 1 day group by 1 order by 2 limit 10" --format csv
    harmonywatch query "select watcher_id, count(*) from reports group by 1" --engine spark
    """
    with assemble.opened_analyst(shell.settings, shell.actor, how["deadline"], how["engine"]) as (analyst, registry):
        of_force = assemble.chosen_force(registry, force)
        if dry_run:
            _tell_cost(shell, analyst.cost(sql, of_force))
            return
        _write(shell, analyst.query(sql, of_force, reason=how["reason"]), how)


@click.command()
@click.argument("question")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter; repeat for several.")
@click.option("--plot", default=None, metavar="FILE", help="Draw the answer: .png, .svg or .html.")
@force_option()
@_output
@reading
def ask(
    shell: Shell, question: str, params: tuple[str, ...], plot: str | None, force: str | None, dry_run: bool, **how: Any
) -> None:
    """Ask a saved question. `harmonywatch questions` lists them.

    \b
    harmonywatch ask alerts-by-hour --force north --plot alerts.png
    harmonywatch ask repeat-offenders --param since="2026-11-01T00:00:00Z" --format csv
    harmonywatch ask score-trend --engine spark --deadline 300
    harmonywatch ask agitation-map --plot map.html --out map.parquet --format parquet --reason "weekly review"
    """
    arguments = dict(_pair(text) for text in params)
    with assemble.opened_analyst(shell.settings, shell.actor, how["deadline"], how["engine"]) as (analyst, registry):
        of_force = assemble.chosen_force(registry, force)
        if dry_run:
            _tell_cost(shell, analyst.cost_of_question(question, of_force, arguments))
        elif plot is None:
            _write(shell, analyst.ask(question, of_force, arguments, reason=how["reason"]), how)
        else:
            answer = assemble.drawn(analyst, question, of_force, arguments, Path(plot), how["reason"])
            _tell_drawn(shell, question, plot, answer, how)


def _tell_drawn(shell: Shell, question: str, plot: str, answer: Any, how: dict[str, Any]) -> None:
    """The picture is made; the answer goes where `--out` or `--format` say, if they say anything."""
    row, text = {"question": question, "rows": answer.num_rows, "plot": plot}, f"{plot}: {answer.num_rows} rows drawn"
    if how["out"] is None and how["form"] is None:
        shell.row(row, text)
        return
    if how["out"] is None:
        click.echo(text, err=True)
    else:
        shell.row(row, text)
    _write(shell, answer.to_reader(), how)


@click.command()
@click.argument("name", required=False)
@common
def questions(shell: Shell, name: str | None) -> None:
    """The saved questions; with a NAME its parameters and SQL.

    \b
    harmonywatch questions
    harmonywatch questions repeat-offenders
    """
    from harmonywatch.analysis.questions import question as find
    from harmonywatch.analysis.questions import questions as every

    if name is None:
        rows = [{"question": q.name, "sentence": q.sentence, "params": [p.name for p in q.params]} for q in every()]
        shell.table([row | {"params": ", ".join(row["params"])} if not shell.as_json else row for row in rows],
                    ["question", "sentence", "params"])  # fmt: skip
        return
    asked = find(name)
    params = [{"name": p.name, "kind": p.kind, "default": p.default, "meaning": p.meaning} for p in asked.params]
    row = {"question": asked.name, "title": asked.title, "sentence": asked.sentence, "params": params, "sql": asked.sql}
    lines = [f"{p['name']} ({p['kind']}, default {p['default']}): {p['meaning']}" for p in params]
    shell.row(row, "\n".join([asked.title, asked.sentence, "", *lines, "", asked.sql.strip()]))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--param")
    return name, value


def _write(shell: Shell, answer: Answer | RecordBatchReader, how: dict[str, Any]) -> None:
    from harmonywatch.analysis.formats import write

    form: Any = how["form"] or ("json" if shell.as_json else "table")
    if form == "parquet" and how["out"] is None and sys.stdout.isatty():
        raise click.UsageError("parquet is no text: add --out FILE")
    try:
        if how["out"] is None:
            write(answer, form, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with Path(how["out"]).open("wb") as file:
                rows = write(answer, form, file)
            shell.say(f"{how['out']}: {rows} rows")
    finally:
        answer.close()


def _tell_cost(shell: Shell, cost: Cost) -> None:
    days = {
        table: [span.first and span.first.isoformat(), span.last and span.last.isoformat()] for table, span in cost.days
    }
    text = "; ".join(f"{table}: {first or 'the beginning'} to {last or 'now'}" for table, (first, last) in days.items())
    shell.row(
        {"days": days, "files": cost.files, "bytes": cost.bytes},
        f"{cost.files} files, {cost.bytes:,} bytes ({text or 'no table'})",
    )
