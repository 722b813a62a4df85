"""The lake proved and tidied; rejects looked at and sent again."""

from __future__ import annotations

import sys

import click
import msgspec

from harmonywatch import assemble
from harmonywatch.cli.frame import EXIT_NOT_WELL, Shell, force_option, reading

VERIFY_COLUMNS = ("force", "accepted", "stored", "missing", "repeated", "repeats", "lag")
REJECT_COLUMNS = ("reject_id", "received_at", "sender", "code", "pointer", "reason")


@click.group()
def lake() -> None:
    """The archive: prove that it is complete, keep it tidy."""


@lake.command("verify")
@click.option("--everything", is_flag=True, help="Read again also the days that an earlier proof found clean.")
@force_option("Only this force.")
@reading
def verify(shell: Shell, everything: bool, force: str | None) -> None:
    """Prove for each force that every accepted report is stored exactly once. Exit status 1 if one is missing or repeated.

    Day by day: of a day that was clean before, and has the same files since, only the presence of the files is checked.

    `lag`: on the stream, not committed yet (no fault). Alerts and rejects are proved alike; what is wrong there is told on
    standard error and counts too.

    \b
    harmonywatch lake verify --json
    """
    rows, clean = [], True
    for verdict in assemble.verdicts(shell.settings, shell.actor, force, everything):
        clean = clean and verdict.clean
        if verdict.table == "reports":
            rows.append({column: getattr(verdict, column) for column in VERIFY_COLUMNS})
        elif not verdict.clean:
            click.echo(
                f"{verdict.force}, {verdict.table}: {verdict.missing} missing, {verdict.repeated} repeated", err=True
            )
        if verdict.unreadable:
            click.echo(f"{verdict.force}, {verdict.table}: {verdict.unreadable} file(s) cannot be read", err=True)
    shell.table(rows, VERIFY_COLUMNS, "no force yet")
    sys.exit(0 if clean else EXIT_NOT_WELL)


@lake.command("compact")
@click.option("--vacuum", is_flag=True, help="Also delete files out of use for longer than archive.vacuum_s.")
@force_option("Only this force.")
@reading
def compact(shell: Shell, vacuum: bool, force: str | None) -> None:
    """Merge small files now, also while the archiver runs (it does so by itself now and then)."""
    rows = (msgspec.to_builtins(done) for done in assemble.compacted(shell.settings, shell.actor, force, vacuum))
    columns = ["force", "table", "files_before", "files_after", "bytes_before", "bytes_after", "deleted"]
    shell.table(rows, columns, "nothing to merge")


@click.group()
def rejects() -> None:
    """Refused reports. Their bytes are kept, sealed; here their owner reads them and sends them again."""


@rejects.command("list")
@click.option("--since", default=None, metavar="TIME", help="Received at or after; RFC 3339 with a zone.")
@force_option()
@reading
def rejects_list(shell: Shell, since: str | None, force: str | None) -> None:
    """Every reject with its reason, in the lake or still on the stream."""
    with assemble.opened_rejects(shell.settings, shell.actor, force, assemble.moment(since)) as (_, found):
        shell.table((reject.facts for reject in found), REJECT_COLUMNS, "no reject")


@rejects.command("show")
@click.argument("reject_id")
@force_option()
@reading
def rejects_show(shell: Shell, reject_id: str, force: str | None) -> None:
    """A reject's bytes, exactly as they came, on standard output (with --json: facts and base64). It is in the audit."""
    from base64 import b64encode

    reject = assemble.one_reject(shell.settings, shell.actor, force, reject_id)
    if shell.as_json:
        shell.row(reject.facts | {"bytes": b64encode(reject.bytes).decode()})
    else:
        sys.stdout.buffer.write(reject.bytes)
        sys.stdout.buffer.flush()


@rejects.command("redrive")
@click.argument("reject_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every reject of the force.")
@click.option("--since", default=None, metavar="TIME", help="With --all: received at or after.")
@force_option()
@reading
def rejects_redrive(
    shell: Shell, reject_ids: tuple[str, ...], every: bool, since: str | None, force: str | None
) -> None:
    """Judge rejects again by today's reading; what is a report now goes on the stream. The reject itself stays. Exit status
    1 if some are refused again.

    \b
    harmonywatch rejects redrive r1a2b3c4 --force north
    harmonywatch rejects redrive --all --since 2026-11-23T00:00:00Z
    """
    if not every and not reject_ids:
        raise click.UsageError("name rejects, or say --all")
    rows = list(
        assemble.redriven(
            shell.settings, shell.actor, force, None if every else set(reject_ids), assemble.moment(since)
        )
    )
    shell.table(rows, ["reject_id", "status", "report_id", "pointer", "reason"], "no such reject")
    sys.exit(EXIT_NOT_WELL if any(row["status"] == "refused" for row in rows) else 0)
