"""For who runs it: status, doctor, settings, schemas."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import msgspec

from harmonywatch import assemble
from harmonywatch.cli.frame import EXIT_NOT_WELL, Shell, common, force_option, reading

LAG_COLUMNS = ("force", "topic", "group", "per_s", "records", "lag", "lag_s")
MARKS = {"fine": "ok  ", "warning": "warn", "broken": "FAIL"}


@click.command()
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Over which the rates are measured.")
@force_option("Only this force.")
@reading
def status(shell: Shell, seconds: float, force: str | None) -> None:
    """Rates, lag in records and seconds, freshness of the lake, rejects, and which service is ready.

    With --force also what the force used today and this month (UTC): reports received, by the moment of receipt and as far
    as the lake has them, those sent again too; the bytes that they take in the lake; questions asked (query and ask).

    \b
    harmonywatch status
    harmonywatch status --json --force north
    """
    from harmonywatch.operations import lags, standing

    for service, health in assemble.health_of_services(shell.settings).items():
        row = {"service": service, "ready": health.works, "status": health.status, "reasons": health.reasons}
        shell.row(row, f"{service:10} {health}")
    with assemble.opened_stream(shell.settings, force) as stream:
        found = lags(stream, assemble.CLOCK, seconds, force)
        rows = [msgspec.to_builtins(lag) for lag in found if shell.as_json or not lag.trouble]
        shell.say("")
        shell.table(
            rows, LAG_COLUMNS, "no force yet: harmonywatch force add NAME" if not found else "nothing can be told"
        )
        for trouble in dict.fromkeys(lag.trouble for lag in found if lag.trouble):
            shell.say(trouble)
        shell.say("")
        for each in standing(stream, assemble.open_lake(shell.settings), assemble.CLOCK, force):
            shell.row(
                msgspec.to_builtins(each),
                f"{each.force}: {each.reports:,} reports accepted, {each.rejects:,} refused; lake {each.lake_bytes:,} bytes, "
                + ("empty" if each.freshness_s is None else f"newest report {each.freshness_s:.0f} s old"),
            )
    if force is not None:
        _used(shell, force)


def _used(shell: Shell, force: str) -> None:
    from harmonywatch.operations import usage

    shell.say("")
    for each in usage(shell.settings, shell.actor, assemble.CLOCK, force):
        told = f"{each.reports:,} reports received, {each.lake_bytes:,} bytes in the lake, {each.queries:,} questions"
        shell.row(msgspec.to_builtins(each), f"{each.force}, {each.span} (since {each.since[:10]}): {told}")


@click.command()
@reading
def doctor(shell: Shell) -> None:
    """Is this machine and folder fit to run? Exit status 1 if something is broken.

    \b
    harmonywatch doctor
    """
    from harmonywatch.operations import examine

    broken = False
    for finding in examine(shell.settings):
        broken = broken or finding.verdict == "broken"
        shell.row(msgspec.to_builtins(finding), f"{MARKS[finding.verdict]}  {finding.what}: {finding.told}")
    sys.exit(EXIT_NOT_WELL if broken else 0)


@click.group()
def config() -> None:
    """Settings: defaults < DATA/harmonywatch.toml < environment (HARMONYWATCH_GATEWAY__PORT=...) < flags."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Accepted for habit's sake: the origin is always shown.")
@common
def config_show(shell: Shell, origin: bool) -> None:  # noqa: ARG001
    """Every setting with its value, where it came from, and what it means."""
    from harmonywatch.settings import describe, flat

    meanings = describe()
    rows: list[dict[str, Any]] = [
        {"key": key, "value": value, "origin": shell.origins.get(key, "default"), "meaning": meanings[key]}
        for key, value in flat(shell.settings).items()
    ]
    shell.table(rows, ["key", "value", "origin", "meaning"])


@click.command()
@click.argument("name", required=False, default="report")
@common
def schema(shell: Shell, name: str) -> None:
    """JSON Schema of what a watcher sends; or, by NAME, of a topic's records (reports, alerts, rejects, ...).

    \b
    harmonywatch schema > report.schema.json
    harmonywatch schema alerts
    """
    from harmonywatch.report.schema import json_schema, record_schema

    every = {"report": json_schema(), **record_schema()}
    if name not in every:
        raise click.UsageError(f"no schema {name!r}{assemble.near(name, list(every))}; there are {', '.join(every)}")
    click.echo(json.dumps(every[name], indent=None if shell.as_json else 2, ensure_ascii=False))
