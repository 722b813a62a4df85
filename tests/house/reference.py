"""The generated parts of docs/reference: settings, metrics, command line, views, topics.

    .venv/bin/python tests/house/reference.py          writes them anew

A page holds `<!-- generated: NAME -->` ... `<!-- end -->`; what stands between is made here from the code, so that a page
cannot say anything else than the code does. What stands around is written by hand. The test compares and does not write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import click
import duckdb
import msgspec
from housemap import ROOT

from harmonywatch.analysis.contract import TABLE_OF_VIEW, TIME_COLUMNS
from harmonywatch.analysis.views import lake_over, sql_of, views_over
from harmonywatch.archive.schema import TABLES
from harmonywatch.cli import COMMANDS
from harmonywatch.cli import main as command_line
from harmonywatch.report import topics, words
from harmonywatch.report.record import ReportRecord
from harmonywatch.report.schema import record_schema
from harmonywatch.settings import PREFIX, Settings, describe, flat
from harmonywatch.telemetry import Telemetry

REFERENCE = ROOT / "docs" / "reference"
_GENERATED = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def expected(page: str) -> str:
    """The page with its generated parts as they should be."""
    return _GENERATED.sub(lambda found: found[1] + "\n" + PARTS[found[2]]().strip() + "\n\n" + found[3], page)


def names(page: str) -> list[str]:
    """Which generated parts a page holds."""
    return [found[2] for found in _GENERATED.finditer(page)]


def settings() -> str:
    lines = ["| setting | default | variable | meaning |", "|---|---|---|---|"]
    defaults = flat(Settings())
    for key, meaning in describe().items():
        variable = PREFIX + key.upper().replace(".", "__")
        lines.append(f"| `{key}` | {_shown(defaults[key])} | `{variable}` | {meaning} |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if value == "":
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


def metrics() -> str:
    """One row a metric, as Prometheus sees it."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in vars(Telemetry("reference")).values():
        name = getattr(metric, "_name", None)
        if not isinstance(name, str):
            continue
        kind = type(metric).__name__.lower()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
        shown = f"{name}_total" if kind == "counter" else name
        lines.append(f"| `{shown}` | {kind} | {labels} | {metric._documentation} |")
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that there is, groups and their commands, by its full name."""
    context = click.Context(command_line, info_name="harmonywatch")
    for name in COMMANDS:
        command = command_line.get_command(context, name)
        assert command is not None
        yield from _nested(name, command)


def _nested(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for inner in command.commands:
            yield from _nested(f"{name} {inner}", command.commands[inner])


def _help_of(command: click.Command, context: click.Context) -> str:
    """Without the line about the help itself: click remembers how it was spelled for whoever asked first."""
    lines = command.get_help(context).rstrip().splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("-h, --help", "--help ")))


def command_pages() -> str:
    blocks = []
    for name, command in commands():
        context = click.Context(
            command,
            info_name=f"harmonywatch {name}",
            max_content_width=110,
            terminal_width=110,
            help_option_names=command_line.context_settings["help_option_names"],
        )
        if isinstance(command, click.Group) and not command.invoke_without_command:
            blocks.append(f"## {name}\n\n{(command.help or '').strip()}")
        else:
            level = "###" if " " in name else "##"
            blocks.append(f"{level} {name}\n\n```text\n{_help_of(command, context)}\n```")
    return "\n\n".join(blocks)


def views() -> str:
    """The columns of each view, asked of the engine itself over empty tables."""
    engine = duckdb.connect()
    engine.execute("SET TimeZone = 'UTC'")
    for table, schema in TABLES.items():
        engine.register("empty", schema.empty_table())
        engine.execute(f"CREATE TABLE typed_{table} AS SELECT * FROM empty")  # noqa: S608
        engine.unregister("empty")
        engine.execute(lake_over(table, schema.names, []))
        for statement in views_over(table):
            engine.execute(statement)
    blocks = []
    for view in TABLE_OF_VIEW:
        rows = engine.execute(f"DESCRIBE {view}").fetchall()
        table = "\n".join(f"| `{name}` | `{kind}` |" for name, kind, *_ in rows)
        sentence = " ".join(line[3:] for line in sql_of(view).splitlines() if line.startswith("-- "))
        pruned = " and ".join(f"`{column}`" for column in TIME_COLUMNS[view])
        days = f"Filters on {pruned} read only the days they name."
        blocks.append(f"## {view}\n\n{sentence}\n\n{days}\n\n| column | type |\n|---|---|\n{table}")
    engine.close()
    return "\n\n".join(blocks)


_FORMS: dict[str, type[msgspec.Struct]] = {
    topics.REPORTS: ReportRecord,
    topics.ALERTS: topics.AlertRecord,
    topics.REJECTS: topics.RejectRecord,
    topics.EVENTS: topics.EventRecord,
    topics.DELIVERIES: topics.DeliveryRecord,
}


def topic_tables() -> str:
    schemas = record_schema()
    blocks = []
    for prefix, form in _FORMS.items():
        readers = [group for group, kinds in topics.DURABLE_GROUPS.items() if prefix in kinds]
        told = f"Durable groups: {', '.join(f'`{group}`' for group in readers) or 'none'}."
        members: dict[str, Any] = schemas[prefix.removesuffix(".")]["properties"]
        rows = "\n".join(
            f"| `{field.encode_name}` | {_type(members[field.encode_name])} | {'yes' if field.required else 'no'} |"
            for field in msgspec.structs.fields(form)
        )
        blocks.append(f"## {prefix}FORCE\n\n{told}\n\n| member | type | always there |\n|---|---|---|\n{rows}")
    return "\n\n".join(blocks)


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    return str(schema.get("type") or schema.get("$ref", "any").rpartition("/")[2])


def refusals() -> str:
    lines = ["| code | meaning |", "|---|---|"]
    return "\n".join(lines + [f"| `{code}` | {meaning} |" for code, meaning in words.REFUSAL_CODES.items()])


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metrics,
    "commands": command_pages,
    "views": views,
    "topics": topic_tables,
    "refusals": refusals,
}


def write() -> None:
    """Bring every page up to date."""
    for path in sorted(REFERENCE.glob("*.md")):
        page = path.read_text("utf-8")
        wanted = expected(page)
        if wanted != page:
            path.write_text(wanted, "utf-8")
            click.echo(f"{path.relative_to(ROOT)} written anew")


if __name__ == "__main__":
    write()
